//! Which guest's registers are in the scratch registers at the moment: what was just stored need not be loaded again.

use super::emit::{Emitter, host};

/// Which guest's registers, besides their places in memory, are in the scratch registers: known as long as nothing is emitted.
#[derive(Clone, Copy)]
pub(super) struct Held {
    a: Option<u8>,
    b: Option<u8>,
    /// What is emitted so far.
    at: usize,
}

impl Held {
    /// Nothing is known.
    pub(super) const NOTHING: Self = Self { a: None, b: None, at: usize::MAX };

    /// What is still known.
    pub(super) fn now(self, e: &Emitter) -> Self {
        if self.at == e.code.len() { self } else { Self::NOTHING }
    }

    /// Known here.
    pub(super) fn at(self, e: &Emitter) -> Self {
        Self { at: e.code.len(), ..self }
    }

    /// Whether `scratch` has the register's value.
    pub(super) fn has(self, scratch: u8, guest: u8) -> bool {
        (if scratch == host::A { self.a } else { self.b }) == Some(guest)
    }

    /// It has.
    pub(super) fn put(&mut self, scratch: u8, guest: u8) {
        *(if scratch == host::A { &mut self.a } else { &mut self.b }) = Some(guest);
    }

    /// The register has another value.
    pub(super) fn forget(&mut self, guest: u8) {
        for held in [&mut self.a, &mut self.b] {
            if *held == Some(guest) {
                *held = None;
            }
        }
    }
}
