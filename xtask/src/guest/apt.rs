//! Debian packages through apt, without touching the machine's own apt setup.
//!
//! apt gets a sources list, package lists, a status file and an archive directory of its own, all in the user's cache, and
//! needs no root for that. It still reads the machine's configuration for proxies and the like, and it checks the
//! archive's signature with Debian's own keys.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::mirror::{self, Mirror};
use crate::command;
use crate::error::{Error, Result};
use crate::paths;
use crate::progress::Progress;

/// The suite that has Linux 6.12 for Debian 12.
const SUITE: &str = "bookworm-backports";

/// Debian's keys, from the package debian-archive-keyring.
const DEBIAN_KEYS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// What to do where apt cannot be used.
const WITHOUT_APT: &str = "  - on Debian, check that /etc/apt names a Debian mirror and that debian-archive-keyring is installed;
  - elsewhere, fetch the packages linux-image-6.12*-cloud-amd64 and linux-source-6.12 of Debian's bookworm-backports by hand,
    or take any x86-64 kernel with virtio-mmio and an 8250 console, and name it: --kernel PATH (a bzImage or an ELF vmlinux)";

/// apt with directories of its own.
pub(crate) struct Apt {
    root: PathBuf,
    config: PathBuf,
}

/// A package as the archive offers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
}

impl Apt {
    /// Sets apt up below `cache` and fetches the package lists from the first mirror that works.
    pub(crate) fn update(cache: &Path) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            if !command::exists(program) {
                return Err(advice(&format!("{program} is not installed")));
            }
        }
        let root = cache.join("apt");
        for directory in ["lists/partial", "archives/partial", "state"] {
            paths::create_directory(&root.join(directory))?;
        }
        let apt = Self { config: root.join("apt.conf"), root };
        paths::write(&apt.root.join("state/status"), b"")?;
        paths::write(&apt.config, apt.configuration().as_bytes())?;

        let mirrors = mirror::of_this_machine();
        if mirrors.is_empty() {
            return Err(advice("no Debian mirror in this machine's apt configuration"));
        }
        let mut last = None;
        for mirror in &mirrors {
            match apt.use_mirror(mirror) {
                Ok(()) => return Ok(apt),
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map(|error| error.to_string()).unwrap_or_default();
        Err(advice(&format!(
            "apt could not use any of this machine's {} mirrors; the last said: {reason}",
            mirrors.len()
        )))
    }

    /// The newest of the packages whose names start with `prefix` and pass `wanted`.
    pub(crate) fn newest(&self, prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Package> {
        let names = command::capture_text(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let newest = names.lines().filter(|name| wanted(name)).max_by_key(|name| natural_key(name));
        self.package(newest.ok_or_else(|| advice(&format!("{SUITE} has no package {prefix}*")))?)
    }

    /// The package of exactly this name.
    pub(crate) fn package(&self, name: &str) -> Result<Package> {
        let text = command::capture_text(self.command("apt-cache").args(["show", "--no-all-versions", name]))?;
        let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.ok_or_else(|| advice(&format!("apt knows no version of {name}")))?;
        Ok(Package { name: name.to_owned(), version: version.trim().to_owned() })
    }

    /// Fetches a package, unless it is there already, and returns the `.deb`.
    pub(crate) fn download(&self, package: &Package) -> Result<PathBuf> {
        let archives = self.root.join("archives");
        if let Some(path) = find_archive(&archives, package) {
            return Ok(path);
        }
        let progress = Progress::new(format!("fetching {} {}", package.name, package.version));
        let wanted = format!("{}={}", package.name, package.version);
        command::capture(self.command("apt-get").args(["-q", "download", &wanted]).current_dir(&archives))?;
        progress.done("done, signature checked by apt");
        find_archive(&archives, package)
            .ok_or_else(|| advice(&format!("apt did not leave {wanted} in {}", archives.display())))
    }

    fn use_mirror(&self, mirror: &Mirror) -> Result<()> {
        let keys = mirror
            .signed_by
            .clone()
            .or_else(|| DEBIAN_KEYS.iter().map(PathBuf::from).find(|path| path.exists()))
            .ok_or_else(|| advice("Debian's keys are not installed (package debian-archive-keyring)"))?;
        let source = format!("deb [signed-by={}] {} {SUITE} main\n", keys.display(), mirror.uri);
        paths::write(&self.root.join("sources.list"), source.as_bytes())?;
        let progress = Progress::new(format!("package lists of {SUITE}"));
        // Without this, apt calls an unreachable mirror a warning and goes on with what it has.
        command::capture(self.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))?;
        progress.done("done");
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        command
    }

    /// The machine's own hooks are cleared: they clean up the machine's own cache.
    fn configuration(&self) -> String {
        let root = self.root.display();
        format!(
            "#clear APT::Update::Pre-Invoke;\n#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
             #clear DPkg::Post-Invoke;\n\
             APT::Architecture \"amd64\";\n#clear APT::Architectures;\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\n\
             Dir::Etc::SourceList \"{root}/sources.list\";\nDir::Etc::SourceParts \"/dev/null\";\n\
             Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
             Dir::State \"{root}/state\";\nDir::State::Lists \"{root}/lists\";\nDir::State::status \"{root}/state/status\";\n\
             Dir::Cache \"{root}\";\nDir::Cache::Archives \"{root}/archives\";\n"
        )
    }
}

fn advice(reason: &str) -> Error {
    Error::Advice(format!("{reason}\n{WITHOUT_APT}"))
}

/// The package's file: apt writes the colon of an epoch as `%3a`.
fn find_archive(archives: &Path, package: &Package) -> Option<PathBuf> {
    let start = format!("{}_{}_", package.name, package.version.replace(':', "%3a"));
    std::fs::read_dir(archives).ok()?.filter_map(|entry| Some(entry.ok()?.path())).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&start) && name.ends_with(".deb")
    })
}

/// A key that sorts `6.12.9` before `6.12.10`.
pub(crate) fn natural_key(name: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (text, tail) = rest.split_at(text_end);
        let digits_end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (digits, tail) = tail.split_at(digits_end);
        key.push((0, text.to_owned()));
        key.push((digits.parse().unwrap_or(u64::MAX), String::new()));
        rest = tail;
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_numbers() {
        let mut names = ["linux-image-6.12.90+deb12", "linux-image-6.12.9+deb12", "linux-image-6.12.100+deb12"];
        names.sort_by_key(|name| natural_key(name));
        assert_eq!(names, ["linux-image-6.12.9+deb12", "linux-image-6.12.90+deb12", "linux-image-6.12.100+deb12"]);
    }

    #[test]
    fn every_directory_of_apt_is_below_its_root() {
        let apt = Apt { root: "/cache/apt".into(), config: "/cache/apt/apt.conf".into() };
        for line in apt.configuration().lines().filter(|line| line.starts_with("Dir::")) {
            assert!(line.contains("\"/cache/apt") || line.contains("\"/dev/null\""), "{line}");
        }
    }
}
