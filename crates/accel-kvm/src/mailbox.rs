//! What other threads have for a vCPU, and how they get it out of KVM_RUN without losing a wake-up.
//!
//! Whoever has something sets a flag, then `immediate_exit`, then sends a signal. The vCPU's thread clears `immediate_exit`, then looks at the flags, then
//! enters KVM_RUN: so either it sees the flag, or KVM_RUN sees `immediate_exit`, or the signal interrupts it (Linux Documentation/virt/kvm/api.rst, "immediate_exit").
//!
//! DEVNOTE: KVM_SET_SIGNAL_MASK with a blocked signal closes the same gap at the price of a system call in each handled signal, and not every KVM has it.

#![expect(unsafe_code, reason = "signals, and one byte of the page that is shared with the kernel")]

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use accel::AccelError;

/// The signal that interrupts KVM_RUN: the first real-time signal that the C library leaves to programs.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int) {}

/// Gives the signal a handler that does nothing, once a process. Without SA_RESTART, it interrupts KVM_RUN.
pub(crate) fn install_signal_handler() -> Result<(), AccelError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: sigaction is plain data, for which zeros are a valid value (no flags, an empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `action` is a complete sigaction whose handler does nothing, which is async-signal-safe.
        if unsafe { libc::sigaction(kick_signal(), &action, ptr::null_mut()) } != 0 {
            result = Err(AccelError::Host { what: "installing a signal handler", source: io::Error::last_os_error() });
        }
    });
    result
}

/// A thread that is inside `Vcpu::run`.
struct Runner {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is to an atomic byte and is only used while `Mailbox::runner` holds it, which ends before the byte goes away.
unsafe impl Send for Runner {}

/// One vCPU's mailbox.
#[derive(Default)]
pub(crate) struct Mailbox {
    kicked: AtomicBool,
    /// The level of the PIC's INTR wire.
    pic_intr: AtomicBool,
    /// The local APIC is to be reset before the vCPU runs again.
    apic_reset: AtomicBool,
    /// Held while a signal is sent, so that the thread cannot end in between.
    runner: Mutex<Option<Runner>>,
    /// Something came since the vCPU last slept. Only a vCPU whose local APIC is ours sleeps outside KVM_RUN.
    noted: Mutex<bool>,
    changed: Condvar,
}

impl Mailbox {
    fn runner(&self) -> MutexGuard<'_, Option<Runner>> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn noted(&self) -> MutexGuard<'_, bool> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something for the vCPU: ends its sleep, and makes KVM_RUN return, now or at its next start in the same run.
    pub(crate) fn note(&self) {
        *self.noted() = true;
        self.changed.notify_one();
        let runner = self.runner();
        let Some(Runner { thread, immediate_exit }) = &*runner else { return };
        // SAFETY: a registered runner's byte is mapped: `RunGuard` takes it out before the vCPU can be dropped.
        unsafe { &**immediate_exit }.store(1, Ordering::SeqCst);
        // SAFETY: the call has no conditions.
        let own = unsafe { libc::pthread_self() };
        if *thread != own {
            // SAFETY: the thread lives: it takes itself out of `runner`, which is locked here, before it ends.
            unsafe { libc::pthread_kill(*thread, kick_signal()) };
        }
    }

    /// Sleeps until there is something for the vCPU, which may have come before, or for so long; whether there is.
    pub(crate) fn sleep(&self, most: Option<Duration>) -> bool {
        let noted = self.noted();
        let mut noted = match most {
            Some(most) => {
                self.changed.wait_timeout_while(noted, most, |noted| !*noted).unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait_while(noted, |noted| !*noted).unwrap_or_else(PoisonError::into_inner),
        };
        std::mem::take(&mut *noted)
    }

    /// Asks the vCPU's run to end.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.note();
    }

    pub(crate) fn kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// The run ends: this kick is served.
    pub(crate) fn clear_kick(&self) {
        self.kicked.store(false, Ordering::SeqCst);
    }

    /// The PIC's wire has this level.
    pub(crate) fn set_pic_intr(&self, level: bool) {
        if self.pic_intr.swap(level, Ordering::SeqCst) != level && level {
            self.note();
        }
    }

    pub(crate) fn pic_intr(&self) -> bool {
        self.pic_intr.load(Ordering::SeqCst)
    }

    /// The local APIC is to be reset before the vCPU runs again.
    pub(crate) fn request_apic_reset(&self) {
        self.apic_reset.store(true, Ordering::SeqCst);
    }

    /// Whether the local APIC is to be reset; only once.
    pub(crate) fn take_apic_reset(&self) -> bool {
        self.apic_reset.swap(false, Ordering::SeqCst)
    }

    /// Registers the calling thread as the one that runs the vCPU, until the guard is dropped.
    ///
    /// # Safety
    /// `immediate_exit` must stay valid as long as the guard lives.
    pub(crate) unsafe fn enter(&self, immediate_exit: *const AtomicU8) -> RunGuard<'_> {
        // SAFETY: the set is initialized by sigemptyset before it is used; unblocking a signal that has a handler has no other effect on this thread.
        let thread = unsafe {
            let mut signals = std::mem::zeroed();
            libc::sigemptyset(&mut signals);
            libc::sigaddset(&mut signals, kick_signal());
            libc::pthread_sigmask(libc::SIG_UNBLOCK, &signals, ptr::null_mut());
            libc::pthread_self()
        };
        *self.runner() = Some(Runner { thread, immediate_exit });
        RunGuard(self)
    }
}

/// A vCPU runs on the thread that made this.
pub(crate) struct RunGuard<'a>(&'a Mailbox);

impl Drop for RunGuard<'_> {
    fn drop(&mut self) {
        *self.0.runner() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_of_the_own_thread_only_leaves_a_note() {
        let (mailbox, byte) = (Mailbox::default(), AtomicU8::new(0));
        // SAFETY: `byte` outlives the guard.
        let guard = unsafe { mailbox.enter(&byte) };
        mailbox.kick();
        assert_eq!((mailbox.kicked(), byte.load(Ordering::SeqCst)), (true, 1));
        drop(guard);
    }

    #[test]
    fn only_a_rising_wire_interrupts() {
        let (mailbox, byte) = (Mailbox::default(), AtomicU8::new(0));
        mailbox.set_pic_intr(true);
        // SAFETY: `byte` outlives the guard.
        let guard = unsafe { mailbox.enter(&byte) };
        mailbox.set_pic_intr(true);
        mailbox.set_pic_intr(false);
        assert_eq!(byte.load(Ordering::SeqCst), 0);
        mailbox.set_pic_intr(true);
        assert_eq!(byte.load(Ordering::SeqCst), 1);
        drop(guard);
    }
}
