//! A transport's interrupt: the two status bits, the level-triggered wire they drive, and the device's health.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bus::{EventBinding, IrqLine};
use vmm_sys_util::eventfd::EventFd;

/// InterruptStatus bit 0: the device used a buffer (virtio 1.3 section 4.2.2).
pub(crate) const USED_BUFFER: u32 = 1 << 0;
/// InterruptStatus bit 1: the configuration or the device status changed.
pub(crate) const CONFIG_CHANGE: u32 = 1 << 1;

struct Shared {
    line: IrqLine,
    /// The InterruptStatus register. The wire is driven under this lock, so that it always ends at the register's level; an
    /// interrupt controller's lock may be taken under it, never the other way round.
    pending: Mutex<u32>,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    /// Whether buffers may be used and the driver interrupted without this process.
    bound: AtomicBool,
}

/// A device's end of its transport's interrupt; clones are the same interrupt and may be used from any thread.
#[derive(Clone)]
pub struct Interrupt(Arc<Shared>);

impl Interrupt {
    pub(crate) fn new(line: IrqLine) -> Self {
        Self(Arc::new(Shared {
            line,
            pending: Mutex::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            bound: AtomicBool::new(false),
        }))
    }

    /// Tells the driver that a buffer was used. Costs no call into the interrupt controller while an earlier interrupt is unacknowledged.
    pub fn used_buffer(&self) {
        self.raise(USED_BUFFER);
    }

    /// Has each signal of `event` tell the driver that a buffer was used, without this process, where the wire's end can do that ([`bus::IrqTarget::bind`]). The device goes on watching the event, and calls
    /// [`Interrupt::used_buffer`] for what it finds there.
    ///
    /// From then on InterruptStatus always says that a buffer was used, because nobody here knows better when the driver looks.
    ///
    /// DEVNOTE: the rings know: a buffer was used if the used index moved since the last InterruptACK. But a driver that polls for a while acknowledges nothing, the index may come round to the same
    /// 16 bits, and an interrupt that is lost stops the guest, while one too many costs it a look into a ring.
    pub(crate) fn bind(&self, event: &Arc<EventFd>) -> Option<EventBinding> {
        let binding = self.0.line.bind(event)?;
        self.0.bound.store(true, Ordering::SeqCst);
        Some(binding)
    }

    /// Tells the driver that the device's configuration changed.
    pub fn config_changed(&self) {
        self.0.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// Puts the device into DEVICE_NEEDS_RESET (virtio 1.3 section 2.1.1): it does nothing more until the driver resets it.
    pub fn needs_reset(&self) {
        self.0.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    /// [`Interrupt::needs_reset`] for a driver that does not listen yet.
    pub(crate) fn needs_reset_silently(&self) {
        self.0.needs_reset.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.0.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn config_generation(&self) -> u32 {
        self.0.config_generation.load(Ordering::SeqCst)
    }

    /// What InterruptStatus shows.
    pub(crate) fn pending(&self) -> u32 {
        let always = if self.0.bound.load(Ordering::SeqCst) { USED_BUFFER } else { 0 };
        *self.0.pending.lock().unwrap_or_else(PoisonError::into_inner) | always
    }

    pub(crate) fn acknowledge(&self, bits: u32) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *pending;
        *pending &= !bits;
        if was != 0 && *pending == 0 {
            self.0.line.set(false);
        }
    }

    /// Lowers the wire and cuts every clone that the device still holds off from it, so that a device thread that is late
    /// after a reset cannot interrupt the next driver; the transport goes on with the interrupt that is returned.
    pub(crate) fn retire(&self) -> Self {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if *pending != 0 {
            self.0.line.set(false);
        }
        // With every bit pending, a late `raise` finds the wire "already high" and does not touch it.
        *pending = u32::MAX;
        let fresh = Self::new(self.0.line.clone());
        fresh.0.config_generation.store(self.config_generation(), Ordering::SeqCst);
        fresh
    }

    fn raise(&self, bit: u32) {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *pending;
        *pending |= bit;
        if was == 0 {
            self.0.line.set(true);
        }
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("pending", &self.pending()).field("needs_reset", &self.is_broken()).finish()
    }
}
