//! Checked writes into the RAM that the guest is told of.

use std::io::Read;
use std::ops::Range;

use guest_memory::GuestMemory;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::{BootError, E820Entry, E820Kind, layout};

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

pub(crate) struct Ram<'a> {
    memory: &'a GuestMemory,
    /// The RAM from 1 MiB up to the first hole, where kernels and ramdisks go.
    high: Range<u64>,
}

impl<'a> Ram<'a> {
    pub(crate) fn new(memory: &'a GuestMemory, e820: &[E820Entry]) -> Self {
        let ram = e820.iter().filter(|e| e.kind == E820Kind::Ram);
        let high = ram
            .map(|e| e.start..e.end)
            .find(|r| r.contains(&layout::HIGH_MEMORY))
            .map_or(layout::HIGH_MEMORY..layout::HIGH_MEMORY, |r| layout::HIGH_MEMORY..r.end);
        Self { memory, high }
    }

    /// The RAM from 1 MiB up to the first hole.
    pub(crate) fn high(&self) -> &Range<u64> {
        &self.high
    }

    /// `start .. start + len` if a kernel may lie there.
    pub(crate) fn kernel_range(&self, name: &str, start: u64, len: u64) -> Result<Range<u64>, BootError> {
        match start.checked_add(len) {
            Some(end) if start >= self.high.start && end <= self.high.end => Ok(start..end),
            end => Err(BootError::KernelDoesNotFit {
                name: name.to_owned(),
                start,
                end: end.unwrap_or(u64::MAX),
                ram_start: self.high.start,
                ram_end: self.high.end,
            }),
        }
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), BootError> {
        let end = address.saturating_add(bytes.len() as u64);
        self.memory.write_slice(bytes, GuestAddress(address)).map_err(|_| BootError::NoMemory { start: address, end })
    }

    /// Changes one little-endian value.
    pub(crate) fn update<T: ByteValued>(&self, address: u64, change: impl FnOnce(T) -> T) -> Result<(), BootError> {
        let at = GuestAddress(address);
        let changed = self.memory.read_obj(at).and_then(|value| self.memory.write_obj(change(value), at));
        changed.map_err(|_| BootError::NoMemory { start: address, end: address.saturating_add(size_of::<T>() as u64) })
    }

    /// Copies `len` bytes of `reader` to `address`.
    pub(crate) fn copy(&self, name: &str, reader: &mut dyn Read, address: u64, len: u64) -> Result<(), BootError> {
        let mut buffer = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut buffer[..part];
            reader.read_exact(chunk).map_err(|source| BootError::Read { name: name.to_owned(), source })?;
            self.write(address.saturating_add(done), chunk)?;
            done += part as u64;
        }
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, len: u64) -> Result<Vec<u8>, BootError> {
        let no_memory = || BootError::NoMemory { start: address, end: address.saturating_add(len) };
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| no_memory())?];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).map_err(|_| no_memory())?;
        Ok(bytes)
    }

    /// Copies what is in `source` to `target`, even if the two overlap.
    pub(crate) fn shift(&self, source: Range<u64>, target: u64) -> Result<(), BootError> {
        let len = source.end - source.start;
        let chunks = len.div_ceil(CHUNK as u64);
        for number in 0..chunks {
            // From the side that is written first, so that nothing is read after it was written.
            let number = if target < source.start { number } else { chunks - 1 - number };
            let offset = number * CHUNK as u64;
            let chunk = self.read(source.start + offset, (len - offset).min(CHUNK as u64))?;
            self.write(target + offset, &chunk)?;
        }
        Ok(())
    }

    /// Lets `fill` write to RAM directly.
    #[expect(unsafe_code, reason = "decompressing into guest RAM, which is its own window then")]
    pub(crate) fn fill<R>(&self, range: &Range<u64>, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R, BootError> {
        let no_memory = || BootError::NoMemory { start: range.start, end: range.end };
        let len = usize::try_from(range.end - range.start).map_err(|_| no_memory())?;
        // SAFETY: a kernel is loaded before the machine starts and when it has been reset: no vCPU runs, and no device has a queue in this memory. The decoder only
        // moves these bytes; none of them decides an address.
        unsafe { guest_memory::fill(self.memory, range.start, len, fill) }.ok_or_else(no_memory)
    }

    pub(crate) fn zero(&self, address: u64, len: u64) -> Result<(), BootError> {
        self.copy("zeroes", &mut std::io::repeat(0), address, len)
    }

    /// Writes the zero-terminated command line to its place.
    pub(crate) fn write_cmdline(&self, cmdline: &str, kernel_max: u32) -> Result<(), BootError> {
        let max = u64::from(kernel_max).min(layout::CMDLINE_END - layout::CMDLINE - 1);
        if cmdline.len() as u64 > max {
            return Err(BootError::CmdlineTooLong { len: cmdline.len(), max });
        }
        if let Some(position) = cmdline.bytes().position(|b| b == 0) {
            return Err(BootError::CmdlineNul { position });
        }
        self.write(layout::CMDLINE, cmdline.as_bytes())?;
        self.write(layout::CMDLINE + cmdline.len() as u64, &[0])
    }
}
