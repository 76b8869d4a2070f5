//! Interrupt wires: a device drives an [`IrqLine`], an interrupt controller listens as an [`IrqTarget`].

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// What a wire ends in: an interrupt controller, or several of them (the board's GSI fan-out).
pub trait IrqTarget: Send + Sync {
    /// The wire on input `pin` now has this level. Called on changes and may be called with the level it already has.
    fn set_irq(&self, pin: u32, level: bool);

    /// Has each signal of `event` interrupt by input `pin` without this process, as a short pulse would, for as long as what is returned lives. `None` where nothing but
    /// [`IrqTarget::set_irq`] reaches the input.
    ///
    /// While the input cannot take it, as when it is masked, a signal stays in the event: its owner goes on watching it, and drives the wire for what is found there.
    fn bind(&self, pin: u32, event: &Arc<EventFd>) -> Option<EventBinding> {
        let _ = (pin, event);
        None
    }
}

/// An event that interrupts by itself, until this is dropped.
pub struct EventBinding {
    _guard: Box<dyn Send>,
}

impl EventBinding {
    /// One that ends when `guard` is dropped.
    pub fn new(guard: impl Send + 'static) -> Self {
        Self { _guard: Box::new(guard) }
    }
}

impl std::fmt::Debug for EventBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventBinding").finish_non_exhaustive()
    }
}

/// A device's end of an interrupt wire.
#[derive(Clone)]
pub struct IrqLine {
    target: Option<Arc<dyn IrqTarget>>,
    pin: u32,
}

impl IrqLine {
    /// A wire to input `pin` of `target`.
    pub fn new(target: Arc<dyn IrqTarget>, pin: u32) -> Self {
        Self { target: Some(target), pin }
    }

    /// A wire that ends nowhere, for a device whose interrupt is not connected and for tests.
    pub fn detached() -> Self {
        Self { target: None, pin: 0 }
    }

    /// Drives the wire: high (asserted) or low.
    pub fn set(&self, level: bool) {
        if let Some(target) = &self.target {
            target.set_irq(self.pin, level);
        }
    }

    /// As [`IrqTarget::bind`]: each signal of `event` is to interrupt without this process.
    pub fn bind(&self, event: &Arc<EventFd>) -> Option<EventBinding> {
        self.target.as_ref()?.bind(self.pin, event)
    }

    /// Drives the wire high and low again: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

impl std::fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IrqLine").field("pin", &self.pin).field("attached", &self.target.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u32, bool)>>);

    impl IrqTarget for Recorder {
        fn set_irq(&self, pin: u32, level: bool) {
            self.0.lock().unwrap().push((pin, level));
        }
    }

    #[test]
    fn a_line_drives_its_own_pin() {
        let recorder = Arc::new(Recorder::default());
        let line = IrqLine::new(recorder.clone(), 4);
        line.set(true);
        line.set(false);
        assert_eq!(*recorder.0.lock().unwrap(), [(4, true), (4, false)]);
    }

    #[test]
    fn a_pulse_is_high_then_low() {
        let recorder = Arc::new(Recorder::default());
        IrqLine::new(recorder.clone(), 9).pulse();
        assert_eq!(*recorder.0.lock().unwrap(), [(9, true), (9, false)]);
    }

    #[test]
    fn a_detached_line_swallows_everything() {
        IrqLine::detached().pulse();
    }
}
