//! Our boots and QEMU's, side by side in one run: time, memory, and the speed of the processor.
//!
//! The contenders take turns, so that a busy host disturbs them alike. A run that does not end is ended at the limit and
//! counted as a hang; medians are over the runs that did end.

mod table;

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
use crate::report::Report;
use crate::supervise::{self, Outcome, Run};

/// Instructions of the two loops that measure the processor.
const LOOP: u64 = 400_000_000;
const MEMORY_LOOP: u64 = 100_000_000;

/// `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Runs of each boot
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Only benchmarks whose names contain this, for example `small` or `vmm/`
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
    /// Processors of the guests
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Seconds after which a run counts as a hang
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
    /// Where the results go as JSON; by default target/bench.json
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// A program that runs guests.
#[derive(Debug, Clone)]
enum Contender {
    Vmm(Vmm),
    Qemu,
}

impl Contender {
    fn name(&self) -> &'static str {
        match self {
            Self::Vmm(_) => "vmm",
            Self::Qemu => "qemu-tcg",
        }
    }

    fn command(&self, guest: &Guest) -> Command {
        match self {
            Self::Vmm(vmm) => {
                let mut command = vmm.command(guest);
                command.arg("--stats");
                command
            }
            Self::Qemu => launch::qemu_command(guest),
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

/// One run that ended well.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    /// From the start of the program to init's first line.
    init_seconds: f64,
    /// From the start of the program to its end.
    total_seconds: f64,
    /// The largest resident set.
    peak_mib: f64,
    /// Millions of instructions that the guest executed, where the launcher counts them.
    million_instructions: Option<f64>,
    /// Millions of instructions a second in registers, where the guest measured it.
    register_mips: Option<f64>,
    /// The same with memory.
    memory_mips: Option<f64>,
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
    revision: String,
    host_processor: String,
    host_processors: usize,
    qemu: Option<String>,
    benchmarks: Vec<Summary>,
}

/// Runs every benchmark, prints a table and writes the results.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    if arguments.runs == 0 {
        return Err(Error::Advice("--runs must be at least 1".to_owned()));
    }
    let (small, stock) = images(arguments.kernel.as_deref(), paths)?;
    let mut contenders = vec![Contender::Vmm(Vmm::build(paths, arguments.vmm.as_deref(), arguments.accel)?)];
    if command::exists(QEMU) {
        contenders.push(Contender::Qemu);
    } else {
        eprintln!("{QEMU} is not installed: no comparison (apt-get install qemu-system-x86)");
    }
    let mut benches = benches(&contenders, &small, stock.as_ref(), arguments.cpus);
    if let Some(filter) = &arguments.only {
        benches.retain(|bench| bench.name.contains(filter.as_str()));
    }
    for round in 1..=arguments.runs {
        for bench in &mut benches {
            eprintln!("run {round} of {}: {}", arguments.runs, bench.name);
            bench.run_once(Duration::from_secs(arguments.timeout))?;
        }
    }
    let results = Results {
        revision: revision(&paths.workspace),
        host_processor: host_processor(),
        host_processors: std::thread::available_parallelism().map_or(1, usize::from),
        qemu: qemu_version(),
        benchmarks: benches.into_iter().map(Bench::summary).collect(),
    };
    print!("{}", table::render(&results));
    let path = arguments.json.clone().unwrap_or_else(|| paths.target.join("bench.json"));
    let json = serde_json::to_vec_pretty(&results).map_err(|error| Error::Advice(error.to_string()))?;
    paths::write(&path, &json)?;
    println!("\nwritten to {}", path.display());
    Ok(())
}

/// The small kernel and the stock kernel, or the user's own kernel alone.
fn images(own: Option<&Path>, paths: &Paths) -> Result<(Image, Option<Image>)> {
    if let Some(kernel) = own {
        return Ok((Image::of_small(paths, &guest::own_kernel(kernel)?)?, None));
    }
    let small = Image::of_small(paths, &Small::get(paths, false)?.bzimage)?;
    let stock = Stock::get(paths, false)?;
    Ok((small, Some(Image::of_stock(paths, &stock.vmlinuz, &stock.modules)?)))
}

/// For each guest first ours, then QEMU's.
fn benches<'a>(contenders: &'a [Contender], small: &'a Image, stock: Option<&'a Image>, cpus: u32) -> Vec<Bench<'a>> {
    let loops = format!("vmm.work=loop:{LOOP},memory:{MEMORY_LOOP}");
    let guests = [
        ("small kernel", Some(small), false, 256, End::Reset, ""),
        ("stock kernel", stock, true, 512, End::PowerOff, ""),
        ("processor", Some(small), false, 256, End::Reset, loops.as_str()),
    ];
    let mut benches = Vec::new();
    for (name, image, acpi, memory, end, work) in guests {
        let Some(image) = image else { continue };
        for contender in contenders {
            let append = format!("{} {work}", end.argument()).trim().to_owned();
            let guest = Guest { machine: Machine::Microvm, image, acpi, cpus, memory, append, settings: &[] };
            benches.push(Bench::new(name, contender, guest));
        }
    }
    // QEMU always starts a bzImage by its own stub; ours both ways show what decompressing natively is worth.
    for contender in contenders.iter().filter(|contender| matches!(contender, Contender::Vmm(_))) {
        let append = End::Reset.argument().to_owned();
        let settings = launch::GUEST_DECOMPRESSES;
        let guest = Guest { machine: Machine::Microvm, image: small, acpi: false, cpus, memory: 256, append, settings };
        benches.push(Bench::new("small kernel's own stub", contender, guest));
    }
    benches
}

impl<'a> Bench<'a> {
    fn new(name: &str, contender: &'a Contender, guest: Guest<'a>) -> Self {
        let name = format!("{name}, {}", contender.name());
        Self { name, contender, guest, samples: Vec::new(), hangs: 0, failures: 0 }
    }

    fn run_once(&mut self, limit: Duration) -> Result<()> {
        let run = supervise::run(&mut self.contender.command(&self.guest), limit, |_| {})?;
        match (run.outcome, sample(&run)) {
            (Outcome::TimedOut, _) => self.hangs += 1,
            (Outcome::Exited(_), Some(sample)) => self.samples.push(sample),
            (outcome, _) => {
                self.failures += 1;
                eprintln!("  failed with {outcome}: {}", run.last_words().unwrap_or("without a word"));
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
            median: median(&self.samples),
            samples: self.samples,
        }
    }
}

/// What a run showed, if the guest came to its end.
fn sample(run: &Run) -> Option<Sample> {
    let report = Report::of(run);
    report.entry("end")?;
    Some(Sample {
        init_seconds: report.entry("init")?.at.as_secs_f64(),
        total_seconds: run.elapsed.as_secs_f64(),
        peak_mib: run.peak_kib as f64 / 1024.0,
        million_instructions: instructions(run),
        register_mips: mips(&report, "loop:"),
        memory_mips: mips(&report, "memory:"),
    })
}

/// The speed in a line like `loop:400000000 instructions=400000000 ns=5000000000`.
fn mips(report: &Report, work: &str) -> Option<f64> {
    let entry = report.all("work").find(|entry| entry.value.starts_with(work))?;
    let number = |key: &str| entry.value.split(' ').find_map(|word| word.strip_prefix(key)?.parse::<f64>().ok());
    let (instructions, nanoseconds) = (number("instructions=")?, number("ns=")?);
    (nanoseconds > 0.0).then(|| instructions / nanoseconds * 1000.0)
}

/// The count in the launcher's line `vmm: stats: instructions 3000000 (2.0 million/s)`.
fn instructions(run: &Run) -> Option<f64> {
    let count = run.errors.iter().find_map(|line| line.text.strip_prefix("vmm: stats: instructions "))?;
    Some(count.split(' ').next()?.parse::<f64>().ok()? / 1e6)
}

/// The median of each value by itself.
fn median(samples: &[Sample]) -> Option<Sample> {
    let of = |value: &dyn Fn(&Sample) -> Option<f64>| middle(samples.iter().filter_map(value).collect());
    Some(Sample {
        init_seconds: of(&|sample| Some(sample.init_seconds))?,
        total_seconds: of(&|sample| Some(sample.total_seconds))?,
        peak_mib: of(&|sample| Some(sample.peak_mib))?,
        million_instructions: of(&|sample| sample.million_instructions),
        register_mips: of(&|sample| sample.register_mips),
        memory_mips: of(&|sample| sample.memory_mips),
    })
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

fn revision(workspace: &Path) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(workspace).args(["describe", "--always", "--dirty"]);
    command::capture_text(&mut git).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn host_processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

fn qemu_version() -> Option<String> {
    let text = command::capture_text(Command::new(QEMU).arg("--version")).ok()?;
    text.lines().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run_with;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(middle(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(middle(vec![9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(middle(Vec::new()), None);
    }

    #[test]
    fn speed_is_read_from_the_guests_work_line() {
        let run = run_with(&["vmm-guest: work=loop:800 instructions=800 ns=10000"]);
        assert_eq!(mips(&Report::of(&run), "loop:"), Some(80.0));
    }

    #[test]
    fn the_launchers_count_of_instructions_is_read() {
        let mut run = run_with(&["vmm: stats: instructions 3000000 (2.0 million/s)"]);
        std::mem::swap(&mut run.console, &mut run.errors);
        assert_eq!(instructions(&run), Some(3.0));
    }

    #[test]
    fn a_run_that_never_came_to_its_end_gives_no_sample() {
        assert!(sample(&run_with(&["vmm-guest: init=reached"])).is_none());
    }
}
