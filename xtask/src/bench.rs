//! Our boots and QEMU's, side by side in one run: time, memory, and the speed of the processor.
//!
//! The contenders take turns, so that a busy host disturbs them alike, and each turn's two runs are compared with one another. A
//! run that does not end is ended at the limit and counted as a hang; medians are over the runs that did end.

mod host;
mod kvm_start;
mod measuring;
mod ratio;
mod sample;
mod table;
mod vsock;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Serialize;

use crate::command;
use crate::error::{Error, Result};
use crate::guest::{self, Small, Stock};
use crate::image::Image;
use crate::launch::{self, Accel, End, Guest, Machine, QEMU, Vmm};
use crate::paths::{self, Paths};
use crate::supervise::{self, Outcome};
use host::Host;
use ratio::Ratio;
use sample::Sample;

/// Instructions of the two loops that measure the processor.
const LOOP: u64 = 400_000_000;
const MEMORY_LOOP: u64 = 100_000_000;

/// The programs whose time the guest takes, and how often each does its work: about a second of an interpreter's.
const PROGRAMS: &str = "compress:3,sort:2,parse:1,sha256:6,aes:6,copy:12,matrix:8,bodies:6,spawn:1,pipe:6";

/// The same for the work that is split over all processors: long enough that neither starting threads counts nor what a shared host takes away for a moment.
const PARALLEL: &str = "parallel:50";

/// `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each benchmark: pairs of ours and QEMU's
    #[arg(long, value_name = "N", default_value_t = 7)]
    runs: usize,
    /// Only benchmarks whose names contain this, for example `small`, `programs`, `vsock` or `vmm`; `eif` measures a large
    /// enclave image beside OpenSSL, `kvm-start` what starting a guest on KVM costs
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
    /// A kernel of your own in place of the small one; the stock kernel is left out
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// A launcher of your own instead of building one
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The processor backend; by default what the configurations say
    #[arg(long)]
    accel: Option<Accel>,
    /// Processors of the guests; the parallel job has one and two in any case
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Seconds after which a run counts as a hang
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
    /// Where the results go as JSON; by default target/bench.json
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

impl Arguments {
    /// Everything on KVM, with this launcher or one that is built.
    pub(crate) fn on_kvm(vmm: Option<PathBuf>) -> Self {
        let (accel, runs, cpus, timeout) = (Some(Accel::Kvm), 7, 1, 180);
        Self { runs, only: None, kernel: None, vmm, accel, cpus, timeout, json: None }
    }
}

/// A program that runs guests.
#[derive(Debug, Clone)]
enum Contender {
    Vmm(Vmm),
    /// With the backend that ours is asked to use.
    Qemu(Option<Accel>),
}

impl Contender {
    fn name(&self) -> &'static str {
        match self {
            Self::Vmm(_) => ratio::OURS,
            Self::Qemu(_) => ratio::THEIRS,
        }
    }

    fn command(&self, guest: &Guest) -> Command {
        match self {
            Self::Vmm(vmm) => {
                let mut command = vmm.command(guest);
                command.arg("--stats");
                command
            }
            Self::Qemu(accel) => launch::qemu_command(guest, *accel),
        }
    }
}

/// One guest on one contender, and what its runs gave.
struct Bench<'a> {
    name: String,
    contender: &'a Contender,
    guest: Guest<'a>,
    samples: Vec<Sample>,
    hangs: usize,
    failures: usize,
}

/// A benchmark's line in the results.
#[derive(Debug, Clone, Serialize)]
struct Summary {
    name: String,
    runs: usize,
    hangs: usize,
    failures: usize,
    median: Option<Sample>,
    samples: Vec<Sample>,
}

/// All results and where they were taken.
#[derive(Debug, Serialize)]
struct Results {
    host: Host,
    ratios: Vec<Ratio>,
    benchmarks: Vec<Summary>,
}

/// Runs every benchmark, prints two tables and writes the results.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    if arguments.runs == 0 {
        return Err(Error::Advice("--runs must be at least 1".to_owned()));
    }
    // No guest, so none of what follows; and it wants 3 GB of disk, so only on request.
    if arguments.only.as_deref() == Some("eif") {
        let json = arguments.json.clone().unwrap_or_else(|| paths.target.join("bench-eif.json"));
        return measuring::run(arguments.runs, &json, paths);
    }
    if arguments.only.as_deref() == Some(kvm_start::NAME) {
        let vmm = Vmm::build(paths, arguments.vmm.as_deref(), Some(Accel::Kvm))?;
        return kvm_start::run(arguments.runs, &vmm, paths);
    }
    if arguments.accel == Some(Accel::Kvm) {
        launch::check_virtualization(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())?;
    }
    let kernels = Kernels::get(arguments.kernel.as_deref(), paths)?;
    let vmm = Vmm::build(paths, arguments.vmm.as_deref(), arguments.accel)?;
    let mut contenders = vec![Contender::Vmm(vmm.clone())];
    if command::exists(QEMU) {
        contenders.push(Contender::Qemu(arguments.accel));
    } else {
        eprintln!("{QEMU} is not installed: no comparison (apt-get install qemu-system-x86)");
    }
    let mut benches = benches(&contenders, &kernels, arguments.cpus);
    if let Some(filter) = &arguments.only {
        benches.retain(|bench| bench.name.contains(filter.as_str()));
    }
    let mut host_turns = Vec::new();
    for round in 1..=arguments.runs {
        if benches.iter().any(|bench| bench.name.starts_with(ratio::TWO_CPUS)) {
            host_turns.push(host::two_threads_and_one());
        }
        for bench in &mut benches {
            eprintln!("run {round} of {}: {}", arguments.runs, bench.name);
            bench.run_once(round, Duration::from_secs(arguments.timeout))?;
        }
    }
    let benchmarks: Vec<Summary> = benches.into_iter().map(Bench::summary).collect();
    let mut ratios = ratio::all(&benchmarks);
    ratios.extend(ratio::of_host(&host_turns));
    if arguments.only.as_deref().is_none_or(|only| vsock::NAME.contains(only)) {
        ratios.extend(vsock::run(arguments.runs, &kernels.small, &vmm)?);
    }
    if arguments.accel == Some(Accel::Kvm) {
        // The limits are the software CPU's.
        ratios.iter_mut().for_each(|ratio| ratio.limit = f64::INFINITY);
    }
    let host = Host::look(&paths.workspace, kernels.versions);
    let results = Results { host, ratios, benchmarks };
    print!("{}", table::render(&results));
    let path = arguments.json.clone().unwrap_or_else(|| paths.target.join("bench.json"));
    let json = serde_json::to_vec_pretty(&results).map_err(|error| Error::Advice(error.to_string()))?;
    paths::write(&path, &json)?;
    println!("\nwritten to {}", path.display());
    if arguments.accel == Some(Accel::Kvm) && arguments.only.is_none() {
        kvm_start::run(arguments.runs, &vmm, paths)?;
    }
    Ok(())
}

/// What the guests are.
struct Kernels {
    small: Image,
    stock: Option<Image>,
    /// What to say of them, one sentence each.
    versions: Vec<String>,
}

impl Kernels {
    /// The small kernel and the stock kernel, or the user's own kernel alone.
    fn get(own: Option<&Path>, paths: &Paths) -> Result<Self> {
        if let Some(kernel) = own {
            let small = Image::of_small(paths, &guest::own_kernel(kernel)?)?;
            return Ok(Self { small, stock: None, versions: vec![format!("guest kernel {}", kernel.display())] });
        }
        let (small, stock) = (Small::get(paths, false)?, Stock::get(paths, false)?);
        let versions = vec![format!("small kernel {}", small.version), format!("stock kernel {}", stock.version)];
        Ok(Self {
            small: Image::of_small(paths, &small.bzimage)?,
            stock: Some(Image::of_stock(paths, &stock.vmlinuz, &stock.modules)?),
            versions,
        })
    }
}

/// For each guest first ours, then QEMU's.
fn benches<'a>(contenders: &'a [Contender], kernels: &'a Kernels, cpus: u32) -> Vec<Bench<'a>> {
    let loops = format!("loop:{LOOP},memory:{MEMORY_LOOP}");
    let small = |cpus, work: &str| {
        let append = with_work(End::Reset, work);
        let image = &kernels.small;
        Guest { machine: Machine::Microvm, image, acpi: false, cpus, memory: 256, append, settings: &[] }
    };
    let mut guests = vec![(ratio::SMALL, small(cpus, ""))];
    if let Some(image) = &kernels.stock {
        let append = with_work(End::PowerOff, "");
        let guest = Guest { machine: Machine::Microvm, image, acpi: true, cpus, memory: 512, append, settings: &[] };
        guests.push((ratio::STOCK, guest));
    }
    guests.extend([
        (ratio::PROGRAMS, small(cpus, PROGRAMS)),
        (ratio::ONE_CPU, small(1, PARALLEL)),
        (ratio::TWO_CPUS, small(2, PARALLEL)),
        ("processor", small(cpus, &loops)),
    ]);
    let mut benches = Vec::new();
    for (name, guest) in &guests {
        benches.extend(contenders.iter().map(|contender| Bench::new(name, contender, guest.clone())));
    }
    // QEMU always starts a bzImage by its own stub; ours both ways show what decompressing natively is worth.
    for contender in contenders.iter().filter(|contender| matches!(contender, Contender::Vmm(_))) {
        let guest = Guest { settings: launch::GUEST_DECOMPRESSES, ..small(cpus, "") };
        benches.push(Bench::new("small kernel's own stub", contender, guest));
    }
    benches
}

/// The guest's words for this end after this work, and for no sleep, which would take the same time everywhere.
fn with_work(end: End, work: &str) -> String {
    let end = format!("{} vmm.clock=off", end.argument());
    if work.is_empty() { end } else { format!("{end} vmm.work={work}") }
}

impl<'a> Bench<'a> {
    fn new(name: &str, contender: &'a Contender, guest: Guest<'a>) -> Self {
        let name = ratio::full_name(name, contender.name());
        Self { name, contender, guest, samples: Vec::new(), hangs: 0, failures: 0 }
    }

    fn run_once(&mut self, round: usize, limit: Duration) -> Result<()> {
        let run = supervise::watch(&mut self.contender.command(&self.guest), limit, self.guest.memory)?;
        match (run.outcome, Sample::of(&run, round)) {
            (Outcome::TimedOut, _) => self.hangs += 1,
            (Outcome::Exited(_), Ok(sample)) => self.samples.push(sample),
            (outcome, sample) => {
                self.failures += 1;
                let words = sample.err().or_else(|| run.last_words().map(str::to_owned));
                eprintln!("  failed with {outcome}: {}", words.as_deref().unwrap_or("without a word"));
            }
        }
        Ok(())
    }

    fn summary(self) -> Summary {
        Summary {
            name: self.name,
            runs: self.samples.len() + self.hangs + self.failures,
            hangs: self.hangs,
            failures: self.failures,
            median: Sample::median(&self.samples),
            samples: self.samples,
        }
    }
}
