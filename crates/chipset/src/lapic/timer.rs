//! The local APIC's timer: one-shot, periodic and TSC-deadline (SDM "APIC Timer").

use super::{LVT_MASKED, Lapic, LocalSource};

/// LVT timer bits 18-17: 0 one-shot, 1 periodic, 2 TSC deadline.
const MODE_SHIFT: u32 = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// When the timer next has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerDeadline {
    /// Nanoseconds on the clock that is handed in.
    Ns(u64),
    /// A value of the guest's time stamp counter.
    Tsc(u64),
}

impl Lapic {
    fn timer_mode(&self) -> TimerMode {
        match self.s.lvt[LocalSource::Timer as usize] >> MODE_SHIFT & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::OneShot,
        }
    }

    /// Nanoseconds a count: the divide configuration register's bits 3, 1 and 0, of which 7 divides by 1.
    fn timer_divisor(&self) -> u64 {
        let value = self.s.timer_divide;
        let code = value & 3 | value >> 1 & 4;
        if code == 7 { 1 } else { 2 << code }
    }

    fn timer_period_ns(&self) -> u64 {
        u64::from(self.s.timer_initial) * self.timer_divisor()
    }

    /// The current count register at `now_ns`.
    pub(super) fn timer_current(&self, now_ns: u64) -> u32 {
        let Some(zero) = self.s.timer_zero_ns else { return 0 };
        let mut left = zero.saturating_sub(now_ns);
        if left == 0 && self.timer_mode() == TimerMode::Periodic {
            // The count has wrapped, and nobody has called advance since.
            let period = self.timer_period_ns().max(1);
            left = period - now_ns.saturating_sub(zero) % period;
        }
        u32::try_from(left.div_ceil(self.timer_divisor())).unwrap_or(u32::MAX)
    }

    /// Writes the initial count: zero stops the timer, anything else starts it. Ignored in TSC-deadline mode.
    pub(super) fn set_timer_initial(&mut self, value: u32, now_ns: u64) {
        if self.timer_mode() == TimerMode::TscDeadline {
            return;
        }
        self.s.timer_initial = value;
        self.s.timer_zero_ns = (value != 0).then(|| now_ns.saturating_add(self.timer_period_ns()));
    }

    /// Lets the count go on from `current` at `now_ns`; zero is a count that has ended, or never began.
    pub(super) fn set_timer_current(&mut self, current: u32, now_ns: u64) {
        let left = u64::from(current) * self.timer_divisor();
        self.s.timer_zero_ns = (current != 0).then(|| now_ns.saturating_add(left));
    }

    /// Writes the divide configuration; a running count goes on from where it is, at the new speed.
    pub(super) fn set_timer_divide(&mut self, value: u32, now_ns: u64) {
        let current = u64::from(self.timer_current(now_ns));
        self.s.timer_divide = value & 0xb;
        if self.s.timer_zero_ns.is_some() && current != 0 {
            self.s.timer_zero_ns = Some(now_ns.saturating_add(current * self.timer_divisor()));
        }
    }

    /// Writes the LVT entry. A change to or from TSC-deadline mode disarms the timer. What fell due under the old entry is settled by it first: a count
    /// that ended while the timer was masked raises nothing when it is unmasked.
    pub(super) fn set_timer_lvt(&mut self, value: u32, now_ns: u64) {
        if self.timer_mode() != TimerMode::TscDeadline {
            self.advance(now_ns, 0);
        }
        let was = self.timer_mode();
        self.s.lvt[LocalSource::Timer as usize] = value;
        let is = self.timer_mode();
        if was != is && (was == TimerMode::TscDeadline || is == TimerMode::TscDeadline) {
            self.s.timer_zero_ns = None;
            self.s.timer_initial = 0;
            self.s.tsc_deadline = 0;
        }
    }

    /// IA32_TSC_DEADLINE: zero unless armed in TSC-deadline mode.
    pub fn tsc_deadline(&self) -> u64 {
        self.s.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE: arms the timer, or disarms it with zero; ignored in the other modes. A deadline that has passed already
    /// is due at once: the caller looks at [`Lapic::next_deadline`] and calls [`Lapic::advance`].
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.s.tsc_deadline = value;
        }
    }

    /// When [`Lapic::advance`] next has something to do; `None` while the timer stands.
    pub fn next_deadline(&self) -> Option<TimerDeadline> {
        match self.timer_mode() {
            TimerMode::TscDeadline => (self.s.tsc_deadline != 0).then_some(TimerDeadline::Tsc(self.s.tsc_deadline)),
            // A masked one-shot or periodic timer counts, but has no one to tell; its count is computed when it is read.
            _ if self.s.lvt[LocalSource::Timer as usize] & LVT_MASKED != 0 => None,
            _ => self.s.timer_zero_ns.map(TimerDeadline::Ns),
        }
    }

    /// Time has come to `now_ns`, with the guest's time stamp counter at `tsc`. Returns whether the processor has a new interrupt to
    /// take: periods that were missed, or whose interrupt still waits, are one interrupt.
    pub fn advance(&mut self, now_ns: u64, tsc: u64) -> bool {
        match self.timer_mode() {
            TimerMode::TscDeadline => {
                if self.s.tsc_deadline == 0 || tsc < self.s.tsc_deadline {
                    return false;
                }
                self.s.tsc_deadline = 0;
            }
            mode => {
                let Some(zero) = self.s.timer_zero_ns.filter(|&zero| zero <= now_ns) else { return false };
                let period = self.timer_period_ns();
                self.s.timer_zero_ns = (mode == TimerMode::Periodic && period != 0)
                    .then(|| zero.saturating_add(((now_ns - zero) / period).saturating_add(1).saturating_mul(period)));
            }
        }
        self.raise_local(LocalSource::Timer)
    }
}
