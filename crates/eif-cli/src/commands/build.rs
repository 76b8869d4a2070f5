//! `eif build`: an image of parts, of a directory, or of a container image.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use eif::containers::{Container, Overrides, Platform, Spool, Wanted};
use eif::ramdisks::{self, Tree};
use eif::signing::{Request, SigningKey};
use eif::{Builder, FLAG_AARCH64, Metadata};
use serde_json::{Map, Value};

use super::sign;
use crate::Answer;
use crate::cli::BuildArgs;
use crate::error::Error;
use crate::files::{self, Output};
use crate::output;
use crate::progress::{Meter, Shown, ShownOutput};

pub(crate) fn run(arguments: &BuildArgs, json: bool, answer: &mut impl Write) -> Result<Answer, Error> {
    // What may be missing is looked for before the long work.
    let signer = signer(arguments)?;
    let time = epoch()?;
    let kernel = files::open(&arguments.kernel, json)?;
    let ramdisks = Ramdisks::of(arguments, json)?;
    let metadata = metadata(arguments, ramdisks.docker_info(), time)?;
    let path = &arguments.output;
    let failed = |source| Error::Write { path: path.clone(), source };
    let flags = if arguments.aarch64 { FLAG_AARCH64 } else { 0 };

    let mut written = Output::create(path)?;
    let image =
        Builder::start(&mut written.file, flags, kernel, &arguments.cmdline, &metadata.to_json()).map_err(failed)?;
    let image = ramdisks.add_to(image, path, time, json)?.measure();
    let mut measured = *image.measurements();
    let mut signature = None;
    if let Some(Signer { certificate, certificate_path, key }) = &signer {
        signature = Some(Request::new(&measured.pcr0, certificate)?.sign(key)?);
        measured = sign::with_certificate(measured, certificate, certificate_path)?;
    }
    image.finish(signature.as_deref()).map_err(failed)?;
    written.finish()?;
    sign::report(&measured, json, answer)?;
    Ok(Answer::Yes)
}

/// What an image is signed with.
struct Signer {
    certificate: Vec<u8>,
    certificate_path: PathBuf,
    key: SigningKey,
}

fn signer(arguments: &BuildArgs) -> Result<Option<Signer>, Error> {
    let (Some(certificate), Some(key)) = (&arguments.signing_certificate, &arguments.private_key) else {
        return Ok(None);
    };
    Ok(Some(Signer {
        certificate: sign::read_certificate(certificate)?,
        certificate_path: certificate.clone(),
        key: sign::read_key(key)?,
    }))
}

/// Where the ramdisks come from. The large parts are read when they are written.
enum Ramdisks {
    /// As they are given.
    Files(Vec<Shown>),
    /// Made of init and of an application.
    Made(Box<Made>),
}

struct Made {
    init_path: PathBuf,
    init: Vec<u8>,
    modules: Vec<(String, Vec<u8>)>,
    application: Application,
}

struct Application {
    path: PathBuf,
    tree: Tree,
    command: Vec<String>,
    environment: Vec<String>,
    docker_info: Option<Value>,
}

impl Ramdisks {
    fn of(arguments: &BuildArgs, json: bool) -> Result<Self, Error> {
        let Some(init_path) = &arguments.init else {
            let files = arguments.ramdisk.iter().map(|path| files::open(path, json));
            return Ok(Self::Files(files.collect::<Result<_, Error>>()?));
        };
        let mut modules = Vec::new();
        for path in &arguments.module {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::Name { path: path.clone() })?;
            modules.push((name.to_owned(), files::read(path)?));
        }
        let init = files::read(init_path)?;
        let application = match (&arguments.container, &arguments.tree) {
            (Some(container), _) => read_container(container, arguments, json)?,
            (None, directory) => {
                let path = directory.as_ref().unwrap_or(init_path).clone();
                let tree = directory.as_deref().map_or(Ok(Tree::default()), Tree::read);
                Application {
                    tree: tree.map_err(|source| Error::Ramdisk { path: path.clone(), source })?,
                    path,
                    command: arguments.command.clone(),
                    environment: arguments.environment.clone(),
                    docker_info: None,
                }
            }
        };
        Ok(Self::Made(Box::new(Made { init_path: init_path.clone(), init, modules, application })))
    }

    fn docker_info(&self) -> Option<Value> {
        match self {
            Self::Files(_) => None,
            Self::Made(made) => made.application.docker_info.clone(),
        }
    }

    fn add_to<W: Write + Seek>(
        self,
        mut image: Builder<W>,
        output: &Path,
        time: u32,
        json: bool,
    ) -> Result<Builder<W>, Error> {
        match self {
            Self::Files(files) => {
                for ramdisk in files {
                    image =
                        image.ramdisk(ramdisk).map_err(|source| Error::Write { path: output.to_owned(), source })?;
                }
                Ok(image)
            }
            Self::Made(made) => {
                let Made { init_path, init, modules, application } = *made;
                let Application { path, tree, command, environment, docker_info: _ } = application;
                let failed = |path: PathBuf| move |source| Error::Ramdisk { path, source };
                image
                    .ramdisk_with(|output| ramdisks::boot_ramdisk(output, init, modules, time))
                    .map_err(failed(init_path))?
                    .ramdisk_with(|ramdisk| {
                        let mut shown = ShownOutput::new(ramdisk, &output.display().to_string(), json);
                        ramdisks::application_ramdisk(&mut shown, &tree, &command, &environment, time)
                    })
                    .map_err(failed(path))
            }
        }
    }
}

/// Reads a container image, and tells on standard error what an enclave will not do of what it asks for.
fn read_container(path: &Path, arguments: &BuildArgs, json: bool) -> Result<Application, Error> {
    let wanted = Wanted {
        platform: if arguments.aarch64 { Platform::Arm64 } else { Platform::Amd64 },
        name: arguments.image_name.clone(),
        limit: arguments.max_unpacked.saturating_mul(1 << 20),
    };
    let overrides = Overrides { command: arguments.command.clone(), environment: arguments.environment.clone() };
    let mut meter = Meter::new(&path.display().to_string(), None, json);
    let spool = Spool::in_file(files::nameless(&arguments.output)?).watched(move |kept| meter.set(kept));
    let Container { tree, command, environment, docker_info, remarks } =
        Container::read(path, &wanted, &overrides, spool)
            .map_err(|source| Error::Container { path: path.to_owned(), source })?;
    for remark in remarks {
        eprintln!("eif: warning: {}", output::plain(&remark));
    }
    Ok(Application { path: path.to_owned(), tree, command, environment, docker_info: Some(docker_info) })
}

fn metadata(arguments: &BuildArgs, docker_info: Option<Value>, time: u32) -> Result<Metadata, Error> {
    let stem = arguments.output.file_stem().and_then(|stem| stem.to_str()).unwrap_or("enclave");
    let mut metadata = Metadata::new(arguments.name.as_deref().unwrap_or(stem), &arguments.image_version);
    metadata.build_metadata.build_time = eif::rfc3339(u64::from(time));
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
