//! KVM's paravirtual clock (Linux Documentation/virt/kvm/x86/msr.rst and hypercalls.rst): the guest reads the time without leaving itself, and learns the
//! host's wall clock.
//!
//! The guest's TSC ticks in nanoseconds and never changes speed, so a page is written once, when the guest asks for it.

use std::sync::atomic::{Ordering, fence};

use tracing::debug;
use vm_memory::{Bytes, GuestAddress};

use crate::vm::VmShared;

/// Bit 0 of the system time MSR: enabled.
const ENABLED: u64 = 1;
/// PVCLOCK_TSC_STABLE_BIT: the pages of all vCPUs agree.
const TSC_STABLE: u8 = 1;
/// A tick is a nanosecond: (ticks << 1) * 2^31 / 2^32.
const TSC_TO_SYSTEM_MUL: u32 = 1 << 31;
const TSC_SHIFT: i8 = 1;

/// KVM_HC_CLOCK_PAIRING.
const CLOCK_PAIRING: u64 = 9;
/// KVM_CLOCK_PAIRING_WALLCLOCK.
const PAIRING_WALL_CLOCK: u64 = 0;
/// -KVM_ENOSYS, for a hypercall that does not exist.
const ENOSYS: u64 = -1000i64 as u64;
/// -KVM_EOPNOTSUPP.
const EOPNOTSUPP: u64 = -95i64 as u64;
/// -KVM_EFAULT.
const EFAULT: u64 = -14i64 as u64;

/// Writes bytes whose first word is a version: odd while the rest is being written.
fn write_versioned(shared: &VmShared, address: u64, mut record: Vec<u8>) {
    let at = GuestAddress(address);
    let result = shared.memory.read_obj::<u32>(at).and_then(|old| {
        let busy = old | 1;
        shared.memory.write_obj(busy, at)?;
        fence(Ordering::SeqCst);
        record[..4].copy_from_slice(&busy.to_le_bytes());
        shared.memory.write_slice(&record, at)?;
        fence(Ordering::SeqCst);
        shared.memory.write_obj(busy.wrapping_add(1), at)
    });
    if let Err(error) = result {
        debug!("the guest put its paravirtual clock at {address:#x}, outside its memory: {error}");
    }
}

/// A write to KVM_SYSTEM_TIME: fills vCPU `id`'s `pvclock_vcpu_time_info` at the address in `msr`, if it is enabled.
pub(crate) fn write_system_time(shared: &VmShared, id: usize, msr: u64) {
    if msr & ENABLED == 0 {
        return;
    }
    let now = shared.clock.now_ns();
    let tsc = now.wrapping_add(shared.vcpus[id].tsc_offset.load(Ordering::SeqCst));
    let mut record = vec![0; 32];
    record[8..16].copy_from_slice(&tsc.to_le_bytes());
    record[16..24].copy_from_slice(&now.to_le_bytes());
    record[24..28].copy_from_slice(&TSC_TO_SYSTEM_MUL.to_le_bytes());
    record[28] = TSC_SHIFT as u8;
    record[29] = TSC_STABLE;
    write_versioned(shared, msr & !ENABLED, record);
}

/// A write to KVM_WALL_CLOCK: fills the `pvclock_wall_clock` at `address` with the wall-clock time at machine time zero.
pub(crate) fn write_wall_clock(shared: &VmShared, address: u64) {
    let (wall, machine) = shared.clock.wall_and_machine();
    let start = wall.saturating_sub(std::time::Duration::from_nanos(machine));
    let mut record = vec![0; 12];
    record[4..8].copy_from_slice(&(start.as_secs() as u32).to_le_bytes());
    record[8..12].copy_from_slice(&start.subsec_nanos().to_le_bytes());
    write_versioned(shared, address, record);
}

/// The hypercalls of the KVM interface: only the pairing of wall clock and TSC, which PTP_KVM uses, does something.
pub(crate) fn hypercall(shared: &VmShared, id: usize, number: u64, arguments: [u64; 4]) -> Option<u64> {
    if number != CLOCK_PAIRING {
        return Some(ENOSYS);
    }
    let [address, clock, ..] = arguments;
    if clock != PAIRING_WALL_CLOCK {
        return Some(EOPNOTSUPP);
    }
    let (wall, machine) = shared.clock.wall_and_machine();
    let tsc = machine.wrapping_add(shared.vcpus[id].tsc_offset.load(Ordering::SeqCst));
    let mut record = [0; 64];
    record[0..8].copy_from_slice(&wall.as_secs().to_le_bytes());
    record[8..16].copy_from_slice(&u64::from(wall.subsec_nanos()).to_le_bytes());
    record[16..24].copy_from_slice(&tsc.to_le_bytes());
    Some(if shared.memory.write_slice(&record, GuestAddress(address)).is_ok() { 0 } else { EFAULT })
}
