//! Linux on this host's KVM, whatever KVM it is: the small kernel from its start to where it looks for an init.
//!
//! It is for hosts whose KVM only emulates, which run a kernel (in about a minute) and no programs, so that [`crate::boot_test`]'s matrix cannot be tried there. The kernel's drivers then meet our interrupt controllers, clocks and
//! virtio devices on KVM all the same. With an ACPI-less machine the kernel has an MP table and uses the IOAPIC.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::exit_codes;
use crate::guest::Small;
use crate::launch::{End, Machine, Vmm};
use crate::paths::Paths;
use crate::supervise::{self, Outcome, Run};

/// `cargo xtask kvm-test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// With every choice of interrupt controllers, and with two processors; else split ones and one processor
    #[arg(long)]
    every: bool,
    /// Show the guests' consoles while they run
    #[arg(long)]
    verbose: bool,
}

impl Arguments {
    /// One boot, or every one.
    pub(crate) fn of(every: bool) -> Self {
        Self { every, verbose: false }
    }
}

/// One boot: the interrupt controllers that are the kernel's, and the processors.
type Boot = (&'static str, u32);

const USUAL: Boot = ("split", 1);
const OTHERS: [Boot; 3] = [("on", 1), ("off", 1), ("split", 2)];

/// How long one may take: about a minute on a KVM that emulates, and more on a busy host.
const LIMIT: Duration = Duration::from_secs(600);

/// The guest's command line. The kernel's PTP clock makes a call to KVM that a KVM that emulates repeats without end.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 initcall_blacklist=ptp_kvm_init";

/// How far the RTC may be off: the kernel looks at it once, and a minute may have gone by before its line is here.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(120);

/// Boots and checks; prints a reason where there is no KVM.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        println!("skipped: /dev/kvm cannot be opened: {error}");
        return Ok(());
    }
    let kernel = Small::get(paths, false)?.bzimage;
    let vmm = Vmm::build(paths, None, None)?;
    let others = if arguments.every { OTHERS.as_slice() } else { &[] };
    let mut failed = 0;
    for &(irqchip, cpus) in [USUAL].iter().chain(others) {
        let mut command = vmm.program();
        command.args(["--machine", Machine::Microvm.name(), "--accel", "kvm", "--memory", "64M", "--kernel"]);
        command.arg(&kernel).args(["--cpus", &cpus.to_string(), "--append", COMMAND_LINE]);
        command.args(["--serial", "stdio", "--set", "machine.acpi=off"]);
        command.args(["--set", &format!("machine.kernel-irqchip={irqchip}"), "--stats"]);
        let run = supervise::run(&mut command, LIMIT, |line| {
            if arguments.verbose {
                println!("{}", line.text);
            }
        })?;
        let problems = problems(&run, cpus);
        let outcome = if problems.is_empty() { "ok    " } else { "FAILED" };
        let refused = refused(&run).map_or("?".to_owned(), |count| count.to_string());
        let took = run.elapsed.as_secs_f64();
        println!(
            "{outcome} kernel-irqchip={irqchip:<5} {cpus}cpu  {took:5.1} s  {refused} instructions refused by KVM"
        );
        problems.iter().for_each(|problem| println!("       {problem}"));
        if !problems.is_empty() {
            failed += 1;
            run.console.iter().chain(&run.errors).for_each(|line| println!("       | {}", line.text));
        }
    }
    if failed == 0 { Ok(()) } else { Err(Error::Failed(format!("{failed} boots failed on KVM"))) }
}

/// The instructions that the software CPU executed because KVM refused to, all processors together.
fn refused(run: &Run) -> Option<u64> {
    run.statistics("instructions that KVM refused").reduce(|sum, count| sum + count)
}

/// What is wrong with a boot, each in a sentence.
fn problems(run: &Run, cpus: u32) -> Vec<String> {
    let said = |words: &str| run.console.iter().any(|line| line.text.contains(words));
    let expected = [
        "Booting paravirtualized kernel on KVM".to_owned(),
        format!("smp: Brought up 1 node, {cpus} CPU"),
        "clocksource: Switched to clocksource kvm-clock".to_owned(),
        "virtio-mmio: Registering device virtio-mmio.0".to_owned(),
        "Kernel panic - not syncing: No working init found".to_owned(),
    ];
    let mut problems: Vec<String> =
        expected.iter().filter(|words| !said(words)).map(|words| format!("the kernel never said {words:?}")).collect();
    problems.extend(wall_clock(run).err());
    let code = exit_codes::expected(Machine::Microvm, End::Panic);
    if run.outcome != Outcome::Exited(code) {
        problems.push(format!("it ended with {}, expected exit code {code} for a panic", run.outcome));
    }
    problems
}

/// Whether the RTC said the time, which the kernel repeats as "(SECONDS)".
fn wall_clock(run: &Run) -> std::result::Result<(), String> {
    let seconds = |text: &str| text.rsplit_once('(')?.1.strip_suffix(')')?.parse().ok();
    let line = run.console.iter().find(|line| line.text.contains("setting system clock to"));
    let line = line.ok_or("the kernel never read the RTC")?;
    let told: u64 = seconds(&line.text).ok_or_else(|| format!("no time of day in {:?}", line.text))?;
    let told = UNIX_EPOCH + Duration::from_secs(told);
    let off = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default();
    if off(told, line.time) > CLOCK_TOLERANCE || off(line.time, told) > CLOCK_TOLERANCE {
        return Err(format!("the RTC is off by more than {} s: {:?}", CLOCK_TOLERANCE.as_secs(), line.text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::Line;

    fn run_of(console: &[&str], outcome: Outcome) -> Run {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_767_619);
        let line = |text: &&str| Line { at: Duration::ZERO, time: now, cpu: Duration::ZERO, text: (*text).to_owned() };
        Run {
            console: console.iter().map(line).collect(),
            errors: vec![
                line(&"vmm: stats: instructions that KVM refused      12"),
                line(&"vmm: stats: instructions that KVM refused      3"),
            ],
            outcome,
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            peak_kib: 0,
            above_guest_kib: None,
        }
    }

    const GOOD: [&str; 6] = [
        "Booting paravirtualized kernel on KVM",
        "smp: Brought up 1 node, 2 CPUs",
        "clocksource: Switched to clocksource kvm-clock",
        "virtio-mmio: Registering device virtio-mmio.0 at 0xfeb00e00-0xfeb00fff, IRQ 12.",
        "rtc_cmos rtc_cmos: setting system clock to 2026-11-27T08:20:19 UTC (1795767619)",
        "Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.",
    ];

    #[test]
    fn a_boot_to_the_end_has_no_problem() {
        let run = run_of(&GOOD, Outcome::Exited(7));
        assert_eq!(problems(&run, 2), Vec::<String>::new());
        assert_eq!(refused(&run), Some(15));
    }

    #[test]
    fn each_thing_that_is_missing_is_one_problem() {
        for missing in GOOD {
            let console: Vec<_> = GOOD.into_iter().filter(|line| *line != missing).collect();
            assert_eq!(problems(&run_of(&console, Outcome::Exited(7)), 2).len(), 1, "{missing}");
        }
        assert_eq!(problems(&run_of(&GOOD, Outcome::TimedOut), 2).len(), 1);
    }

    #[test]
    fn a_wrong_time_of_day_is_a_problem() {
        let mut console = GOOD.to_vec();
        console[4] = "rtc_cmos rtc_cmos: setting system clock to 2026-11-27T08:40:19 UTC (1795768819)";
        assert_eq!(problems(&run_of(&console, Outcome::Exited(7)), 2).len(), 1);
    }
}
