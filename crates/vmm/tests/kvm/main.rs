//! The launcher's tiny guests on KVM (those with a vhost-user process: [`vhost_user`]), through the whole machine, with each choice of interrupt controllers. Skipped with a printed reason where `/dev/kvm` cannot be opened.
//!
//! The board's guest does what a kernel does first, in a few hundred bytes: it prints over COM1, finds a virtio-mmio transport, reads the RTC, takes a PIT
//! interrupt through the PIC, and powers off. The driver's guest has the random number generator fill a buffer, and takes its level-triggered interrupt through the IOAPIC.

#[path = "../support/elf.rs"]
mod elf;
mod vhost_user;

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use elf::{ENTRY, elf};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, cs, dword_ptr, dx, eax, edx, ptr, qword_ptr, rax, rbx, rsp, word_ptr,
};

/// The guest's interrupt descriptor table.
const IDT: u64 = 0x20_0000;
/// Top of its stack.
const STACK: u64 = 0x30_0000;
/// The vector that the guest gives to the PIC's first input.
const TIMER_VECTOR: u64 = 0x20;
/// The registers and the IOAPIC's pin of the last transport of a board with one IOAPIC.
const LAST_TRANSPORT: u32 = 0xfeb0_0e00;
const LAST_TRANSPORT_PIN: u32 = 23;

/// For each choice of interrupt controllers a board that is alike.
const EVERY_IRQCHIP: [[&str; 4]; 3] = [
    ["--set", "machine.kernel-irqchip=split", "--set", "machine.ioapic2=off"],
    ["--set", "machine.kernel-irqchip=on", "--set", "machine.ioapic2=auto"],
    ["--set", "machine.kernel-irqchip=off", "--set", "machine.ioapic2=off"],
];

fn usable() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// Runs a guest by `command`, which is the launcher or something that runs it.
fn run_by(mut command: Command, code: &[u8], arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let guest = directory.path().join("guest");
    std::fs::write(&guest, elf(code)).unwrap();
    command
        .args(["--machine", "microvm", "--memory", "16M", "--kernel"])
        .arg(guest)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn run(code: &[u8], arguments: &[&str]) -> Output {
    run_by(Command::new(env!("CARGO_BIN_EXE_vmm")), code, arguments)
}

fn ends(code: &[u8], arguments: &[&str], printed: &str, status: i32) {
    if !usable() {
        return;
    }
    let output = run(code, &[&["--accel", "kvm"], arguments].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), printed, "{stderr}");
    assert_eq!(output.status.code(), Some(status), "{stderr}");
}

fn put(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(al, value)?;
    a.out(dx, al)
}

fn print(a: &mut CodeAssembler, letter: u8) -> Result<(), IcedError> {
    put(a, 0x3f8, letter.into())
}

/// Prints `letter` if the last comparison was equal.
fn print_if_equal(a: &mut CodeAssembler, letter: u8) -> Result<(), IcedError> {
    let mut over = a.create_label();
    a.jne(over)?;
    print(a, letter)?;
    a.set_label(&mut over)?;
    a.nop()
}

/// Points an interrupt gate for `vector` at `handler`, and the processor at the table.
fn set_gate(a: &mut CodeAssembler, vector: u64, handler: CodeLabel) -> Result<(), IcedError> {
    let gate = IDT + vector * 16;
    a.lea(rax, ptr(handler))?;
    a.mov(qword_ptr(gate), rax)?;
    a.shr(rax, 16)?;
    a.mov(word_ptr(gate + 6), iced_x86::code_asm::ax)?;
    a.mov(eax, cs)?;
    a.mov(word_ptr(gate + 2), iced_x86::code_asm::ax)?;
    a.mov(word_ptr(gate + 4), 0x8e00_i32)?;
    a.mov(dword_ptr(gate + 8), 0)?;
    a.mov(rax, IDT << 16 | 0xfff)?;
    a.push(0)?;
    a.push(rax)?;
    a.lidt(ptr(rsp))
}

/// Writes a register of the local APIC.
fn apic_write(a: &mut CodeAssembler, register: u32, value: i32) -> Result<(), IcedError> {
    a.mov(eax, 0xfee0_0000u32 + register)?;
    a.mov(dword_ptr(rax), value)
}

/// S5 through the sleep control register, after the end of a line.
fn power_off(a: &mut CodeAssembler) -> Result<(), IcedError> {
    print(a, b'\n')?;
    a.mov(eax, 0xfea0_0200u32)?;
    a.mov(byte_ptr(rax), 0x34)?;
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)
}

/// A guest that finds the random number generator at `transport`.
fn board_guest(transport: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut handler = a.create_label();
    a.mov(rsp, STACK)?;
    print(&mut a, b'>')?;
    // The magic value of a virtio-mmio transport.
    a.mov(eax, transport)?;
    a.mov(eax, dword_ptr(rax))?;
    a.cmp(eax, 0x7472_6976)?;
    print_if_equal(&mut a, b'v')?;
    // The RTC's register D: time is valid.
    put(&mut a, 0x70, 0x0d)?;
    a.mov(edx, 0x71)?;
    a.in_(al, dx)?;
    a.cmp(al, 0x80u32)?;
    print_if_equal(&mut a, b'r')?;
    set_gate(&mut a, TIMER_VECTOR, handler)?;
    // The local APIC passes the PIC's interrupts on.
    apic_write(&mut a, 0xf0, 0x1ff)?;
    apic_write(&mut a, 0x350, 0x700)?;
    // The PIC: vectors from 0x20, only its first input; the PIT's counter 0 counts down once, in 2 ms.
    for (port, value) in [(0x20, 0x11), (0x21, TIMER_VECTOR as u32), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        put(&mut a, port, value)?;
    }
    for (port, value) in [(0x43, 0x30), (0x40, 0x52), (0x40, 0x09)] {
        put(&mut a, port, value)?;
    }
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    power_off(&mut a)?;
    a.set_label(&mut handler)?;
    print(&mut a, b'i')?;
    put(&mut a, 0x20, 0x20)?;
    a.iretq()?;
    a.assemble(ENTRY)
}

/// A driver of the random number generator at [`LAST_TRANSPORT`]: one buffer, one notification, one interrupt.
fn driver_guest() -> Result<Vec<u8>, IcedError> {
    const VECTOR: u64 = 0x40;
    const DESCRIPTORS: u64 = 0x40_0000;
    const AVAILABLE: u64 = 0x40_1000;
    const USED: u64 = 0x40_2000;
    const BUFFER: u64 = 0x40_3000;
    const FLAG: u64 = 0x40_4000;
    let mut a = CodeAssembler::new(64)?;
    let (mut handler, mut spurious, mut wait) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsp, STACK)?;
    a.mov(rbx, u64::from(LAST_TRANSPORT))?;
    let register = |a: &mut CodeAssembler, offset: u64, value: u32| -> Result<(), IcedError> {
        a.mov(dword_ptr(rbx + offset as i32), value as i32)
    };
    // Reset, ACKNOWLEDGE, DRIVER; VERSION_1 and nothing else; FEATURES_OK.
    for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x24, 0), (0x20, 0), (0x70, 0xb)] {
        register(&mut a, offset, value)?;
    }
    // Queue 0 with eight entries, then DRIVER_OK.
    for (offset, value) in [(0x30, 0), (0x38, 8), (0x80, DESCRIPTORS), (0x84, 0), (0x90, AVAILABLE), (0x94, 0)] {
        register(&mut a, offset, value as u32)?;
    }
    for (offset, value) in [(0xa0, USED), (0xa4, 0), (0x44, 1), (0x70, 0xf)] {
        register(&mut a, offset, value as u32)?;
    }
    // One device-writable buffer of 64 bytes, which is made available.
    a.mov(qword_ptr(DESCRIPTORS), BUFFER as i32)?;
    a.mov(dword_ptr(DESCRIPTORS + 8), 64)?;
    a.mov(dword_ptr(DESCRIPTORS + 12), 2)?;
    a.mov(dword_ptr(AVAILABLE), 1 << 16)?;
    set_gate(&mut a, VECTOR, handler)?;
    apic_write(&mut a, 0xf0, 0x1ff)?;
    // The IOAPIC's pin: level-triggered, to local APIC 0.
    a.mov(eax, 0xfec0_0000u32)?;
    a.mov(dword_ptr(rax), (0x10 + 2 * LAST_TRANSPORT_PIN) as i32)?;
    a.mov(dword_ptr(rax + 0x10), 0x8000 | VECTOR as i32)?;
    register(&mut a, 0x50, 0)?;
    a.set_label(&mut wait)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(dword_ptr(FLAG), 0)?;
    a.je(wait)?;
    a.cmp(word_ptr(USED + 2), 1)?;
    print_if_equal(&mut a, b'u')?;
    a.cmp(dword_ptr(USED + 8), 64)?;
    print_if_equal(&mut a, b'l')?;
    power_off(&mut a)?;
    a.set_label(&mut handler)?;
    // Its InterruptStatus says that a buffer was used, once.
    a.mov(eax, dword_ptr(rbx + 0x60))?;
    a.test(eax, 1)?;
    a.je(spurious)?;
    register(&mut a, 0x64, 1)?;
    a.mov(dword_ptr(FLAG), 1)?;
    print(&mut a, b'i')?;
    a.set_label(&mut spurious)?;
    apic_write(&mut a, 0xb0, 0)?;
    a.iretq()?;
    a.assemble(ENTRY)
}

#[test]
fn the_boards_guest_finds_its_devices_and_powers_off_within_5_s() {
    let start = Instant::now();
    ends(&board_guest(0xfeb0_2e00).unwrap(), &[], ">vri\n", 0);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    for irqchip in EVERY_IRQCHIP {
        ends(&board_guest(LAST_TRANSPORT).unwrap(), &irqchip, ">vri\n", 0);
    }
}

#[test]
fn the_boards_guest_sees_the_same_on_the_software_cpu() {
    let output = run(&board_guest(0xfeb0_2e00).unwrap(), &["--accel", "soft"]);
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()), (">vri\n", Some(0)));
}

#[test]
fn a_driver_is_served_and_interrupted_with_each_choice_of_interrupt_controllers() {
    let guest = driver_guest().unwrap();
    for irqchip in EVERY_IRQCHIP {
        ends(&guest, &irqchip, "iul\n", 0);
    }
    let output = run(&guest, &["--accel", "soft", "--set", "machine.ioapic2=off"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "iul\n", "on the software CPU");
}

/// Leaves a note in the CMOS, which outlives a reset, opens a pin of the IOAPIC and an input of the PIC, gives the local APIC a task priority, and resets the machine; the second life
/// prints what of this is gone.
fn reset_guest() -> Result<Vec<u8>, IcedError> {
    const IOAPIC: u32 = 0xfec0_0000;
    let mut a = CodeAssembler::new(64)?;
    let mut second = a.create_label();
    a.mov(rsp, STACK)?;
    put(&mut a, 0x70, 0x50)?;
    a.mov(edx, 0x71)?;
    a.in_(al, dx)?;
    a.cmp(al, 1)?;
    a.je(second)?;
    put(&mut a, 0x71, 1)?;
    a.mov(eax, IOAPIC)?;
    a.mov(dword_ptr(rax), 0x18)?;
    a.mov(dword_ptr(rax + 0x10), 0x54)?;
    apic_write(&mut a, 0x80, 0x50)?;
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xa5)] {
        put(&mut a, port, value)?;
    }
    put(&mut a, 0x64, 0xfe)?;
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)?;
    a.set_label(&mut second)?;
    a.mov(eax, IOAPIC)?;
    a.mov(dword_ptr(rax), 0x18)?;
    a.mov(eax, dword_ptr(rax + 0x10))?;
    a.cmp(eax, 0x1_0000)?;
    print_if_equal(&mut a, b'm')?;
    a.mov(eax, 0xfee0_0080u32)?;
    a.mov(eax, dword_ptr(rax))?;
    a.cmp(eax, 0)?;
    print_if_equal(&mut a, b't')?;
    a.mov(edx, 0x21)?;
    a.in_(al, dx)?;
    a.cmp(al, 0xa5u32)?;
    let mut same = a.create_label();
    a.je(same)?;
    print(&mut a, b'p')?;
    a.set_label(&mut same)?;
    power_off(&mut a)?;
    a.assemble(ENTRY)
}

#[test]
fn a_reset_forgets_what_every_interrupt_controller_was_told() {
    for irqchip in EVERY_IRQCHIP {
        let arguments = [&irqchip[..], &["--set", "machine.on-reboot=reset"]].concat();
        ends(&reset_guest().unwrap(), &arguments, "mtp\n", 0);
    }
}

#[test]
fn a_reset_ends_with_3() {
    // mov al, 0xfe; out 0x64, al; 1: hlt; jmp 1b
    ends(&[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd], &["--set", "machine.acpi=off"], "", 3);
}

#[test]
fn a_triple_fault_ends_with_4() {
    // ud2
    ends(&[0x0f, 0x0b], &[], "", 4);
}

#[test]
fn a_triple_fault_is_reported_with_registers_and_code() {
    if !usable() {
        return;
    }
    // mov eax, 0x1234; ud2
    let output = run(&[0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x0b], &["--accel", "kvm"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("triple fault: an exception could not be delivered"), "{stderr}");
    assert!(stderr.contains("rip=0000000000100005") && stderr.contains("code at rip: 0f 0b"), "{stderr}");
    assert!(stderr.contains("rax=0000000000001234"), "{stderr}");
}

/// What the dynamic loader and the C library open before `main`.
fn is_loaders(path: &str) -> bool {
    path.starts_with("/etc/ld.so") || path.contains(".so.") || path == "/proc/self/maps"
}

#[test]
fn nothing_but_the_device_and_the_guest_is_opened() {
    if !usable() {
        return;
    }
    let mut strace = Command::new("strace");
    if let Err(error) = Command::new("strace").arg("-V").output() {
        println!("skipped: strace cannot be run: {error}");
        return;
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    let calls = "trace=%file,socket,connect,bind,ioctl";
    strace.args(["-f", "-qq", "-e", calls, "-o"]).arg(log.path()).arg(env!("CARGO_BIN_EXE_vmm"));
    let output = run_by(strace, &board_guest(0xfeb0_2e00).unwrap(), &["--accel", "kvm"]);
    let log = std::fs::read_to_string(log.path()).unwrap();
    if !log.contains("/dev/kvm") {
        // Where tracing is forbidden, as in some sandboxes, the program does not run at all.
        println!("skipped: strace traces nothing here: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert_eq!(String::from_utf8_lossy(&output.stdout), ">vri\n");
    let (before, after) = log.split_once("KVM_RUN").expect("the guest ran");
    let mut opened: Vec<&str> = before
        .lines()
        .filter(|line| line.contains(" open"))
        .filter_map(|line| line.split('"').nth(1))
        .filter(|path| !is_loaders(path))
        .collect();
    opened.sort_unstable();
    opened.dedup();
    let (guest, others): (Vec<&str>, Vec<&str>) = opened.into_iter().partition(|path| path.ends_with("/guest"));
    // The processor's flags say whether KVM is worth anything.
    assert_eq!((guest.len(), others), (1, vec!["/dev/kvm", "/proc/cpuinfo"]), "before the guest ran");
    let touched: Vec<&str> = after.lines().filter(|line| !line.contains("ioctl(") && line.contains('"')).collect();
    assert!(touched.is_empty(), "while it ran: {touched:?}");
    assert!(!log.contains("connect(") && !log.contains("bind("), "{log}");
}

/// A guest that reads the magic value of the last transport by the x87.
fn x87_guest() -> Result<Vec<u8>, IcedError> {
    const SCRATCH: u64 = 0x28_0000;
    let mut a = CodeAssembler::new(64)?;
    a.mov(rsp, STACK)?;
    a.mov(eax, LAST_TRANSPORT)?;
    a.fninit()?;
    a.fild(dword_ptr(rax))?;
    a.fistp(dword_ptr(SCRATCH))?;
    a.cmp(dword_ptr(SCRATCH), 0x7472_6976)?;
    print_if_equal(&mut a, b'v')?;
    power_off(&mut a)?;
    a.assemble(ENTRY)
}

#[test]
fn an_instruction_that_kvm_refuses_reaches_a_device_all_the_same() {
    let code = x87_guest().unwrap();
    for irqchip in EVERY_IRQCHIP {
        ends(&code, &irqchip, "v\n", 0);
    }
}

#[test]
fn an_instruction_that_nobody_can_execute_is_reported_with_registers_and_code() {
    if !usable() {
        return;
    }
    // mov edi, 0xffffff; jmp rdi: an instruction that begins with the last byte of RAM.
    let output = run(&[0xbf, 0xff, 0xff, 0xff, 0, 0xff, 0xe7], &["--accel", "kvm"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("KVM internal error, suberror 1 (emulation failure)"), "{stderr}");
    assert!(stderr.contains("in KVM's place: it knows no such instruction, or not all of it is in RAM"), "{stderr}");
    assert!(stderr.contains("code at rip: 00 ??") && stderr.contains("rdi=0000000000ffffff"), "{stderr}");
}
