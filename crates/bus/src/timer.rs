//! Timers: a device says when it wants to be woken through a [`Timer`], the event loop listens as a [`TimerTarget`].

use std::sync::Arc;

/// What keeps a device's deadline and wakes it: the event loop.
pub trait TimerTarget: Send + Sync {
    /// The device wants to be woken at `deadline_ns` on the machine's [`crate::Clock`], or not at all.
    ///
    /// Called with the device's lock held, so it must not call the device.
    fn arm(&self, deadline_ns: Option<u64>);
}

/// A device's end of a timer. It remembers what it asked for, so that asking for the same again costs a comparison.
#[derive(Clone, Default)]
pub struct Timer {
    target: Option<Arc<dyn TimerTarget>>,
    armed: Option<u64>,
}

impl Timer {
    /// A timer that nobody has armed yet.
    pub fn new(target: Arc<dyn TimerTarget>) -> Self {
        Self { target: Some(target), armed: None }
    }

    /// A timer that never fires, for a device that is driven by hand and for tests.
    pub fn detached() -> Self {
        Self::default()
    }

    /// Asks for a wake-up at `deadline_ns`, or for none; tells the target only what has changed.
    pub fn arm(&mut self, deadline_ns: Option<u64>) {
        if self.armed != deadline_ns {
            self.armed = deadline_ns;
            if let Some(target) = &self.target {
                target.arm(deadline_ns);
            }
        }
    }
}

impl std::fmt::Debug for Timer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Timer").field("armed", &self.armed).field("attached", &self.target.is_some()).finish()
    }
}

/// A device that does something by itself as time passes.
pub trait TimedDevice: Send {
    /// When the device next has something to do, in nanoseconds on the machine's clock.
    fn next_deadline(&self) -> Option<u64>;
    /// Does whatever was due by `now_ns`. May be called early, late or twice.
    fn advance(&mut self, now_ns: u64);
    /// Gives the device the timer it arms whenever a register access moves its next deadline; it arms it at once.
    fn attach_timer(&mut self, timer: Timer);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Option<u64>>>);

    impl TimerTarget for Recorder {
        fn arm(&self, deadline_ns: Option<u64>) {
            self.0.lock().unwrap().push(deadline_ns);
        }
    }

    #[test]
    fn only_changes_of_the_deadline_reach_the_target() {
        let recorder = Arc::new(Recorder::default());
        let mut timer = Timer::new(recorder.clone());
        for deadline in [None, Some(5), Some(5), Some(6), None, None] {
            timer.arm(deadline);
        }
        assert_eq!(*recorder.0.lock().unwrap(), [Some(5), Some(6), None]);
    }
}
