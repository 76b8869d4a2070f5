//! `eif sign`: a signature at hand, or one that is made elsewhere in two steps.

use std::io::Write;
use std::path::Path;

use eif::nitro_cli::BuildInfo;
use eif::signing::{Certificate, CoseError, Request, SigningKey};
use eif::{Description, Measurements};
use serde::Serialize;

use crate::Answer;
use crate::cli::SignArgs;
use crate::commands::describe::measurements;
use crate::error::Error;
use crate::files::{self, Output};
use crate::output::{self, Table};

/// What is told about a signature that is to be made elsewhere.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Emitted<'a> {
    file: &'a Path,
    curve: String,
    digest: &'static str,
}

pub(crate) fn run(arguments: &SignArgs, json: bool, output: &mut impl Write) -> Result<Answer, Error> {
    let path = &arguments.file;
    let certificate = read_certificate(&arguments.signing_certificate)?;
    if let Some(emit) = &arguments.emit {
        let description = Description::read(files::open(path, json)?)
            .map_err(|source| Error::Image { path: path.clone(), source })?;
        let request = Request::new(&description.measurements.pcr0, &certificate)?;
        files::write(emit, &request.to_be_signed())?;
        let curve = request.curve();
        if json {
            output::json(output, &Emitted { file: emit, curve: curve.to_string(), digest: curve.digest() })?;
        } else {
            let mut table = Table::default();
            table.row("to be signed", emit.display());
            table.row("with", format!("ecdsa on {curve}, over the file's {}", curve.digest()));
            table.write(output)?;
        }
        return Ok(Answer::Yes);
    }
    let key = arguments.private_key.as_deref().map(read_key).transpose()?;
    let signature = arguments.signature.as_deref().map(files::read).transpose()?;
    let target = arguments.output.as_ref().unwrap_or(path);
    let image = files::open(path, json)?;
    let mut written = Output::create(target)?;
    let sign = |measured: &Measurements| -> Result<Vec<u8>, CoseError> {
        let request = Request::new(&measured.pcr0, &certificate)?;
        match (&key, &signature) {
            (Some(key), _) => request.sign(key),
            (None, signature) => request.finish(signature.as_deref().unwrap_or_default()),
        }
    };
    let measured = eif::resign(image, written.file.as_file_mut(), |measured| sign(measured).map_err(Into::into))
        .map_err(|source| Error::Resign { path: path.clone(), source })?;
    written.finish()?;
    report(&with_certificate(measured, &certificate, &arguments.signing_certificate)?, json, output)?;
    Ok(Answer::Yes)
}

/// Prints the measurements of an image that was made.
pub(crate) fn report(measured: &Measurements, json: bool, output: &mut impl Write) -> Result<(), Error> {
    if json {
        return output::json(output, &BuildInfo::from(*measured));
    }
    let mut table = Table::default();
    measurements(&mut table, measured);
    table.write(output)
}

/// The measurements with that of the certificate.
pub(crate) fn with_certificate(mut measured: Measurements, pem: &[u8], path: &Path) -> Result<Measurements, Error> {
    let pcr8 = eif::signing::pcr8(pem).map_err(|source| Error::Certificate { path: path.to_owned(), source })?;
    measured.pcr8 = Some(pcr8);
    Ok(measured)
}

/// Reads a certificate's PEM and makes sure that it is one.
pub(crate) fn read_certificate(path: &Path) -> Result<Vec<u8>, Error> {
    let pem = files::read(path)?;
    Certificate::from_pem(&pem).map_err(|source| Error::Certificate { path: path.to_owned(), source })?;
    Ok(pem)
}

pub(crate) fn read_key(path: &Path) -> Result<SigningKey, Error> {
    SigningKey::from_pem(&files::read(path)?).map_err(|source| Error::Key { path: path.to_owned(), source })
}
