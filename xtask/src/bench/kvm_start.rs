//! `cargo xtask bench --only kvm-start`: what starting a guest on KVM costs, beside QEMU's microvm on the same `/dev/kvm`.
//!
//! The guest's first instructions write one byte to COM1. From the start of the program to that byte is the time that is measured; when it has come, the resident memory is looked at, without
//! the guest's RAM, and at the processor time, which a busy host does not make longer. System calls are counted by strace up to the first KVM_RUN, in a run of their own. For us the guest is an ELF file; QEMU gets it as its firmware, so that no firmware of its
//! own has to run first. Contenders take turns, so that a busy host disturbs them alike, and each turn's runs are compared with one another.
//!
//! The limits are the issue's: a fifth of QEMU's time, and a tenth of its memory. They are for the static program, as README builds it: a program that shares the C library counts all of its pages that lie
//! beside those that it uses.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::sample::middle;
use crate::command::{self, start_error};
use crate::error::{Error, FileContext, Result};
use crate::guest_target;
use crate::launch::{QEMU, Vmm};
use crate::paths::{self, Paths, cargo};
use crate::{resident, supervise};

/// What `--only` calls it.
pub(super) const NAME: &str = "kvm-start";

/// The guest's RAM.
const GUEST_MIB: u32 = 128;
/// Most of QEMU's time and of its memory.
const TIME_LIMIT: f64 = 0.2;
const MEMORY_LIMIT: f64 = 0.1;
/// What the guest writes.
const BYTE: u8 = b'>';
/// Where QEMU's firmware ends, and how large it is.
const ROM_SIZE: usize = 64 << 10;
/// The processor's first instruction is so far from the firmware's end.
const RESET_VECTOR: usize = 16;

/// One contender's figures, a value a turn.
struct Figures {
    name: &'static str,
    milliseconds: Vec<f64>,
    /// Of processor time.
    cpu: Vec<f64>,
    mib: Vec<f64>,
    system_calls: Option<usize>,
}

/// What one start took.
struct Start {
    elapsed: Duration,
    cpu: Duration,
    resident_kib: u64,
}

impl Figures {
    fn median(values: &[f64]) -> f64 {
        middle(values.to_vec()).unwrap_or(f64::NAN)
    }

    /// The middle of the turns' ratios to `other`'s.
    fn ratio(own: &[f64], other: &[f64]) -> f64 {
        Self::median(&own.iter().zip(other).map(|(own, other)| own / other).collect::<Vec<_>>())
    }

    fn row(&self) -> String {
        let calls = self.system_calls.map_or("-".to_owned(), |calls| calls.to_string());
        let [time, cpu, memory] = [&self.milliseconds, &self.cpu, &self.mib].map(|values| Self::median(values));
        format!("{:<14} {time:>9.1} {cpu:>9.1} {memory:>12.2} {calls:>13}", self.name)
    }
}

/// What makes the command that starts a guest.
type Contender<'a> = Box<dyn Fn() -> Command + 'a>;

/// Measures in turns and prints the medians; fails if the static program is above a limit.
pub(super) fn run(runs: usize, vmm: &Vmm, paths: &Paths) -> Result<()> {
    usable(Path::new("/dev/kvm"))?;
    let directory = paths.target.join("bench-kvm-start");
    paths::create_directory(&directory)?;
    let (elf, rom) = (directory.join("guest.elf"), directory.join("guest.rom"));
    paths::write(&elf, &elf_guest())?;
    paths::write(&rom, &rom_guest())?;
    let linked = build_static(paths)?;
    let ours = |program: Command| our_command(program, &elf);
    let mut contenders: Vec<(&'static str, Contender<'_>)> =
        vec![("vmm, static", Box::new(|| ours(Command::new(&linked)))), ("vmm", Box::new(|| ours(vmm.program())))];
    if command::exists(QEMU) {
        contenders.push(("qemu", Box::new(|| qemu_command(&rom))));
    } else {
        eprintln!("{QEMU} is not installed: no comparison (apt-get install qemu-system-x86)");
    }
    let mut figures: Vec<Figures> = Vec::new();
    for (name, command) in &contenders {
        let system_calls = system_calls(&command(), &directory.join("strace"))?;
        figures.push(Figures { name, milliseconds: Vec::new(), cpu: Vec::new(), mib: Vec::new(), system_calls });
    }
    for _ in 0..runs {
        for ((_, command), figures) in contenders.iter().zip(&mut figures) {
            let Start { elapsed, cpu, resident_kib } = start(&mut command())?;
            figures.milliseconds.push(elapsed.as_secs_f64() * 1000.0);
            figures.cpu.push(cpu.as_secs_f64() * 1000.0);
            figures.mib.push(resident_kib as f64 / 1024.0);
        }
    }
    println!("\n{NAME}, medians of {runs} turns");
    println!("{:<14} {:>9} {:>9} {:>12} {:>13}", "", "first ms", "CPU ms", "MiB beyond", "system calls");
    figures.iter().for_each(|figures| println!("{}", figures.row()));
    let [linked, shared, qemu] = figures.as_slice() else { return Ok(()) };
    let over_qemu = |ours: &Figures| {
        let [time, cpu] = [(&ours.milliseconds, &qemu.milliseconds), (&ours.cpu, &qemu.cpu)];
        [time, cpu, (&ours.mib, &qemu.mib)].map(|(own, theirs)| Figures::ratio(own, theirs))
    };
    let [time, cpu, memory] = over_qemu(linked);
    println!(
        "static over QEMU: time {time:.2}, limit {TIME_LIMIT}; CPU {cpu:.2}; memory {memory:.3}, limit {MEMORY_LIMIT}"
    );
    let [time_shared, cpu_shared, memory_shared] = over_qemu(shared);
    println!("with a shared C library: time {time_shared:.2}; CPU {cpu_shared:.2}; memory {memory_shared:.3}");
    if time > TIME_LIMIT || memory > MEMORY_LIMIT {
        return Err(Error::Failed("starting on KVM costs more than its limits".to_owned()));
    }
    Ok(())
}

fn usable(device: &Path) -> Result<()> {
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::Advice(format!("this host cannot run {NAME}: {} cannot be opened: {error}", device.display())))
        }
    }
}

/// The launcher as README's static program.
fn build_static(paths: &Paths) -> Result<PathBuf> {
    command::run(
        cargo()
            .args(["build", "--release", "--package", "vmm", "--target", guest_target::TRIPLE, "--manifest-path"])
            .arg(paths.workspace.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&paths.target)
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS"),
    )?;
    Ok(paths.target.join(guest_target::TRIPLE).join("release/vmm"))
}

fn our_command(mut program: Command, guest: &Path) -> Command {
    program
        .args(["--machine", "microvm", "--accel", "kvm", "--memory", &format!("{GUEST_MIB}M"), "--kernel"])
        .arg(guest);
    program
}

/// A board like ours: ACPI, RTC, COM1, a virtio-rng.
fn qemu_command(rom: &Path) -> Command {
    let mut command = Command::new(QEMU);
    command
        .args(["-M", "microvm,acpi=on,rtc=on", "-accel", "kvm", "-m", &GUEST_MIB.to_string(), "-bios"])
        .arg(rom)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-device", "virtio-rng-device"]);
    command
}

/// Starts a contender, looks at it when the guest's byte has come, and ends it.
fn start(command: &mut Command) -> Result<Start> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|source| start_error(command, source))?;
    let mut byte = [0];
    let came = child.stdout.take().is_some_and(|mut stdout| stdout.read_exact(&mut byte).is_ok());
    let elapsed = start.elapsed();
    let cpu = supervise::cpu_time(child.id());
    let resident = resident::above_guest(child.id(), GUEST_MIB);
    // It may have ended by itself, and is waited for in any case.
    let _ = child.kill();
    let output = child.wait_with_output().map_err(|source| start_error(command, source))?;
    match cpu.zip(resident).filter(|_| came && byte == [BYTE]) {
        Some((cpu, resident_kib)) => Ok(Start { elapsed, cpu, resident_kib }),
        None => Err(Error::Failed(format!(
            "{}: the guest's byte did not come{}",
            command::shown(command),
            command::last_lines(&String::from_utf8_lossy(&output.stderr))
        ))),
    }
}

/// How many system calls a contender makes to its first KVM_RUN, if strace is there to say.
fn system_calls(contender: &Command, log: &Path) -> Result<Option<usize>> {
    if !command::exists("strace") {
        eprintln!("strace is not installed: system calls are not counted (apt-get install strace)");
        return Ok(None);
    }
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o"]).arg(log).arg(contender.get_program()).args(contender.get_args());
    if let Some(directory) = contender.get_current_dir() {
        traced.current_dir(directory);
    }
    start_traced(&mut traced)?;
    Ok(Some(calls_before_kvm_run(&std::fs::read_to_string(log).file("read", log)?)))
}

/// As [`start`], of a program that has the contender for a child, with which it ends.
fn start_traced(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(|source| start_error(command, source))?;
    let mut byte = [0];
    let came = child.stdout.as_mut().is_some_and(|stdout| stdout.read_exact(&mut byte).is_ok());
    // Both at once: strace alone would leave its child running.
    command::run(Command::new("kill").args(["-KILL", "--"]).arg(format!("-{}", child.id())))?;
    child.wait().map_err(|source| start_error(command, source))?;
    if came {
        Ok(())
    } else {
        Err(Error::Failed(format!("{}: the guest's byte did not come", command::shown(command))))
    }
}

/// Counts the calls in strace's log, one a line; one that another thread's interrupts has a second line, which says `resumed`.
fn calls_before_kvm_run(log: &str) -> usize {
    let calls = log.lines().take_while(|line| !line.contains("KVM_RUN"));
    calls.filter(|line| !line.contains(" resumed>") && !line.contains("+++") && !line.contains("---")).count()
}

/// `mov edx, 0x3f8; mov al, BYTE; out dx, al; 1: hlt; jmp 1b`, in 64-bit code at 1 MiB.
fn elf_guest() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let code = [0xba, 0xf8, 0x03, 0, 0, 0xb0, BYTE, 0xee, 0xf4, 0xeb, 0xfd];
    let size = code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC for x86-64, version 1, entry, program headers at 0x40, no section headers, one PT_LOAD that may be read and executed.
    [2u16, 62, 1, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [ENTRY, 0x40, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0u16, 0, 0x40, 0x38, 1, 0x40, 0, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [1u16, 0, 5, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0x78, ENTRY, ENTRY, size, size, 0x1000].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}

/// The same in real mode at the reset vector of a firmware image.
fn rom_guest() -> Vec<u8> {
    let code = [0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xf4, 0xeb, 0xfd];
    // HLT everywhere else.
    let mut rom = vec![0xf4; ROM_SIZE];
    let start = ROM_SIZE - RESET_VECTOR;
    rom[start..start + code.len()].copy_from_slice(&code);
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_once_though_another_threads_came_between() {
        let log = "7 execve(\"vmm\", [...]) = 0\n7 brk(NULL) = 0x1\n8 futex(0x1, FUTEX_WAIT <unfinished ...>\n7 close(3) = 0\n\
                   8 <... futex resumed>) = 0\n8 --- SIGRT_2 ---\n8 ioctl(9, KVM_RUN <unfinished ...>\n7 close(4) = 0\n";
        assert_eq!(calls_before_kvm_run(log), 4);
    }

    #[test]
    fn the_middle_ratio_is_of_runs_of_the_same_turn() {
        assert_eq!(Figures::ratio(&[1.0, 4.0, 3.0], &[10.0, 10.0, 10.0]), 0.3);
    }

    #[test]
    fn a_host_without_kvm_is_told_in_one_line() {
        let error = usable(Path::new("/no/such/device")).unwrap_err().to_string();
        assert!(error.starts_with("this host cannot run kvm-start") && error.lines().count() == 1, "{error}");
    }

    #[test]
    fn the_firmware_starts_at_the_reset_vector() {
        let rom = rom_guest();
        assert_eq!((rom.len(), rom[0xfff0], rom[0xffef]), (0x1_0000, 0xba, 0xf4));
    }
}
