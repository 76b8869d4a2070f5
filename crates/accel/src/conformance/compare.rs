//! Two runs of one guest on two backends must leave the same processor and the same memory, but for what is masked here by name.

use std::fmt::Debug;

use vm_memory::{Bytes, GuestAddress};
use x86::{CpuState, msr};

use super::{End, Guest, RAM, Report, STACK, without_ends};

/// MSRs that may differ: what they hold after RESET is the processor model's, and no guest here writes them.
const MODEL_SPECIFIC: &[u32] =
    &[msr::IA32_MISC_ENABLE, msr::IA32_MTRR_DEF_TYPE, msr::IA32_TSC_ADJUST, msr::IA32_SPEC_CTRL];

/// Flags that an instruction of the guest leaves undefined (SDM vol. 2): AF after logic and shifts, and CF and OF after shifts by more than one.
const UNDEFINED_FLAGS: u64 = 1 << 4 | 1 << 11 | 1;

/// What of one guest's end is not compared, and why.
struct Mask {
    guest: &'static str,
    /// Indices into `CpuState::gprs`.
    gprs: &'static [usize],
    /// Guest-physical addresses, first and past the last.
    memory: &'static [(u64, u64)],
    /// Bits of RFLAGS.
    flags: u64,
    /// Registers of the local APIC, by their offset divided by 16.
    apic: &'static [usize],
}

/// A mask of what is on the stack: an interrupt arrives somewhere in a loop, which is a matter of time, and its frame says where.
const fn stack_of(guest: &'static str) -> Mask {
    Mask { guest, gprs: &[], memory: &[STACK_FRAMES], flags: 0, apic: &[] }
}

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;

/// The stack of the bootstrap processor.
const STACK_FRAMES: (u64, u64) = (STACK - 0x100, STACK);

const MASKS: &[Mask] = &[
    // The guest computes its deadline from the time stamp counter, in RAX and RDX, which the handler saves on the stack.
    Mask {
        guest: "APIC timer, TSC deadline",
        gprs: &[0, 2],
        memory: &[STACK_FRAMES],
        flags: ARITHMETIC_FLAGS,
        apic: &[],
    },
    // The timer may have gone off once more: the request register of its vector.
    Mask { guest: "APIC timer, periodic", gprs: &[], memory: &[], flags: 0, apic: &[0x23] },
    // CPUID as the serializing instruction: RBX, RCX and RDX are the host's.
    Mask { guest: "code written by the other vCPU is executed", gprs: &[1, 2, 3], memory: &[], flags: 0, apic: &[] },
    stack_of("the higher vector comes first"),
    stack_of("a level interrupt comes again until its wire is low"),
    stack_of("an interrupt is in service until its end"),
    stack_of("an NMI by IPI"),
    stack_of("a level interrupt's EOI is broadcast"),
    stack_of("an interrupt waits for STI and its shadow"),
    stack_of("the PIC's interrupt"),
    stack_of("TPR holds interrupts back"),
    stack_of("x2APIC self-IPI"),
    stack_of("IPIs wake both vCPUs from HLT"),
    stack_of("an IOAPIC's edge pin interrupts at each rise"),
    stack_of("an IOAPIC's masked pin is silent"),
    stack_of("an IOAPIC's level pin has its remote IRR until the end of interrupt"),
    stack_of("an i8259 interrupts at each rise of its input"),
    stack_of("the second i8259 interrupts through the first"),
];

fn note<T: PartialEq + Debug>(differences: &mut Vec<String>, what: &str, a: T, b: T) {
    if a != b {
        differences.push(format!("{what}: {a:x?} and {b:x?}"));
    }
}

/// What differs between the ends of two runs of `guest`, in words; empty if nothing does.
pub fn differences(guest: &Guest, a: &Report, b: &Report) -> Vec<String> {
    let mask = MASKS.iter().find(|mask| mask.guest == guest.name);
    let mut found = Vec::new();
    note(&mut found, "end", a.end, b.end);
    if a.sees_ends == b.sees_ends {
        note(&mut found, "report", &a.bytes, &b.bytes);
    } else {
        note(&mut found, "report", without_ends(&a.bytes), without_ends(&b.bytes));
    }
    // A shutdown leaves the state undefined (SDM vol. 3, "Shutdown"): SVM does not even keep it.
    if guest.end != End::TripleFault {
        states(&mut found, mask, &a.state, &b.state);
    }
    let hidden =
        |address: u64| mask.is_some_and(|mask| mask.memory.iter().any(|&(first, end)| (first..end).contains(&address)));
    let bytes = |report: &Report| {
        let mut bytes = vec![0u8; RAM];
        report.memory.read_slice(&mut bytes, GuestAddress(0)).expect("guest RAM");
        bytes
    };
    let (left, right) = (bytes(a), bytes(b));
    for address in (0..RAM).filter(|&at| left[at] != right[at] && !hidden(at as u64)).take(8) {
        found.push(format!("memory at {address:#x}: {:#x} and {:#x}", left[address], right[address]));
    }
    found
}

fn states(found: &mut Vec<String>, mask: Option<&Mask>, a: &CpuState, b: &CpuState) {
    for n in (0..16).filter(|n| !mask.is_some_and(|mask| mask.gprs.contains(n))) {
        note(found, &format!("gpr {n}"), a.gprs[n], b.gprs[n]);
    }
    note(found, "rip", a.rip, b.rip);
    let hidden = UNDEFINED_FLAGS | mask.map_or(0, |mask| mask.flags);
    note(found, "rflags", a.rflags & !hidden, b.rflags & !hidden);
    for (name, left, right) in [
        ("es", a.es, b.es),
        ("cs", a.cs, b.cs),
        ("ss", a.ss, b.ss),
        ("ds", a.ds, b.ds),
        ("fs", a.fs, b.fs),
        ("gs", a.gs, b.gs),
        ("ldtr", a.ldtr, b.ldtr),
        ("tr", a.tr, b.tr),
    ] {
        note(found, name, left, right);
    }
    note(found, "gdtr", a.gdtr, b.gdtr);
    note(found, "idtr", a.idtr, b.idtr);
    note(found, "control registers", [a.cr0, a.cr2, a.cr3, a.cr4, a.cr8], [b.cr0, b.cr2, b.cr3, b.cr4, b.cr8]);
    note(found, "debug registers", (a.dr, a.dr6, a.dr7), (b.dr, b.dr6, b.dr7));
    note(found, "efer, apic_base, xcr0", [a.efer, a.apic_base, a.xcr0], [b.efer, b.apic_base, b.xcr0]);
    note(found, "activity", a.activity, b.activity);
    note(found, "interrupt shadow", a.interrupt_shadow, b.interrupt_shadow);
    note(found, "NMI", (a.nmi_blocked, a.nmi_pending), (b.nmi_blocked, b.nmi_pending));
    local_apics(found, mask, a, b);
    for offset in (0..a.xsave.len()).filter(|&at| a.xsave[at] != b.xsave[at]).take(4) {
        found.push(format!("xsave at {offset}: {:#x} and {:#x}", a.xsave[offset], b.xsave[offset]));
    }
    // The time stamp counter is time. Of the MSRs only those that both backends hold can be compared.
    for (number, left) in a.msrs.iter().filter(|(number, _)| !MODEL_SPECIFIC.contains(number)) {
        if let Some((_, right)) = b.msrs.iter().find(|(other, _)| other == number) {
            note(found, &format!("msr {number:#x}"), left, right);
        }
    }
}

/// Registers of the local APIC that may differ, by their offset divided by 16: the version, whose number of local vector entries is the model's; the current count,
/// which is time; the entry for corrected machine checks, which not every model has.
const MODEL_SPECIFIC_REGISTERS: &[usize] = &[0x03, 0x39, 0x2f];

fn local_apics(found: &mut Vec<String>, mask: Option<&Mask>, a: &CpuState, b: &CpuState) {
    let (Some(a), Some(b)) = (&a.local_apic, &b.local_apic) else {
        return found.push("a backend gave no local APIC".to_owned());
    };
    let hidden = |n: &usize| MODEL_SPECIFIC_REGISTERS.contains(n) || mask.is_some_and(|mask| mask.apic.contains(n));
    for n in (0..64).filter(|n| !hidden(n)) {
        note(found, &format!("local APIC register {:#x}", n * 16), a.registers[n], b.registers[n]);
    }
    // The deadline itself is time.
    note(found, "an armed deadline", a.tsc_deadline != 0, b.tsc_deadline != 0);
}
