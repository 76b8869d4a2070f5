//! The two ramdisks of an enclave image, in the shape that nitro-cli gives them: init with its modules first, the application
//! second, so that PCR1 stays the same when only the application changes.
//!
//! Equal files give equal bytes wherever they lie: entries are sorted by name and have one time, and so on, see [`Tree`].

use std::io::{self, Write};
use std::path::PathBuf;

use thiserror::Error;

pub use crate::tree::Tree;

/// What AWS's init mounts over, or expects, below the application's root.
const MOUNT_POINTS: [&str; 6] = ["dev", "run", "sys", "var", "proc", "tmp"];

/// Why a ramdisk cannot be made.
#[derive(Debug, Error)]
pub enum RamdiskError {
    /// A file of the tree cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A file of the tree is not what it was when the tree was read.
    #[error("{} changed while the ramdisk was made", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file of the tree is a device, a socket or a pipe.
    #[error("{} is neither a file, a directory nor a symbolic link", path.display())]
    Special {
        /// The file.
        path: PathBuf,
    },
    /// A word of the command or of the environment cannot be passed on.
    #[error("\"{}\" holds a line break, but init takes one word from each line", word.escape_debug())]
    LineBreak {
        /// The word.
        word: String,
    },
    /// The archive cannot be written.
    #[error("cannot write the ramdisk")]
    Write(#[from] io::Error),
}

/// Writes the first ramdisk: init, and kernel modules (name and bytes) with the order in which they are to be loaded. The time of every
/// entry is in seconds since 1970.
pub fn boot_ramdisk(
    output: &mut dyn Write,
    init: Vec<u8>,
    modules: Vec<(String, Vec<u8>)>,
    mtime: u32,
) -> Result<(), RamdiskError> {
    let mut tree = Tree::default();
    tree.add_directory("dev");
    tree.add_file("init", 0o755, init);
    if !modules.is_empty() {
        let names = modules.iter().map(|(name, _)| name.clone());
        tree.add_file("modules_load_order", 0o644, lines(names)?);
    }
    for (name, bytes) in modules {
        tree.add_file(&name, 0o755, bytes);
    }
    tree.pack(output, mtime)
}

/// Writes the second ramdisk: the application's files below `rootfs`, and its command and environment, one word a line, as AWS's
/// init reads them. What is in the files is read as it is written.
///
/// ```
/// use eif::ramdisks::{self, RamdiskError, Tree};
///
/// # let directory = tempfile::tempdir()?;
/// # std::fs::write(directory.path().join("app"), "a program")?;
/// let tree = Tree::read(directory.path())?;
/// let metadata = eif::Metadata::new("app", "1.0").to_json();
/// let image = eif::Builder::start(std::io::Cursor::new(Vec::new()), 0, &b"a bzImage"[..], "console=ttyS0", &metadata)?
///     .ramdisk_with(|output| ramdisks::boot_ramdisk(output, b"an init".to_vec(), Vec::new(), 0))?
///     .ramdisk_with(|output| ramdisks::application_ramdisk(output, &tree, &["/app".to_owned()], &[], 0))?
///     .measure();
/// let bytes = image.finish(None)?.into_inner();
/// # assert_eq!(eif::BootImage::read(std::io::Cursor::new(bytes))?.ramdisks.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn application_ramdisk(
    output: &mut dyn Write,
    tree: &Tree,
    command: &[String],
    environment: &[String],
    mtime: u32,
) -> Result<(), RamdiskError> {
    let mut whole = Tree::default();
    whole.add_directory("rootfs");
    for (path, node) in &tree.0 {
        whole.0.insert([b"rootfs/", path.as_slice()].concat(), node.clone());
    }
    for place in MOUNT_POINTS {
        whole.add_directory(&format!("rootfs/{place}"));
    }
    whole.add_file("cmd", 0o644, lines(command.iter().cloned())?);
    whole.add_file("env", 0o644, lines(environment.iter().cloned())?);
    whole.pack(output, mtime)
}

fn lines(words: impl Iterator<Item = String>) -> Result<Vec<u8>, RamdiskError> {
    let mut text = String::new();
    for word in words {
        if word.contains(['\n', '\0']) {
            return Err(RamdiskError::LineBreak { word });
        }
        text.push_str(&word);
        text.push('\n');
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn application(tree: &Tree) -> Vec<u8> {
        let mut ramdisk = Vec::new();
        application_ramdisk(&mut ramdisk, tree, &["/bin".to_owned()], &[], 5).unwrap();
        ramdisk
    }

    fn names(ramdisk: &[u8]) -> Vec<(String, u32)> {
        let mut found = Vec::new();
        crate::cpio::read_ramdisk(ramdisk, |entry, _| {
            found.push((String::from_utf8(entry.name).unwrap(), entry.mode));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn the_boot_ramdisk_has_the_shape_of_nitro_clis() {
        let (mut ramdisk, modules) = (Vec::new(), vec![("nsm.ko".to_owned(), b"module".to_vec())]);
        boot_ramdisk(&mut ramdisk, b"init".to_vec(), modules, 0).unwrap();
        let expected =
            [("dev", 0o040_755), ("init", 0o100_755), ("modules_load_order", 0o100_644), ("nsm.ko", 0o100_755)];
        assert_eq!(names(&ramdisk), expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn a_tree_gives_the_same_bytes_whatever_order_and_umask_it_was_made_with() {
        let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (directory, files, umask) in [(&a, ["bin", "a.txt"], 0o077), (&b, ["a.txt", "bin"], 0o002)] {
            for file in files {
                let path = directory.path().join(file);
                fs::write(&path, file).unwrap();
                let mode = if file == "bin" { 0o777 } else { 0o666 };
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & !umask)).unwrap();
            }
            symlink("bin", directory.path().join("link")).unwrap();
        }
        let [ramdisk, other] = [&a, &b].map(|directory| application(&Tree::read(directory.path()).unwrap()));
        assert_eq!(ramdisk, other);
        let found = names(&ramdisk);
        assert!(found.contains(&("rootfs/bin".to_owned(), 0o100_755)), "{found:?}");
        assert!(found.contains(&("rootfs/a.txt".to_owned(), 0o100_644)), "{found:?}");
        assert!(found.contains(&("rootfs/link".to_owned(), 0o120_777)), "{found:?}");
        assert!(found.is_sorted());
    }

    #[test]
    fn words_that_would_become_two_are_refused() {
        let error = application_ramdisk(&mut Vec::new(), &Tree::default(), &["a\nb".to_owned()], &[], 0).unwrap_err();
        assert_eq!(error.to_string(), "\"a\\nb\" holds a line break, but init takes one word from each line");
    }
}
