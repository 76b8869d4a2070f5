//! Comparing the two effects of one case, and collecting what differs by instruction form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;

use iced_x86::{Code, Instruction};
use soft_cpu::fpu::offset;
use x86::{exception, rflags};

use super::case::*;
use super::rules;

/// Most forms that are printed.
const MOST_PRINTED: usize = 50;
/// Flags that are compared: what user code can change and see.
const FLAGS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF | rflags::DF;
/// The page fault error code's bits that the guest's kernel sees and that the host's does not change: write, user, fetch.
const PF_ERROR: u32 = 1 << 1 | 1 << 2 | 1 << 4;
/// The present bit of it, which Linux sets for addresses of its own half.
const PF_PRESENT: u32 = 1;
/// Where that half begins (`TASK_SIZE_MAX`).
const LINUX_HALF: u64 = 0x7fff_ffff_f000;

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

struct Finding {
    count: usize,
    example: String,
}

/// What differed.
#[derive(Default)]
pub(crate) struct Findings {
    by_form: BTreeMap<(u32, String), Finding>,
    /// Cases compared.
    pub(crate) cases: usize,
    /// Cases of each form.
    pub(crate) forms: BTreeMap<String, usize>,
    /// Why forms were left out, and how many cases.
    pub(crate) skipped: BTreeMap<&'static str, usize>,
}

impl Findings {
    /// Compares the effects of `case`, which `instruction` decodes if it is one.
    pub(crate) fn compare(
        &mut self,
        case: &Case,
        instruction: Option<&Instruction>,
        host: Option<&Effect>,
        ours: &Effect,
        memory: &Memory,
    ) {
        self.cases += 1;
        let form = match instruction {
            _ if case.sequence => "(sequence)".to_owned(),
            Some(instruction) => format!("{:?}", instruction.code()),
            None => "(invalid)".to_owned(),
        };
        *self.forms.entry(form.clone()).or_default() += 1;
        let Some(host) = host else {
            self.add(case, form, "the host's child died".to_owned());
            return;
        };
        if case.sequence {
            let host = Effect { trap: Trap::NONE, ..host.clone() };
            let differences = differences(case, None, &host, ours, memory);
            if !differences.is_empty() {
                self.add(case, "(sequence)".to_owned(), differences);
            }
            return;
        }
        if ours.trap.vector == u32::from(exception::UD)
            && host.trap.vector != ours.trap.vector
            && instruction.is_some_and(rules::not_offered)
        {
            return;
        }
        if host.trap.vector == u32::from(exception::UD) && instruction.is_some_and(rules::offered_without_the_host) {
            return;
        }
        let differences = differences(case, instruction, host, ours, memory);
        if !differences.is_empty() {
            self.add(case, form, differences);
        }
    }

    fn add(&mut self, case: &Case, form: String, differences: String) {
        let bitness = if case.compatibility { 32 } else { 64 };
        let finding =
            self.by_form.entry((bitness, form)).or_insert_with(|| Finding { count: 0, example: String::new() });
        finding.count += 1;
        if finding.count == 1 {
            let (at, code) = case.code();
            let mut text = String::new();
            for byte in code {
                let _ = write!(text, "{byte:02x} ");
            }
            let _ = write!(text, "at code+{at:#x}, flags {}", flag_names(case.registers.rflags));
            let changed = NAMES.iter().zip(case.registers.gpr).map(|(name, value)| format!("{name}={value:x}"));
            let _ = write!(text, "\n      in: {}{differences}", changed.collect::<Vec<_>>().join(" "));
            finding.example = text;
        }
    }

    /// Counts a case that is not run.
    pub(crate) fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }

    /// Prints a summary, and what differed.
    ///
    /// # Panics
    /// Panics if anything differed.
    pub(crate) fn finish(self, what: &str) {
        println!("{what}: {} cases of {} forms compared with the host", self.cases, self.forms.len());
        for (reason, count) in &self.skipped {
            println!("  skipped {count}: {reason}");
        }
        let mut text = String::new();
        for ((bitness, form), finding) in self.by_form.iter().take(if std::env::var_os("VMM_COMPARE_FORM").is_some() {
            usize::MAX
        } else {
            MOST_PRINTED
        }) {
            let _ = write!(
                text,
                "\n{form} ({bitness}-bit code, {} of {} cases)\n      {}",
                finding.count, self.forms[form], finding.example
            );
        }
        assert!(self.by_form.is_empty(), "{what}: {} forms differ from the host:{text}", self.by_form.len());
    }
}

fn flag_names(value: u64) -> String {
    [
        (rflags::CF, "C"),
        (rflags::PF, "P"),
        (rflags::AF, "A"),
        (rflags::ZF, "Z"),
        (rflags::SF, "S"),
        (rflags::OF, "O"),
        (rflags::DF, "D"),
        (rflags::TF, "T"),
    ]
    .iter()
    .filter(|(flag, _)| value & flag != 0)
    .map(|(_, name)| *name)
    .collect()
}

fn trap_name(trap: &Trap) -> String {
    match trap.vector {
        Trap::COMPLETED => "completed".to_owned(),
        Trap::NO_END => "came to no end".to_owned(),
        14 => format!("#PF({:#x}) at {:#x}", trap.error, trap.address),
        vector => {
            let name = match vector {
                0 => "#DE",
                1 => "#DB",
                4 => "#OF",
                5 => "#BR",
                6 => "#UD",
                7 => "#NM",
                12 => "#SS",
                13 => "#GP",
                16 => "#MF",
                17 => "#AC",
                19 => "#XM",
                _ => "other exception",
            };
            format!("{name}({:#x})", trap.error)
        }
    }
}

/// Whether two traps are the same to a guest.
fn same_trap(host: &Trap, ours: &Trap) -> bool {
    if host.vector != ours.vector || host.address != ours.address {
        return false;
    }
    if host.vector == u32::from(exception::PF) {
        let mut compared = PF_ERROR;
        if host.address < LINUX_HALF {
            compared |= PF_PRESENT;
        }
        return (host.error ^ ours.error) & compared == 0;
    }
    host.error == ours.error
}

fn differences(
    case: &Case,
    instruction: Option<&Instruction>,
    host: &Effect,
    ours: &Effect,
    memory: &Memory,
) -> String {
    let mut text = String::new();
    if !same_trap(&host.trap, &ours.trap) {
        if rules::may_fault_elsewhere(instruction, &host.trap, &ours.trap) {
            return text;
        }
        let _ = write!(text, "\n      host: {}; ours: {}", trap_name(&host.trap), trap_name(&ours.trap));
        return text;
    }
    let (a, b) = (&host.registers, &ours.registers);
    let before = &case.registers;
    let width = if case.compatibility { 0xffff_ffff } else { u64::MAX };
    let undefined_result = instruction.is_some_and(|i| rules::undefined_result(i, &before.gpr));
    let undefined_registers =
        undefined_result || host.trap != Trap::NONE && instruction.is_some_and(rules::undefined_registers_after_fault);
    for (n, name) in NAMES.iter().enumerate() {
        let undefined = undefined_registers && n != x86::gpr::RSP;
        if (a.gpr[n] ^ b.gpr[n]) & width != 0 && !undefined {
            let _ = write!(text, "\n      {name}: host {:x}, ours {:x}", a.gpr[n], b.gpr[n]);
        }
    }
    if (a.rip ^ b.rip) & width != 0 {
        let _ = write!(text, "\n      rip: host {:#x}, ours {:#x}", a.rip, b.rip);
    }
    let undefined = instruction.map_or(0, |i| rules::undefined_flags(i, &before.gpr));
    if (a.rflags ^ b.rflags) & FLAGS & !undefined != 0 {
        let _ = write!(text, "\n      flags: host {}, ours {}", flag_names(a.rflags), flag_names(b.rflags));
    }
    let x87 = !instruction.is_some_and(|i| rules::undefined_x87_state(i, &host.trap));
    let mxcsr = |fpu: &[u8]| u32::from_le_bytes([0, 1, 2, 3].map(|n| fpu[offset::MXCSR + n]));
    let undefined = instruction.map_or(0, |i| rules::undefined_mxcsr(i, mxcsr(&before.fpu), &host.trap));
    if (mxcsr(&a.fpu) ^ mxcsr(&b.fpu)) & !undefined != 0 {
        let [before, host, ours] = [&before.fpu, &a.fpu, &b.fpu].map(|fpu| mxcsr(fpu));
        let _ = write!(text, "\n      mxcsr: before {before:x}, host {host:x}, ours {ours:x}");
    }
    compare_fpu(&mut text, x87, &before.fpu, &a.fpu, &b.fpu);
    if !undefined_result {
        let ignored = instruction.map_or(0..0, |i| {
            let bytes = rules::undefined_bytes(i);
            let start = before.address(i);
            start.saturating_add(bytes.start)..start.saturating_add(bytes.end)
        });
        compare_memory(&mut text, host, ours, memory, &ignored);
    }
    if !text.is_empty() && host.trap != Trap::NONE {
        let _ = write!(text, "\n      after {}", trap_name(&host.trap));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|b| format!("{b:02x}")).collect()
}

fn compare_fpu(text: &mut String, x87: bool, before: &[u8], host: &[u8], ours: &[u8]) {
    let mut compare = |name: &str, n: usize, at: usize, len: usize| {
        let range = at..at + len;
        if host[range.clone()] != ours[range.clone()] {
            let (before, host, ours) = (hex(&before[range.clone()]), hex(&host[range.clone()]), hex(&ours[range]));
            let _ = write!(text, "\n      {name}{n}: before {before}, host {host}, ours {ours}");
        }
    };
    if x87 {
        compare("fcw", 0, offset::FCW, 2);
        compare("fsw", 0, offset::FSW, 2);
        compare("ftw", 0, offset::FTW, 1);
        for n in 0..8 {
            compare("st", n, offset::ST + n * 16, 10);
        }
    }
    for n in 0..16 {
        compare("xmm", n, offset::XMM + n * 16, 16);
        compare("ymm high ", n, offset::YMM_HIGH + n * 16, 16);
    }
}

fn compare_memory(text: &mut String, host: &Effect, ours: &Effect, memory: &Memory, ignored: &Range<u64>) {
    let a = if host.memory_changed { &host.memory } else { &memory.writable };
    let b = if ours.memory_changed { &ours.memory } else { &memory.writable };
    if a == b {
        return;
    }
    let address = |at: usize| if at < DATA_SIZE { DATA + at as u64 } else { STACK + (at - DATA_SIZE) as u64 };
    let differs = |at: &usize| a[*at] != b[*at] && !ignored.contains(&address(*at));
    let Some(at) = (0..MEMORY_SIZE).find(differs) else { return };
    let end = (at + 16).min(MEMORY_SIZE);
    let address = address(at);
    let (before, host, ours) = (hex(&memory.writable[at..end]), hex(&a[at..end]), hex(&b[at..end]));
    let _ = write!(text, "\n      memory at {address:#x}: before {before}, host {host}, ours {ours}");
}

/// The code of an instruction form by its name, for looking at one alone.
pub(crate) fn wanted(code: Code) -> bool {
    std::env::var("VMM_COMPARE_FORM").map_or(true, |name| format!("{code:?}").contains(&name))
}
