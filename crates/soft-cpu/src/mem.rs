//! Loads and stores at linear addresses: the TLB hit inline, everything else out of line.

use x86::exception;
use x86::paging::is_canonical;

use crate::core::{Core, Outcome};
use crate::mmu::Access;
use crate::ram::{HostAddress, Scalar};
use crate::tlb::Rights;

/// A place that has been checked for writing: no fault can come any more.
#[derive(Debug, Clone, Copy)]
pub enum WriteSlot {
    /// Plain RAM.
    Host(HostAddress),
    /// Anything else; the guest-physical address of the first byte, and of the first byte on the second page if it crosses into one.
    Slow {
        /// Guest-physical address of the first byte.
        first: u64,
        /// Guest-physical address of the second page's first byte.
        second: Option<u64>,
    },
}

/// Pages whose stores are counted at a time; see [`Core::code_stores`].
pub const CODE_STORE_COUNTERS: usize = 16;
/// Stores to a page with code until it is no longer watched.
const MOST_CODE_STORES: u32 = 64;

/// Bytes of an access of `size` bytes at `linear` that lie on its first page.
#[inline]
fn bytes_before_page_end(linear: u64) -> usize {
    4096 - (linear & 0xfff) as usize
}

impl Core {
    /// Loads from `linear` with the current rights.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline(always)]
    pub fn read<T: Scalar>(&mut self, linear: u64) -> Outcome<T> {
        match self.tlb.lookup(self.rights, false, linear, T::SIZE) {
            Some(host) => Ok(host.load()),
            None => self.read_slow(linear, self.rights),
        }
    }

    /// Stores to `linear` with the current rights.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline(always)]
    pub fn write<T: Scalar>(&mut self, linear: u64, value: T) -> Outcome {
        match self.tlb.lookup(self.rights, true, linear, T::SIZE) {
            Some(host) => {
                host.store(value);
                Ok(())
            }
            None => self.write_slow(linear, value, self.rights),
        }
    }

    /// Loads with the rights given, whatever the current ones.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline]
    pub fn read_as<T: Scalar>(&mut self, rights: Rights, linear: u64) -> Outcome<T> {
        match self.tlb.lookup(rights, false, linear, T::SIZE) {
            Some(host) => Ok(host.load()),
            None => self.read_slow(linear, rights),
        }
    }

    /// Stores with the rights given, whatever the current ones.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline]
    pub fn write_as<T: Scalar>(&mut self, rights: Rights, linear: u64, value: T) -> Outcome {
        match self.tlb.lookup(rights, true, linear, T::SIZE) {
            Some(host) => {
                host.store(value);
                Ok(())
            }
            None => self.write_slow(linear, value, rights),
        }
    }

    /// Loads as the processor itself does (descriptor tables, TSS): with supervisor rights, whatever the CPL.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    pub fn read_system<T: Scalar>(&mut self, linear: u64) -> Outcome<T> {
        self.read_as(Rights::Supervisor, linear)
    }

    /// Stores as the processor itself does: with supervisor rights, whatever the CPL.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    pub fn write_system<T: Scalar>(&mut self, linear: u64, value: T) -> Outcome {
        self.write_as(Rights::Supervisor, linear, value)
    }

    /// Checks `linear` for writing `size` bytes (1 to 4096) and returns where they go. Use it before a read-modify-write (which faults as a write) and
    /// where an instruction writes several places and must not stop half-way.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline(always)]
    pub fn prepare_write(&mut self, linear: u64, size: usize) -> Outcome<WriteSlot> {
        match self.tlb.lookup(self.rights, true, linear, size) {
            Some(host) => Ok(WriteSlot::Host(host)),
            None => self.prepare_write_slow(linear, size, self.rights),
        }
    }

    /// Loads from a prepared place.
    #[inline(always)]
    pub fn slot_read<T: Scalar>(&mut self, slot: WriteSlot) -> T {
        match slot {
            WriteSlot::Host(host) => host.load(),
            WriteSlot::Slow { first, second } => {
                let mut bytes = [0; 8];
                self.physical_read(first, second, &mut bytes[..T::SIZE]);
                T::truncate(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Stores to a prepared place.
    #[inline(always)]
    pub fn slot_write<T: Scalar>(&mut self, slot: WriteSlot, value: T) {
        match slot {
            WriteSlot::Host(host) => host.store(value),
            WriteSlot::Slow { first, second } => {
                self.physical_write(first, second, &value.widen().to_le_bytes()[..T::SIZE]);
            }
        }
    }

    /// Stores bytes (as many as were prepared, or fewer) to a prepared place.
    #[inline(always)]
    pub fn slot_write_bytes(&mut self, slot: WriteSlot, bytes: &[u8]) {
        match slot {
            WriteSlot::Host(host) => store_bytes(host, bytes),
            WriteSlot::Slow { first, second } => self.physical_write(first, second, bytes),
        }
    }

    /// Loads `bytes.len()` bytes (1 to 4096) at `linear` with the current rights.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline(always)]
    pub fn read_bytes(&mut self, linear: u64, bytes: &mut [u8]) -> Outcome {
        match self.tlb.lookup(self.rights, false, linear, bytes.len()) {
            Some(host) => {
                load_bytes(host, bytes);
                Ok(())
            }
            None => self.read_bytes_slow(linear, bytes),
        }
    }

    /// Stores `bytes` (1 to 4096) at `linear` with the current rights: all of them or, on a fault, none.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    #[inline(always)]
    pub fn write_bytes(&mut self, linear: u64, bytes: &[u8]) -> Outcome {
        let slot = self.prepare_write(linear, bytes.len())?;
        self.slot_write_bytes(slot, bytes);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn read_bytes_slow(&mut self, linear: u64, bytes: &mut [u8]) -> Outcome {
        self.counters.misses += 1;
        let rights = self.rights;
        if bytes.len() > bytes_before_page_end(linear) {
            let (first, second) = self.translate_range(linear, bytes.len(), Access::Read, rights)?;
            self.physical_read(first, second, bytes);
            return Ok(());
        }
        let translation = self.translate(linear, Access::Read, rights)?;
        if let Some(host) = self.ram.host(translation.physical) {
            self.tlb.insert(rights, false, linear, host, translation.global, translation.large);
        }
        self.physical_read_page(translation.physical, bytes);
        Ok(())
    }

    /// Read-modify-write of a LOCKed instruction: `f` gives the new value for the old one and may be called more than once. Returns the old value.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    pub fn locked_update<T: Scalar>(&mut self, linear: u64, mut f: impl FnMut(T) -> T) -> Outcome<T> {
        match self.prepare_write(linear, T::SIZE)? {
            WriteSlot::Host(host) => Ok(locked_loop(host, f)),
            WriteSlot::Slow { first, second: None } => {
                if let Some(host) = self.ram.host(first) {
                    self.note_store(host, T::SIZE);
                    let old = locked_loop(host, f);
                    self.code_written(first, T::SIZE);
                    return Ok(old);
                }
                let slot = WriteSlot::Slow { first, second: None };
                let old = self.slot_read(slot);
                self.slot_write(slot, f(old));
                Ok(old)
            }
            slot @ WriteSlot::Slow { .. } => {
                // DEVNOTE: a lock across a page boundary is not atomic against other CPUs here. Stopping them all would make it so; Linux has no such
                // locks, and hosts trap them as "split locks".
                let old = self.slot_read(slot);
                self.slot_write(slot, f(old));
                Ok(old)
            }
        }
    }

    /// LOCK CMPXCHG16B at a `linear` address that is a multiple of 16: `Ok` when memory held `current` and now holds `new`, else `Err` with what it holds.
    ///
    /// # Errors
    /// A page fault or #GP (not canonical).
    pub fn locked_compare_exchange_16(&mut self, linear: u64, current: u128, new: u128) -> Outcome<Result<u128, u128>> {
        debug_assert!(linear.is_multiple_of(16));
        match self.prepare_write(linear, 16)? {
            WriteSlot::Host(host) => Ok(host.compare_exchange_16(current, new)),
            WriteSlot::Slow { first, second } => {
                if let Some(host) = self.ram.host(first) {
                    self.note_store(host, 16);
                    let found = host.compare_exchange_16(current, new);
                    self.code_written(first, 16);
                    return Ok(found);
                }
                let mut bytes = [0; 16];
                self.physical_read(first, second, &mut bytes);
                let found = u128::from_le_bytes(bytes);
                let value = if found == current { new } else { found };
                self.physical_write(first, second, &value.to_le_bytes());
                Ok(if found == current { Ok(found) } else { Err(found) })
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn read_slow<T: Scalar>(&mut self, linear: u64, rights: Rights) -> Outcome<T> {
        self.counters.misses += 1;
        if T::SIZE > bytes_before_page_end(linear) {
            let (first, second) = self.translate_range(linear, T::SIZE, Access::Read, rights)?;
            let mut bytes = [0; 8];
            self.physical_read(first, second, &mut bytes[..T::SIZE]);
            return Ok(T::truncate(u64::from_le_bytes(bytes)));
        }
        let translation = self.translate(linear, Access::Read, rights)?;
        if let Some(host) = self.ram.host(translation.physical) {
            self.tlb.insert(rights, false, linear, host, translation.global, translation.large);
            return Ok(host.load());
        }
        let mut bytes = [0; 8];
        self.device(|platform| platform.mmio_read(translation.physical, &mut bytes[..T::SIZE]));
        Ok(T::truncate(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn write_slow<T: Scalar>(&mut self, linear: u64, value: T, rights: Rights) -> Outcome {
        let slot = self.prepare_write_slow(linear, T::SIZE, rights)?;
        self.slot_write(slot, value);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn prepare_write_slow(&mut self, linear: u64, size: usize, rights: Rights) -> Outcome<WriteSlot> {
        self.counters.misses += 1;
        if size > bytes_before_page_end(linear) {
            let (first, second) = self.translate_range(linear, size, Access::Write, rights)?;
            return Ok(WriteSlot::Slow { first, second });
        }
        let translation = self.translate(linear, Access::Write, rights)?;
        let physical = translation.physical;
        let Some(host) = self.ram.host(physical) else { return Ok(WriteSlot::Slow { first: physical, second: None }) };
        // The dirty bit is set now, so reads may use the translation as well.
        self.tlb.insert(rights, false, linear, host, translation.global, translation.large);
        if self.ram.code(physical).is_some_and(|(code, offset)| code.has_code(offset >> 12))
            && !self.gives_up_code(physical)
        {
            return Ok(WriteSlot::Slow { first: physical, second: None });
        }
        match &mut self.stores {
            None => self.tlb.insert(rights, true, linear, host, translation.global, translation.large),
            Some(log) => {
                log.note(host, size);
                log.note_translation(rights, linear, host, translation.global, translation.large);
            }
        }
        Ok(WriteSlot::Host(host))
    }

    /// Before a store that does not go through the TLB.
    fn note_store(&mut self, host: HostAddress, len: usize) {
        if let Some(log) = &mut self.stores {
            log.note(host, len);
        }
    }

    /// Counts a store to a page with code. After many of them the page is taken to hold data now (kernels free their start-up code, processes end) and is no
    /// longer watched, because a watched page costs a walk a store. Returns whether that has just happened.
    fn gives_up_code(&mut self, physical: u64) -> bool {
        let page = physical >> 12;
        let counter = &mut self.code_stores[page as usize % CODE_STORE_COUNTERS];
        if counter.0 != page {
            *counter = (page, 0);
        }
        counter.1 += 1;
        if counter.1 < MOST_CODE_STORES {
            return false;
        }
        *counter = (page, 0);
        if let Some((code, offset)) = self.ram.code(physical) {
            code.unwatch(offset >> 12);
        }
        // The running block may lie on this very page.
        self.end_block();
        true
    }

    /// Translates a range of at most 4096 bytes: the first byte's physical address and, if it crosses into another page, that page's.
    fn translate_range(
        &mut self,
        linear: u64,
        len: usize,
        access: Access,
        rights: Rights,
    ) -> Outcome<(u64, Option<u64>)> {
        let here = bytes_before_page_end(linear);
        if len <= here {
            return Ok((self.translate(linear, access, rights)?.physical, None));
        }
        let mut next = linear.wrapping_add(here as u64);
        if !self.is_long() {
            next &= 0xffff_ffff;
        } else if !is_canonical(next) {
            // Addresses are checked before pages: this raises #GP whether or not the first page is there.
            self.translate(next, access, rights)?;
        }
        let first = self.translate(linear, access, rights)?.physical;
        let second = self.translate(next, access, rights)?.physical;
        Ok((first, Some(second)))
    }

    fn physical_read(&mut self, first: u64, second: Option<u64>, bytes: &mut [u8]) {
        let here = bytes_before_page_end(first).min(bytes.len());
        let (head, tail) = bytes.split_at_mut(here);
        self.physical_read_page(first, head);
        if let Some(second) = second {
            self.physical_read_page(second, tail);
        }
    }

    fn physical_write(&mut self, first: u64, second: Option<u64>, bytes: &[u8]) {
        let here = bytes_before_page_end(first).min(bytes.len());
        let (head, tail) = bytes.split_at(here);
        self.physical_write_page(first, head);
        if let Some(second) = second {
            self.physical_write_page(second, tail);
        }
    }

    /// Reads bytes that lie within one page.
    fn physical_read_page(&mut self, address: u64, bytes: &mut [u8]) {
        if let Some(host) = self.ram.host(address) {
            load_bytes(host, bytes);
        } else {
            for (at, part) in device_parts(address, bytes.len()) {
                self.device(|p| p.mmio_read(address + at.start as u64, &mut bytes[at.start..at.start + part]));
            }
        }
    }

    /// Writes bytes that lie within one page.
    fn physical_write_page(&mut self, address: u64, bytes: &[u8]) {
        if let Some(host) = self.ram.host(address) {
            self.note_store(host, bytes.len());
            store_bytes(host, bytes);
            self.code_written(address, bytes.len());
        } else {
            for (at, part) in device_parts(address, bytes.len()) {
                self.device(|p| p.mmio_write(address + at.start as u64, &bytes[at.start..at.start + part]));
            }
        }
    }

    /// Reports a store that did not go through the TLB to the code watch; if it hit code, the running block may be what changed.
    fn code_written(&mut self, physical: u64, len: usize) {
        if let Some((code, offset)) = self.ram.code(physical)
            && code.written(offset, len)
        {
            self.end_block();
        }
    }

    /// #GP(0) or, for the stack segment, #SS(0).
    #[cold]
    pub fn segment_fault<T>(&mut self, segment: usize) -> Outcome<T> {
        let vector = if segment == crate::core::seg::SS { exception::SS } else { exception::GP };
        self.raise_with(vector, 0)
    }
}

#[inline]
fn locked_loop<T: Scalar>(host: HostAddress, mut f: impl FnMut(T) -> T) -> T {
    let mut old: T = host.load();
    loop {
        match host.compare_exchange(old, f(old)) {
            Ok(_) => return old,
            Err(found) => old = found,
        }
    }
}

/// Splits a device access into naturally aligned pieces of at most 8 bytes.
fn device_parts(address: u64, len: usize) -> impl Iterator<Item = (std::ops::Range<usize>, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let left = len - at;
        // An access that is a plain operand goes out whole, aligned or not; only longer ones are cut.
        let part = if at == 0 && len.is_power_of_two() && len <= 8 {
            len
        } else {
            let aligned = 1 << (address + at as u64).trailing_zeros().min(3);
            let mut part: usize = aligned;
            while part > left {
                part /= 2;
            }
            part
        };
        let start = at;
        at += part;
        Some((start..at, part))
    })
}

#[inline(always)]
fn load_bytes(host: HostAddress, bytes: &mut [u8]) {
    let mut chunks = bytes.chunks_exact_mut(8);
    let mut at = host.raw();
    for chunk in &mut chunks {
        chunk.copy_from_slice(&HostAddress::from_raw(at).load::<u64>().to_le_bytes());
        at += 8;
    }
    for byte in chunks.into_remainder() {
        *byte = HostAddress::from_raw(at).load();
        at += 1;
    }
}

#[inline(always)]
fn store_bytes(host: HostAddress, bytes: &[u8]) {
    let chunks = bytes.chunks_exact(8);
    let rest = chunks.remainder();
    let mut at = host.raw();
    for chunk in chunks {
        let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        HostAddress::from_raw(at).store::<u64>(word);
        at += 8;
    }
    for byte in rest {
        HostAddress::from_raw(at).store::<u8>(*byte);
        at += 1;
    }
}
