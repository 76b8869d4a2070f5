//! `eif build`: an image of parts, or of a directory.

use std::io::Write;
use std::path::Path;

use eif::ramdisks::{self, Tree};
use eif::signing::Request;
use eif::{FLAG_AARCH64, Metadata, Writer};
use serde_json::{Map, Value};

use super::sign;
use crate::Answer;
use crate::cli::BuildArgs;
use crate::error::Error;
use crate::files::{self, Output};

pub(crate) fn run(arguments: &BuildArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let mut writer =
        Writer::new(files::read(&arguments.kernel)?, &arguments.cmdline).metadata(metadata(arguments)?.to_json());
    if arguments.aarch64 {
        writer = writer.flags(FLAG_AARCH64);
    }
    for ramdisk in ramdisks(arguments)? {
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
    sign::report(&measured, json, output)?;
    Ok(Answer::Yes)
}

/// The ramdisks as they are given, or those of init and of the application's directory.
fn ramdisks(arguments: &BuildArgs) -> Result<Vec<Vec<u8>>, Error> {
    let (Some(tree), Some(init)) = (&arguments.tree, &arguments.init) else {
        return arguments.ramdisk.iter().map(|path| files::read(path)).collect();
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
    let files = Tree::read(tree).map_err(failed(tree))?;
    let application = ramdisks::application_ramdisk(&files, &arguments.command, &arguments.environment, time)
        .map_err(failed(tree))?;
    Ok(vec![boot, application])
}

fn metadata(arguments: &BuildArgs) -> Result<Metadata, Error> {
    let stem = arguments.output.file_stem().and_then(|stem| stem.to_str()).unwrap_or("enclave");
    let mut metadata = Metadata::new(arguments.name.as_deref().unwrap_or(stem), &arguments.image_version);
    metadata.build_metadata.build_time = eif::rfc3339(u64::from(epoch()?));
    metadata.build_metadata.kernel_version.clone_from(&arguments.kernel_version);
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
