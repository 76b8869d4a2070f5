//! What a user may choose about the board: plain data, with QEMU's names and defaults.
//!
//! The launcher maps TOML keys and command-line flags onto [`Options`]; nothing here reads a file or touches the host. QEMU's
//! `pcie`, `usb`, `x-option-roms` and `bios` are deliberately missing until what they switch exists.

use std::path::PathBuf;

use accel_kvm::KernelIrqchip;
use accel_soft::Debugging;

/// Bytes in a mebibyte, the unit that command lines state memory in.
pub const MIB: u64 = 1 << 20;

/// A switch that the board may decide by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnOffAuto {
    /// Always there.
    On,
    /// Never there.
    Off,
    /// The board's own default, which each option documents.
    #[default]
    Auto,
}

impl OnOffAuto {
    /// The switch's value, with `default` in place of [`OnOffAuto::Auto`].
    pub fn resolve(self, default: bool) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Auto => default,
        }
    }
}

/// Who decompresses a bzImage's payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Decompress {
    /// The VMM, before the guest runs: fastest on a software CPU. A compression that the VMM does not know is left to the guest's stub.
    #[default]
    Native,
    /// The guest's own stub, as on real hardware.
    Guest,
}

/// What happens when the guest resets itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnReboot {
    /// The run ends.
    #[default]
    Exit,
    /// The machine starts again from its image.
    Reset,
}

/// Which processor backend runs the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccelChoice {
    /// The fastest that really works on this host; the choice is logged with its reason.
    #[default]
    Auto,
    /// KVM, or an error that says why not.
    Kvm,
    /// The software CPU.
    Soft,
}

/// Everything a user may choose about a microvm board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `acpi`: ACPI tables and the generic event device; off: MP table and command-line discovery. Auto is on.
    pub acpi: OnOffAuto,
    /// `pic`: the two i8259. Auto is on.
    pub pic: OnOffAuto,
    /// `pit`: the i8254. Auto is on.
    pub pit: OnOffAuto,
    /// `rtc`: the MC146818 with its CMOS memory sizes. Auto is on, as there is no kvmclock.
    pub rtc: OnOffAuto,
    /// `ioapic2`: the second IOAPIC, GSIs 24 to 47. Auto is on when ACPI is on and the IOAPIC is not the kernel's, which has one.
    pub ioapic2: OnOffAuto,
    /// `isa-serial`: the 16550A at 0x3f8, IRQ 4. On by default.
    pub isa_serial: bool,
    /// `auto-kernel-cmdline`: append `virtio_mmio.device=` for each device, where ACPI is off. On by default.
    pub auto_kernel_cmdline: bool,
    /// Guest RAM in bytes; a multiple of the page size. 128 MiB by default, as in QEMU.
    pub memory: u64,
    /// Number of vCPUs, from 1 up. 1 by default.
    pub cpus: u32,
    /// Which processor backend runs the guest.
    pub accel: AccelChoice,
    /// `kernel-irqchip`: which interrupt controllers are the kernel's, on KVM. Split by default; QEMU's default is `on`, whose IOAPIC cannot serve a second one's level-triggered interrupts.
    pub kernel_irqchip: KernelIrqchip,
    /// `translator`: hot guest code is translated to host code (the software CPU). Auto is on where the build has a translator.
    pub translator: OnOffAuto,
    /// `debug`: what is done to find the translator's errors. Nothing by default.
    pub debugging: Debugging,
    /// Whether the processors' statistics say where their time went (the software CPU). Off by default, for it takes a thread.
    pub sampling: bool,
    /// The image to boot: a bzImage or an ELF vmlinux for microvm, an EIF for nitro-enclave.
    pub kernel: PathBuf,
    /// An initial ramdisk; for nitro-enclave one that is appended to the EIF's.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line; for nitro-enclave what is appended to the EIF's.
    pub cmdline: String,
    /// Who decompresses a bzImage.
    pub decompress: Decompress,
    /// `kaslr`: a kernel that the VMM decompresses is put at random addresses, if it was built for that and its command line has no `nokaslr`. On by default.
    pub kaslr: bool,
    /// What happens when the guest resets itself.
    pub on_reboot: OnReboot,
    /// A virtio-rng device, fed by the host. On by default.
    pub rng: bool,
    /// A virtio-vsock device and what it reaches on the host. None by default.
    pub vsock: Option<vsock::Options>,
}

impl Options {
    /// The defaults, for the image at `kernel`.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            acpi: OnOffAuto::Auto,
            pic: OnOffAuto::Auto,
            pit: OnOffAuto::Auto,
            rtc: OnOffAuto::Auto,
            ioapic2: OnOffAuto::Auto,
            isa_serial: true,
            auto_kernel_cmdline: true,
            memory: 128 * MIB,
            cpus: 1,
            accel: AccelChoice::Auto,
            kernel_irqchip: KernelIrqchip::default(),
            translator: OnOffAuto::Auto,
            debugging: Debugging::default(),
            sampling: false,
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            decompress: Decompress::Native,
            kaslr: true,
            on_reboot: OnReboot::Exit,
            rng: true,
            vsock: None,
        }
    }

    /// Whether ACPI is on: [`Options::acpi`] with the board's default.
    pub fn acpi_on(&self) -> bool {
        self.acpi.resolve(true)
    }

    /// Whether there is a second IOAPIC: [`Options::ioapic2`], by default where ACPI is on and the first is not the kernel's.
    pub fn ioapic2_on(&self) -> bool {
        self.ioapic2.resolve(self.acpi_on() && !self.kernel_has_ioapic())
    }

    /// Whether PIC, IOAPIC and PIT are the kernel's.
    pub fn kernel_has_ioapic(&self) -> bool {
        self.accel == AccelChoice::Kvm && self.kernel_irqchip == KernelIrqchip::On
    }
}

/// What the host lends the machine for one run.
pub struct Host {
    /// Where the bytes that the guest writes to COM1 go, each write as soon as it happens.
    pub serial: Box<dyn std::io::Write + Send>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_ioapic_follows_acpi_unless_said_otherwise() {
        let mut options = Options::new("bzImage");
        assert!(options.ioapic2_on());
        options.acpi = OnOffAuto::Off;
        assert!(!options.ioapic2_on());
        options.ioapic2 = OnOffAuto::On;
        assert!(options.ioapic2_on());
    }

    #[test]
    fn the_kernels_ioapic_is_the_only_one_on_kvm_alone() {
        let mut options = Options::new("bzImage");
        options.kernel_irqchip = KernelIrqchip::On;
        assert!(options.ioapic2_on(), "the software CPU has no kernel");
        options.accel = AccelChoice::Kvm;
        assert!(!options.ioapic2_on());
    }
}
