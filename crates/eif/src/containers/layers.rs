//! Layers, applied one over the other (image-spec, layer.md) to a tree, whose files' contents go into a spool.
//!
//! Every path is resolved within the tree: a link above a file leads where it leads inside the container, an absolute one from the
//! container's root, and `..` stops there. So no entry of the ramdisk lies below a link, through which the guest's kernel would
//! write outside `rootfs`.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use sha2::{Digest as _, Sha256, Sha512};
use tar::EntryType;
use thiserror::Error;

use super::store::hex;
use crate::compression::Compression;
use crate::contents::{Contents, Spool};
use crate::tree::{BLOCK, CHARACTER, DIRECTORY, FIFO, KIND, Node, REGULAR, SYMLINK, Tree};

/// More files than this are not unpacked.
const MOST_FILES: usize = 1 << 20;

/// The longest path; the kernel's PATH_MAX, less what is put before it.
const LONGEST_PATH: usize = 4000;

/// Links that are followed for one path, as in the kernel.
const MOST_LINKS: usize = 40;

/// What a whiteout's name starts with; the rest is the name of what is gone.
const WHITEOUT: &[u8] = b".wh.";

/// The name of the whiteout of all that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer cannot be applied.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The layer cannot be read or unpacked.
    #[error("it cannot be read or unpacked as a tar archive")]
    Read(#[from] io::Error),
    /// A path leads out of the container.
    #[error("\"{path}\" leads out of the container's root")]
    Outside {
        /// The path as it stands in the layer.
        path: String,
    },
    /// A path cannot be one.
    #[error("\"{path}\" cannot be the path of a file: {reason}")]
    Path {
        /// The path as it stands in the layer, or its start.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A path goes through links without end.
    #[error("\"{path}\" goes through more than {MOST_LINKS} symbolic links")]
    Loop {
        /// The path as it stands in the layer.
        path: String,
    },
    /// A file lies below something that is no directory.
    #[error("\"{path}\" lies below \"{above}\", which is no directory")]
    BelowFile {
        /// The path as it stands in the layer.
        path: String,
        /// What it lies below.
        above: String,
    },
    /// A hard link's target is not there.
    #[error("\"{path}\" is a hard link of \"{target}\", which is no file")]
    HardLink {
        /// The path as it stands in the layer.
        path: String,
        /// The target as it stands in the layer.
        target: String,
    },
    /// An entry is of a kind that is no file.
    #[error("\"{path}\" is of tar's type '{kind}', which is not known")]
    Kind {
        /// The path as it stands in the layer.
        path: String,
        /// The type's character.
        kind: char,
    },
    /// There is too much.
    #[error("the image unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// There are too many files.
    #[error("the image has more than {MOST_FILES} files")]
    TooMany,
}

/// The layers so far.
#[derive(Debug)]
pub(super) struct Layers {
    tree: Tree,
    limit: u64,
    /// How many bytes were unpacked, whatever became of them.
    unpacked: u64,
    entries: usize,
    spool: Spool,
}

fn shown(path: &[u8]) -> String {
    let start = &path[..path.len().min(200)];
    start.escape_ascii().to_string()
}

impl Layers {
    pub(super) fn new(limit: u64, spool: Spool) -> Self {
        Self { tree: Tree::default(), limit, unpacked: 0, entries: 0, spool }
    }

    pub(super) fn finish(self) -> Tree {
        self.tree
    }

    /// Applies a layer, compressed or not, and returns the digest of what it unpacks to, by the algorithm of the one that is
    /// expected.
    pub(super) fn apply(&mut self, mut packed: impl BufRead, expected: &str) -> Result<String, LayerError> {
        let compression = Compression::of(packed.fill_buf()?);
        let unpacked: Box<dyn Read + '_> = match compression {
            None => Box::new(packed),
            Some(compression) => compression.unpack_all(packed),
        };
        // An archive may be padded without end, too.
        let limit = self.limit.saturating_sub(self.unpacked);
        let mut hashed = Hashed::new(unpacked, expected.starts_with("sha512:"), limit);
        let applied = self.apply_archive(&mut hashed);
        if hashed.left == 0 {
            return Err(LayerError::TooLarge { limit: self.limit });
        }
        applied?;
        // What is behind the archive's end belongs to the digest.
        io::copy(&mut hashed, &mut io::sink())?;
        if hashed.left == 0 {
            return Err(LayerError::TooLarge { limit: self.limit });
        }
        self.unpacked += (limit + 1).saturating_sub(hashed.left);
        Ok(hashed.finish())
    }

    fn apply_archive(&mut self, unpacked: &mut impl Read) -> Result<(), LayerError> {
        let mut archive = tar::Archive::new(unpacked);
        let mut added = BTreeSet::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            self.entries += 1;
            if self.entries > MOST_FILES {
                return Err(LayerError::TooMany);
            }
            let path = entry.path_bytes().into_owned();
            let (parent, name) = self.resolve(&path)?;
            let Some(name) = name else {
                // The root itself, whose attributes are the ramdisk's.
                continue;
            };
            if name == OPAQUE {
                self.remove(&parent, false, &added);
                continue;
            }
            if let Some(gone) = name.strip_prefix(WHITEOUT) {
                if !gone.starts_with(WHITEOUT) {
                    self.remove(&join(&parent, component(&path, gone)?), true, &added);
                }
                continue;
            }
            let node = self.node(&path, &mut entry)?;
            let Some(node) = node else { continue };
            let place = join(&parent, &name);
            self.put(&place, node);
            added.insert(place);
        }
        Ok(())
    }

    /// What an entry is; nothing for one that only says something of others.
    fn node<R: Read>(&mut self, path: &[u8], entry: &mut tar::Entry<'_, R>) -> Result<Option<Node>, LayerError> {
        let header = entry.header();
        let kind = header.entry_type();
        // Some builders leave numbers out that they have nothing to say in.
        let blank = |field: &[u8]| field.iter().all(|byte| matches!(byte, 0 | b' '));
        let old = header.as_old();
        let permissions = if blank(&old.mode) { 0 } else { header.mode()? & 0o7777 };
        let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let uid = if blank(&old.uid) { 0 } else { number(header.uid()?) };
        let gid = if blank(&old.gid) { 0 } else { number(header.gid()?) };
        let owner = (uid, gid);
        let device = || -> io::Result<(u32, u32)> {
            Ok((header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default()))
        };
        let target =
            |entry: &tar::Entry<'_, R>| entry.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default();
        let node = |kind: u32, device: (u32, u32), data: Contents| {
            Ok(Some(Node { mode: kind | permissions, owner, device, data: Rc::new(data) }))
        };
        match kind {
            EntryType::Directory => node(DIRECTORY, (0, 0), Contents::default()),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                // The size of a sparse file is a claim; what it costs is what is read.
                let limit = self.limit.saturating_sub(self.unpacked);
                let data = self.spool.keep(entry.take(limit.saturating_add(1)))?;
                if data.size() > limit {
                    return Err(LayerError::TooLarge { limit: self.limit });
                }
                if kind == EntryType::GNUSparse {
                    // Its holes are no part of the archive, by whose size all else is counted.
                    self.unpacked += data.size();
                }
                node(REGULAR, (0, 0), data)
            }
            EntryType::Symlink => node(SYMLINK, (0, 0), Contents::Bytes(target(entry))),
            EntryType::Char => node(CHARACTER, device()?, Contents::default()),
            EntryType::Block => node(BLOCK, device()?, Contents::default()),
            EntryType::Fifo => node(FIFO, (0, 0), Contents::default()),
            EntryType::Link => {
                let target = target(entry);
                let no_file = || LayerError::HardLink { path: shown(path), target: shown(&target) };
                let (parent, name) = self.resolve(&target)?;
                let node = name.and_then(|name| self.tree.0.get(&join(&parent, &name))).ok_or_else(no_file)?;
                if node.is(DIRECTORY) { Err(no_file()) } else { Ok(Some(node.clone())) }
            }
            EntryType::XGlobalHeader => Ok(None),
            other => Err(LayerError::Kind { path: shown(path), kind: char::from(other.as_byte()) }),
        }
    }

    /// Where a path lies in the tree: the directory, through all links, and the name in it, which is not followed. No name is the
    /// root itself.
    fn resolve(&self, path: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), LayerError> {
        if path.len() > LONGEST_PATH {
            return Err(LayerError::Path { path: shown(path), reason: "it is too long" });
        }
        let parts: Vec<&[u8]> =
            path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
        if parts.contains(&&b".."[..]) {
            return Err(LayerError::Outside { path: shown(path) });
        }
        let Some((name, above)) = parts.split_last() else { return Ok((Vec::new(), None)) };
        let name = component(path, name)?;
        let mut links = 0;
        // What is still to be walked, the next last.
        let mut left: Vec<Vec<u8>> = above.iter().rev().map(|part| part.to_vec()).collect();
        let mut place: Vec<u8> = Vec::new();
        while let Some(part) = left.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    place.truncate(place.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                    continue;
                }
                _ => (),
            }
            let next = join(&place, &part);
            match self.tree.0.get(&next) {
                Some(node) if node.is(SYMLINK) => {
                    links += 1;
                    if links > MOST_LINKS || left.len() > LONGEST_PATH {
                        return Err(LayerError::Loop { path: shown(path) });
                    }
                    let target = node.data.in_memory();
                    if target.starts_with(b"/") {
                        place.clear();
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(node) if !node.is(DIRECTORY) => {
                    return Err(LayerError::BelowFile { path: shown(path), above: shown(&next) });
                }
                _ => place = next,
            }
            if place.len() > LONGEST_PATH {
                return Err(LayerError::Path { path: shown(path), reason: "it is too long" });
            }
        }
        Ok((place, Some(name.to_vec())))
    }

    /// Puts something in its place, with directories above it, which some builders leave out.
    fn put(&mut self, place: &[u8], node: Node) {
        for (position, _) in place.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            self.tree.0.entry(place[..position].to_vec()).or_insert(Node::empty(DIRECTORY | 0o755));
        }
        match self.tree.0.get_mut(place) {
            // What lower layers have in a directory stays in it.
            Some(old) if old.is(DIRECTORY) && node.is(DIRECTORY) => *old = node,
            Some(old) => {
                let was_directory = old.mode & KIND == DIRECTORY;
                *old = node;
                if was_directory {
                    self.remove(place, false, &BTreeSet::new());
                }
            }
            None => {
                self.tree.0.insert(place.to_vec(), node);
            }
        }
    }

    /// Removes what is below a path, and what is there itself if that is meant, but for what this layer has added.
    fn remove(&mut self, place: &[u8], itself: bool, added: &BTreeSet<Vec<u8>>) {
        let below = if place.is_empty() { Vec::new() } else { [place, b"/"].concat() };
        let gone: Vec<Vec<u8>> = self
            .tree
            .0
            .range(below.clone()..)
            .take_while(|(path, _)| path.starts_with(&below))
            .map(|(path, _)| path.clone())
            .chain(itself.then(|| place.to_vec()))
            .filter(|path| !added.contains(path))
            .collect();
        for path in gone {
            let below = [&path[..], b"/"].concat();
            // A directory with something of this layer's in it stays.
            if !added.range(below.clone()..).next().is_some_and(|path| path.starts_with(&below)) {
                self.tree.0.remove(&path);
            }
        }
    }
}

/// A name that can stand in a directory.
fn component<'a>(path: &[u8], name: &'a [u8]) -> Result<&'a [u8], LayerError> {
    let reason = match name {
        b"" | b"." | b".." => "it has no name",
        _ if name.contains(&0) => "it holds a zero byte",
        _ if name.contains(&b'/') => "its name holds a slash",
        _ if name.len() > 255 => "its name has more than 255 bytes",
        _ => return Ok(name),
    };
    Err(LayerError::Path { path: shown(path), reason })
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// A reader that hashes what passes, and ends one byte after a limit.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    /// How much may still pass; none left means that there was more.
    left: u64,
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl<R: Read> Hashed<R> {
    fn new(inner: R, long: bool, limit: u64) -> Self {
        let hasher = if long { Hasher::Sha512(Sha512::new()) } else { Hasher::Sha256(Sha256::new()) };
        Self { inner, hasher, left: limit.saturating_add(1) }
    }

    fn finish(self) -> String {
        match self.hasher {
            Hasher::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Hasher::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        }
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..wanted])?;
        self.left -= read as u64;
        match &mut self.hasher {
            Hasher::Sha256(hasher) => hasher.update(&buffer[..read]),
            Hasher::Sha512(hasher) => hasher.update(&buffer[..read]),
        }
        Ok(read)
    }
}
