//! How an idle vCPU sleeps until somebody has something for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// One vCPU's bed.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    asleep: AtomicBool,
    lock: Mutex<()>,
    woken: Condvar,
}

impl Sleeper {
    /// Sleeps until woken, or `timeout` passes, unless `awake` says that there is something to do.
    pub(crate) fn sleep(&self, timeout: Option<Duration>, awake: impl Fn() -> bool) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Announced before the last look: whoever adds work after that look sees it and wakes.
        self.asleep.store(true, Ordering::SeqCst);
        if !awake() {
            match timeout {
                None => drop(self.woken.wait_while(guard, |()| !awake())),
                Some(timeout) => drop(self.woken.wait_timeout_while(guard, timeout, |()| !awake())),
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Wakes it if it sleeps; what it is woken for has been made visible before.
    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn no_wake_up_is_lost() {
        let (sleeper, work) = (Sleeper::default(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for wanted in 1..=2000 {
                    sleeper.sleep(None, || work.load(Ordering::SeqCst) >= wanted);
                }
            });
            for _ in 0..2000 {
                work.fetch_add(1, Ordering::SeqCst);
                sleeper.wake();
            }
        });
    }
}
