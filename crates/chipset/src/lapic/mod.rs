//! The local APIC of a Pentium 4 or later, in xAPIC and x2APIC mode, with the TSC-deadline timer.
//!
//! Intel SDM vol. 3 (325384), chapter "Advanced Programmable Interrupt Controller (APIC)"; sections are cited by their titles, because the chapter's number has
//! changed three times. Version register 0x50014, as QEMU's: six LVT entries (timer, thermal, performance counters, LINT0, LINT1, error).
//!
//! A pure state machine: time is handed in, and what a write makes the processor do to others comes back as a [`LapicAction`]. It takes
//! no lock and knows no thread; the accelerator puts one in a mutex for each vCPU. The timer counts at 1 GHz before its divider, as in QEMU and
//! KVM. TSC deadlines are TSC values; only the accelerator knows how its TSC runs.
//!
//! Without firmware, nobody would set up the virtual wire, so LINT0 of the bootstrap processor is ExtINT and unmasked after RESET, as in KVM.
//!
//! Deliberately missing: CMCI, suppression of EOI broadcasts (SVR bit 12), focus checking, arbitration IDs, and the bus-cycle side of SMI.

mod group;
mod message;
mod registers;
mod timer;

#[cfg(test)]
mod tests;

pub use group::LocalApics;
pub use message::{
    BROADCAST, DeliveryMode, Destination, InterruptMessage, MSI_BASE, Msi, MsiEvent, MsiSink, TriggerMode,
};
pub use timer::TimerDeadline;

use thiserror::Error;

/// IA32_APIC_BASE bit 8: this is the bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE bit 10: x2APIC mode.
const BASE_EXTD: u64 = 1 << 10;
/// IA32_APIC_BASE bit 11: the APIC is enabled.
const BASE_EN: u64 = 1 << 11;
/// Address of the register page after RESET.
const DEFAULT_BASE: u64 = 0xfee0_0000;

/// SVR bit 8: the APIC is enabled by software.
const SVR_ENABLE: u32 = 1 << 8;

/// LVT bit 16.
const LVT_MASKED: u32 = 1 << 16;
/// LVT bit 15, LINT0 and LINT1 only.
const LVT_LEVEL: u32 = 1 << 15;
/// LVT bit 14, LINT0 and LINT1 only: a level-triggered interrupt awaits its EOI.
const LVT_REMOTE_IRR: u32 = 1 << 14;

const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// The first vector that a fixed interrupt may have.
const FIRST_LEGAL_VECTOR: u8 = 16;

/// A local interrupt source, by the position of its LVT entry from register 0x320 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum LocalSource {
    /// The APIC timer.
    Timer = 0,
    /// The thermal sensor.
    Thermal = 1,
    /// A performance counter overflowed.
    PerformanceCounter = 2,
    /// The LINT0 pin: INTR.
    Lint0 = 3,
    /// The LINT1 pin: NMI.
    Lint1 = 4,
    /// The APIC's own errors.
    Error = 5,
}

/// What does not change while the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LapicConfig {
    /// The APIC ID after RESET; xAPIC mode shows the low eight bits.
    pub id: u32,
    /// Whether this is the bootstrap processor.
    pub bsp: bool,
    /// Whether CPUID offers x2APIC mode.
    pub x2apic: bool,
    /// Width of physical addresses in bits, for the reserved bits of IA32_APIC_BASE.
    pub physical_address_bits: u8,
}

/// Everything that changes, as plain data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LapicState {
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// Task priority.
    pub tpr: u8,
    /// Logical destination register; bits 31-24 in xAPIC mode, all of it in x2APIC mode.
    pub ldr: u32,
    /// Destination format register.
    pub dfr: u32,
    /// Spurious-interrupt vector register.
    pub svr: u32,
    /// In-service register.
    pub isr: [u32; 8],
    /// Trigger mode register: set bits are level-triggered.
    pub tmr: [u32; 8],
    /// Interrupt request register.
    pub irr: [u32; 8],
    /// Error status as the last ESR write latched it.
    pub esr: u32,
    /// Errors since the last ESR write.
    pub esr_pending: u32,
    /// Interrupt command register.
    pub icr: u64,
    /// Local vector table, in the order of [`LocalSource`].
    pub lvt: [u32; 6],
    /// Initial count.
    pub timer_initial: u32,
    /// Divide configuration.
    pub timer_divide: u32,
    /// When the running count reaches zero, in nanoseconds; `None` while it stands.
    pub timer_zero_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    pub tsc_deadline: u64,
    /// Levels of the LINT0 and LINT1 pins.
    pub lint: [bool; 2],
    /// An NMI waits to be taken.
    pub nmi_pending: bool,
    /// An SMI waits to be taken.
    pub smi_pending: bool,
    /// An INIT waits to be taken.
    pub init_pending: bool,
    /// A start-up IPI waits to be taken.
    pub sipi_pending: Option<u8>,
    /// An ExtINT message waits to be acknowledged.
    pub extint_pending: bool,
}

impl LapicState {
    /// SDM "Local APIC State After Power-Up or Reset".
    fn after_reset(config: &LapicConfig) -> Self {
        let mut lvt = [LVT_MASKED; 6];
        if config.bsp {
            lvt[LocalSource::Lint0 as usize] = (DeliveryMode::ExtInt as u32) << 8;
        }
        Self {
            apic_base: DEFAULT_BASE | BASE_EN | if config.bsp { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: 0xffff_ffff,
            svr: 0xff,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt,
            timer_initial: 0,
            timer_divide: 0,
            timer_zero_ns: None,
            tsc_deadline: 0,
            lint: [false; 2],
            nmi_pending: false,
            smi_pending: false,
            init_pending: false,
            sipi_pending: None,
            extint_pending: false,
        }
    }
}

/// What a register access asks of the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LapicAction {
    /// Deliver this to every local APIC that [`Lapic::matches_destination`] it; the sender may be among them.
    Ipi(InterruptMessage),
    /// Tell the IOAPICs that level-triggered interrupt `vector` has ended.
    EoiBroadcast(u8),
}

/// Something other than a vectored interrupt that the processor must take, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LapicEvent {
    /// Reset the processor and wait for a start-up IPI; the bootstrap processor starts at its reset vector instead.
    Init,
    /// Start in real mode at `vector << 12`, if the processor waits for a start-up IPI; ignored otherwise.
    StartUp(u8),
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
}

/// The access raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("general protection fault: APIC MSR {msr:#x}")]
pub struct LapicFault {
    /// The MSR that was accessed.
    pub msr: u32,
}

/// One processor's local APIC.
#[derive(Debug, Clone)]
pub struct Lapic {
    config: LapicConfig,
    s: LapicState,
}

/// Guest-physical address of the register page of an APIC with this IA32_APIC_BASE; `None` when it is disabled or in x2APIC mode.
fn register_page(apic_base: u64) -> Option<u64> {
    (apic_base & (BASE_EN | BASE_EXTD) == BASE_EN).then_some(apic_base & !0xfff)
}

/// The offset of guest-physical `address` in the 4 KiB register page of an APIC with this IA32_APIC_BASE; `None` when it is elsewhere, or there is no such page.
pub fn register_offset(apic_base: u64, address: u64) -> Option<u64> {
    Some(address.wrapping_sub(register_page(apic_base)?)).filter(|&offset| offset < 0x1000)
}

impl Lapic {
    /// A local APIC after power-up.
    pub fn new(config: LapicConfig) -> Self {
        Self { config, s: LapicState::after_reset(&config) }
    }

    /// Power-up or RESET.
    pub fn reset(&mut self) {
        self.s = LapicState::after_reset(&self.config);
    }

    /// What INIT does (SDM "Local APIC State After It Receives an INIT Reset"): everything but the APIC ID, IA32_APIC_BASE and the levels of the pins
    /// goes back to the state after RESET. The accelerator calls it when it takes [`LapicEvent::Init`].
    pub fn init(&mut self) {
        let LapicState { apic_base, lint, sipi_pending, .. } = self.s;
        self.s = LapicState { apic_base, lint, sipi_pending, ..LapicState::after_reset(&self.config) };
        self.derive_x2apic_ldr();
    }

    /// A copy of everything that changes.
    pub fn save(&self) -> LapicState {
        self.s.clone()
    }

    /// Puts a saved state back.
    pub fn restore(&mut self, state: LapicState) {
        self.s = state;
    }

    /// The APIC ID.
    pub fn id(&self) -> u32 {
        if self.x2apic_mode() { self.config.id } else { self.config.id & 0xff }
    }

    /// IA32_APIC_BASE.
    pub fn apic_base(&self) -> u64 {
        self.s.apic_base
    }

    /// Guest-physical address of the register page; `None` when the APIC is disabled or in x2APIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        register_page(self.s.apic_base)
    }

    /// As [`register_offset`], for this APIC.
    pub fn mmio_offset(&self, address: u64) -> Option<u64> {
        register_offset(self.s.apic_base, address)
    }

    /// Whether the APIC is enabled in IA32_APIC_BASE. When it is not, CPUID leaf 1 hides the APIC.
    pub fn enabled(&self) -> bool {
        self.s.apic_base & BASE_EN != 0
    }

    /// Whether the registers are MSRs.
    pub fn x2apic_mode(&self) -> bool {
        self.s.apic_base & BASE_EXTD != 0
    }

    fn software_enabled(&self) -> bool {
        self.s.svr & SVR_ENABLE != 0
    }

    /// Writes IA32_APIC_BASE (SDM "x2APIC State Transitions").
    ///
    /// # Errors
    /// [`LapicFault`] on reserved bits and on transitions that do not exist.
    pub fn set_apic_base(&mut self, value: u64) -> Result<(), LapicFault> {
        let fault = Err(LapicFault { msr: registers::IA32_APIC_BASE });
        let address_bits = u32::from(self.config.physical_address_bits.clamp(32, 52));
        let mut legal = ((1u64 << address_bits) - 1) & !0xfff | BASE_BSP | BASE_EN;
        if self.config.x2apic {
            legal |= BASE_EXTD;
        }
        if value & !legal != 0 {
            return fault;
        }
        let mode = |base: u64| (base & BASE_EN != 0, base & BASE_EXTD != 0);
        match (mode(self.s.apic_base), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true)) => return fault,
            (_, (false, false)) => self.s = LapicState { lint: self.s.lint, ..LapicState::after_reset(&self.config) },
            _ => {}
        }
        let entering_x2apic = value & BASE_EXTD != 0 && !self.x2apic_mode();
        self.s.apic_base = value;
        if entering_x2apic {
            self.s.icr &= 0xffff_ffff;
            self.derive_x2apic_ldr();
        }
        Ok(())
    }

    /// SDM "Deriving Logical x2APIC ID from the Local x2APIC ID".
    fn derive_x2apic_ldr(&mut self) {
        if self.x2apic_mode() {
            let id = self.config.id;
            self.s.ldr = (id >> 4) << 16 | 1 << (id & 0xf);
        }
    }

    /// Whether a message for `destination`, sent by another processor or a device, is for this processor. A disabled APIC hears nothing.
    pub fn matches_destination(&self, destination: Destination, sent_by_self: bool) -> bool {
        self.enabled()
            && match destination {
                Destination::All => true,
                Destination::AllButSelf => !sent_by_self,
                Destination::Physical(BROADCAST) | Destination::Logical(BROADCAST) => true,
                Destination::Physical(id) => id == self.id(),
                Destination::Logical(id) => self.matches_logical(id),
            }
    }

    fn matches_logical(&self, id: u32) -> bool {
        if self.x2apic_mode() {
            return id >> 16 == self.s.ldr >> 16 && id & self.s.ldr & 0xffff != 0;
        }
        let (id, ldr) = (id & 0xff, self.s.ldr >> 24);
        match self.s.dfr >> 28 {
            0xf => id & ldr != 0,
            0x0 => id >> 4 == ldr >> 4 && id & ldr & 0xf != 0,
            _ => false,
        }
    }

    /// Whether the APIC takes vectored interrupts: the condition to take part in lowest-priority arbitration.
    pub fn accepts_vectors(&self) -> bool {
        self.enabled() && self.software_enabled()
    }

    /// A message that matched this APIC arrives. Returns whether the processor may have something to do that it had not before.
    pub fn accept(&mut self, delivery: DeliveryMode, vector: u8, trigger: TriggerMode) -> bool {
        if !self.enabled() {
            return false;
        }
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.request(vector, trigger),
            DeliveryMode::Smi => !std::mem::replace(&mut self.s.smi_pending, true),
            DeliveryMode::Nmi => !std::mem::replace(&mut self.s.nmi_pending, true),
            DeliveryMode::ExtInt => !std::mem::replace(&mut self.s.extint_pending, true),
            DeliveryMode::Init => {
                // A start-up IPI that came before this INIT has lost its addressee.
                self.s.sipi_pending = None;
                !std::mem::replace(&mut self.s.init_pending, true)
            }
            DeliveryMode::StartUp => {
                self.s.sipi_pending = Some(vector);
                true
            }
        }
    }

    /// Sets `vector` in the IRR.
    fn request(&mut self, vector: u8, trigger: TriggerMode) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_RECEIVE_ILLEGAL_VECTOR);
            return true;
        }
        let (word, bit) = position(vector);
        match trigger {
            TriggerMode::Edge => self.s.tmr[word] &= !bit,
            TriggerMode::Level => self.s.tmr[word] |= bit,
        }
        let new = self.s.irr[word] & bit == 0;
        self.s.irr[word] |= bit;
        new
    }

    /// Takes the most urgent of INIT, start-up, SMI and NMI.
    ///
    /// The accelerator leaves an SMI or NMI alone while the processor blocks it, by asking [`Lapic::take_unless_nmi_blocked`] instead.
    pub fn take_event(&mut self) -> Option<LapicEvent> {
        self.take_unless_nmi_blocked(false)
    }

    /// As [`Lapic::take_event`], but leaves a pending NMI where it is if `nmi_blocked`.
    pub fn take_unless_nmi_blocked(&mut self, nmi_blocked: bool) -> Option<LapicEvent> {
        if std::mem::take(&mut self.s.init_pending) {
            return Some(LapicEvent::Init);
        }
        if let Some(vector) = self.s.sipi_pending.take() {
            return Some(LapicEvent::StartUp(vector));
        }
        if std::mem::take(&mut self.s.smi_pending) {
            return Some(LapicEvent::Smi);
        }
        (!nmi_blocked && std::mem::take(&mut self.s.nmi_pending)).then_some(LapicEvent::Nmi)
    }

    /// Whether an NMI waits to be taken.
    pub fn nmi_pending(&self) -> bool {
        self.s.nmi_pending
    }

    /// Whether [`Lapic::take_event`] would return something.
    pub fn event_pending(&self) -> bool {
        let LapicState { init_pending, sipi_pending, smi_pending, nmi_pending, .. } = &self.s;
        *init_pending || sipi_pending.is_some() || *smi_pending || *nmi_pending
    }

    /// The processor priority register: the task's priority or that of the interrupt in service, whichever is higher.
    pub fn processor_priority(&self) -> u8 {
        let in_service = highest(&self.s.isr).unwrap_or(0) & 0xf0;
        if self.s.tpr & 0xf0 >= in_service { self.s.tpr } else { in_service }
    }

    /// The vector that the processor would take now, were its interrupt flag set.
    pub fn pending_interrupt(&self) -> Option<u8> {
        let vector = highest(&self.s.irr)?;
        (vector & 0xf0 > self.processor_priority() & 0xf0 && self.enabled()).then_some(vector)
    }

    /// The processor takes `vector`, which [`Lapic::pending_interrupt`] named: it moves from the IRR to the ISR.
    pub fn acknowledge(&mut self, vector: u8) {
        let (word, bit) = position(vector);
        self.s.irr[word] &= !bit;
        self.s.isr[word] |= bit;
    }

    /// Whether an external interrupt waits: by message, or on LINT0 while that is the PIC's wire. Its vector comes from the PIC.
    pub fn extint_pending(&self) -> bool {
        let lint0 = self.s.lvt[LocalSource::Lint0 as usize];
        let wired = DeliveryMode::from_bits(lint0 >> 8) == Some(DeliveryMode::ExtInt) && lint0 & LVT_MASKED == 0;
        // A disabled APIC connects LINT0 to INTR directly (SDM "Enabling or Disabling the Local APIC").
        self.s.extint_pending || self.s.lint[0] && (wired || !self.enabled())
    }

    /// The processor has run the interrupt acknowledge cycle of an external interrupt.
    pub fn acknowledge_extint(&mut self) {
        self.s.extint_pending = false;
    }

    /// The task priority as CR8 shows it, 0 to 15.
    pub fn cr8(&self) -> u8 {
        self.s.tpr >> 4
    }

    /// Writes CR8; only the low four bits count, the processor refuses the others.
    pub fn set_cr8(&mut self, value: u8) {
        self.s.tpr = value << 4;
    }

    /// Ends the interrupt in service. A level-triggered one is to be broadcast to the IOAPICs.
    pub fn eoi(&mut self) -> Option<u8> {
        let vector = highest(&self.s.isr)?;
        let (word, bit) = position(vector);
        self.s.isr[word] &= !bit;
        self.end_of_local_level(vector);
        (self.s.tmr[word] & bit != 0).then_some(vector)
    }

    /// A level-triggered LINT pin that is still high when its interrupt ends asks again.
    fn end_of_local_level(&mut self, vector: u8) {
        for pin in 0..2 {
            let entry = &mut self.s.lvt[LocalSource::Lint0 as usize + pin];
            if *entry & LVT_REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !LVT_REMOTE_IRR;
                if self.s.lint[pin] {
                    self.raise_lint(pin);
                }
            }
        }
    }

    /// The LINT0 (`pin` 0) or LINT1 pin now has this level. Returns whether the processor may have something new to do.
    ///
    /// # Panics
    /// When `pin` is neither 0 nor 1: a mistake in the wiring.
    pub fn set_lint(&mut self, pin: usize, level: bool) -> bool {
        let was = std::mem::replace(&mut self.s.lint[pin], level);
        level && !was && (self.raise_lint(pin) || self.extint_pending())
    }

    fn raise_lint(&mut self, pin: usize) -> bool {
        let source = if pin == 0 { LocalSource::Lint0 } else { LocalSource::Lint1 };
        let entry = self.s.lvt[source as usize];
        // The level of an ExtINT pin counts for as long as it lasts, so there is nothing to latch.
        if DeliveryMode::from_bits(entry >> 8) == Some(DeliveryMode::ExtInt) || entry & LVT_REMOTE_IRR != 0 {
            return false;
        }
        self.raise_local(source)
    }

    /// A local source asks for its interrupt. Returns whether the processor may have something new to do.
    pub fn raise_local(&mut self, source: LocalSource) -> bool {
        let entry = self.s.lvt[source as usize];
        if entry & LVT_MASKED != 0 || !self.enabled() {
            return false;
        }
        let vectored_only = matches!(source, LocalSource::Timer | LocalSource::Error);
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Fixed) => {}
            _ if vectored_only => {}
            Some(mode @ (DeliveryMode::Nmi | DeliveryMode::Smi | DeliveryMode::Init | DeliveryMode::ExtInt)) => {
                return self.accept(mode, 0, TriggerMode::Edge);
            }
            _ => return false,
        }
        // LINT1 ignores its trigger-mode bit: it is always edge-triggered (SDM "Local Vector Table").
        if source == LocalSource::Lint0 && entry & LVT_LEVEL != 0 {
            self.s.lvt[source as usize] |= LVT_REMOTE_IRR;
        }
        self.request(entry as u8, TriggerMode::Edge)
    }

    /// Records an error and raises the error interrupt.
    fn error(&mut self, bit: u32) {
        if self.s.esr_pending & bit != 0 {
            return;
        }
        self.s.esr_pending |= bit;
        let entry = self.s.lvt[LocalSource::Error as usize];
        // An illegal vector in the error entry itself must not raise errors without end.
        if entry as u8 >= FIRST_LEGAL_VECTOR {
            self.raise_local(LocalSource::Error);
        }
    }
}

/// Where a vector lives in IRR, ISR and TMR.
fn position(vector: u8) -> (usize, u32) {
    (usize::from(vector >> 5), 1 << (vector & 31))
}

/// The highest vector in a 256-bit register.
fn highest(bits: &[u32; 8]) -> Option<u8> {
    bits.iter().rposition(|&w| w != 0).map(|i| (i as u8) << 5 | (31 - bits[i].leading_zeros()) as u8)
}
