//! The file systems that init needs.

use nix::mount::{MsFlags, mount};

/// Source, target and type, in the order in which they are mounted.
const MOUNTS: [(&str, &str, &str); 4] = [
    ("devtmpfs", "/dev", "devtmpfs"),
    ("proc", "/proc", "proc"),
    ("sysfs", "/sys", "sysfs"),
    ("tmpfs", "/tmp", "tmpfs"),
];

/// Mounts every one of them and returns what went wrong: there is no console yet to say it on.
pub(crate) fn mount_all() -> Vec<String> {
    MOUNTS.iter().filter_map(|&(source, target, kind)| mount_one(source, target, kind).err()).collect()
}

fn mount_one(source: &str, target: &str, kind: &str) -> Result<(), String> {
    // It exists already in our own initramfs; elsewhere it may not.
    let _ = std::fs::create_dir(target);
    mount(Some(source), target, Some(kind), MsFlags::empty(), None::<&str>)
        .map_err(|error| format!("{target}: {error}"))
}
