//! The 16550A's registers as a state machine.

use std::collections::VecDeque;

const DATA: u16 = 0;
const IER: u16 = 1;
const IIR_FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;

const IER_RECEIVED: u8 = 1 << 0;
const IER_THRE: u8 = 1 << 1;
const IER_LINE_STATUS: u8 = 1 << 2;
const IER_MODEM_STATUS: u8 = 1 << 3;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_THRE: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_TIMEOUT: u8 = 0x0c;
const IIR_FIFOS: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DLAB: u8 = 1 << 7;

const MCR_WRITABLE: u8 = 0x1f;
const MCR_LOOPBACK: u8 = 1 << 4;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
/// Transmitter holding register and transmitter empty: always, since bytes leave at once.
const LSR_TRANSMITTER_EMPTY: u8 = 3 << 5;

/// Carrier, data set ready, clear to send: somebody is always there.
const MSR_CONNECTED: u8 = 0xb0;

const FIFO_LEN: usize = 16;
/// Divisor of 9600 baud.
const DEFAULT_DIVISOR: u16 = 12;

/// The chip as a state machine.
#[derive(Debug, Clone)]
pub struct UartCore {
    receiver: VecDeque<u8>,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Overrun and break; the other bits are computed.
    lsr_errors: u8,
    /// Changes of the modem lines since MSR was read.
    msr_delta: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter has become empty, and nobody has been told by an interrupt.
    thre_pending: bool,
}

impl Default for UartCore {
    fn default() -> Self {
        Self::new()
    }
}

impl UartCore {
    /// The chip after RESET.
    pub fn new() -> Self {
        Self {
            receiver: VecDeque::with_capacity(FIFO_LEN),
            ier: 0,
            fcr: 0,
            lcr: 3,
            mcr: 0,
            lsr_errors: 0,
            msr_delta: 0,
            scratch: 0,
            divisor: DEFAULT_DIVISOR,
            thre_pending: false,
        }
    }

    fn capacity(&self) -> usize {
        if self.fcr & FCR_ENABLE != 0 { FIFO_LEN } else { 1 }
    }

    fn trigger(&self) -> usize {
        match (self.fcr & FCR_ENABLE, self.fcr >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    /// Whether the receiver can take a byte from outside. In loopback it is cut off from outside.
    pub fn has_room(&self) -> bool {
        self.receiver.len() < self.capacity() && self.mcr & MCR_LOOPBACK == 0
    }

    /// Bytes arrive from outside; returns how many fitted.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if self.mcr & MCR_LOOPBACK != 0 {
            return 0;
        }
        let taken = bytes.len().min(self.capacity().saturating_sub(self.receiver.len()));
        self.receiver.extend(bytes.iter().take(taken));
        taken
    }

    /// A break condition: a zero byte with the break bit.
    pub fn receive_break(&mut self) {
        self.receive(&[0]);
        self.lsr_errors |= LSR_BREAK;
    }

    /// The level of the interrupt line.
    pub fn interrupt(&self) -> bool {
        self.interrupt_id() != IIR_NONE
    }

    /// The most urgent interrupt (PC16550D, table IV).
    fn interrupt_id(&self) -> u8 {
        let enabled = |bit: u8| self.ier & bit != 0;
        if enabled(IER_LINE_STATUS) && self.lsr_errors != 0 {
            IIR_LINE_STATUS
        } else if enabled(IER_RECEIVED) && self.receiver.len() >= self.trigger() {
            IIR_RECEIVED
        } else if enabled(IER_RECEIVED) && !self.receiver.is_empty() {
            IIR_TIMEOUT
        } else if enabled(IER_THRE) && self.thre_pending {
            IIR_THRE
        } else if enabled(IER_MODEM_STATUS) && self.msr_delta != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// Modem status bits 7-4: the outside's lines, or our own in loopback.
    fn modem_lines(&self) -> u8 {
        if self.mcr & MCR_LOOPBACK == 0 {
            return MSR_CONNECTED;
        }
        // CTS is RTS, DSR is DTR, RI is OUT1, DCD is OUT2 (PC16550D section 8.6.7).
        (self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
    }

    /// Reads the register at port `offset`.
    pub fn read(&mut self, offset: u16) -> u8 {
        match offset & 7 {
            DATA if self.lcr & LCR_DLAB != 0 => self.divisor as u8,
            IER if self.lcr & LCR_DLAB != 0 => (self.divisor >> 8) as u8,
            DATA => self.receiver.pop_front().unwrap_or(0),
            IER => self.ier,
            IIR_FCR => {
                let id = self.interrupt_id();
                if id == IIR_THRE {
                    self.thre_pending = false;
                }
                if self.fcr & FCR_ENABLE != 0 { id | IIR_FIFOS } else { id }
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let ready = if self.receiver.is_empty() { 0 } else { LSR_DATA_READY };
                LSR_TRANSMITTER_EMPTY | ready | std::mem::take(&mut self.lsr_errors)
            }
            MSR => self.modem_lines() | std::mem::take(&mut self.msr_delta),
            _ => self.scratch,
        }
    }

    /// Writes the register at port `offset`; the byte this transmits, if any.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        match offset & 7 {
            DATA if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xff00 | u16::from(value),
            IER if self.lcr & LCR_DLAB != 0 => self.divisor = self.divisor & 0xff | u16::from(value) << 8,
            DATA => {
                // It has left before the guest can look, and the holding register is empty again.
                self.thre_pending = true;
                if self.mcr & MCR_LOOPBACK == 0 {
                    return Some(value);
                }
                self.loop_back(value);
            }
            IER => {
                let enabled = value & !self.ier;
                self.ier = value & 0xf;
                // Enabling the interrupt while the register is empty raises it at once, even if it was told before: Linux's test for
                // UART_BUG_THRE and its start of transmission rely on it.
                if enabled & IER_THRE != 0 {
                    self.thre_pending = true;
                }
            }
            IIR_FCR => {
                if (value ^ self.fcr) & FCR_ENABLE != 0 || value & FCR_CLEAR_RECEIVER != 0 {
                    self.receiver.clear();
                }
                // Without the enable bit the others are not programmed.
                self.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
            }
            LCR => self.lcr = value,
            MCR => {
                let before = self.modem_lines();
                self.mcr = value & MCR_WRITABLE;
                let after = self.modem_lines();
                let changed = before ^ after;
                // The ring indicator's bit records its trailing edge only.
                let ring = before & !after & 0x40;
                self.msr_delta |= (changed & 0xb0 | ring) >> 4;
            }
            LSR | MSR => {}
            _ => self.scratch = value,
        }
        None
    }

    fn loop_back(&mut self, value: u8) {
        if self.receiver.len() < self.capacity() {
            self.receiver.push_back(value);
            return;
        }
        self.lsr_errors |= LSR_OVERRUN;
        if self.fcr & FCR_ENABLE == 0 {
            // Without the FIFO the new character replaces the old one.
            self.receiver.clear();
            self.receiver.push_back(value);
        }
    }
}
