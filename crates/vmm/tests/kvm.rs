//! The launcher's tiny guests on KVM, through the whole machine. Skipped with a printed reason where `/dev/kvm` cannot be opened.
//!
//! The board's guest does what a kernel does first, in a few hundred bytes: it prints over COM1, finds a virtio-mmio transport, reads the RTC, takes a PIT
//! interrupt through the PIC, and powers off.

use std::fs::File;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, al, byte_ptr, cs, dword_ptr, dx, eax, edx, ptr, qword_ptr, rax, rsp, word_ptr,
};

/// Where the guest is loaded, in bytes.
const ENTRY: u64 = 0x10_0000;
/// Its interrupt descriptor table.
const IDT: u64 = 0x20_0000;
/// Top of its stack.
const STACK: u64 = 0x30_0000;
/// The vector that the guest gives to the PIC's first input.
const TIMER_VECTOR: u64 = 0x20;

fn usable() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            false
        }
    }
}

/// An ELF file that is entered in 64-bit mode at `code`.
fn elf(code: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let size = code.len() as u64;
    // ET_EXEC for x86-64, version 1, entry, program headers at 0x40, no section headers, one PT_LOAD that may be read and executed.
    [2u16, 62, 1, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [ENTRY, 0x40, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0u16, 0, 0x40, 0x38, 1, 0x40, 0, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [1u16, 0, 5, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0x78, ENTRY, ENTRY, size, size, 0x1000].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}

fn run(code: &[u8], arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let guest = directory.path().join("guest");
    std::fs::write(&guest, elf(code)).unwrap();
    Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(["--machine", "microvm", "--memory", "16M", "--kernel"])
        .arg(guest)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
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

fn board_guest() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut handler = a.create_label();
    a.mov(rsp, STACK)?;
    print(&mut a, b'>')?;
    // The magic value of the last virtio-mmio transport, where the random number generator is.
    a.mov(eax, 0xfeb0_2e00u32)?;
    a.mov(eax, dword_ptr(rax))?;
    a.cmp(eax, 0x7472_6976)?;
    print_if_equal(&mut a, b'v')?;
    // The RTC's register D: time is valid.
    put(&mut a, 0x70, 0x0d)?;
    a.mov(edx, 0x71)?;
    a.in_(al, dx)?;
    a.cmp(al, 0x80u32)?;
    print_if_equal(&mut a, b'r')?;
    // An interrupt gate for the timer.
    let gate = IDT + TIMER_VECTOR * 16;
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
    a.lidt(ptr(rsp))?;
    // The local APIC passes the PIC's interrupts on.
    a.mov(eax, 0xfee0_00f0u32)?;
    a.mov(dword_ptr(rax), 0x1ff)?;
    a.mov(eax, 0xfee0_0350u32)?;
    a.mov(dword_ptr(rax), 0x700)?;
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
    // S5 through the sleep control register.
    print(&mut a, b'\n')?;
    a.mov(eax, 0xfea0_0200u32)?;
    a.mov(byte_ptr(rax), 0x34)?;
    let mut stay = a.create_label();
    a.set_label(&mut stay)?;
    a.hlt()?;
    a.jmp(stay)?;
    a.set_label(&mut handler)?;
    print(&mut a, b'i')?;
    put(&mut a, 0x20, 0x20)?;
    a.iretq()?;
    a.assemble(ENTRY)
}

#[test]
fn the_boards_guest_finds_its_devices_and_powers_off_within_5_s() {
    let start = Instant::now();
    ends(&board_guest().unwrap(), &[], ">vri\n", 0);
    assert!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
}

#[test]
fn the_boards_guest_sees_the_same_on_the_software_cpu() {
    let output = run(&board_guest().unwrap(), &["--accel", "soft"]);
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), output.status.code()), (">vri\n", Some(0)));
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
fn an_instruction_that_kvm_cannot_execute_is_reported_with_registers_and_code() {
    if !usable() {
        return;
    }
    // mov dword [0xd0000000], via an x87 store: no KVM emulates that on MMIO. mov edi, 0xd0000000; fstp tbyte [rdi]
    let output = run(&[0xbf, 0, 0, 0, 0xd0, 0xdb, 0x3f], &["--accel", "kvm"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("KVM internal error, suberror 1 (emulation failure)"), "{stderr}");
    assert!(stderr.contains("code at rip: db 3f") && stderr.contains("rdi=00000000d0000000"), "{stderr}");
}
