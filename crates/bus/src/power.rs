//! Requests from a device (or a vCPU) to end or restart the machine.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// The guest switched itself off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset; the name of what it used to ask (`"i8042"`, `"GED"`, `"port 0xcf9"`, `"triple fault"`).
    Reset(&'static str),
    /// The guest asked for a reset, by what is named as in [`PowerRequest::Reset`], in the middle of its work: an operating system that had crashed.
    Crash(&'static str),
    /// The user asked the VMM to stop (Ctrl-A x, a signal).
    Quit,
    /// A guest test program ended the run through the debug-exit port, with this process exit code.
    Exit(u8),
    /// An enclave did not give its heartbeat in time.
    HeartbeatTimeout,
    /// The VMM cannot go on; the reason has been recorded by whoever asked.
    Fatal,
}

type Hook = Box<dyn Fn(PowerRequest) + Send + Sync>;

#[derive(Default)]
struct Shared {
    request: Mutex<Option<PowerRequest>>,
    changed: Condvar,
    hook: Mutex<Option<Hook>>,
}

/// The board's power button, shared by everything that may press it. The first request of a run wins.
#[derive(Clone, Default)]
pub struct PowerControl(Arc<Shared>);

impl PowerControl {
    /// A control nobody has used yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `hook` from [`PowerControl::request`], so that the machine can stop its vCPUs at once.
    pub fn on_request(&self, hook: impl Fn(PowerRequest) + Send + Sync + 'static) {
        *self.0.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    /// Asks for the machine to end or restart; later requests of the same run are ignored.
    pub fn request(&self, request: PowerRequest) {
        {
            let mut slot = self.0.request.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.is_some() {
                return;
            }
            *slot = Some(request);
        }
        self.0.changed.notify_all();
        if let Some(hook) = &*self.0.hook.lock().unwrap_or_else(PoisonError::into_inner) {
            hook(request);
        }
    }

    /// What was asked for, if anything.
    pub fn requested(&self) -> Option<PowerRequest> {
        *self.0.request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is asked for, at most `timeout` if one is given.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<PowerRequest> {
        let slot = self.0.request.lock().unwrap_or_else(PoisonError::into_inner);
        match timeout {
            None => *self.0.changed.wait_while(slot, |r| r.is_none()).unwrap_or_else(PoisonError::into_inner),
            Some(t) => {
                *self.0.changed.wait_timeout_while(slot, t, |r| r.is_none()).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Forgets the request, for the next run after a reset.
    pub fn clear(&self) {
        *self.0.request.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_of_a_run_wins() {
        let power = PowerControl::new();
        power.request(PowerRequest::Reset("i8042"));
        power.request(PowerRequest::PowerOff);
        assert_eq!(power.wait(Some(Duration::ZERO)), Some(PowerRequest::Reset("i8042")));
        power.clear();
        assert_eq!(power.requested(), None);
    }
}
