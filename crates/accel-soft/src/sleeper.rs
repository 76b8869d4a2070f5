//! How an idle vCPU sleeps until somebody has something for it.
//!
//! Before it sleeps it looks for a while whether something comes, because a thread's way into the kernel and back takes tens of microseconds, most of a vsock's
//! round trip. How long adapts as KVM's halt polling does (Linux Documentation/virt/kvm/halt-polling.rst): longer while sleeps are short, not at all after a long one,
//! so an idle guest costs nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that it looks before it sleeps, and the first after it did not, in nanoseconds: KVM's defaults.
const LONGEST_LOOK_NS: u64 = 200_000;
const FIRST_LOOK_NS: u64 = 10_000;
/// Looks between two looks at the clock.
const LOOKS: u32 = 32;

/// One vCPU's bed.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    asleep: AtomicBool,
    lock: Mutex<()>,
    woken: Condvar,
    /// Whether there are cores to spare for looking.
    looks: bool,
    /// How long it looks the next time, in nanoseconds.
    look_ns: AtomicU64,
}

/// How long to look the next time, after a wait of `waited` nanoseconds that began with a look of `look`.
fn next_look(look: u64, waited: u64) -> u64 {
    match waited {
        waited if waited <= look => look,
        waited if waited <= LONGEST_LOOK_NS => (look * 2).clamp(FIRST_LOOK_NS, LONGEST_LOOK_NS),
        _ => 0,
    }
}

impl Sleeper {
    /// `looks`: there are cores to spare for looking before it sleeps.
    pub(crate) fn new(looks: bool) -> Self {
        Self { looks, ..Self::default() }
    }

    /// Sleeps until woken, or `timeout` passes, unless `awake` says that there is something to do.
    pub(crate) fn sleep(&self, timeout: Option<Duration>, awake: impl Fn() -> bool) {
        if !self.looks {
            return self.block(timeout, awake);
        }
        let start = Instant::now();
        let look = self.look_ns.load(Ordering::Relaxed);
        let longest = timeout.map_or(look, |timeout| look.min(timeout.as_nanos() as u64));
        while (start.elapsed().as_nanos() as u64) < longest {
            for _ in 0..LOOKS {
                if awake() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        self.block(timeout.map(|timeout| timeout.saturating_sub(start.elapsed())), awake);
        self.look_ns.store(next_look(look, start.elapsed().as_nanos() as u64), Ordering::Relaxed);
    }

    fn block(&self, timeout: Option<Duration>, awake: impl Fn() -> bool) {
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
        for looks in [false, true] {
            let (sleeper, work) = (Sleeper::new(looks), AtomicU32::new(0));
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

    #[test]
    fn short_waits_are_looked_through_and_a_long_one_ends_that() {
        assert_eq!(next_look(0, 50_000), FIRST_LOOK_NS);
        assert_eq!(next_look(40_000, 50_000), 80_000);
        assert_eq!(next_look(80_000, 50_000), 80_000, "it was long enough");
        assert_eq!(next_look(150_000, 180_000), LONGEST_LOOK_NS);
        assert_eq!(next_look(LONGEST_LOOK_NS, 1_000_000), 0);
    }

    #[test]
    fn a_look_never_outlasts_the_timeout() {
        let sleeper = Sleeper::new(true);
        sleeper.look_ns.store(u64::MAX, Ordering::Relaxed);
        let start = Instant::now();
        sleeper.sleep(Some(Duration::from_millis(1)), || false);
        assert!((Duration::from_millis(1)..Duration::from_secs(5)).contains(&start.elapsed()));
    }
}
