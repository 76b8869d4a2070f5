//! What was in guest RAM before it was stored to, so that stores can be taken back and made again.
//!
//! While there is a [`StoreLog`] no store of the interpreter goes through the write TLB, and each is noted before it is made; see `mem.rs`.

use std::collections::BTreeSet;

use crate::ram::HostAddress;
use crate::tlb::{Rights, Tlb};

/// A store that would have been entered in the write TLB.
#[derive(Clone, Copy)]
struct Entered {
    rights: Rights,
    linear: u64,
    host: HostAddress,
    global: bool,
    large: bool,
}

/// Stores, in their order.
#[derive(Default)]
pub(crate) struct StoreLog {
    /// Where, and how many bytes.
    places: Vec<(usize, usize)>,
    /// The bytes before each, one after the other.
    old: Vec<u8>,
    entered: Vec<Entered>,
}

impl StoreLog {
    /// Notes that `len` bytes at `host` are about to be stored.
    pub(crate) fn note(&mut self, host: HostAddress, len: usize) {
        self.places.push((host.raw(), len));
        self.old.extend(bytes(host.raw(), len));
    }

    /// Notes a translation for [`StoreLog::enter`].
    pub(crate) fn note_translation(
        &mut self,
        rights: Rights,
        linear: u64,
        host: HostAddress,
        global: bool,
        large: bool,
    ) {
        let known = |e: &Entered| (e.rights, e.linear >> 12) == (rights, linear >> 12);
        if !self.entered.iter().any(known) {
            self.entered.push(Entered { rights, linear, host, global, large });
        }
    }

    /// Enters the translations of all stores in the write TLB.
    pub(super) fn enter(&self, tlb: &mut Tlb) {
        for &Entered { rights, linear, host, global, large } in &self.entered {
            tlb.insert(rights, true, linear, host, global, large);
        }
    }

    /// Takes out again what [`StoreLog::enter`] has entered.
    pub(super) fn leave(&self, tlb: &mut Tlb) {
        for e in &self.entered {
            tlb.forget_write(e.rights, e.linear);
        }
    }

    /// What is in the places now.
    pub(super) fn now(&self) -> Vec<u8> {
        self.places.iter().flat_map(|&(at, len)| bytes(at, len)).collect()
    }

    /// Puts back what was there before, the last store first.
    pub(super) fn undo(&self) {
        let mut end = self.old.len();
        for &(at, len) in self.places.iter().rev() {
            put(at, &self.old[end - len..end]);
            end -= len;
        }
    }

    /// Puts `new`, which [`StoreLog::now`] returned, into the places.
    pub(super) fn redo(&self, new: &[u8]) {
        let mut start = 0;
        for &(at, len) in &self.places {
            put(at, &new[start..start + len]);
            start += len;
        }
    }

    /// The host pages with any of the places.
    pub(super) fn pages(&self) -> BTreeSet<usize> {
        self.places.iter().map(|&(at, _)| at & !0xfff).collect()
    }
}

/// The words in a page of guest RAM.
pub(super) fn page(at: usize) -> Vec<u64> {
    (at..at + 4096).step_by(8).map(|at| HostAddress::from_raw(at).load()).collect()
}

fn bytes(at: usize, len: usize) -> impl Iterator<Item = u8> {
    (at..at + len).map(|at| HostAddress::from_raw(at).load())
}

/// Stores bytes to guest RAM.
pub(super) fn put(at: usize, bytes: &[u8]) {
    for (n, byte) in bytes.iter().enumerate() {
        HostAddress::from_raw(at + n).store(*byte);
    }
}
