//! Files in and out, with the path in every error.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::Error;
use crate::progress::Shown;

pub(crate) fn error(verb: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { verb, path: path.clone(), source }
}

/// Opens a file to read. How far it was read is told, unless the answer is JSON.
pub(crate) fn open(path: &Path, json: bool) -> Result<Shown, Error> {
    let file = File::open(path).map_err(error("open", path))?;
    if file.metadata().map_err(error("open", path))?.is_dir() {
        return Err(error("read", path)(io::ErrorKind::IsADirectory.into()));
    }
    Shown::new(file, path, json).map_err(error("open", path))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(error("read", path))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut output = Output::create(path)?;
    output.file.write_all(bytes).map_err(error("write", path))?;
    output.finish()
}

/// A file that appears at its path only when it is whole.
pub(crate) struct Output {
    pub(crate) file: NamedTempFile,
    path: PathBuf,
}

/// A file without a name, beside the one that will be written: where that has room, this has it too.
pub(crate) fn nameless(beside: &Path) -> Result<File, Error> {
    tempfile::tempfile_in(directory_of(beside)).map_err(unnamed).map_err(error("create", beside))
}

/// What the system said of a temporary file, without the file's name, which the user never gave.
fn unnamed(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path \"") {
        Some((said, _)) => io::Error::new(error.kind(), said.to_owned()),
        None => error,
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

impl Output {
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        // A temporary file is the user's alone by default; an image is nobody's secret.
        let everyone = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        let file = tempfile::Builder::new()
            .prefix(".eif-")
            .permissions(everyone)
            .tempfile_in(directory_of(path))
            .map_err(unnamed)
            .map_err(error("create", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(crate) fn finish(self) -> Result<(), Error> {
        let Self { file, path } = self;
        file.persist(&path).map_err(|failed| error("write", &path)(failed.error))?;
        Ok(())
    }
}
