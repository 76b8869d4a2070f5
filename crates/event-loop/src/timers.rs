//! All timers of the loop over one timerfd.
//!
//! The timerfd is set to the earliest deadline, or earlier: it is set anew by whoever arms an earlier one, and by the loop after it has run what was due.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus::Clock;
use tracing::error;
use vmm_sys_util::timerfd::TimerFd;

use crate::lock;

type Callback = Arc<Mutex<dyn FnMut(u64) -> Option<u64> + Send>>;

struct Slot {
    deadline: Option<u64>,
    callback: Callback,
}

struct State {
    slots: Vec<Slot>,
    timerfd: TimerFd,
    /// What the timerfd is set to.
    programmed: Option<u64>,
}

pub(crate) struct Timers {
    state: Mutex<State>,
    fd: i32,
}

impl Timers {
    pub(crate) fn new() -> io::Result<Self> {
        let timerfd = TimerFd::new().map_err(io::Error::from)?;
        let fd = timerfd.as_raw_fd();
        Ok(Self { state: Mutex::new(State { slots: Vec::new(), timerfd, programmed: None }), fd })
    }

    pub(crate) fn fd(&self) -> i32 {
        self.fd
    }

    pub(crate) fn add(&self, callback: impl FnMut(u64) -> Option<u64> + Send + 'static) -> usize {
        let mut state = lock(&self.state);
        state.slots.push(Slot { deadline: None, callback: Arc::new(Mutex::new(callback)) });
        state.slots.len() - 1
    }

    pub(crate) fn arm(&self, id: usize, deadline: Option<u64>, clock: &dyn Clock) {
        let mut state = lock(&self.state);
        // After the loop has stopped there are no slots, but devices still arm their timers.
        let Some(slot) = state.slots.get_mut(id) else { return };
        slot.deadline = deadline;
        if let Some(deadline) = deadline
            && state.programmed.is_none_or(|programmed| deadline < programmed)
        {
            state.program(Some(deadline), clock);
        }
    }

    /// Runs the timers that are due, each once, and sets the timerfd for the next.
    pub(crate) fn run_due(&self, clock: &dyn Clock) {
        let now_ns = clock.now_ns();
        let mut due = Vec::new();
        {
            let mut state = lock(&self.state);
            for (id, slot) in state.slots.iter_mut().enumerate() {
                if slot.deadline.take_if(|deadline| *deadline <= now_ns).is_some() {
                    due.push((id, slot.callback.clone()));
                }
            }
            // The timerfd stays readable until it is set anew, so this comes before anything can arm an earlier deadline.
            let next = state.slots.iter().filter_map(|slot| slot.deadline).min();
            state.program(next, clock);
        }
        for (id, callback) in due {
            if let Some(next) = (*lock(&callback))(now_ns) {
                self.arm(id, Some(next), clock);
            }
        }
    }

    /// Takes out everything that callbacks hold.
    pub(crate) fn take_all(&self) -> impl Sized + use<> {
        std::mem::take(&mut lock(&self.state).slots)
    }
}

impl State {
    /// Sets the timerfd, which also makes it unreadable if it had expired.
    fn program(&mut self, deadline: Option<u64>, clock: &dyn Clock) {
        self.programmed = deadline;
        let result = match deadline {
            // Zero would disarm it.
            Some(at) => {
                let wait = at.saturating_sub(clock.now_ns()).clamp(1, i64::MAX as u64);
                self.timerfd.reset(Duration::from_nanos(wait), None)
            }
            None => self.timerfd.clear(),
        };
        if let Err(cause) = result {
            error!("the event loop cannot set its timer: {cause}");
        }
    }
}
