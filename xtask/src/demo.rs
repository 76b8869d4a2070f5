//! The demo: an enclave image made here and now boots, gives its heartbeat, reads its measurements from /dev/nsm, and serves on a vsock port. The host asks
//! it there for an attestation with a fresh nonce, and verifies what comes back.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::attestation;
use crate::checks;
use crate::command::shown;
use crate::error::{Error, FileContext, Result};
use crate::exit_codes;
use crate::guest::{self, Small};
use crate::image::{self, Image};
use crate::launch::{Accel, End, Guest, Machine, Vmm};
use crate::parent;
use crate::paths::Paths;
use crate::report::Report;
use crate::supervise::{self, Line, Outcome};

/// The enclave's memory in MiB.
const MEMORY: u32 = 256;

/// The enclave's processors.
const CPUS: u32 = 2;

/// The enclave's vsock port where it answers a nonce with a document.
const PORT: u32 = 5000;

/// `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A kernel of your own instead of the small one: a bzImage with the drivers of configs/guest built in
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// A launcher of your own instead of building one
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The processor backend; by default what the configuration says
    #[arg(long)]
    accel: Option<Accel>,
    /// Seconds after which the guest is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

/// Builds everything, boots the enclave, and compares what it measured with what the reader computed.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    let kernel = match &arguments.kernel {
        Some(path) => guest::own_kernel(path)?,
        None => {
            let small = Small::get(paths, false)?;
            eprintln!("guest kernel: Linux {} at {}", small.version, small.bzimage.display());
            small.bzimage
        }
    };
    let image = Image::of_small(paths, &kernel)?;
    eprintln!("enclave image: {}", image.eif.display());
    let vmm = Vmm::build(paths, arguments.vmm.as_deref(), arguments.accel)?;
    let nonce = attestation::fresh_nonce()?;
    // A socket's path is short of room, so it is not below the target directory.
    let sockets = tempfile::tempdir().file("create", &std::env::temp_dir())?;
    let socket = sockets.path().join("enclave.sock");
    let uds = format!("vsock.uds-path={}", socket.display());
    let guest = Guest {
        machine: Machine::NitroEnclave,
        image: &image,
        acpi: false,
        cpus: CPUS,
        memory: MEMORY,
        append: format!("vmm.heartbeat=on vmm.attest-port={PORT} vmm.nsm-check=1"),
        settings: &[&uds, "enclave.heartbeat-timeout=60"],
    };
    let mut command = vmm.command(&guest);
    println!("$ {}", shown(&command));
    let mut host = Host { socket: &socket, nonce: &nonce, asked: None };
    let run = supervise::run(&mut command, Duration::from_secs(arguments.timeout), |line| {
        println!("{}", line.text);
        host.hear(line);
    })?;
    let report = Report::of(&run);

    let measured = image::measure(&image.eif)?;
    println!();
    let mut problems = Vec::new();
    for (index, expected) in measured.iter().enumerate() {
        let found = report.value(&format!("pcr{index}")).unwrap_or("not reported");
        if found == expected {
            println!("PCR{index}: the guest and the EIF reader agree");
        } else {
            println!("PCR{index}: the guest says  {found}\n      the reader says {expected}");
            problems.push(format!("PCR{index} differs"));
        }
    }
    if report.value("hwrng").is_none() {
        problems.push("no random bytes".to_owned());
    }
    problems.extend(checks::selftest(&report).err());
    problems.extend(attestation::nsm_check(&report));
    if report.value("heartbeat") != Some("answered") {
        problems.push("no heartbeat".to_owned());
    }
    match host.document() {
        Ok(document) => {
            println!("attestation: {} bytes came back over vsock port {PORT} for a fresh nonce", document.len());
            if attestation::verify(&document, &vmm, &image.eif, &nonce, &paths.target)? {
                println!("attestation: verified against the root, the nonce and the image's PCRs");
            } else {
                problems.push("the attestation document does not hold".to_owned());
            }
        }
        Err(problem) => problems.push(problem),
    }
    let wanted = Outcome::Exited(exit_codes::expected(Machine::NitroEnclave, End::Reset));
    if run.outcome != wanted {
        problems.push(format!("the launcher ended with {}, expected {wanted}", run.outcome));
    }
    let init =
        report.entry("init").map(|entry| format!("{:.1} s to init, ", entry.at.as_secs_f64())).unwrap_or_default();
    println!("{init}{:.1} s in all, {} MiB of memory", run.elapsed.as_secs_f64(), run.peak_kib / 1024);
    if problems.is_empty() { Ok(()) } else { Err(Error::Failed(format!("the demo failed: {}", problems.join("; ")))) }
}

/// The host: once the enclave listens, it asks for a document.
struct Host<'a> {
    socket: &'a Path,
    nonce: &'a [u8],
    asked: Option<thread::JoinHandle<std::io::Result<Vec<u8>>>>,
}

impl Host<'_> {
    /// Looks whether this is the line by which the enclave says that it listens.
    fn hear(&mut self, line: &Line) {
        if self.asked.is_none() && line.text.contains("vmm-guest: attest_listening=") {
            let (socket, nonce) = (self.socket.to_owned(), self.nonce.to_owned());
            self.asked = Some(thread::spawn(move || parent::request_document(&socket, PORT, &nonce)));
        }
    }

    /// What came back, or why nothing did.
    fn document(self) -> std::result::Result<Vec<u8>, String> {
        let asked = self.asked.ok_or("the enclave never listened for the host's nonce")?;
        let answer = asked.join().map_err(|_| "asking for a document panicked")?;
        answer.map_err(|error| format!("no attestation document: {error}"))
    }
}
