//! The demo: an enclave image made here and now boots, and its program reads the image's measurements from /dev/nsm.

use std::path::PathBuf;
use std::time::Duration;

use crate::attestation;
use crate::checks;
use crate::command::shown;
use crate::error::{Error, Result};
use crate::exit_codes;
use crate::guest::{self, Small};
use crate::image::{self, Image};
use crate::launch::{Accel, End, Guest, Machine, Vmm};
use crate::paths::Paths;
use crate::report::Report;
use crate::supervise::{self, Outcome};

/// The enclave's memory in MiB.
const MEMORY: u32 = 256;

/// The enclave's processors.
const CPUS: u32 = 2;

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
    let guest = Guest {
        machine: Machine::NitroEnclave,
        image: &image,
        acpi: false,
        cpus: CPUS,
        memory: MEMORY,
        append: format!("vmm.attest={nonce} vmm.nsm-check=1"),
        settings: &[],
    };
    let mut command = vmm.command(&guest);
    println!("$ {}", shown(&command));
    let run = supervise::run(&mut command, Duration::from_secs(arguments.timeout), |line| println!("{}", line.text))?;
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
    match attestation::verify(&report, &vmm, &image.eif, &nonce, &paths.target)? {
        Ok(verified) => println!("attestation: {verified}"),
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
