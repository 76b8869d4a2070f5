//! What a console has shown lately: for readers who come later, and for whoever asks why its guest died.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How much is kept, in bytes: some hundred lines, enough for a kernel's whole boot.
const KEPT: usize = 64 << 10;

/// The last [`KEPT`] bytes of a console.
#[derive(Default)]
pub(crate) struct Recent {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    /// How many bytes there have ever been.
    written: u64,
    ended: bool,
}

impl Recent {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what the guest has just written. Never waits for a reader.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.written += bytes.len() as u64;
        state.bytes.extend(bytes);
        let excess = state.bytes.len().saturating_sub(KEPT);
        state.bytes.drain(..excess);
        drop(state);
        self.changed.notify_all();
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits for bytes behind `position`, the number of bytes that the reader has seen or missed, and returns them with the new position; `None` at the
    /// end. A reader that is too slow misses what is no longer kept.
    pub(crate) fn after(&self, position: u64) -> Option<(Vec<u8>, u64)> {
        let waiting = |state: &mut State| state.written <= position && !state.ended;
        let state = self.changed.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        let oldest = state.written - state.bytes.len() as u64;
        let skipped = position.saturating_sub(oldest) as usize;
        let bytes: Vec<u8> = state.bytes.iter().skip(skipped).copied().collect();
        (!bytes.is_empty()).then_some((bytes, state.written))
    }

    /// The last lines that say anything, without what could confuse a terminal.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.lock().bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let printable = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
        let mut lines: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
        lines.drain(..lines.len().saturating_sub(count));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_was_before_it_what_comes_and_the_end() {
        let recent = Recent::default();
        recent.push(b"be");
        recent.push(b"fore");
        assert_eq!(recent.after(0), Some((b"before".to_vec(), 6)));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| recent.after(6));
            recent.push(b"!");
            assert_eq!(reader.join().unwrap(), Some((b"!".to_vec(), 7)));
        });
        recent.end();
        assert_eq!(recent.after(7), None);
        assert_eq!(recent.after(2), Some((b"fore!".to_vec(), 7)));
    }

    #[test]
    fn a_reader_that_is_too_slow_goes_on_with_what_is_kept() {
        let recent = Recent::default();
        recent.push(&[b'a'; 10]);
        recent.push(&[b'b'; KEPT]);
        assert_eq!(recent.after(5), Some((vec![b'b'; KEPT], 10 + KEPT as u64)));
    }

    #[test]
    fn last_lines_are_clean_and_not_empty() {
        let recent = Recent::default();
        recent.push(b"one\r\ntwo \x1b[31mred\r\n\r\nthree\xff");
        assert_eq!(recent.last_lines(2), ["two [31mred", "three\u{fffd}"]);
    }
}
