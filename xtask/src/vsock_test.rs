//! A booted enclave's vsock from the host's side, as users have it: `socat` and listeners of theirs, other enclaves, vhost-user, and ends at bad moments.
//!
//! The guest's init serves a port (`guest/init/src/vsock/server.rs`); the cases ask it for traffic. Most share one boot. What needs a program that is not
//! installed is left out, and that is said.

mod cases;
mod ends;
pub(crate) mod served;
mod socat;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command;
use crate::error::{Error, FileContext, Result};
use crate::guest::Small;
use crate::image::Image;
use crate::launch::{Accel, Guest, Machine, Vmm};
use crate::paths::Paths;
pub(crate) use ends::PEER;
use served::{PORT, Served};

use crate::parent::PATIENCE;

/// The guest's memory in MiB.
const MEMORY: u32 = 256;

/// `cargo xtask vsock-test`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Only cases whose names contain this
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
    /// 1 GiB each way and 500 connections
    #[arg(long)]
    long: bool,
    /// A launcher of your own instead of building one
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The processor backend; by default what the configuration says
    #[arg(long)]
    accel: Option<Accel>,
}

impl Arguments {
    /// Everything, with as much traffic as there is time for.
    pub(crate) fn all(long: bool) -> Self {
        Self { long, ..Self::default() }
    }
}

/// What every case has.
struct Stand {
    image: Image,
    vmm: Vmm,
    long: bool,
    /// Sockets' paths are short of room, so they are not below the target directory.
    directory: TempDir,
}

/// What a case found out, or what is wrong.
type Verdict = std::result::Result<String, String>;

impl Stand {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The launcher's command for an enclave with these settings that serves until it is stopped.
    fn command(&self, settings: &[String]) -> Command {
        let guest = Guest {
            machine: Machine::NitroEnclave,
            image: &self.image,
            acpi: false,
            cpus: 2,
            memory: MEMORY,
            append: format!("vmm.end=reboot vmm.heartbeat=on vmm.vsock=serve:{PORT}"),
            settings: &settings.iter().map(String::as_str).collect::<Vec<_>>(),
        };
        let mut command = self.vmm.command(&guest);
        command.arg("--stats");
        command
    }

    /// An enclave whose hybrid socket is `name`, with more settings.
    fn serve(&self, name: &str, settings: &[String]) -> Result<Served> {
        let socket = self.path(name);
        let uds = format!("vsock.uds-path={}", socket.display());
        Served::start(self.command(&[&[uds][..], settings].concat()), &socket)
    }
}

/// Runs the cases; fails if any failed.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    if !command::exists(socat::SOCAT) {
        println!("left out: {} is not installed (apt-get install socat)", socat::SOCAT);
        return Ok(());
    }
    let stand = Stand {
        image: Image::of_small(paths, &Small::get(paths, false)?.bzimage)?,
        vmm: Vmm::build(paths, arguments.vmm.as_deref(), arguments.accel)?,
        long: arguments.long,
        directory: tempfile::tempdir().file("create", &std::env::temp_dir())?,
    };
    let wanted = |name: &str| arguments.only.as_deref().is_none_or(|only| name.contains(only));
    let mut failed = Vec::new();
    let mut judge = |name: &'static str, case: &mut dyn FnMut() -> Verdict| {
        let start = Instant::now();
        let verdict = case();
        let seconds = start.elapsed().as_secs_f64();
        match verdict {
            Ok(found) => println!("ok     {name:<18} {seconds:6.1} s  {found}"),
            Err(problem) => {
                println!("FAILED {name:<18} {seconds:6.1} s  {problem}");
                failed.push(name);
            }
        }
    };
    if cases::SHARED.iter().any(|(name, _)| wanted(name)) {
        let mut parent = cases::Parent::start(&stand).file("listen beside", stand.directory.path())?;
        let settings = parent.settings();
        let mut enclave = stand.serve("enclave.sock", &settings)?;
        for (name, case) in cases::SHARED.iter().filter(|(name, _)| wanted(name)) {
            judge(name, &mut || case(&stand, &mut enclave, &mut parent));
        }
        judge("end", &mut || ends::of_the_application(&mut enclave));
    }
    for (name, case) in ends::ALONE.iter().filter(|(name, _)| wanted(name)) {
        judge(name, &mut || case(&stand));
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::Failed(format!("failed: {}", failed.join(", ")))) }
}

/// Waits for a file that another program makes; whether it came.
pub(crate) fn there_in_time(path: &Path) -> bool {
    let start = Instant::now();
    while !path.exists() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    path.exists()
}

/// Whether a file is there, for messages.
fn there(path: &Path) -> &'static str {
    if path.exists() { "is there" } else { "is gone" }
}
