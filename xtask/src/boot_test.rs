//! The matrix of boots: kernels x machines x processors, each boot with an end of its own.
//!
//! Every boot must reach init, see its processors, memory and devices, keep time with the host, and end as it was
//! asked. A boot that hangs is ended after its time; the output of a boot that failed is kept.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::attestation;
use crate::bench;
use crate::checks;
use crate::command::shown;
use crate::error::{Error, Result};
use crate::exit_codes;
use crate::guest::{self, Small, Stock};
use crate::image::{self, Image};
use crate::launch::{self, Accel, End, Guest, Machine, Vmm};
use crate::paths::{self, Paths};
use crate::report::Report;
use crate::supervise::{self, Outcome, Run};

/// `cargo xtask boot-test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only boots whose names contain this, for example `small/microvm` or `2cpu`
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
    /// Every kernel and machine with every end, not one end each
    #[arg(long)]
    every_end: bool,
    /// A kernel of your own in place of both: a bzImage with the drivers of configs/guest built in
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// A launcher of your own instead of building one
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// The processor backend; by default what the configurations say. On kvm the bench follows the whole matrix
    #[arg(long)]
    accel: Option<Accel>,
    /// Seconds after which a boot is ended; by default 60 for the small kernel and 300 for the stock kernel
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Boot on QEMU's microvm instead of ours, to test the test; enclaves are left out
    #[arg(long, conflicts_with_all = ["vmm", "accel"])]
    qemu: bool,
    /// Show the guests' consoles while they run
    #[arg(long)]
    verbose: bool,
    /// Run all of it this many times: what fails one time in twenty is found by twenty times
    #[arg(long, value_name = "N", default_value_t = NonZeroU32::MIN)]
    repeat: NonZeroU32,
    /// Give every guest this many processors instead of what the matrix says
    #[arg(long, value_name = "N")]
    cpus: Option<NonZeroU32>,
    /// A further setting for the launcher, such as debug.lockstep=on; may be repeated
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "qemu")]
    set: Vec<String>,
}

impl Arguments {
    /// The whole matrix once, with the launcher built here.
    pub(crate) fn whole_matrix() -> Self {
        Self::default_of("", NonZeroU32::MIN, None)
    }

    /// The small kernel's boots this many times, each guest with so many processors or as the matrix says.
    pub(crate) fn small_kernel(repeat: NonZeroU32, cpus: Option<NonZeroU32>) -> Self {
        Self::default_of("small/", repeat, cpus)
    }

    /// One boot of this kernel in lockstep, as long as that takes.
    pub(crate) fn in_lockstep(kernel: &str) -> Self {
        let timeout = Some(LOCKSTEP_LIMIT.as_secs());
        let set = vec![launch::LOCKSTEP.to_owned()];
        Self { timeout, set, ..Self::default_of(&format!("{kernel}/microvm/1cpu"), NonZeroU32::MIN, None) }
    }

    /// One boot of the small kernel on the launcher `vmm`.
    pub(crate) fn small_kernel_on(vmm: PathBuf) -> Self {
        Self { vmm: Some(vmm), ..Self::default_of("small/microvm/1cpu", NonZeroU32::MIN, None) }
    }

    fn default_of(only: &str, repeat: NonZeroU32, cpus: Option<NonZeroU32>) -> Self {
        Self {
            only: Some(only.to_owned()),
            every_end: false,
            kernel: None,
            vmm: None,
            accel: None,
            timeout: None,
            qemu: false,
            verbose: false,
            repeat,
            cpus,
            set: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Debian's.
    Stock,
    /// Ours as a bzImage that the launcher decompresses.
    Small,
    /// Ours as a bzImage that decompresses itself.
    SmallStub,
    /// Ours as an ELF file.
    SmallElf,
    /// Ours, without the translator.
    SmallInterpreted,
    /// Ours, with so little room for translated code that it is forgotten again and again.
    SmallEvicting,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Small => "small",
            Self::SmallStub => "small-stub",
            Self::SmallElf => "small-elf",
            Self::SmallInterpreted => "small-interpreted",
            Self::SmallEvicting => "small-evicting",
        }
    }

    /// The stock kernel needs ACPI to find its devices; the small one has none.
    fn acpi(self) -> bool {
        self == Self::Stock
    }

    /// In MiB.
    fn memory(self) -> u32 {
        match self {
            Self::Stock => 512,
            Self::Small | Self::SmallStub | Self::SmallElf | Self::SmallInterpreted | Self::SmallEvicting => 256,
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Stock => Duration::from_secs(300),
            Self::Small | Self::SmallStub | Self::SmallElf | Self::SmallInterpreted | Self::SmallEvicting => {
                Duration::from_secs(60)
            }
        }
    }

    fn settings(self) -> &'static [&'static str] {
        match self {
            Self::SmallStub => launch::GUEST_DECOMPRESSES,
            Self::SmallInterpreted => launch::INTERPRETS,
            Self::SmallEvicting => launch::EVICTS,
            Self::Stock | Self::Small | Self::SmallElf => &[],
        }
    }
}

/// How long a boot in lockstep may take: Debian's has a quarter of a billion blocks.
const LOCKSTEP_LIMIT: Duration = Duration::from_secs(3600);

/// One boot of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Boot {
    kernel: Kernel,
    machine: Machine,
    cpus: u32,
    end: End,
}

impl Boot {
    fn name(self) -> String {
        format!("{}/{}/{}cpu/{}", self.kernel.name(), self.machine.name(), self.cpus, self.end.name())
    }
}

/// The whole matrix, and the other ways to start and to run the small kernel. Only a kernel with ACPI can power off.
fn matrix(every_end: bool) -> Vec<Boot> {
    use End::{Panic, PowerOff, Reset, TripleFault};
    use Kernel::{Small, SmallElf, SmallEvicting, SmallInterpreted, SmallStub, Stock};
    use Machine::{Microvm, NitroEnclave};
    let one_each = [
        (Small, Microvm, 1, Reset),
        (Small, Microvm, 2, TripleFault),
        (Small, NitroEnclave, 1, TripleFault),
        (Small, NitroEnclave, 2, Reset),
        (SmallStub, Microvm, 1, Reset),
        (SmallElf, Microvm, 1, Panic),
        (SmallInterpreted, Microvm, 2, Reset),
        (SmallEvicting, Microvm, 2, Reset),
        (Stock, Microvm, 1, PowerOff),
        (Stock, Microvm, 2, Reset),
        (Stock, NitroEnclave, 1, TripleFault),
        (Stock, NitroEnclave, 2, PowerOff),
        // Once more, since it is an enclave's panic that has to be told from its end.
        (SmallInterpreted, NitroEnclave, 1, Panic),
    ];
    let boots = one_each.map(|(kernel, machine, cpus, end)| Boot { kernel, machine, cpus, end });
    if !every_end {
        return boots.to_vec();
    }
    let with_ends = |boot: &Boot| End::ALL.map(|end| Boot { end, ..*boot });
    let possible = |boot: &Boot| boot.kernel.acpi() || boot.end != PowerOff;
    boots.iter().flat_map(with_ends).filter(possible).collect()
}

/// The same boots with another number of processors, each of them once.
fn with_cpus(boots: &[Boot], cpus: u32) -> Vec<Boot> {
    let mut changed = Vec::new();
    for boot in boots.iter().map(|boot| Boot { cpus, ..*boot }) {
        if !changed.contains(&boot) {
            changed.push(boot);
        }
    }
    changed
}

/// What the boots are made of; a kernel that no boot wants is not fetched.
struct Images {
    stock: Option<(Image, usize)>,
    small: Option<Image>,
    elf: Option<Image>,
}

impl Images {
    fn get(paths: &Paths, boots: &[Boot], own: Option<&Path>) -> Result<Self> {
        let wants = |kernel| boots.iter().any(|boot| boot.kernel == kernel);
        let mut images = Self { stock: None, small: None, elf: None };
        use Kernel::{Small as OfSmall, SmallEvicting, SmallInterpreted, SmallStub};
        if [OfSmall, SmallStub, SmallInterpreted, SmallEvicting].into_iter().any(wants) {
            let kernel = match own {
                Some(path) => guest::own_kernel(path)?,
                None => Small::get(paths, false)?.bzimage,
            };
            images.small = Some(Image::of_small(paths, &kernel)?);
        }
        if wants(Kernel::SmallElf) {
            images.elf = Some(Image::of_small_elf(paths, &Small::get(paths, false)?.vmlinux)?);
        }
        if wants(Kernel::Stock) {
            images.stock = Some(match own {
                Some(path) => (Image::of_stock(paths, &guest::own_kernel(path)?, &[])?, 0),
                None => {
                    let stock = Stock::get(paths, false)?;
                    (Image::of_stock(paths, &stock.vmlinuz, &stock.modules)?, stock.modules.len())
                }
            });
        }
        Ok(images)
    }

    /// The image of a kernel and the number of its modules.
    fn of(&self, kernel: Kernel) -> Option<(&Image, usize)> {
        match kernel {
            Kernel::Small | Kernel::SmallStub | Kernel::SmallInterpreted | Kernel::SmallEvicting => {
                self.small.as_ref().map(|image| (image, 0))
            }
            Kernel::SmallElf => self.elf.as_ref().map(|image| (image, 0)),
            Kernel::Stock => self.stock.as_ref().map(|(image, modules)| (image, *modules)),
        }
    }
}

/// One boot's outcome.
struct Verdict {
    name: String,
    problems: Vec<String>,
    run: Run,
}

/// Runs the matrix and prints a table; fails if any boot failed.
pub(crate) fn run(arguments: &Arguments, paths: &Paths) -> Result<()> {
    let mut boots = matrix(arguments.every_end);
    if let Some(filter) = &arguments.only {
        boots.retain(|boot| boot.name().contains(filter.as_str()));
    }
    if arguments.qemu {
        boots.retain(|boot| boot.machine == Machine::Microvm);
    }
    if arguments.kernel.is_some() {
        // One file is either a bzImage or an ELF file.
        boots.retain(|boot| matches!(boot.kernel, Kernel::Small | Kernel::Stock));
    }
    if let Some(cpus) = arguments.cpus {
        boots = with_cpus(&boots, cpus.get());
    }
    if boots.is_empty() {
        return Err(Error::Advice("no boot of the matrix has such a name".to_owned()));
    }
    if arguments.accel == Some(Accel::Kvm) {
        launch::check_virtualization(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())?;
    }
    let images = Images::get(paths, &boots, arguments.kernel.as_deref())?;
    let vmm = if arguments.qemu { None } else { Some(Vmm::build(paths, arguments.vmm.as_deref(), arguments.accel)?) };
    let stand = Stand { images, vmm, arguments, paths };
    let (mut passed, mut failed) = (0, 0);
    for round in 1..=arguments.repeat.get() {
        for boot in &boots {
            let Some(verdict) = stand.boot(*boot, round)? else { continue };
            println!("{}", row(&verdict));
            for problem in &verdict.problems {
                println!("       {problem}");
            }
            if verdict.problems.is_empty() { passed += 1 } else { failed += 1 }
        }
    }
    println!("\n{passed} passed, {failed} failed");
    if failed != 0 {
        return Err(Error::Failed(format!("{failed} boots failed")));
    }
    // On KVM the whole matrix is what a host is tried with, and what it measures belongs to that.
    if arguments.accel == Some(Accel::Kvm) && arguments.only.is_none() && arguments.kernel.is_none() {
        bench::run(&bench::Arguments::on_kvm(arguments.vmm.clone()), paths)?;
    }
    Ok(())
}

/// What every boot has in common.
struct Stand<'a> {
    images: Images,
    /// Without it QEMU boots.
    vmm: Option<Vmm>,
    arguments: &'a Arguments,
    paths: &'a Paths,
}

impl Stand<'_> {
    /// Boots and checks; nothing if there is no image of this kernel.
    fn boot(&self, boot: Boot, round: u32) -> Result<Option<Verdict>> {
        let Self { images, vmm, arguments, paths } = self;
        let Some((image, modules)) = images.of(boot.kernel) else { return Ok(None) };
        let settings = boot.kernel.settings().iter().copied().chain(arguments.set.iter().map(String::as_str));
        let settings: Vec<&str> = settings.collect();
        let guest = Guest {
            machine: boot.machine,
            image,
            acpi: boot.kernel.acpi(),
            cpus: boot.cpus,
            memory: boot.kernel.memory(),
            append: format!("{}{}", boot.end.argument(), boot.machine.more_checks()),
            settings: &settings,
        };
        let mut command = vmm.as_ref().map_or_else(|| launch::qemu_command(&guest, None), |vmm| vmm.command(&guest));
        if boot.kernel == Kernel::SmallEvicting {
            command.arg("--stats");
        }
        let limit = arguments.timeout.map_or(boot.kernel.limit(), Duration::from_secs);
        let run = supervise::run(&mut command, limit, |line| {
            if arguments.verbose {
                println!("{}", line.text);
            }
        })?;
        let measured = match boot.machine {
            Machine::NitroEnclave => Some(image::measure(&image.eif)?),
            Machine::Microvm => None,
        };
        let report = Report::of(&run);
        let mut problems = checks::all(&report, &guest, modules, measured.as_ref());
        if boot.machine == Machine::NitroEnclave {
            problems.extend(attestation::nsm_check(&report));
        }
        if boot.kernel == Kernel::SmallEvicting {
            problems.extend(evicted(&run).err());
        }
        // QEMU's exit code is 0 for every end that the guest chose.
        let code = vmm.as_ref().map_or(0, |_| exit_codes::expected(boot.machine, boot.end));
        let expected = Outcome::Exited(code);
        if run.outcome != expected {
            problems.push(format!("it ended with {}, expected {expected} for a {}", run.outcome, boot.end.name()));
            problems.extend(run.last_words().map(|words| format!("its last words: {words}")));
        }
        if !problems.is_empty() {
            let log = keep(paths, boot, round, &shown(&command), &run)?;
            problems.push(format!("output kept in {}", log.display()));
        }
        Ok(Some(Verdict { name: boot.name(), problems, run }))
    }
}

/// Whether translated code was forgotten as often as its little room asks for.
fn evicted(run: &Run) -> std::result::Result<(), String> {
    const LEAST: u64 = 4;
    match run.statistics("code cache flushes").next() {
        Some(LEAST..) => Ok(()),
        Some(flushes) => Err(format!("the code cache was flushed {flushes} times, expected at least {LEAST}")),
        None => Err("the launcher did not say how often the code cache was flushed".to_owned()),
    }
}

/// Writes the console and the launcher's own words to a file.
fn keep(paths: &Paths, boot: Boot, round: u32, command: &str, run: &Run) -> Result<PathBuf> {
    let directory = paths.target.join("boot-test");
    paths::create_directory(&directory)?;
    let path = directory.join(format!("{}-{round}.log", boot.name().replace('/', "-")));
    let mut text = format!("$ {command}\n");
    for line in &run.console {
        text.push_str(&format!("[{:8.3}] {}\n", line.at.as_secs_f64(), line.text));
    }
    text.push_str(&format!("-- stderr; ended with {} after {:.1} s\n", run.outcome, run.elapsed.as_secs_f64()));
    for line in &run.errors {
        text.push_str(&format!("[{:8.3}] {}\n", line.at.as_secs_f64(), line.text));
    }
    paths::write(&path, text.as_bytes())?;
    Ok(path)
}

fn row(verdict: &Verdict) -> String {
    let outcome = if verdict.problems.is_empty() { "ok    " } else { "FAILED" };
    let run = &verdict.run;
    let init =
        Report::of(run).entry("init").map_or("    -".to_owned(), |entry| format!("{:5.1}", entry.at.as_secs_f64()));
    let (end, peak) = (run.elapsed.as_secs_f64(), run.peak_kib / 1024);
    format!("{outcome} {:<40} init {init} s  end {end:5.1} s  {peak:4} MiB", verdict.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_every_kernel_machine_and_number_of_processors_once() {
        let boots = matrix(false);
        for kernel in [Kernel::Small, Kernel::Stock] {
            for machine in [Machine::Microvm, Machine::NitroEnclave] {
                for cpus in [1, 2] {
                    let same = |boot: &&Boot| (boot.kernel, boot.machine, boot.cpus) == (kernel, machine, cpus);
                    assert_eq!(boots.iter().filter(same).count(), 1);
                }
            }
        }
    }

    #[test]
    fn another_number_of_processors_leaves_no_boot_twice() {
        let boots = with_cpus(&matrix(true), 4);
        assert!(boots.iter().all(|boot| boot.cpus == 4));
        assert_eq!(boots.len(), 2 * 4 + 7 * 3);
    }

    #[test]
    fn every_end_is_somewhere_in_the_matrix() {
        for end in End::ALL {
            assert!(matrix(false).iter().any(|boot| boot.end == end));
        }
    }

    #[test]
    fn a_kernel_without_acpi_is_never_asked_to_power_off() {
        assert!(matrix(true).iter().all(|boot| boot.kernel.acpi() || boot.end != End::PowerOff));
        assert_eq!(matrix(true).len(), 4 * 4 + 9 * 3);
    }
}
