//! What a user is told when KVM gives up on a guest: the reason in words, what it means, the registers, and the code at the instruction pointer.

use std::fmt::Write;

use guest_memory::GuestMemory;
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use crate::exit::Exit;

/// Bytes of code that are shown.
const CODE_BYTES: usize = 15;

/// The reason in words and what it means, or `None` for an exit that is not an end.
pub(crate) fn reason(exit: &Exit) -> Option<String> {
    Some(match *exit {
        Exit::InternalError { suberror, data } => {
            let (name, meaning) = match suberror {
                KVM_INTERNAL_ERROR_EMULATION => (
                    "emulation failure",
                    "the guest executed an instruction that KVM had to emulate and cannot (accel = soft does without KVM)",
                ),
                KVM_INTERNAL_ERROR_SIMUL_EX => (
                    "simultaneous exceptions",
                    "an exception arose while another was being delivered; the guest's descriptor tables are probably damaged",
                ),
                KVM_INTERNAL_ERROR_DELIVERY_EV => (
                    "failure while an event was delivered",
                    "the guest's descriptor table or stack lies where there is no RAM",
                ),
                KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => (
                    "unexpected exit of the processor",
                    "the host's kernel does not know this exit; its log may say more",
                ),
                _ => (
                    "unknown suberror",
                    "the host's kernel is newer than this program; its documentation names the suberror",
                ),
            };
            format!("KVM internal error, suberror {suberror} ({name}), data {data:x?}: {meaning}")
        }
        Exit::FailEntry(code) => format!(
            "the processor refused the guest's state, hardware reason {code:#x}: the host's KVM or its processor does not support this state, \
             or this program loaded an impossible one"
        ),
        Exit::UnknownHardware(code) => {
            format!("the processor left the guest for hardware reason {code:#x}, which the host's kernel does not know")
        }
        Exit::Shutdown => {
            "triple fault: an exception could not be delivered, nor the double fault that followed".to_owned()
        }
        Exit::Unexpected(number) => format!("KVM exit {number}, which this program has not enabled"),
        Exit::Port { .. } | Exit::Mmio { .. } | Exit::IoApicEoi(_) | Exit::Halt | Exit::Resume => return None,
    })
}

/// The registers, a few to a line.
fn registers(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    let mut text = String::new();
    let general = [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("rflags", regs.rflags),
        ("cr0", sregs.cr0),
        ("cr2", sregs.cr2),
        ("cr3", sregs.cr3),
        ("cr4", sregs.cr4),
        ("efer", sregs.efer),
        ("gdt", sregs.gdt.base),
        ("idt", sregs.idt.base),
    ];
    for (n, (name, value)) in general.iter().enumerate() {
        let separator = if n % 4 == 0 { "\n  " } else { "  " };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{name:>6}={value:016x}");
    }
    for (n, (name, segment)) in
        [("cs", sregs.cs), ("ss", sregs.ss), ("ds", sregs.ds), ("es", sregs.es), ("tr", sregs.tr)].iter().enumerate()
    {
        let separator = if n % 2 == 0 { "\n  " } else { "  " };
        let _ = write!(
            text,
            "{separator}{name:>6}={:04x} base {:016x} limit {:08x} type {:x} l {} db {}",
            segment.selector, segment.base, segment.limit, segment.type_, segment.l, segment.db
        );
    }
    text
}

/// The code at the instruction pointer, as far as it is mapped.
fn code(fd: &VcpuFd, memory: &GuestMemory, linear: u64) -> String {
    let mut bytes = String::new();
    for at in (0..CODE_BYTES as u64).map(|n| linear.wrapping_add(n)) {
        let physical = fd.translate_gva(at).ok().filter(|t| t.valid != 0).map(|t| t.physical_address);
        match physical.and_then(|address| memory.read_obj::<u8>(GuestAddress(address)).ok()) {
            Some(byte) => {
                let _ = write!(bytes, " {byte:02x}");
            }
            None => {
                bytes.push_str(" ??");
                break;
            }
        }
    }
    bytes
}

/// Everything about the vCPU that helps to understand why it stopped, beginning with a line break: registers and code.
pub(crate) fn processor(fd: &VcpuFd, memory: &GuestMemory) -> (u64, String) {
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else {
        return (0, "\n  (its registers cannot be read)".to_owned());
    };
    let code = code(fd, memory, sregs.cs.base.wrapping_add(regs.rip));
    (regs.rip, format!("{}\n    code at rip:{code}", registers(&regs, &sregs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_emulation_is_named_and_explained() {
        let text = reason(&Exit::InternalError { suberror: 1, data: [0; 4] }).unwrap();
        assert!(text.contains("suberror 1 (emulation failure)"), "{text}");
        assert!(text.contains("accel = soft"), "{text}");
    }

    #[test]
    fn an_exit_that_nobody_enabled_has_its_number() {
        assert_eq!(reason(&Exit::Unexpected(31)).unwrap(), "KVM exit 31, which this program has not enabled");
    }

    #[test]
    fn every_suberror_has_its_own_words() {
        let text = |suberror| reason(&Exit::InternalError { suberror, data: [0xab, 0, 0, 0] }).unwrap();
        for (suberror, words) in [
            (2, "suberror 2 (simultaneous exceptions), data [ab, 0, 0, 0]: an exception arose"),
            (3, "suberror 3 (failure while an event was delivered)"),
            (4, "suberror 4 (unexpected exit of the processor)"),
            (99, "suberror 99 (unknown suberror)"),
        ] {
            assert!(text(suberror).contains(words), "{}", text(suberror));
        }
    }

    #[test]
    fn a_refused_entry_has_the_hardwares_reason_and_what_it_means() {
        let text = reason(&Exit::FailEntry(0x8000_0021)).unwrap();
        assert!(text.contains("hardware reason 0x80000021") && text.contains("does not support this state"), "{text}");
        let text = reason(&Exit::UnknownHardware(0x33)).unwrap();
        assert!(text.contains("0x33"), "{text}");
    }

    #[test]
    fn ordinary_exits_have_no_report() {
        assert_eq!(reason(&Exit::Resume), None);
    }

    #[test]
    fn the_registers_show_the_instruction_pointer() {
        let regs = kvm_regs { rip: 0x1234, ..Default::default() };
        assert!(registers(&regs, &kvm_sregs::default()).contains("rip=0000000000001234"));
    }
}
