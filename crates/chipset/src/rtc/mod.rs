//! The MC146818A real-time clock and its CMOS memory, with the PC's two ports.
//!
//! Motorola MC146818A data sheet (1984); the century in byte 0x32, as PC firmware keeps it; memory sizes in CMOS as QEMU's microvm leaves them.
//!
//! The time of day is the host's wall clock plus an offset that the guest sets. Flags are brought up to date when somebody looks or an interrupt is due, so that
//! a clock whose interrupts are off costs nothing.
//!
//! Deliberately missing: daylight saving, the square-wave output, a day of the week that contradicts the date, and the phase within a second: setting the
//! clock moves it by whole seconds.

mod calendar;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bus::{Clock, IoError, IrqLine, PortDevice, TimedDevice, Timer};
use calendar::TimeRegisters;

use crate::isa::{read_bytes, write_bytes};

/// Number of ports: index and data.
pub const PORTS: u16 = 2;

const NS_PER_S: u64 = 1_000_000_000;
/// How long before an update its flag in register A rises (MC146818A, table 6).
const UPDATE_NOTICE_NS: u64 = 244_000;
/// Frequency of the periodic interrupt's time base.
const BASE_HZ: u128 = 32_768;
/// No alarm lies further ahead.
const ALARM_HORIZON_S: i64 = 86_400;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
/// Divider bits 22 and 21: both set hold the divider in reset.
const A_DIVIDER_RESET: u8 = 0x60;
const A_RATE: u8 = 0x0f;
/// 32.768 kHz crystal, 1.024 kHz periodic rate: what PC firmware programs.
const A_DEFAULT: u8 = 0x26;

const B_SET: u8 = 1 << 7;
const B_UPDATE_ENDED: u8 = 1 << 4;
const B_INTERRUPTS: u8 = 0x70;

const C_IRQ: u8 = 1 << 7;
const C_PERIODIC: u8 = 1 << 6;
const C_ALARM: u8 = 1 << 5;
const C_UPDATE_ENDED: u8 = 1 << 4;

/// The battery is good.
const D_VALID: u8 = 1 << 7;

/// An alarm byte of 0xc0 and above matches everything.
const ALARM_ANY: u8 = 0xc0;

/// Where the time of day comes from.
pub trait WallClock: Send {
    /// Nanoseconds since 1970 UTC.
    fn unix_ns(&self) -> u64;
}

/// The host's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostWallClock;

impl WallClock for HostWallClock {
    fn unix_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl<F: Fn() -> u64 + Send> WallClock for F {
    fn unix_ns(&self) -> u64 {
        self()
    }
}

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// On the machine's clock, in nanoseconds: what deadlines are given in.
    pub clock_ns: u64,
    /// On the wall clock, in nanoseconds since 1970 UTC.
    pub unix_ns: u64,
}

impl Moment {
    fn until_next_second_ns(self) -> u64 {
        NS_PER_S - self.unix_ns % NS_PER_S
    }
}

/// The chip as a state machine.
#[derive(Debug, Clone)]
pub struct RtcCore {
    cmos: [u8; 128],
    reg_a: u8,
    reg_b: u8,
    /// Interrupt flags without bit 7, which is computed.
    flags: u8,
    /// The guest's time less the host's, in seconds.
    offset_s: i64,
    /// The time registers, while the clock is stopped for setting.
    held: Option<TimeRegisters>,
    /// The second up to which updates and alarms have been flagged.
    flagged_second: i64,
    /// The period up to which the periodic flag has been set.
    flagged_period: u64,
}

impl RtcCore {
    /// A clock that shows the wall clock's time plus `offset_s` seconds, in BCD and 24 hours.
    pub fn new(offset_s: i64, now: Moment) -> Self {
        let mut core = Self {
            cmos: [0; 128],
            reg_a: A_DEFAULT,
            reg_b: calendar::HOURS_24,
            flags: 0,
            offset_s,
            held: None,
            flagged_second: 0,
            flagged_period: 0,
        };
        core.flagged_second = core.second(now);
        core.flagged_period = core.period(now);
        core
    }

    /// RESET: interrupts are disabled and their flags cleared; time and memory stay.
    pub fn reset(&mut self) {
        self.reg_b &= !B_INTERRUPTS;
        self.flags = 0;
    }

    /// Puts the sizes of RAM where firmware and old kernels look, in bytes below and above 4 GiB.
    pub fn set_memory_sizes(&mut self, below_4g: u64, above_4g: u64) {
        const KIB: u64 = 1 << 10;
        const MIB: u64 = 1 << 20;
        let word = |value: u64| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
        let base = word((below_4g / KIB).min(640));
        let from_1m = word(below_4g.saturating_sub(MIB) / KIB);
        let from_16m = word(below_4g.saturating_sub(16 * MIB) / (64 * KIB));
        let above = (above_4g / (64 * KIB)).min(0xff_ffff).to_le_bytes();
        for (index, bytes) in
            [(0x15, &base[..]), (0x17, &from_1m), (0x30, &from_1m), (0x34, &from_16m), (0x5b, &above[..3])]
        {
            self.cmos[index..index + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Seconds since 1970 as the guest counts them.
    fn second(&self, now: Moment) -> i64 {
        ((now.unix_ns / NS_PER_S) as i64).saturating_add(self.offset_s)
    }

    /// The periodic interrupt's period as a power of two of its time base; `None` when it is off (MC146818A, table 5).
    fn period_shift(&self) -> Option<u8> {
        match self.reg_a & A_RATE {
            0 => None,
            // These two give the same rates as 8 and 9.
            rate @ (1 | 2) => Some(rate + 6),
            rate => Some(rate - 1),
        }
    }

    /// How many periods had passed at `now`.
    fn period(&self, now: Moment) -> u64 {
        let ticks = (u128::from(now.clock_ns) * BASE_HZ / u128::from(NS_PER_S)) as u64;
        self.period_shift().map_or(0, |shift| ticks >> shift)
    }

    fn stopped(&self) -> bool {
        self.reg_b & B_SET != 0 || self.reg_a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Sets the flags of everything that has happened up to `now`.
    fn catch_up(&mut self, now: Moment) {
        let period = self.period(now);
        if period > self.flagged_period {
            self.flags |= C_PERIODIC;
        }
        self.flagged_period = period;
        let second = self.second(now);
        if second > self.flagged_second && !self.stopped() {
            self.flags |= C_UPDATE_ENDED;
            let first = (self.flagged_second + 1).max(second - ALARM_HORIZON_S + 1);
            if self.flags & C_ALARM == 0 && (first..=second).any(|s| self.alarm_at(s)) {
                self.flags |= C_ALARM;
            }
        }
        self.flagged_second = second;
    }

    fn alarm_at(&self, second: i64) -> bool {
        let alarm = [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].map(|index| self.cmos[usize::from(index)]);
        let time = calendar::time_of_day(second, self.reg_b);
        alarm.iter().zip(time).all(|(&alarm, time)| alarm >= ALARM_ANY || alarm == time)
    }

    /// The level of the interrupt line.
    pub fn interrupt(&self) -> bool {
        self.flags & self.reg_b & B_INTERRUPTS != 0
    }

    /// When an interrupt may next be due, on the machine's clock; `None` while all are off, or one waits to be acknowledged.
    pub fn next_deadline(&self, now: Moment) -> Option<u64> {
        if self.interrupt() {
            return None;
        }
        let periodic = self.period_shift().filter(|_| self.reg_b & C_PERIODIC != 0).map(|shift| {
            let tick = u128::from(self.flagged_period.saturating_add(1)) << shift;
            u64::try_from((tick * u128::from(NS_PER_S)).div_ceil(BASE_HZ)).unwrap_or(u64::MAX)
        });
        let seconds = self.reg_b & (C_ALARM | C_UPDATE_ENDED) != 0 && !self.stopped();
        let second = seconds.then(|| now.clock_ns.saturating_add(now.until_next_second_ns()));
        periodic.into_iter().chain(second).min()
    }

    /// Time has come to `now`.
    pub fn advance(&mut self, now: Moment) {
        self.catch_up(now);
    }

    fn time(&self, now: Moment) -> TimeRegisters {
        self.held.unwrap_or_else(|| calendar::to_registers(self.second(now), self.reg_b))
    }

    /// Reads the register or memory byte at `index`.
    pub fn read(&mut self, index: u8, now: Moment) -> u8 {
        let time = || self.time(now);
        match index & 0x7f {
            SECONDS => time().second,
            MINUTES => time().minute,
            HOURS => time().hour,
            WEEKDAY => time().weekday,
            DAY => time().day,
            MONTH => time().month,
            YEAR => time().year,
            CENTURY => time().century,
            REG_A => {
                let updating = !self.stopped() && now.until_next_second_ns() <= UPDATE_NOTICE_NS;
                self.reg_a | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REG_B => self.reg_b,
            REG_C => {
                self.catch_up(now);
                let irq = if self.interrupt() { C_IRQ } else { 0 };
                std::mem::take(&mut self.flags) | irq
            }
            REG_D => D_VALID,
            index => self.cmos[usize::from(index)],
        }
    }

    /// Writes the register or memory byte at `index`.
    pub fn write(&mut self, index: u8, value: u8, now: Moment) {
        self.catch_up(now);
        match index & 0x7f {
            index @ (SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY) => {
                self.write_time(index, value, now);
            }
            REG_A => self.write_control(value & 0x7f, self.reg_b, now),
            REG_B => {
                // Setting the clock switches the update-ended interrupt off (MC146818A, "Register B").
                let value = if value & B_SET != 0 { value & !B_UPDATE_ENDED } else { value };
                self.write_control(self.reg_a, value, now);
            }
            REG_C | REG_D => {}
            index => self.cmos[usize::from(index)] = value,
        }
    }

    fn write_time(&mut self, index: u8, value: u8, now: Moment) {
        let mut time = self.time(now);
        let field = match index {
            SECONDS => &mut time.second,
            MINUTES => &mut time.minute,
            HOURS => &mut time.hour,
            WEEKDAY => &mut time.weekday,
            DAY => &mut time.day,
            MONTH => &mut time.month,
            YEAR => &mut time.year,
            _ => &mut time.century,
        };
        *field = value;
        if self.held.is_some() {
            self.held = Some(time);
        } else {
            self.set_time(&time, now);
        }
    }

    /// Moves the guest's time to what the registers say.
    fn set_time(&mut self, time: &TimeRegisters, now: Moment) {
        self.offset_s = calendar::from_registers(time, self.reg_b) - (now.unix_ns / NS_PER_S) as i64;
        self.flagged_second = self.second(now);
    }

    /// Changes registers A and B, and with them whether the clock goes.
    fn write_control(&mut self, reg_a: u8, reg_b: u8, now: Moment) {
        let time = self.time(now);
        (self.reg_a, self.reg_b) = (reg_a, reg_b);
        // A new rate begins a new period.
        self.flagged_period = self.period(now);
        if self.stopped() {
            self.held = Some(time);
        } else if let Some(time) = self.held.take() {
            self.set_time(&time, now);
        }
    }
}

/// The chip on a board: its two ports and its interrupt line.
pub struct Rtc {
    core: RtcCore,
    index: u8,
    irq: IrqLine,
    irq_level: bool,
    clock: Arc<dyn Clock>,
    wall: Box<dyn WallClock>,
    timer: Timer,
}

impl Rtc {
    /// A clock that shows `wall`'s time plus `offset_s` seconds.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, wall: Box<dyn WallClock>, offset_s: i64) -> Self {
        let now = Moment { clock_ns: clock.now_ns(), unix_ns: wall.unix_ns() };
        let core = RtcCore::new(offset_s, now);
        Self { core, index: 0, irq, irq_level: false, clock, wall, timer: Timer::detached() }
    }

    /// Puts the sizes of RAM into CMOS memory, in bytes below and above 4 GiB.
    pub fn set_memory_sizes(&mut self, below_4g: u64, above_4g: u64) {
        self.core.set_memory_sizes(below_4g, above_4g);
    }

    /// RESET.
    pub fn reset(&mut self) {
        self.core.reset();
        self.index = 0;
        self.settle();
    }

    fn now(&self) -> Moment {
        Moment { clock_ns: self.clock.now_ns(), unix_ns: self.wall.unix_ns() }
    }

    /// Drives the line and arms the timer for what comes next.
    fn settle(&mut self) {
        let level = self.core.interrupt();
        if level != self.irq_level {
            self.irq_level = level;
            self.irq.set(level);
        }
        let deadline = self.next_deadline();
        self.timer.arm(deadline);
    }
}

impl PortDevice for Rtc {
    fn name(&self) -> &str {
        "RTC"
    }

    fn read(&mut self, offset: u16, data: &mut [u8]) -> Result<(), IoError> {
        let now = self.now();
        let mut acknowledged = false;
        read_bytes(offset, data, |port| match port & 1 {
            // The index cannot be read back.
            0 => 0xff,
            _ => {
                acknowledged |= self.index == REG_C;
                self.core.read(self.index, now)
            }
        });
        if acknowledged {
            self.settle();
        }
        Ok(())
    }

    fn write(&mut self, offset: u16, data: &[u8]) -> Result<(), IoError> {
        let now = self.now();
        let mut changed = false;
        write_bytes(offset, data, |port, value| match port & 1 {
            // Bit 7 masks NMIs on a PC; here there is nothing to mask.
            0 => self.index = value & 0x7f,
            _ => {
                changed = true;
                self.core.write(self.index, value, now);
            }
        });
        if changed {
            self.settle();
        }
        Ok(())
    }
}

impl TimedDevice for Rtc {
    fn next_deadline(&self) -> Option<u64> {
        self.core.next_deadline(self.now())
    }

    fn advance(&mut self, now_ns: u64) {
        self.core.advance(Moment { clock_ns: now_ns, unix_ns: self.wall.unix_ns() });
        self.settle();
    }

    fn attach_timer(&mut self, timer: Timer) {
        self.timer = timer;
        self.settle();
    }
}
