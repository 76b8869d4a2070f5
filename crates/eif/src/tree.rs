//! A tree of files on its way into a ramdisk: names and attributes in memory, contents where they are until it is packed.
//!
//! What is read from a directory is made portable: it belongs to root, and permissions are reduced to what git keeps of them, so
//! that the same files give the same bytes under any umask. What comes from elsewhere keeps owners and permissions.
//! Deliberately missing: sockets, and extended attributes, which a cpio archive cannot hold; nitro-cli leaves them out too.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::rc::Rc;

use crate::contents::Contents;
use crate::cpio::{Attributes, Writer};
use crate::ramdisks::RamdiskError;

pub(crate) const KIND: u32 = 0o170_000;
pub(crate) const DIRECTORY: u32 = 0o040_000;
pub(crate) const REGULAR: u32 = 0o100_000;
pub(crate) const SYMLINK: u32 = 0o120_000;
pub(crate) const CHARACTER: u32 = 0o020_000;
pub(crate) const BLOCK: u32 = 0o060_000;
pub(crate) const FIFO: u32 = 0o010_000;

/// One file of a tree. Names that share one [`Rc`] of data, and of nothing else, are hard links of one another.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Type and permissions, as in `stat`.
    pub(crate) mode: u32,
    /// Owner and group.
    pub(crate) owner: (u32, u32),
    /// For a device, its numbers.
    pub(crate) device: (u32, u32),
    /// A file's contents, or a symbolic link's target.
    pub(crate) data: Rc<Contents>,
}

impl Node {
    /// Something of root's without data.
    pub(crate) fn empty(mode: u32) -> Self {
        Self { mode, owner: (0, 0), device: (0, 0), data: Rc::default() }
    }

    pub(crate) fn is(&self, kind: u32) -> bool {
        self.mode & KIND == kind
    }
}

/// A tree of files, by path. Paths sort so that a directory comes before what is in it.
///
/// ```
/// use eif::ramdisks::Tree;
///
/// # let directory = tempfile::tempdir()?;
/// # std::fs::write(directory.path().join("motd"), "hello")?;
/// let tree = Tree::read(directory.path())?;
/// assert_eq!(tree.paths().collect::<Vec<_>>(), [(&b"motd"[..], 0o100_644)]);
/// assert_eq!(tree.file("motd")?, Some(b"hello".to_vec()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Tree(pub(crate) BTreeMap<Vec<u8>, Node>);

impl Tree {
    /// Reads a directory with everything below it, but for what is in the files: that is read when the tree is packed. Symbolic
    /// links are kept, not followed.
    pub fn read(directory: &Path) -> Result<Self, RamdiskError> {
        let mut tree = Self::default();
        tree.add(directory, &mut Vec::new())?;
        Ok(tree)
    }

    fn add(&mut self, directory: &Path, name: &mut Vec<u8>) -> Result<(), RamdiskError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RamdiskError::Read { path, source }
        };
        for entry in fs::read_dir(directory).map_err(failed(directory))? {
            let entry = entry.map_err(failed(directory))?;
            let path = entry.path();
            let metadata = fs::symlink_metadata(&path).map_err(failed(&path))?;
            let parent = name.len();
            if parent > 0 {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            let kind = metadata.file_type();
            let (mode, data) = if kind.is_dir() {
                (DIRECTORY | portable(metadata.mode() | 0o100), Contents::default())
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).map_err(failed(&path))?;
                (SYMLINK | 0o777, Contents::Bytes(target.as_os_str().as_bytes().to_vec()))
            } else if kind.is_file() {
                (REGULAR | portable(metadata.mode()), Contents::File { path, size: metadata.len() })
            } else {
                return Err(RamdiskError::Special { path });
            };
            self.0.insert(name.clone(), Node { data: Rc::new(data), ..Node::empty(mode) });
            if kind.is_dir() {
                self.add(&entry.path(), name)?;
            }
            name.truncate(parent);
        }
        Ok(())
    }

    /// Reads the file of that name, if there is one.
    pub fn file(&self, path: &str) -> Result<Option<Vec<u8>>, RamdiskError> {
        let Some(node) = self.0.get(path.as_bytes()).filter(|node| node.is(REGULAR)) else { return Ok(None) };
        let mut bytes = Vec::new();
        node.data.copy_to(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Every path with its mode, as in `stat`, in order.
    pub fn paths(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.0.iter().map(|(path, node)| (path.as_slice(), node.mode))
    }

    /// Adds a directory, if there is nothing of that name yet.
    pub(crate) fn add_directory(&mut self, path: &str) {
        self.0.entry(path.into()).or_insert(Node::empty(DIRECTORY | 0o755));
    }

    /// Adds a file of root's.
    pub(crate) fn add_file(&mut self, path: &str, permissions: u32, data: Vec<u8>) {
        self.0.insert(path.into(), Node { data: Rc::new(Contents::Bytes(data)), ..Node::empty(REGULAR | permissions) });
    }

    /// Packs an archive whose entries all have this time.
    pub(crate) fn pack(&self, output: &mut dyn Write, mtime: u32) -> Result<(), RamdiskError> {
        // Names of one file, and the inode that it got with the first of them.
        let mut links: HashMap<*const Contents, (u32, Option<u32>)> = HashMap::new();
        for node in self.0.values().filter(|node| node.is(REGULAR)) {
            links.entry(Rc::as_ptr(&node.data)).or_default().0 += 1;
        }
        let mut writer = Writer::new(output, mtime);
        for (path, node) in &self.0 {
            let attributes = Attributes { mode: node.mode, owner: node.owner, device: node.device };
            let (count, inode) = match links.get_mut(&Rc::as_ptr(&node.data)) {
                Some((count, inode)) if node.is(REGULAR) => (*count, Some(inode)),
                _ => (1, None),
            };
            match inode {
                Some(Some(inode)) => writer.link(path, attributes, *inode, count)?,
                other => {
                    let started = writer.start_entry(path, attributes, node.data.size(), count)?;
                    node.data.copy_to(&mut writer.data())?;
                    writer.end_entry()?;
                    if let Some(inode) = other {
                        *inode = Some(started);
                    }
                }
            }
        }
        writer.finish()?;
        Ok(())
    }
}

/// Permissions that do not depend on the umask under which a file was made: whether it can be executed, the special bits, and
/// whether everyone may write to a sticky directory such as `/tmp`.
fn portable(mode: u32) -> u32 {
    let special = mode & 0o7000;
    match mode {
        _ if mode & 0o1002 == 0o1002 => special | 0o777,
        _ if mode & 0o111 != 0 => special | 0o755,
        _ => special | 0o644,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_file_are_packed_as_links_and_equal_files_are_not() {
        let mut tree = Tree::default();
        tree.add_file("a", 0o755, b"program".to_vec());
        tree.add_file("b", 0o755, b"program".to_vec());
        let shared = tree.0[&b"a"[..]].clone();
        tree.0.insert(b"c".to_vec(), shared);
        let mut found = Vec::new();
        let mut packed = Vec::new();
        tree.pack(&mut packed, 0).unwrap();
        crate::cpio::read_ramdisk(&packed[..], |entry, _| {
            found.push((entry.name.clone(), entry.size, entry.links, entry.inode));
            Ok(())
        })
        .unwrap();
        let expected = [(b"a".to_vec(), 7, 2, 1), (b"b".to_vec(), 7, 1, 2), (b"c".to_vec(), 0, 2, 1)];
        assert_eq!(found, expected);
    }
}
