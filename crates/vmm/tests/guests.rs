//! Whole runs of guests of a few bytes: exit codes, the console on a pipe and on a terminal, and every way out of it.
//!
//! The guests are ELF files with a few instructions, entered in 64-bit mode with the first 4 GiB mapped one to one.

#[path = "support/elf.rs"]
mod elf;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tempfile::TempDir;

/// `mov dx, 0x3f8; mov al, '>'; out dx, al`.
const PROMPT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee];
/// Reads COM1 and writes it back, for ever: polls bit 0 of the line status, `in`, `out`.
const ECHO: &[u8] =
    &[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef];
/// `mov al, 0xfe; out 0x64, al; 1: hlt; jmp 1b`: the i8042's reset.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// `mov edi, 0xfea00200; mov byte [rdi], 0x34; 1: hlt; jmp 1b`: S5 through the GED's sleep control register.
const POWER_OFF: &[u8] = &[0xbf, 0x00, 0x02, 0xa0, 0xfe, 0xc6, 0x07, 0x34, 0xf4, 0xeb, 0xfd];
/// Unmasks pin 4 of the IOAPIC: `mov edi, 0xfec00000; mov dword [rdi], 0x18; mov dword [rdi+0x10], 0x30`.
const OPEN_INTERRUPT: &[u8] =
    &[0xbf, 0x00, 0x00, 0xc0, 0xfe, 0xc7, 0x07, 0x18, 0, 0, 0, 0xc7, 0x47, 0x10, 0x30, 0, 0, 0];
/// Asks for a paravirtual clock at 2 MiB: `mov ecx, 0x4b564d01; mov eax, 0x200001; xor edx, edx; wrmsr`.
const OPEN_CLOCK: &[u8] = &[0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 0x01, 0x00, 0x20, 0x00, 0x31, 0xd2, 0x0f, 0x30];
/// Wants it no longer: the same with zero.
const CLOSE_CLOCK: &[u8] = &[0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30];
/// `ud2`, with no interrupt descriptor table.
const TRIPLE_FAULT: &[u8] = &[0x0f, 0x0b];
/// `mov ecx, 2000000; 1: push rax; pop rax; dec ecx; jnz 1b`: long enough to be seen by somebody who looks every millisecond.
const PUSH_AND_POP: &[u8] = &[0xb9, 0x80, 0x84, 0x1e, 0x00, 0x50, 0x58, 0xff, 0xc9, 0x75, 0xfa];
const PUSHES: u64 = 2_000_000;
/// `1: hlt; jmp 1b`.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

struct Guest {
    directory: TempDir,
}

impl Guest {
    fn new(code: &[&[u8]]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("guest"), elf::elf(&code.concat())).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["--machine", "microvm", "--memory", "16M", "--kernel"]).arg(self.path("guest")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str], input: Stdio) -> Output {
        self.command(arguments).stdin(input).output().unwrap()
    }
}

fn ends(code: &[&[u8]], arguments: &[&str], status: i32) {
    let output = Guest::new(code).run(arguments, Stdio::null());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), ">");
    assert_eq!(output.status.code(), Some(status));
}

#[test]
fn a_power_off_ends_with_0() {
    ends(&[PROMPT, POWER_OFF], &[], 0);
}

#[test]
fn a_reset_ends_with_3() {
    ends(&[PROMPT, RESET], &["--set", "machine.acpi=off"], 3);
}

#[test]
fn a_reset_without_a_shutdown_ends_with_7() {
    ends(&[PROMPT, OPEN_INTERRUPT, RESET], &["--set", "machine.acpi=off"], 7);
    ends(&[PROMPT, OPEN_CLOCK, RESET], &["--set", "machine.acpi=off"], 7);
    ends(&[PROMPT, OPEN_CLOCK, CLOSE_CLOCK, RESET], &["--set", "machine.acpi=off"], 3);
}

#[test]
fn a_triple_fault_ends_with_4() {
    ends(&[PROMPT, TRIPLE_FAULT], &[], 4);
}

/// The counts in the table of `--stats`.
fn counts(stderr: &str) -> BTreeMap<&str, u64> {
    let rows = stderr.lines().filter_map(|line| line.strip_prefix("vmm: stats: ")?.rsplit_once(' '));
    rows.filter_map(|(name, count)| Some((name.trim(), count.parse().ok()?))).collect()
}

#[test]
fn statistics_add_up() {
    let output = Guest::new(&[PUSH_AND_POP, PROMPT, POWER_OFF])
        .run(&["--stats", "--set", "debug.count-accesses=true"], Stdio::null());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("vmm: stats: wall time "), "{stderr}");
    let counts = counts(&stderr);
    let count = |name: &str| *counts.get(name).unwrap_or_else(|| panic!("no {name} in {stderr}"));
    // The loop, and eight before it, in the prompt, and until the power is off.
    let instructions = count("instructions");
    assert!((PUSHES * 4 + 5..PUSHES * 4 + 12).contains(&instructions), "{stderr}");
    assert_eq!(count("instructions interpreted") + count("instructions in generated code"), instructions);
    let sum = |prefix: &str| counts.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, n)| n).sum::<u64>();
    assert_eq!(sum("exits: "), count("entries into generated code"), "{stderr}");
    // Each turn pushes and pops; the last but one instruction is a store to the device.
    assert_eq!(count("TLB look-ups"), PUSHES * 2 + 1, "{stderr}");
    assert_eq!(count("TLB hits") + count("TLB misses"), count("TLB look-ups"), "{stderr}");
    assert!((1..20).contains(&count("TLB misses")), "{stderr}");
    assert!(sum("us ") > 0, "{stderr}");
}

#[test]
fn statistics_are_one_json_object_where_asked() {
    let output = Guest::new(&[PROMPT, POWER_OFF]).run(&["--stats=json"], Stdio::null());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.starts_with("{\"wall_seconds\": ") && stderr.ends_with("\"vsock\": null}\n"), "{stderr}");
    assert!(stderr.contains("\"instructions\": ") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn serial_output_goes_to_a_file_where_asked() {
    let guest = Guest::new(&[PROMPT, POWER_OFF]);
    let log = guest.path("log");
    let output = guest.run(&["--serial", &format!("file:{}", log.display())], Stdio::null());
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
    assert_eq!(std::fs::read(log).unwrap(), b">");
}

#[test]
fn a_pipe_is_typed_to_the_guest_byte_for_byte() {
    let guest = Guest::new(&[PROMPT, ECHO]);
    let mut vmm = guest.command(&[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = vmm.stdout.take().unwrap();
    expect(&mut stdout, b">");
    // More than any FIFO holds, with an escape key that is none here.
    let text: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
    vmm.stdin.take().unwrap().write_all(&text).unwrap();
    expect(&mut stdout, &text);
    kill_process(pid(&vmm), Signal::TERM).unwrap();
    assert_eq!(vmm.wait().unwrap().code(), Some(5));
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn expect(from: &mut impl Read, expected: &[u8]) {
    let mut found = vec![0; expected.len()];
    from.read_exact(&mut found).unwrap();
    assert!(found == expected, "{:?}", String::from_utf8_lossy(&found));
}

/// A `vmm` on a terminal of its own.
struct OnTerminal {
    user: File,
    terminal: File,
    vmm: Child,
    _guest: Guest,
}

impl OnTerminal {
    fn start(code: &[&[u8]]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        let guest = Guest::new(&[&[PROMPT], code].concat());
        let end = || Stdio::from(terminal.try_clone().unwrap());
        let vmm = guest.command(&[]).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut user = File::from(controller);
        // Once the guest has spoken, the terminal is soon raw.
        expect(&mut user, b">");
        let this = Self { user, terminal, vmm, _guest: guest };
        let start = Instant::now();
        while !this.is_raw() {
            assert!(start.elapsed() < Duration::from_secs(10), "the terminal never got raw");
            std::thread::sleep(Duration::from_millis(5));
        }
        this
    }

    fn is_raw(&self) -> bool {
        let raw = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(raw)
    }

    fn ends(mut self, status: i32) {
        assert_eq!(self.vmm.wait().unwrap().code(), Some(status));
        assert!(!self.is_raw(), "the terminal is as it was");
    }
}

#[test]
fn keys_reach_the_guest_and_control_a_x_ends_with_5_and_restores_the_terminal() {
    let mut run = OnTerminal::start(&[ECHO]);
    run.user.write_all(b"a\x03\x01\x01b").unwrap();
    expect(&mut run.user, b"a\x03\x01b");
    run.user.write_all(b"\x01x").unwrap();
    run.ends(5);
}

#[test]
fn control_a_x_leaves_a_guest_that_reads_nothing() {
    let mut run = OnTerminal::start(&[HALT]);
    run.user.write_all(&[b'k'; 2000]).unwrap();
    run.user.write_all(b"\x01x").unwrap();
    run.ends(5);
}

#[test]
fn signals_end_with_5_and_restore_the_terminal() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let run = OnTerminal::start(&[HALT]);
        kill_process(pid(&run.vmm), signal).unwrap();
        run.ends(5);
    }
}

#[test]
fn a_guest_that_ends_restores_the_terminal() {
    // Echoes one key and resets.
    let mut run = OnTerminal::start(&[&ECHO[..15], RESET]);
    run.user.write_all(b"k").unwrap();
    run.ends(3);
}

#[test]
fn a_console_on_a_socket_is_read_by_vmm_console_from_its_start_to_the_end() {
    let guest = Guest::new(&[PROMPT, HALT]);
    let socket = guest.path("console");
    let mut vmm = guest.command(&["--serial", &format!("socket:{}", socket.display())]).spawn().unwrap();
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "the socket never came to be");
        std::thread::sleep(Duration::from_millis(5));
    }
    let console = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.arg("console").arg(&socket).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let mut readers = [console(), console()];
    for reader in &mut readers {
        expect(reader.stdout.as_mut().unwrap(), b">");
    }
    kill_process(pid(&vmm), Signal::TERM).unwrap();
    assert_eq!(vmm.wait().unwrap().code(), Some(5));
    for reader in &mut readers {
        assert_eq!(reader.wait().unwrap().code(), Some(0));
    }
    assert_eq!(console().wait().unwrap().code(), Some(1));
}

#[test]
fn a_guest_that_dies_unseen_leaves_its_last_words_and_its_log() {
    let guest = Guest::new(&[PROMPT, OPEN_INTERRUPT, RESET]);
    let log = guest.path("log");
    let setting = format!("serial.log={}", log.display());
    let output = guest.run(&["--set", "machine.acpi=off", "--serial", "none", "--set", &setting], Stdio::null());
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(7), &b""[..]));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "vmm: the last lines of the guest's console:\n  | >\n");
    assert_eq!(std::fs::read(log).unwrap(), b">");
}

#[test]
fn a_guest_that_ends_well_unseen_leaves_no_words() {
    let output = Guest::new(&[PROMPT, POWER_OFF]).run(&["--serial", "none"], Stdio::null());
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
