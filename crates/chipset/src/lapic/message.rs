//! Interrupt messages: what travels between IOAPICs, devices with MSI, and local APICs.
//!
//! Formats: Intel SDM vol. 3, APIC chapter, "Interrupt Command Register (ICR)" and "Message Signalled Interrupts".
//! Interrupt remapping is not modelled; the 15-bit extended destination ID is for a backend that offers it, and [`InterruptMessage::from_msi`] is none.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// First address of the local APICs' message window.
pub const MSI_BASE: u64 = 0xfee0_0000;

/// An event whose signals are messages without this process ([`MsiSink::bind`]), until this is dropped.
pub trait MsiEvent: Send {
    /// What a signal is from now on, those that wait in the event included; without a message they stay in the event.
    fn set_message(&mut self, message: Option<Msi>);
}

/// What takes message-signalled interrupts: the processor backend.
pub trait MsiSink: Send + Sync {
    /// A write of `data` to `address`, which lies in `0xfee00000..0xfef00000`.
    fn send_msi(&self, address: u64, data: u32);

    /// Makes `event` one whose signals become messages by themselves, of which there is none at first. `None` where this sink has nothing like it.
    fn bind(&self, event: &Arc<EventFd>) -> Option<Box<dyn MsiEvent>> {
        let _ = event;
        None
    }
}

/// A message-signalled interrupt as a bus write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// Bits 19-12: destination, and bits 11-5 its bits 14-8 where the backend offers so long ones; bit 3: redirection hint; bit 2: logical destination mode.
    pub address: u64,
    /// Bits 7-0: vector; 10-8: delivery mode; 14: assert; 15: level-triggered.
    pub data: u32,
}

/// How an interrupt is delivered: the three bits that the ICR, the LVT, IOAPIC entries and MSI data share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector, to every processor addressed.
    Fixed = 0,
    /// The vector, to the processor of lowest priority among those addressed.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// Processor INIT.
    Init = 5,
    /// Start-up IPI: real mode at `vector << 12`.
    StartUp = 6,
    /// An interrupt whose vector the PIC supplies.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode in the low three bits of `bits`; `None` for the reserved encoding 3.
    pub fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            7 => Self::ExtInt,
            _ => return None,
        })
    }
}

/// Edge- or level-triggered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TriggerMode {
    /// Over once it is in the IRR.
    Edge,
    /// Its EOI is broadcast to the IOAPICs.
    Level,
}

/// The destination that addresses every processor, in either destination mode.
pub const BROADCAST: u32 = 0xffff_ffff;

/// Who a message is for. An 8-bit destination of 0xff is widened to [`BROADCAST`] when the message is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// By APIC ID.
    Physical(u32),
    /// By the logical destination registers.
    Logical(u32),
    /// Every local APIC, the sender's included.
    All,
    /// Every local APIC but the sender's.
    AllButSelf,
}

/// One interrupt on its way to local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptMessage {
    /// Who it is for.
    pub destination: Destination,
    /// How it is delivered.
    pub delivery: DeliveryMode,
    /// The vector; the start page for [`DeliveryMode::StartUp`], meaningless for SMI, NMI, INIT and ExtINT.
    pub vector: u8,
    /// Edge or level.
    pub trigger: TriggerMode,
}

/// Widens an 8-bit destination, in which 0xff is the broadcast.
pub(super) fn widen_destination(destination: u8) -> u32 {
    if destination == 0xff { BROADCAST } else { destination.into() }
}

impl InterruptMessage {
    /// Decodes an MSI. `None` when the delivery mode is reserved or a level-triggered message is a de-assertion: neither delivers anything.
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let level = data & 1 << 15 != 0;
        if level && data & 1 << 14 == 0 {
            return None;
        }
        let id = widen_destination((address >> 12) as u8);
        Some(Self {
            destination: if address & 4 != 0 { Destination::Logical(id) } else { Destination::Physical(id) },
            delivery: DeliveryMode::from_bits(data >> 8)?,
            vector: data as u8,
            trigger: if level { TriggerMode::Level } else { TriggerMode::Edge },
        })
    }
}
