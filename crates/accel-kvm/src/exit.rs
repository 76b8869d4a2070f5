//! The page that a vCPU shares with the kernel (`struct kvm_run`; Linux Documentation/virt/kvm/api.rst, "The kvm_run structure"), and why KVM_RUN returned, as plain data.
//!
//! DEVNOTE: `kvm_ioctls::VcpuExit` borrows the vCPU for as long as an exit lives and hides the size of a string instruction's elements; both are needed here.

#![expect(unsafe_code, reason = "reads the page that the kernel fills in")]

use std::sync::atomic::AtomicU8;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_UNKNOWN, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// Why KVM_RUN returned, as far as this crate has an answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// `count` port accesses of `size` bytes each, their data at [`RunPage::data`]'s `offset`.
    Port { port: u16, size: usize, count: usize, offset: usize, is_read: bool },
    /// One access of `len` bytes to memory that is not RAM; its data is [`RunPage::mmio_data`].
    Mmio { address: u64, len: usize, is_write: bool },
    /// The end of a level-triggered interrupt.
    IoApicEoi(u8),
    /// HLT, where the local APIC is not the kernel's.
    Halt,
    /// Nothing to do: a signal, or the guest can take an interrupt now, or lowered its task priority.
    Resume,
    /// A triple fault.
    Shutdown,
    /// The processor refused the guest's state, with its reason.
    FailEntry(u64),
    /// The hardware's exit is unknown to the kernel.
    UnknownHardware(u64),
    /// KVM gave up.
    InternalError { suberror: u32, data: [u64; 4] },
    /// An exit that nobody enabled, by its number.
    Unexpected(u32),
}

/// The page of one vCPU. The mapping belongs to its [`VcpuFd`], beside which this is kept.
pub(crate) struct RunPage {
    page: *mut kvm_run,
    /// Bytes that are mapped.
    size: usize,
}

// SAFETY: the pointer is to a mapping of the whole process; this value is used by one thread at a time, but for the atomic byte.
unsafe impl Send for RunPage {}

impl RunPage {
    /// `size` is what KVM_GET_VCPU_MMAP_SIZE says.
    pub(crate) fn new(vcpu: &mut VcpuFd, size: usize) -> Self {
        Self { page: vcpu.get_kvm_run(), size }
    }

    /// The byte that makes KVM_RUN return at once.
    pub(crate) fn immediate_exit(&self) -> *const AtomicU8 {
        // SAFETY: the page is mapped as long as the vCPU lives; an atomic byte has the layout of a byte.
        unsafe { (&raw mut (*self.page).immediate_exit).cast::<AtomicU8>() }
    }

    /// Whether KVM would take an external interrupt now.
    pub(crate) fn ready_for_interrupt(&self) -> bool {
        // SAFETY: the page is mapped, and the kernel writes this field only within KVM_RUN.
        unsafe { (*self.page).ready_for_interrupt_injection != 0 }
    }

    /// Whether KVM_RUN is to return as soon as the guest can take an external interrupt.
    pub(crate) fn request_interrupt_window(&mut self, wanted: bool) {
        // SAFETY: as above.
        unsafe { (*self.page).request_interrupt_window = wanted.into() };
    }

    /// IA32_APIC_BASE and CR8 of a guest whose local APIC is not the kernel's, as they were when KVM_RUN returned.
    pub(crate) fn apic_base_and_cr8(&self) -> (u64, u64) {
        // SAFETY: as above.
        unsafe { ((*self.page).apic_base, (*self.page).cr8) }
    }

    /// The task priority with which KVM_RUN enters a guest whose local APIC is not the kernel's.
    pub(crate) fn set_cr8(&mut self, value: u64) {
        // SAFETY: as above.
        unsafe { (*self.page).cr8 = value };
    }

    /// Why KVM_RUN returned.
    pub(crate) fn exit(&self) -> Exit {
        // SAFETY: the page is mapped, and the kernel writes it only within KVM_RUN.
        let run = unsafe { &*self.page };
        let payload = &run.__bindgen_anon_1;
        match run.exit_reason {
            KVM_EXIT_IO => {
                // SAFETY: the exit reason names the union's member.
                let io = unsafe { payload.io };
                Exit::Port {
                    port: io.port,
                    size: io.size.into(),
                    count: io.count as usize,
                    offset: usize::try_from(io.data_offset).unwrap_or(usize::MAX),
                    is_read: u32::from(io.direction) == KVM_EXIT_IO_IN,
                }
            }
            KVM_EXIT_MMIO => {
                // SAFETY: the exit reason names the union's member.
                let mmio = unsafe { payload.mmio };
                Exit::Mmio {
                    address: mmio.phys_addr,
                    len: (mmio.len as usize).min(mmio.data.len()),
                    is_write: mmio.is_write != 0,
                }
            }
            // SAFETY: the exit reason names the union's member.
            KVM_EXIT_IOAPIC_EOI => Exit::IoApicEoi(unsafe { payload.eoi.vector }),
            KVM_EXIT_HLT => Exit::Halt,
            KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR => Exit::Resume,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            // SAFETY: the exit reason names the union's member.
            KVM_EXIT_FAIL_ENTRY => Exit::FailEntry(unsafe { payload.fail_entry.hardware_entry_failure_reason }),
            // SAFETY: the exit reason names the union's member.
            KVM_EXIT_UNKNOWN => Exit::UnknownHardware(unsafe { payload.hw.hardware_exit_reason }),
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: the exit reason names the union's member.
                let internal = unsafe { payload.internal };
                let known = (internal.ndata as usize).min(4);
                let data = std::array::from_fn(|n| if n < known { internal.data[n] } else { 0 });
                Exit::InternalError { suberror: internal.suberror, data }
            }
            other => Exit::Unexpected(other),
        }
    }

    /// `len` bytes of the page at `offset`, or `None` if they are not all mapped.
    pub(crate) fn data(&mut self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let end = offset.checked_add(len)?;
        if end > self.size {
            return None;
        }
        // SAFETY: the bytes are mapped (just checked), and the kernel touches them only within KVM_RUN, which needs the vCPU that this page belongs to.
        Some(unsafe { std::slice::from_raw_parts_mut(self.page.cast::<u8>().add(offset), len) })
    }

    /// The data of an MMIO exit.
    pub(crate) fn mmio_data(&mut self) -> &mut [u8; 8] {
        // SAFETY: the page is mapped; every bit pattern is valid for these eight bytes.
        unsafe { &mut (*self.page).__bindgen_anon_1.mmio.data }
    }
}
