//! The local APIC's registers, as the xAPIC page and as x2APIC MSRs (SDM "Local APIC Register Address Map" and "x2APIC Register Address Space").
//!
//! Both are numbered the same: the page's offset divided by 16, the MSR less 0x800. xAPIC mode answers an access to a register that does not exist with an error
//! in the ESR, x2APIC mode with #GP.

use super::*;

/// IA32_APIC_BASE.
pub(super) const IA32_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// First of the x2APIC MSRs.
const X2APIC_BASE: u32 = 0x800;
/// Last of the MSRs that x2APIC mode reserves.
const X2APIC_LAST: u32 = 0x8ff;

const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TPR: u32 = 0x08;
const APR: u32 = 0x09;
const PPR: u32 = 0x0a;
const EOI: u32 = 0x0b;
const RRD: u32 = 0x0c;
const LDR: u32 = 0x0d;
const DFR: u32 = 0x0e;
const SVR: u32 = 0x0f;
const ISR: u32 = 0x10;
const TMR: u32 = 0x18;
const IRR: u32 = 0x20;
const IRR_LAST: u32 = 0x27;
const ESR: u32 = 0x28;
const ICR_LOW: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const LVT_FIRST: u32 = 0x32;
const LVT_LAST: u32 = 0x37;
const TIMER_INITIAL: u32 = 0x38;
const TIMER_CURRENT: u32 = 0x39;
const TIMER_DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

/// Version 0x14, highest LVT entry 5, no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 0x0005_0014;

/// Bits that software may set in each LVT entry, in the order of [`LocalSource`].
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Bits 12 (delivery status) and 14 (remote IRR) are read-only: software may write back what it read.
const LVT_READ_ONLY: u32 = 1 << 12 | LVT_REMOTE_IRR;
const SVR_WRITABLE: u32 = 0x3ff;
const DIVIDE_WRITABLE: u32 = 0xb;
/// Vector, delivery mode, destination mode, level, trigger mode, shorthand.
const ICR_LOW_WRITABLE: u32 = 0xc_cfff;
/// Delivery status, which xAPIC software writes back as it read it.
const ICR_DELIVERY_STATUS: u32 = 1 << 12;

/// The register does not exist, or not for this access.
struct IllegalRegister;

impl Lapic {
    /// Reads from the register page. Registers are 32 bits on 16-byte boundaries; bytes between them read as zero.
    pub fn mmio_read(&mut self, offset: u64, data: &mut [u8], now_ns: u64) {
        let register = u32::try_from(offset >> 4).unwrap_or(u32::MAX);
        let value = match register {
            ICR_HIGH => (self.s.icr >> 32) as u32,
            DFR => self.s.dfr,
            APR => self.processor_priority().into(),
            RRD => 0,
            SELF_IPI => self.illegal_register(),
            _ => match self.read_register(register, now_ns) {
                Ok(value) => value,
                Err(IllegalRegister) => self.illegal_register(),
            },
        };
        let bytes = value.to_le_bytes();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get((offset & 0xf) as usize + i).copied().unwrap_or(0);
        }
    }

    /// Writes to the register page. Only accesses of four bytes or more on a register's boundary count.
    pub fn mmio_write(&mut self, offset: u64, data: &[u8], now_ns: u64) -> Option<LapicAction> {
        let Some(&[a, b, c, d]) = data.get(..4) else { return None };
        if offset & 0xf != 0 {
            return None;
        }
        let value = u32::from_le_bytes([a, b, c, d]);
        match u32::try_from(offset >> 4).unwrap_or(u32::MAX) {
            // DEVNOTE: KVM lets software change the ID in xAPIC mode. Processors since Nehalem do not, and a vCPU's identity that moves helps nobody.
            ID | VERSION | APR | PPR | RRD | ISR..=IRR_LAST | TIMER_CURRENT => None,
            EOI => self.eoi().map(LapicAction::EoiBroadcast),
            LDR => {
                self.s.ldr = value & 0xff00_0000;
                None
            }
            DFR => {
                self.s.dfr = value | 0x0fff_ffff;
                None
            }
            ICR_HIGH => {
                self.s.icr = self.s.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                None
            }
            ICR_LOW => {
                self.s.icr = self.s.icr & !0xffff_ffff | u64::from(value & ICR_LOW_WRITABLE);
                self.send_ipi()
            }
            SELF_IPI => {
                self.illegal_register();
                None
            }
            register => {
                let writable = match register {
                    TPR => 0xff,
                    SVR => SVR_WRITABLE,
                    LVT_FIRST..=LVT_LAST => LVT_WRITABLE[(register - LVT_FIRST) as usize],
                    TIMER_DIVIDE => DIVIDE_WRITABLE,
                    ESR => 0,
                    _ => u32::MAX,
                };
                if self.write_register(register, value & writable, now_ns).is_err() {
                    self.illegal_register();
                }
                None
            }
        }
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC MSR (0x800 to 0x8ff).
    ///
    /// # Errors
    /// [`LapicFault`] when the MSR does not exist or cannot be read in this mode.
    pub fn read_msr(&mut self, msr: u32, now_ns: u64) -> Result<u64, LapicFault> {
        match msr {
            IA32_APIC_BASE => Ok(self.s.apic_base),
            IA32_TSC_DEADLINE => Ok(self.s.tsc_deadline),
            X2APIC_BASE..=X2APIC_LAST if self.x2apic_mode() => match msr - X2APIC_BASE {
                ICR_LOW => Ok(self.s.icr),
                register => self.read_register(register, now_ns).map(u64::from).map_err(|_| LapicFault { msr }),
            },
            _ => Err(LapicFault { msr }),
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC MSR (0x800 to 0x8ff).
    ///
    /// # Errors
    /// [`LapicFault`] when the MSR does not exist or cannot be written in this mode, or the value has reserved bits.
    pub fn write_msr(&mut self, msr: u32, value: u64, now_ns: u64) -> Result<Option<LapicAction>, LapicFault> {
        let fault = LapicFault { msr };
        match msr {
            // The deadline timer comes first: a tickless kernel writes little else.
            IA32_TSC_DEADLINE => self.set_tsc_deadline(value),
            IA32_APIC_BASE => self.set_apic_base(value)?,
            X2APIC_BASE..=X2APIC_LAST if self.x2apic_mode() => {
                let register = msr - X2APIC_BASE;
                if register == ICR_LOW {
                    if value as u32 & !(ICR_LOW_WRITABLE | ICR_DELIVERY_STATUS) != 0 {
                        return Err(fault);
                    }
                    self.s.icr = value & !u64::from(ICR_DELIVERY_STATUS);
                    return Ok(self.send_ipi());
                }
                let value = u32::try_from(value).map_err(|_| fault)?;
                let legal = match register {
                    TPR | SELF_IPI => 0xff,
                    EOI | ESR => 0,
                    SVR => SVR_WRITABLE,
                    LVT_FIRST..=LVT_LAST => LVT_WRITABLE[(register - LVT_FIRST) as usize] | LVT_READ_ONLY,
                    TIMER_DIVIDE => DIVIDE_WRITABLE,
                    _ => u32::MAX,
                };
                if value & !legal != 0 {
                    return Err(fault);
                }
                match register {
                    EOI => return Ok(self.eoi().map(LapicAction::EoiBroadcast)),
                    SELF_IPI => self.send_self_ipi(value as u8),
                    _ => self.write_register(register, value, now_ns).map_err(|_| fault)?,
                }
            }
            _ => return Err(fault),
        }
        Ok(None)
    }

    /// The registers that both modes have and read the same way.
    fn read_register(&self, register: u32, now_ns: u64) -> Result<u32, IllegalRegister> {
        let word = |bits: &[u32; 8]| bits[(register & 7) as usize];
        Ok(match register {
            ID if self.x2apic_mode() => self.config.id,
            ID => self.id() << 24,
            VERSION => VERSION_VALUE,
            TPR => self.s.tpr.into(),
            PPR => self.processor_priority().into(),
            // Write-only, but Intel's xAPIC reads it as zero without an error.
            EOI if !self.x2apic_mode() => 0,
            LDR => self.s.ldr,
            SVR => self.s.svr,
            ISR..TMR => word(&self.s.isr),
            TMR..IRR => word(&self.s.tmr),
            IRR..=IRR_LAST => word(&self.s.irr),
            ESR => self.s.esr,
            ICR_LOW => self.s.icr as u32,
            LVT_FIRST..=LVT_LAST => self.s.lvt[(register - LVT_FIRST) as usize],
            TIMER_INITIAL => self.s.timer_initial,
            TIMER_CURRENT => self.timer_current(now_ns),
            TIMER_DIVIDE => self.s.timer_divide,
            _ => return Err(IllegalRegister),
        })
    }

    /// The registers that both modes have and write the same way; reserved bits have been dealt with.
    fn write_register(&mut self, register: u32, value: u32, now_ns: u64) -> Result<(), IllegalRegister> {
        match register {
            TPR => self.s.tpr = value as u8,
            SVR => {
                self.s.svr = value;
                if !self.software_enabled() {
                    // SDM "Local APIC State After It Has Been Software Disabled".
                    self.s.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
            }
            ESR => self.s.esr = std::mem::take(&mut self.s.esr_pending),
            LVT_FIRST..=LVT_LAST => self.write_lvt((register - LVT_FIRST) as usize, value, now_ns),
            TIMER_INITIAL => self.set_timer_initial(value, now_ns),
            TIMER_DIVIDE => self.set_timer_divide(value, now_ns),
            _ => return Err(IllegalRegister),
        }
        Ok(())
    }

    fn write_lvt(&mut self, index: usize, value: u32, now_ns: u64) {
        let mut value = value & LVT_WRITABLE[index] | self.s.lvt[index] & LVT_REMOTE_IRR;
        if !self.software_enabled() {
            value |= LVT_MASKED;
        }
        if value & LVT_LEVEL == 0 {
            value &= !LVT_REMOTE_IRR;
        }
        if index == LocalSource::Timer as usize {
            self.set_timer_lvt(value, now_ns);
        } else {
            self.s.lvt[index] = value;
        }
    }

    /// The whole register page as a program would read it, in x2APIC mode too; what does not exist is zero.
    pub fn page(&self, now_ns: u64) -> [u32; 64] {
        std::array::from_fn(|register| match register as u32 {
            DFR => self.s.dfr,
            APR => self.processor_priority().into(),
            ICR_HIGH => (self.s.icr >> 32) as u32,
            register => self.read_register(register, now_ns).unwrap_or(0),
        })
    }

    /// Puts back a page that [`Lapic::page`] gave, here or elsewhere, and IA32_TSC_DEADLINE. The ID, the version and what follows from other registers stay
    /// as they are, and so do the pins and the events that wait.
    pub fn load_page(&mut self, page: &[u32; 64], tsc_deadline: u64, now_ns: u64) {
        let word = |register: u32| page[register as usize];
        let bits = |first: u32| std::array::from_fn(|n| word(first + n as u32));
        let s = &mut self.s;
        s.tpr = word(TPR) as u8;
        (s.dfr, s.svr) = (word(DFR) | 0x0fff_ffff, word(SVR) & SVR_WRITABLE);
        (s.isr, s.tmr, s.irr) = (bits(ISR), bits(TMR), bits(IRR));
        s.esr = word(ESR);
        s.icr = u64::from(word(ICR_HIGH)) << 32 | u64::from(word(ICR_LOW) & ICR_LOW_WRITABLE);
        for (n, entry) in s.lvt.iter_mut().enumerate() {
            // Only what can be level-triggered has a remote IRR.
            let remote_irr = if LVT_WRITABLE[n] & LVT_LEVEL != 0 { LVT_REMOTE_IRR } else { 0 };
            *entry = word(LVT_FIRST + n as u32) & (LVT_WRITABLE[n] | remote_irr);
        }
        (s.timer_initial, s.timer_divide) = (word(TIMER_INITIAL), word(TIMER_DIVIDE) & DIVIDE_WRITABLE);
        s.tsc_deadline = tsc_deadline;
        self.set_timer_current(word(TIMER_CURRENT), now_ns);
        if self.x2apic_mode() {
            self.derive_x2apic_ldr();
        } else {
            self.s.ldr = word(LDR) & 0xff00_0000;
        }
    }

    fn illegal_register(&mut self) -> u32 {
        self.error(ESR_ILLEGAL_REGISTER);
        0
    }

    fn send_self_ipi(&mut self, vector: u8) {
        if vector < FIRST_LEGAL_VECTOR {
            self.error(ESR_SEND_ILLEGAL_VECTOR);
        } else {
            self.request(vector, TriggerMode::Edge);
        }
    }

    /// Carries out the command in the ICR. Delivery is instant, so that its delivery status always reads as idle.
    fn send_ipi(&mut self) -> Option<LapicAction> {
        let low = self.s.icr as u32;
        let vector = low as u8;
        let delivery = DeliveryMode::from_bits(low >> 8)?;
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < FIRST_LEGAL_VECTOR => {
                self.error(ESR_SEND_ILLEGAL_VECTOR);
                return None;
            }
            // The de-assertion of an INIT only synchronised arbitration IDs, which processors since the Pentium 4 do not have.
            DeliveryMode::Init if low & 1 << 15 != 0 && low & 1 << 14 == 0 => return None,
            DeliveryMode::ExtInt => return None,
            _ => {}
        }
        let id = if self.x2apic_mode() {
            (self.s.icr >> 32) as u32
        } else {
            message::widen_destination((self.s.icr >> 56) as u8)
        };
        let destination = match low >> 18 & 3 {
            0 if low & 1 << 11 != 0 => Destination::Logical(id),
            0 => Destination::Physical(id),
            1 => {
                // Only a fixed interrupt can be sent to oneself (SDM "Valid Combinations for the Pentium 4 and Intel Xeon Processors").
                if delivery == DeliveryMode::Fixed {
                    self.send_self_ipi(vector);
                }
                return None;
            }
            2 => Destination::All,
            _ => Destination::AllButSelf,
        };
        Some(LapicAction::Ipi(InterruptMessage { destination, delivery, vector, trigger: TriggerMode::Edge }))
    }
}
