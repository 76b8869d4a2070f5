//! One counter of an 8254 (Intel 231164-005, "Mode Definitions").
//!
//! Time is counted in ticks of the counter's clock, and nothing happens between accesses: count and output are computed from when the
//! count was loaded.

/// How many bytes of the count an access moves: read/write bits of the control word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Low,
    High,
    /// Low byte, then high byte.
    Word,
}

/// What a running count does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// No count was written since the control word, or modes 1 and 5 wait for their trigger.
    Idle,
    /// Counting; the count was loaded at this tick.
    Since(u64),
    /// Held by a low gate after this many ticks.
    Held(u64),
}

#[derive(Debug, Clone)]
pub(super) struct Counter {
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// The count in use, 2 to 65536 (1 in the modes that allow it).
    reload: u32,
    /// A count that modes 2 and 3 take up when the present period ends, and modes 1 and 5 at the next trigger.
    next_reload: Option<u32>,
    progress: Progress,
    /// Low byte of a word that is being written.
    written_low: Option<u8>,
    /// The next byte of a word to be read is the high one.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Word,
            gate,
            reload: 0x1_0000,
            next_reload: None,
            progress: Progress::Idle,
            written_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// Ticks since the count was loaded; `None` before that.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        match self.progress {
            Progress::Idle => None,
            // The count is loaded by the clock pulse after the write, which may still be to come.
            Progress::Since(start) => Some(tick.saturating_sub(start)),
            Progress::Held(elapsed) => Some(elapsed),
        }
    }

    /// Takes up a new count at the end of a period.
    pub(super) fn settle(&mut self, tick: u64) {
        if let (true, Some(next), Progress::Since(start)) = (self.periodic(), self.next_reload, self.progress)
            && tick.saturating_sub(start) >= self.reload.into()
        {
            self.progress = Progress::Since(start + u64::from(self.reload));
            self.reload = next;
            self.next_reload = None;
        }
    }

    /// A control word other than a latch or read-back command.
    pub(super) fn set_control(&mut self, control: u8) {
        let mode = control >> 1 & 7;
        *self = Self {
            mode: if mode > 5 { mode - 4 } else { mode },
            bcd: control & 1 != 0,
            access: match control >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Word,
            },
            ..Self::new(self.gate)
        };
    }

    pub(super) fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(tick));
        }
    }

    pub(super) fn latch_status(&mut self, tick: u64) {
        if self.latched_status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::Word => 3,
            };
            let loaded = self.next_reload.is_none()
                && match self.progress {
                    Progress::Idle => false,
                    Progress::Since(start) => start <= tick,
                    Progress::Held(_) => true,
                };
            let status = u8::from(self.output(tick)) << 7 | u8::from(!loaded) << 6 | access << 4 | self.mode << 1;
            self.latched_status = Some(status | u8::from(self.bcd));
        }
    }

    /// The counting element, as it reads: in BCD where that was chosen.
    fn count(&mut self, tick: u64) -> u16 {
        self.settle(tick);
        let reload = u64::from(self.reload);
        let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = match (self.elapsed(tick), self.mode) {
            (None, _) => 0,
            (Some(t), 2) => reload - t % reload,
            // Mode 3 counts by two, twice a period.
            (Some(t), 3) => reload - 2 * t % reload,
            // The other modes go on past zero.
            (Some(t), _) => (reload + modulus - t % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(count as u16) } else { count as u16 }
    }

    /// The level of OUT.
    pub(super) fn output(&self, tick: u64) -> bool {
        let reload = u64::from(self.reload);
        match (self.elapsed(tick), self.mode) {
            (None, mode) => mode != 0,
            (Some(t), 0 | 1) => t >= reload,
            (Some(_), 2 | 3) if !self.gate => true,
            (Some(t), 2) => t % reload != reload - 1,
            (Some(t), 3) => t % reload < reload.div_ceil(2),
            (Some(t), _) => t != reload,
        }
    }

    /// The first tick after `tick` at which OUT rises.
    pub(super) fn next_rise(&self, tick: u64) -> Option<u64> {
        let Progress::Since(start) = self.progress else { return None };
        let reload = u64::from(self.reload);
        let elapsed = tick.saturating_sub(start);
        let rise = match self.mode {
            2 | 3 if !self.gate => return None,
            2 | 3 => (elapsed / reload + 1) * reload,
            // Low for one tick at the end of the count.
            4 | 5 => reload + 1,
            _ => reload,
        };
        let at = start.saturating_add(rise);
        (at > tick).then_some(at)
    }

    /// Changes the level of GATE.
    pub(super) fn set_gate(&mut self, gate: bool, tick: u64) {
        self.settle(tick);
        let was = std::mem::replace(&mut self.gate, gate);
        if was == gate {
            return;
        }
        match (self.mode, self.progress) {
            (0 | 4, Progress::Since(start)) if !gate => self.progress = Progress::Held(tick.saturating_sub(start)),
            (0 | 4, Progress::Held(elapsed)) if gate => self.progress = Progress::Since(tick.saturating_sub(elapsed)),
            (2 | 3, Progress::Since(start)) if !gate => self.progress = Progress::Held(tick.saturating_sub(start)),
            (2 | 3, Progress::Held(_)) if gate => self.load(tick),
            (1 | 5, progress) if gate && (progress != Progress::Idle || self.next_reload.is_some()) => self.load(tick),
            _ => {}
        }
    }

    /// Loads the count on the next clock pulse.
    fn load(&mut self, tick: u64) {
        if let Some(next) = self.next_reload.take() {
            self.reload = next;
        }
        self.progress = Progress::Since(tick + 1);
    }

    pub(super) fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = match self.latched_count {
            Some(count) => count,
            None => self.count(tick),
        };
        let [low, high] = count.to_le_bytes();
        let last = match self.access {
            Access::Low | Access::High => true,
            Access::Word => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if last {
            self.latched_count = None;
        }
        if self.access == Access::High || self.access == Access::Word && last { high } else { low }
    }

    pub(super) fn write(&mut self, value: u8, tick: u64) {
        let written = match self.access {
            Access::Low => u16::from(value),
            Access::High => u16::from(value) << 8,
            Access::Word => match self.written_low.take() {
                Some(low) => u16::from_le_bytes([low, value]),
                None => {
                    self.written_low = Some(value);
                    if self.mode == 0 {
                        // The first byte stops the count and sends OUT low.
                        self.progress = Progress::Idle;
                    }
                    return;
                }
            },
        };
        self.set_count(written, tick);
    }

    fn set_count(&mut self, written: u16, tick: u64) {
        self.settle(tick);
        let count = if self.bcd { from_bcd(written) } else { written.into() };
        let full = if self.bcd { 10_000 } else { 0x1_0000 };
        let count = match count {
            0 => full,
            // One is illegal in the periodic modes; we take the fastest legal count.
            1 if self.periodic() => 2,
            n => n,
        };
        self.next_reload = Some(count);
        if self.triggered() || self.periodic() && matches!(self.progress, Progress::Since(_)) {
            return;
        }
        self.load(tick);
        if !self.gate {
            self.progress = Progress::Held(0);
        }
    }
}

fn from_bcd(value: u16) -> u32 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(value >> (4 * digit) & 0xf))
}

fn to_bcd(value: u16) -> u16 {
    [1000, 100, 10, 1].iter().fold(0, |bcd, weight| (bcd << 4) | (value / weight % 10))
}
