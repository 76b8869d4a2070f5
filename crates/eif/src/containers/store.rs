//! Where the parts of a container image come from: a directory, or an archive of one, which is indexed and never unpacked.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256, Sha512};

use super::ContainerError;
use crate::compression::Compression;

/// JSON parts longer than this are not read.
const LONGEST_JSON: u64 = 4 << 20;

/// More entries than this are not indexed.
const MOST_PARTS: usize = 1 << 16;

/// A part of an image, and the digest that it should have, if something says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) digest: Option<String>,
}

impl Part {
    /// The blob of a digest, as an OCI layout names it.
    pub(super) fn blob(digest: &str) -> Result<Self, ContainerError> {
        let wrong = || ContainerError::Digest { found: digest.to_owned() };
        let (algorithm, hex) = digest.split_once(':').ok_or_else(wrong)?;
        let size = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(wrong()),
        };
        // Only what can be no path is made part of one.
        if hex.len() != size || !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Err(wrong());
        }
        Ok(Self { name: format!("blobs/{algorithm}/{hex}"), digest: Some(digest.to_owned()) })
    }
}

/// The files of an image.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory,
    Archive { file: RefCell<File>, index: HashMap<Vec<u8>, Found> },
}

#[derive(Debug, Clone)]
enum Found {
    Data {
        offset: u64,
        size: u64,
    },
    /// Older versions of Docker keep a layer that occurs twice as a symbolic link.
    Link(Vec<u8>),
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, ContainerError> {
        let failed = |source| ContainerError::Read { path: path.to_owned(), source };
        let place = if path.is_dir() {
            Place::Directory
        } else {
            let mut file = File::open(path).map_err(failed)?;
            let mut start = Vec::new();
            (&file).take(8).read_to_end(&mut start).map_err(failed)?;
            if Compression::of(&start).is_some() {
                return Err(ContainerError::Compressed { path: path.to_owned() });
            }
            file.rewind().map_err(failed)?;
            // What is no archive has neither of the two files that are looked for next.
            let index = index(&file).unwrap_or_default();
            Place::Archive { file: RefCell::new(file), index }
        };
        Ok(Self { path: path.to_owned(), place })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.place {
            Place::Directory => self.path.join(name).is_file(),
            Place::Archive { index, .. } => index.contains_key(name.as_bytes()),
        }
    }

    /// A JSON part, parsed, with its digest checked.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, part: &Part) -> Result<T, ContainerError> {
        let Part { name, digest } = part;
        let failed = |source| ContainerError::Part { name: name.clone(), source };
        let mut bytes = Vec::new();
        self.reader(name)?.take(LONGEST_JSON + 1).read_to_end(&mut bytes).map_err(failed)?;
        let wrong = |reason: String| ContainerError::Json { name: name.clone(), reason };
        if bytes.len() as u64 > LONGEST_JSON {
            return Err(wrong(format!("it has more than {LONGEST_JSON} bytes")));
        }
        if let Some(expected) = digest {
            let found = digest_like(expected, &bytes);
            if &found != expected {
                return Err(ContainerError::Damaged { name: name.clone(), found, expected: expected.clone() });
            }
        }
        serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
    }

    /// A layer. Its bytes are not held against the digest here, because what they unpack to is held against a digest too.
    pub(super) fn open_part(&self, part: &Part) -> Result<BufReader<Box<dyn Read + '_>>, ContainerError> {
        Ok(BufReader::with_capacity(128 << 10, self.reader(&part.name)?))
    }

    fn reader(&self, name: &str) -> Result<Box<dyn Read + '_>, ContainerError> {
        let missing = || ContainerError::Missing { name: name.to_owned() };
        match &self.place {
            // A manifest may name anything; what is not below the directory is not there.
            Place::Directory if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) => {
                Err(missing())
            }
            Place::Directory => match File::open(self.path.join(name)) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
                Err(source) => Err(ContainerError::Part { name: name.to_owned(), source }),
            },
            Place::Archive { file, index } => {
                let (offset, size) = resolve(index, name.as_bytes()).ok_or_else(missing)?;
                Ok(Box::new(Window { file, offset, left: size }))
            }
        }
    }
}

/// Where the data of a name is, through at most one link.
fn resolve(index: &HashMap<Vec<u8>, Found>, name: &[u8]) -> Option<(u64, u64)> {
    let target = match index.get(name)? {
        Found::Data { offset, size } => return Some((*offset, *size)),
        Found::Link(target) => target,
    };
    // `../ID/layer.tar`, from within a directory beside it.
    let directory = &name[..name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1)];
    let beside = target.strip_prefix(b"../").map(<[u8]>::to_vec).unwrap_or_else(|| [directory, target].concat());
    match index.get(&beside)? {
        Found::Data { offset, size } => Some((*offset, *size)),
        Found::Link(_) => None,
    }
}

fn index(file: &File) -> io::Result<HashMap<Vec<u8>, Found>> {
    let mut index = HashMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()?.take(MOST_PARTS) {
        let entry = entry?;
        let name = entry.path_bytes();
        let name = name.strip_prefix(b"./").unwrap_or(&name).to_vec();
        let kind = entry.header().entry_type();
        if kind.is_file() {
            index.insert(name, Found::Data { offset: entry.raw_file_position(), size: entry.size() });
        } else if let (tar::EntryType::Symlink | tar::EntryType::Link, Some(target)) = (kind, entry.link_name_bytes()) {
            index.insert(name, Found::Link(target.to_vec()));
        }
    }
    Ok(index)
}

/// A stretch of the archive.
struct Window<'a> {
    file: &'a RefCell<File>,
    offset: u64,
    left: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.offset))?;
        let read = file.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The digest of these bytes by the algorithm of another digest.
fn digest_like(other: &str, bytes: &[u8]) -> String {
    if other.starts_with("sha512:") {
        return format!("sha512:{}", hex(&Sha512::digest(bytes)));
    }
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
