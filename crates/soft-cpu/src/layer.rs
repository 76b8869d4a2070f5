//! What a CPU is at: a byte that another thread may look at now and then, to tell where the time goes.
//!
//! DEVNOTE: to read the clock at each change was the alternative. Generated code is entered and left a few million times a second, and a handler is called from it
//! more often; a store costs nothing that can be measured, so it is made whether somebody looks or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a CPU is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Layer {
    /// Nothing: it sleeps, or is not run.
    Idle,
    /// Interpreting, and what lies between blocks: looking for the next one, delivering events.
    Interpreter,
    /// Decoding blocks.
    Decoder,
    /// Translating blocks.
    Translator,
    /// Executing generated code.
    Generated,
    /// In a handler that generated code has called: an instruction without a template, or an operand that is not in the TLB.
    Handler,
    /// Waiting for a device's answer.
    Device,
}

impl Layer {
    /// Every layer, in the order of its numbers.
    pub const ALL: [Self; 7] =
        [Self::Idle, Self::Interpreter, Self::Decoder, Self::Translator, Self::Generated, Self::Handler, Self::Device];
}

/// Two cache lines of its own (the second is fetched with the first), so that CPUs which change theirs often do not slow each other down.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Alone(AtomicU8);

/// The byte of one CPU. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LayerCell(Arc<Alone>);

impl LayerCell {
    /// What the CPU is at.
    pub fn get(&self) -> Layer {
        Layer::ALL[usize::from(self.0.0.load(Ordering::Relaxed)) % Layer::ALL.len()]
    }

    /// Says what it is at from now on.
    #[inline(always)]
    pub fn set(&self, layer: Layer) {
        self.0.0.store(layer as u8, Ordering::Relaxed);
    }

    /// The same, and says what it was at.
    pub(crate) fn replace(&self, layer: Layer) -> Layer {
        let before = self.get();
        self.set(layer);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_seen_through_every_clone() {
        let cell = LayerCell::default();
        let seen = cell.clone();
        assert_eq!(seen.get(), Layer::Idle);
        for layer in Layer::ALL {
            cell.set(layer);
            assert_eq!(seen.get(), layer);
        }
        assert_eq!(cell.replace(Layer::Handler), Layer::Device);
    }
}
