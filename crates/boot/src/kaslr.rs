//! Kernel address space layout randomization, as the kernel's own decompression stub does it (Linux 6.12, arch/x86/boot/compressed/kaslr.c and misc.c),
//! for a kernel that the VMM decompresses.
//!
//! Two addresses are drawn, each a multiple of the kernel's alignment: where the kernel lies in RAM, which its entry code copes with by itself, and where it
//! lies in its 1 GiB of linear addresses, for which every absolute address within it has to be changed. The list of those follows the ELF file in the payload, in 32-bit words:
//! a zero, the places of 64-bit addresses, a zero, the places of 32-bit addresses that are subtracted (of the per-CPU segment; gone in Linux 6.15), a zero,
//! and the places of 32-bit addresses. A place is a linear address, sign-extended. What else is random (the direct map, modules, vmalloc) the kernel draws
//! itself when KASLR_FLAG is set.
//!
//! Deliberately missing: memory above the first hole, which the stub uses too where the kernel says that it can.

use std::ops::Range;

use crate::BootError;
use crate::ram::Ram;
use crate::setup_header::SetupHeader;

/// `__START_KERNEL_map`: the linear address of physical address 0 as the kernel's own text is mapped.
const START_KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// `KERNEL_IMAGE_SIZE` of a kernel that can be randomized.
const KERNEL_IMAGE_SIZE: u64 = 1 << 30;
/// What the stub takes for the least alignment that a page table entry of 2 MiB allows.
const LEAST_ALIGNMENT: u64 = 2 << 20;
const WORD: usize = 4;

/// By how much a kernel moves, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shift {
    /// In RAM.
    pub(crate) physical: u64,
    /// In linear addresses.
    pub(crate) linear: u64,
}

impl Shift {
    /// Draws by two random numbers where the kernel goes: between its preferred address and `top` in RAM. `None` for
    /// a kernel that cannot be moved, or a command line that does not want it to be.
    pub(crate) fn draw(header: &SetupHeader, cmdline: &str, top: u64, random: [u64; 2]) -> Option<Self> {
        let alignment = u64::from(header.kernel_alignment);
        let unwanted = cmdline.split_ascii_whitespace().any(|word| word == "nokaslr");
        if unwanted || !header.relocatable || alignment < LEAST_ALIGNMENT || !alignment.is_power_of_two() {
            return None;
        }
        let draw = |end: u64, random: u64| {
            let room = end.saturating_sub(header.pref_address.saturating_add(header.init_size.into()));
            random % (room / alignment + 1) * alignment
        };
        Some(Self { physical: draw(top, random[0]), linear: draw(KERNEL_IMAGE_SIZE, random[1]) })
    }
}

/// The places of absolute addresses in a kernel, as linear addresses where it was linked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Relocations {
    add_64: Vec<u32>,
    subtract_32: Vec<u32>,
    add_32: Vec<u32>,
}

impl Relocations {
    /// Takes the list apart that follows the ELF file in a payload; `None` if there is none, or none of a known form.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let words: Vec<u32> =
            bytes.chunks_exact(WORD).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
        if !bytes.len().is_multiple_of(WORD) || words.first() != Some(&0) {
            return None;
        }
        let mut lists = words[1..].split(|word| *word == 0).map(<[u32]>::to_vec);
        match (lists.next()?, lists.next()?, lists.next(), lists.next()) {
            (add_64, subtract_32, Some(add_32), None) => Some(Self { add_64, subtract_32, add_32 }),
            (add_64, add_32, None, None) => Some(Self { add_64, subtract_32: Vec::new(), add_32 }),
            _ => None,
        }
    }

    /// Changes every address in the kernel, which lies at `kernel` in RAM, by `shift`.
    pub(crate) fn apply(&self, ram: &Ram<'_>, name: &str, kernel: &Range<u64>, shift: Shift) -> Result<(), BootError> {
        let place = |word: u32, size: u64| {
            let linear = i64::from(word as i32) as u64;
            let address = linear.wrapping_sub(START_KERNEL_MAP).wrapping_add(shift.physical);
            let inside = address >= kernel.start && address.checked_add(size).is_some_and(|end| end <= kernel.end);
            let outside = || BootError::Relocation { name: name.to_owned(), linear, kernel: kernel.clone() };
            if inside { Ok(address) } else { Err(outside()) }
        };
        for &word in &self.add_64 {
            ram.update(place(word, 8)?, |value: u64| value.wrapping_add(shift.linear))?;
        }
        for &word in &self.subtract_32 {
            ram.update(place(word, 4)?, |value: u32| value.wrapping_sub(shift.linear as u32))?;
        }
        for &word in &self.add_32 {
            ram.update(place(word, 4)?, |value: u32| value.wrapping_add(shift.linear as u32))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MIB, bzimage, relocations};

    fn header() -> SetupHeader {
        SetupHeader::parse("test.bin", &bzimage(b"")).unwrap()
    }

    #[test]
    fn the_highest_draw_ends_at_the_top_of_both_rooms() {
        // 4 MiB at 16 MiB, aligned to 2 MiB: 6 places up to 30 MiB, and 503 up to 1 GiB.
        let shift = Shift::draw(&header(), "", 30 * MIB, [5, 502]);
        assert_eq!(shift, Some(Shift { physical: 10 * MIB, linear: 1004 * MIB }));
        let next = Shift::draw(&header(), "", 30 * MIB, [6, 503]);
        assert_eq!(next, Some(Shift::default()), "the next draw starts anew");
    }

    #[test]
    fn a_kernel_stays_where_there_is_no_room_or_the_command_line_says_so() {
        for top in [0, 20 * MIB] {
            assert_eq!(Shift::draw(&header(), "", top, [7, 0]), Some(Shift::default()));
        }
        assert_eq!(Shift::draw(&header(), "quiet nokaslr", 32 * MIB, [1, 1]), None);
        assert!(Shift::draw(&header(), "nokaslr=x", 32 * MIB, [1, 1]).is_some());
    }

    #[test]
    fn a_kernel_that_is_not_relocatable_stays() {
        let header = SetupHeader { relocatable: false, ..header() };
        assert_eq!(Shift::draw(&header, "", 32 * MIB, [1, 1]), None);
    }

    #[test]
    fn an_alignment_that_no_kernel_has_moves_nothing() {
        for kernel_alignment in [0, 1, 3 << 20] {
            let header = SetupHeader { kernel_alignment, ..header() };
            assert_eq!(Shift::draw(&header, "", 32 * MIB, [1, 1]), None);
        }
    }

    #[test]
    fn lists_of_both_forms_are_taken_apart() {
        let three = Relocations { add_64: vec![1], subtract_32: vec![2, 3], add_32: vec![4] };
        assert_eq!(Relocations::parse(&relocations(&[&[1], &[2, 3], &[4]])), Some(three));
        let two = Relocations { add_64: vec![], subtract_32: vec![], add_32: vec![4] };
        assert_eq!(Relocations::parse(&relocations(&[&[], &[4]])), Some(two));
    }

    #[test]
    fn what_is_no_list_is_none() {
        for bytes in [&b""[..], &[0; 4], &[1, 0, 0, 0], &[0; 5], &relocations(&[&[1], &[2], &[3], &[4]])] {
            assert_eq!(Relocations::parse(bytes), None, "{bytes:?}");
        }
    }
}
