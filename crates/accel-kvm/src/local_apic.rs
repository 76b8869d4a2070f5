//! Between KVM's local APIC (`struct kvm_lapic_state`, the first KiB of the register page) and the plain-data [`LocalApicState`].

use accel::AccelError;
use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;
use x86::{LocalApicState, msr};

use crate::host;
use crate::state::{read_msrs, write_msrs};

/// Registers by their offset in the page, divided by 16 (SDM vol. 3, table 12-1).
mod register {
    pub(super) const ISR: usize = 0x10;
    pub(super) const IRR: usize = 0x20;
    pub(super) const LVT_TIMER: usize = 0x32;
    pub(super) const TIMER_INITIAL: usize = 0x38;
    pub(super) const TIMER_CURRENT: usize = 0x39;
}

/// LVT timer bits 18-17: one-shot.
const MODE_MASK: u32 = 3 << 17;

fn registers_of(lapic: &kvm_lapic_state) -> [u32; 64] {
    std::array::from_fn(|n| u32::from_le_bytes(std::array::from_fn(|byte| lapic.regs[n * 16 + byte] as u8)))
}

fn page_of(registers: &[u32; 64]) -> kvm_lapic_state {
    let mut lapic = kvm_lapic_state::default();
    for (n, register) in registers.iter().enumerate() {
        for (to, byte) in lapic.regs[n * 16..].iter_mut().zip(register.to_le_bytes()) {
            *to = byte as _;
        }
    }
    lapic
}

/// Takes back the acknowledgement of `vector`: it is requested again instead of in service. A vector that is not in service is not the local APIC's: that one is returned.
pub(crate) fn unacknowledge(registers: &mut [u32; 64], vector: u8) -> Option<u8> {
    let (word, bit) = (usize::from(vector / 32), 1 << (vector % 32));
    if registers[register::ISR + word] & bit == 0 {
        return Some(vector);
    }
    registers[register::ISR + word] &= !bit;
    registers[register::IRR + word] |= bit;
    None
}

/// Reads the kernel's local APIC.
pub(crate) fn save(fd: &VcpuFd) -> Result<LocalApicState, AccelError> {
    let registers = registers_of(&fd.get_lapic().map_err(host("KVM_GET_LAPIC"))?);
    let deadline = read_msrs(fd, [msr::IA32_TSC_DEADLINE].into_iter())?;
    Ok(LocalApicState { registers, tsc_deadline: deadline.first().map_or(0, |(_, value)| *value) })
}

/// Loads the kernel's local APIC. IA32_APIC_BASE and the time stamp counter are loaded before.
pub(crate) fn load(fd: &VcpuFd, state: &LocalApicState) -> Result<(), AccelError> {
    let mut registers = state.registers;
    // DEVNOTE: for KVM a one-shot count of zero is one that ends now, so that its interrupt would come a second time. Without an initial count there is
    // none; a guest that reads the initial count of a timer that has run out sees zero.
    if registers[register::TIMER_CURRENT] == 0 && registers[register::LVT_TIMER] & MODE_MASK == 0 {
        registers[register::TIMER_INITIAL] = 0;
    }
    fd.set_lapic(&page_of(&registers)).map_err(host("KVM_SET_LAPIC"))?;
    write_msrs(fd, &[(msr::IA32_TSC_DEADLINE, state.tsc_deadline)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_survive_the_way_there_and_back() {
        let registers = std::array::from_fn(|n| 0x8182_8380 + n as u32);
        assert_eq!(registers_of(&page_of(&registers)), registers);
    }

    #[test]
    fn an_acknowledged_interrupt_is_requested_again() {
        let mut registers = [0; 64];
        registers[register::ISR + 2] = 1 << 17;
        assert_eq!(unacknowledge(&mut registers, 0x51), None);
        assert_eq!((registers[register::ISR + 2], registers[register::IRR + 2]), (0, 1 << 17));
    }

    #[test]
    fn an_interrupt_of_the_pic_is_not_put_into_the_local_apic() {
        let mut registers = [0; 64];
        assert_eq!(unacknowledge(&mut registers, 0x51), Some(0x51));
        assert_eq!(registers, [0; 64]);
    }
}
