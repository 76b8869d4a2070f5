//! The 8254 programmable interval timer and the PC's port 0x61, which gates its third counter.
//!
//! Intel 8254 data sheet (231164-005); port 0x61 from the 82371AB (PIIX4) data sheet (290562-001), "NMI Status and Control Register".
//!
//! All modes, BCD, count and status latches, and the read-back command. Counter 0's OUT is IRQ 0: each of its rises is driven as a pulse of no
//! length, since interrupt controllers take edges and a guest can see no more of the line than that.
//!
//! Deliberately missing: sound; the NMI status bits of port 0x61.
//!
//! Rises that come while nobody runs are one interrupt, and interrupts come at most every 50 us, so that a hostile count cannot keep the event loop busy.

mod counter;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::{Clock, IoError, IrqLine, PortDevice, TimedDevice, Timer};
use counter::Counter;

use crate::isa::{read_bytes, write_bytes};

/// The counters' clock in Hz: a twelfth of the NTSC colour burst quadrupled.
pub const FREQUENCY_HZ: u64 = 1_193_182;
const NS_PER_S: u64 = 1_000_000_000;
/// Least time between two interrupts.
const MIN_INTERVAL_NS: u64 = 50_000;
/// Half a period of the memory refresh request that port 0x61 bit 4 shows.
const REFRESH_TOGGLE_NS: u64 = 15_085;

const GATE_2: u8 = 1 << 0;
const SPEAKER: u8 = 1 << 1;
const REFRESH: u8 = 1 << 4;
const OUT_2: u8 = 1 << 5;

/// The tick that is current at `ns`.
fn tick_at(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(FREQUENCY_HZ) / u128::from(NS_PER_S)) as u64
}

/// The first nanosecond of `tick`.
fn ns_of(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * u128::from(NS_PER_S)).div_ceil(u128::from(FREQUENCY_HZ))).unwrap_or(u64::MAX)
}

/// The chip as a state machine.
#[derive(Debug, Clone)]
pub struct PitCore {
    counters: [Counter; 3],
    speaker: bool,
    /// Rises of counter 0's OUT up to this tick have been told.
    told_tick: u64,
    last_interrupt_ns: Option<u64>,
}

impl Default for PitCore {
    fn default() -> Self {
        Self::new()
    }
}

impl PitCore {
    /// The chip after power-up: no counter runs, and counter 2's gate is low.
    pub fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            speaker: false,
            told_tick: 0,
            last_interrupt_ns: None,
        }
    }

    /// Reads port `offset` (0 to 3).
    pub fn read(&mut self, offset: u16, now_ns: u64) -> u8 {
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.read(tick_at(now_ns)),
            // The control word register cannot be read; the bus floats.
            None => 0xff,
        }
    }

    /// Writes port `offset` (0 to 3).
    pub fn write(&mut self, offset: u16, value: u8, now_ns: u64) {
        let tick = tick_at(now_ns);
        if let Some(counter) = self.counters.get_mut(usize::from(offset)) {
            counter.write(value, tick);
        } else if value >> 6 == 3 {
            self.read_back(value, tick);
        } else if let Some(counter) = self.counters.get_mut(usize::from(value >> 6)) {
            if value >> 4 & 3 == 0 {
                counter.latch_count(tick);
            } else {
                counter.set_control(value);
            }
        }
    }

    /// The read-back command: bits 5 and 4, active low, latch count and status of the counters in bits 3 to 1.
    fn read_back(&mut self, command: u8, tick: u64) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if command & 2 << i != 0 {
                if command & 0x20 == 0 {
                    counter.latch_count(tick);
                }
                if command & 0x10 == 0 {
                    counter.latch_status(tick);
                }
            }
        }
    }

    /// Reads port 0x61.
    pub fn read_port_b(&self, now_ns: u64) -> u8 {
        let bit = |on: bool, bit: u8| if on { bit } else { 0 };
        bit(self.counters[2].gate(), GATE_2)
            | bit(self.speaker, SPEAKER)
            | bit(!(now_ns / REFRESH_TOGGLE_NS).is_multiple_of(2), REFRESH)
            | bit(self.counters[2].output(tick_at(now_ns)), OUT_2)
    }

    /// Writes port 0x61.
    pub fn write_port_b(&mut self, value: u8, now_ns: u64) {
        self.counters[2].set_gate(value & GATE_2 != 0, tick_at(now_ns));
        self.speaker = value & SPEAKER != 0;
    }

    /// When counter 0's OUT next rises, in nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        let rise = ns_of(self.counters[0].next_rise(self.told_tick)?);
        Some(self.last_interrupt_ns.map_or(rise, |last| rise.max(last.saturating_add(MIN_INTERVAL_NS))))
    }

    /// Time has come to `now_ns`. Returns whether counter 0's OUT has risen, once or more often.
    pub fn advance(&mut self, now_ns: u64) -> bool {
        if self.next_deadline().is_none_or(|deadline| deadline > now_ns) {
            return false;
        }
        self.told_tick = tick_at(now_ns);
        self.counters[0].settle(self.told_tick);
        self.last_interrupt_ns = Some(now_ns);
        true
    }
}

struct Wired {
    core: PitCore,
    irq: IrqLine,
    timer: Timer,
    clock: Arc<dyn Clock>,
}

/// The chip on a board: shared by its two port devices.
pub struct Pit(Mutex<Wired>);

impl Pit {
    /// A chip whose counter 0 drives `irq`.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Wired { core: PitCore::new(), irq, timer: Timer::detached(), clock })))
    }

    fn lock(&self) -> MutexGuard<'_, Wired> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// RESET.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.core = PitCore::new();
        state.timer.arm(None);
    }

    /// Ports of the counters and the control word (0x40 to 0x43 on a PC); also what the event loop drives.
    pub fn ports(self: &Arc<Self>) -> PitPorts {
        PitPorts(self.clone())
    }

    /// The one port of gate, speaker and counter 2's output (0x61 on a PC).
    pub fn port_b(self: &Arc<Self>) -> PitPortB {
        PitPortB(self.clone())
    }
}

/// The counters' ports.
pub struct PitPorts(Arc<Pit>);

impl PortDevice for PitPorts {
    fn name(&self) -> &str {
        "PIT"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        let mut state = self.0.lock();
        let now_ns = state.clock.now_ns();
        read_bytes(offset, data, |port| state.core.read(port, now_ns));
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let mut state = self.0.lock();
        let now_ns = state.clock.now_ns();
        write_bytes(offset, data, |port, value| state.core.write(port, value, now_ns));
        let deadline = state.core.next_deadline();
        state.timer.arm(deadline);
        Ok(())
    }
}

impl TimedDevice for PitPorts {
    fn next_deadline(&self) -> Option<u64> {
        self.0.lock().core.next_deadline()
    }

    fn advance(&mut self, now_ns: u64) {
        let mut state = self.0.lock();
        if state.core.advance(now_ns) {
            state.irq.pulse();
        }
        let deadline = state.core.next_deadline();
        state.timer.arm(deadline);
    }

    fn attach_timer(&mut self, timer: Timer) {
        let mut state = self.0.lock();
        let deadline = state.core.next_deadline();
        state.timer = timer;
        state.timer.arm(deadline);
    }
}

/// Port 0x61.
pub struct PitPortB(Arc<Pit>);

impl PortDevice for PitPortB {
    fn name(&self) -> &str {
        "port 0x61"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        let state = self.0.lock();
        let now_ns = state.clock.now_ns();
        read_bytes(offset, data, |_| state.core.read_port_b(now_ns));
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let mut state = self.0.lock();
        let now_ns = state.clock.now_ns();
        write_bytes(offset, data, |_, value| state.core.write_port_b(value, now_ns));
        Ok(())
    }
}
