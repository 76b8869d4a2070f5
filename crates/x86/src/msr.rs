//! Model-specific register numbers (SDM vol. 4; APM vol. 2, appendix A; Linux Documentation/virt/kvm/x86/msr.rst for KVM's).

macro_rules! msrs {
    ($($(#[$doc:meta])+ $name:ident = $number:expr;)+) => {
        $($(#[$doc])+ pub const $name: u32 = $number;)+

        /// The register's name, for messages.
        pub const fn name(number: u32) -> Option<&'static str> {
            match number {
                $($name => Some(stringify!($name)),)+
                _ => None,
            }
        }
    };
}

msrs! {
    /// Time stamp counter.
    IA32_TSC = 0x10;
    /// Platform ID.
    IA32_PLATFORM_ID = 0x17;
    /// Local APIC base and enable bits.
    IA32_APIC_BASE = 0x1b;
    /// Feature control.
    IA32_FEAT_CTL = 0x3a;
    /// TSC adjustment.
    IA32_TSC_ADJUST = 0x3b;
    /// Speculation control.
    IA32_SPEC_CTRL = 0x48;
    /// Prediction commands.
    IA32_PRED_CMD = 0x49;
    /// Microcode update trigger.
    IA32_BIOS_UPDT_TRIG = 0x79;
    /// Microcode revision.
    IA32_BIOS_SIGN_ID = 0x8b;
    /// MTRR capabilities.
    IA32_MTRRCAP = 0xfe;
    /// Enumerated vulnerabilities.
    IA32_ARCH_CAPABILITIES = 0x10a;
    /// SYSENTER code selector.
    IA32_SYSENTER_CS = 0x174;
    /// SYSENTER stack pointer.
    IA32_SYSENTER_ESP = 0x175;
    /// SYSENTER entry point.
    IA32_SYSENTER_EIP = 0x176;
    /// Machine-check capabilities.
    IA32_MCG_CAP = 0x179;
    /// Machine-check status.
    IA32_MCG_STATUS = 0x17a;
    /// Machine-check control.
    IA32_MCG_CTL = 0x17b;
    /// Miscellaneous feature enables.
    IA32_MISC_ENABLE = 0x1a0;
    /// Debug control.
    IA32_DEBUGCTL = 0x1d9;
    /// First variable-range MTRR base; sixteen registers follow each other.
    IA32_MTRR_PHYSBASE0 = 0x200;
    /// Fixed-range MTRR, 64 KiB.
    IA32_MTRR_FIX64K_00000 = 0x250;
    /// Fixed-range MTRR, 16 KiB.
    IA32_MTRR_FIX16K_80000 = 0x258;
    /// Fixed-range MTRR, 16 KiB.
    IA32_MTRR_FIX16K_A0000 = 0x259;
    /// First of eight fixed-range MTRRs, 4 KiB.
    IA32_MTRR_FIX4K_C0000 = 0x268;
    /// Page attribute table.
    IA32_PAT = 0x277;
    /// Default MTRR type.
    IA32_MTRR_DEF_TYPE = 0x2ff;
    /// First machine-check bank register.
    IA32_MC0_CTL = 0x400;
    /// TSC deadline of the local APIC timer.
    IA32_TSC_DEADLINE = 0x6e0;
    /// First x2APIC register.
    IA32_X2APIC_BASE = 0x800;
    /// Supervisor XSAVE states.
    IA32_XSS = 0xda0;
    /// Extended features.
    IA32_EFER = 0xc000_0080;
    /// SYSCALL selectors and 32-bit target.
    IA32_STAR = 0xc000_0081;
    /// SYSCALL 64-bit target.
    IA32_LSTAR = 0xc000_0082;
    /// SYSCALL compatibility-mode target.
    IA32_CSTAR = 0xc000_0083;
    /// SYSCALL flag mask.
    IA32_FMASK = 0xc000_0084;
    /// FS base.
    IA32_FS_BASE = 0xc000_0100;
    /// GS base.
    IA32_GS_BASE = 0xc000_0101;
    /// The other GS base, for SWAPGS.
    IA32_KERNEL_GS_BASE = 0xc000_0102;
    /// Value that RDTSCP and RDPID return.
    IA32_TSC_AUX = 0xc000_0103;
    /// kvmclock: wall clock page (new number).
    KVM_WALL_CLOCK_NEW = 0x4b56_4d00;
    /// kvmclock: per-vCPU time page (new number).
    KVM_SYSTEM_TIME_NEW = 0x4b56_4d01;
    /// KVM asynchronous page faults.
    KVM_ASYNC_PF_EN = 0x4b56_4d02;
    /// KVM stolen time.
    KVM_STEAL_TIME = 0x4b56_4d03;
    /// KVM end-of-interrupt shortcut.
    KVM_PV_EOI_EN = 0x4b56_4d04;
    /// KVM host polling control.
    KVM_POLL_CONTROL = 0x4b56_4d05;
    /// kvmclock: wall clock page (old number).
    KVM_WALL_CLOCK = 0x11;
    /// kvmclock: per-vCPU time page (old number).
    KVM_SYSTEM_TIME = 0x12;
}

/// What every backend carries in [`CpuState::msrs`](crate::CpuState::msrs), but for what is its own: KVM's clock, AMD's configuration.
pub fn saved() -> impl Iterator<Item = u32> {
    [
        IA32_TSC_ADJUST,
        IA32_SPEC_CTRL,
        IA32_SYSENTER_CS,
        IA32_SYSENTER_ESP,
        IA32_SYSENTER_EIP,
        IA32_MCG_STATUS,
        IA32_MISC_ENABLE,
        IA32_MTRR_FIX64K_00000,
        IA32_MTRR_FIX16K_80000,
        IA32_MTRR_FIX16K_A0000,
        IA32_PAT,
        IA32_MTRR_DEF_TYPE,
        IA32_STAR,
        IA32_LSTAR,
        IA32_CSTAR,
        IA32_FMASK,
        IA32_KERNEL_GS_BASE,
        IA32_TSC_AUX,
    ]
    .into_iter()
    // Eight pairs of base and mask, and the fixed ranges of the upper 256 KiB.
    .chain((0..16).map(|n| IA32_MTRR_PHYSBASE0 + n))
    .chain((0..8).map(|n| IA32_MTRR_FIX4K_C0000 + n))
}

/// Bits of [`IA32_APIC_BASE`].
pub mod apic_base {
    /// This is the bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const X2APIC: u64 = 1 << 10;
    /// The local APIC is on.
    pub const ENABLE: u64 = 1 << 11;
}
