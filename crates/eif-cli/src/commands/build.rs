//! `eif build`: an image of parts, of a directory, or of a container image.

use std::io::Write;
use std::path::Path;

use eif::containers::{Container, Overrides, Platform, Wanted};
use eif::ramdisks::{self, Tree};
use eif::signing::Request;
use eif::{FLAG_AARCH64, Metadata, Writer};
use serde_json::{Map, Value};

use super::sign;
use crate::Answer;
use crate::cli::BuildArgs;
use crate::error::Error;
use crate::files::{self, Output};
use crate::output;

pub(crate) fn run(arguments: &BuildArgs, json: bool, answer: &mut impl Write) -> Result<Answer, Error> {
    let Parts { ramdisks, docker_info } = parts(arguments)?;
    let metadata = metadata(arguments, docker_info)?;
    let mut writer = Writer::new(files::read(&arguments.kernel)?, &arguments.cmdline).metadata(metadata.to_json());
    if arguments.aarch64 {
        writer = writer.flags(FLAG_AARCH64);
    }
    for ramdisk in ramdisks {
        writer = writer.ramdisk(ramdisk);
    }
    let mut measured = writer.measurements();
    if let (Some(certificate_path), Some(key)) = (&arguments.signing_certificate, &arguments.private_key) {
        let certificate = sign::read_certificate(certificate_path)?;
        let section = Request::new(&measured.pcr0, &certificate)?.sign(&sign::read_key(key)?)?;
        writer = writer.signature(section);
        measured = sign::with_certificate(measured, &certificate, certificate_path)?;
    }
    let path = &arguments.output;
    let mut written = Output::create(path)?;
    writer.write_to(&mut written.file).map_err(|source| Error::Write { path: path.clone(), source })?;
    written.finish()?;
    sign::report(&measured, json, answer)?;
    Ok(Answer::Yes)
}

/// What an image is made of, beside its kernel.
struct Parts {
    ramdisks: Vec<Vec<u8>>,
    docker_info: Option<Value>,
}

/// The ramdisks as they are given, or those of init and of the application.
fn parts(arguments: &BuildArgs) -> Result<Parts, Error> {
    let Some(init) = &arguments.init else {
        let ramdisks = arguments.ramdisk.iter().map(|path| files::read(path)).collect::<Result<_, _>>()?;
        return Ok(Parts { ramdisks, docker_info: None });
    };
    let time = epoch()?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Ramdisk { path, source }
    };
    let mut modules = Vec::new();
    for path in &arguments.module {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| Error::Name { path: path.clone() })?;
        modules.push((name.to_owned(), files::read(path)?));
    }
    let boot = ramdisks::boot_ramdisk(files::read(init)?, modules, time).map_err(failed(init))?;
    let (tree, command, environment, docker_info, path);
    match (&arguments.container, &arguments.tree) {
        (Some(container), _) => {
            path = container;
            (tree, command, environment, docker_info) = read_container(container, arguments)?;
        }
        (None, directory) => {
            path = directory.as_ref().unwrap_or(init);
            tree = directory.as_deref().map_or(Ok(Tree::default()), Tree::read).map_err(failed(path))?;
            (command, environment) = (arguments.command.clone(), arguments.environment.clone());
            docker_info = None;
        }
    }
    let application = ramdisks::application_ramdisk(&tree, &command, &environment, time).map_err(failed(path))?;
    Ok(Parts { ramdisks: vec![boot, application], docker_info })
}

type Application = (Tree, Vec<String>, Vec<String>, Option<Value>);

/// Reads a container image, and tells on standard error what an enclave will not do of what it asks for.
fn read_container(path: &Path, arguments: &BuildArgs) -> Result<Application, Error> {
    let wanted = Wanted {
        platform: if arguments.aarch64 { Platform::Arm64 } else { Platform::Amd64 },
        name: arguments.image_name.clone(),
        limit: arguments.max_unpacked.saturating_mul(1 << 20),
    };
    let overrides = Overrides { command: arguments.command.clone(), environment: arguments.environment.clone() };
    let Container { tree, command, environment, docker_info, remarks } = Container::read(path, &wanted, &overrides)
        .map_err(|source| Error::Container { path: path.to_owned(), source })?;
    for remark in remarks {
        eprintln!("eif: warning: {}", output::plain(&remark));
    }
    Ok((tree, command, environment, Some(docker_info)))
}

fn metadata(arguments: &BuildArgs, docker_info: Option<Value>) -> Result<Metadata, Error> {
    let stem = arguments.output.file_stem().and_then(|stem| stem.to_str()).unwrap_or("enclave");
    let mut metadata = Metadata::new(arguments.name.as_deref().unwrap_or(stem), &arguments.image_version);
    metadata.build_metadata.build_time = eif::rfc3339(u64::from(epoch()?));
    metadata.build_metadata.kernel_version.clone_from(&arguments.kernel_version);
    if let Some(docker_info) = docker_info {
        metadata.docker_info = docker_info;
    }
    if let Some(path) = &arguments.metadata {
        metadata.custom_metadata = Value::Object(read_object(path)?);
    }
    Ok(metadata)
}

fn read_object(path: &Path) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(&files::read(path)?)
        .map_err(|error| Error::Json { path: path.to_owned(), reason: error.to_string() })
}

/// The time that stands in whatever is built: `SOURCE_DATE_EPOCH`, by default 0, so that the same input gives the same image.
fn epoch() -> Result<u32, Error> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => Ok(0),
        Ok(found) => found.trim().parse().map_err(|_| Error::Epoch { found }),
    }
}
