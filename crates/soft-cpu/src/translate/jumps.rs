//! Where jumps go that no link can be patched into: tables from instruction pointers to code, one for the kernel and one for user mode.
//!
//! An entry is entered for an address that was just fetched from, and is found without looking at the page tables again. So whatever takes a translation
//! out of the instruction TLB takes its entries too: they live in [`Core`](crate::core::Core), beside the TLBs, and are flushed with them.

use crate::core::DecodeMode;
use crate::fetch::{FetchPage, LARGEST_PAGE};

/// Entries of a table. A quarter of them was too few: of all entries into generated code after a fork, half found their place in the table taken.
pub(super) const JUMP_ENTRIES: usize = 1 << 14;

#[derive(Clone, Copy)]
#[repr(C)]
struct JumpEntry {
    /// The instruction pointer.
    tag: u64,
    /// Address of the code.
    code: u64,
}

/// What an empty entry holds: an instruction pointer that belongs in another one.
const fn no_entry(at: usize) -> JumpEntry {
    let other = at as u64 ^ 1;
    JumpEntry { tag: other ^ other >> 12, code: 0 }
}

#[inline(always)]
fn index(rip: u64) -> usize {
    (rip ^ rip >> 12) as usize & (JUMP_ENTRIES - 1)
}

/// Lowest and highest page.
type Range = Option<(u64, u64)>;

fn widen(range: &mut Range, page: u64) {
    let (low, high) = range.unwrap_or((page, page));
    *range = Some((low.min(page), high.max(page)));
}

/// From instruction pointers to code, for one mode.
#[derive(Default)]
struct JumpTable {
    /// Empty until a translator needs it.
    entries: Box<[JumpEntry]>,
    mode: DecodeMode,
    /// Entries that are not empty, or were not since the last flush.
    used: Vec<u16>,
    /// The pages of all entries, and of those on large pages.
    pages: Range,
    large: Range,
    /// Some are not global.
    local: bool,
}

impl JumpTable {
    fn clear(&mut self) {
        for at in self.used.drain(..) {
            self.entries[usize::from(at)] = no_entry(at.into());
        }
        (self.pages, self.large, self.local) = (None, None, false);
    }

    fn address(&mut self) -> usize {
        if self.entries.is_empty() {
            self.entries = (0..JUMP_ENTRIES).map(no_entry).collect();
        }
        self.entries.as_ptr() as usize
    }

    fn insert(&mut self, rip: u64, code: u64, page: FetchPage) {
        self.address();
        let at = index(rip);
        if self.entries[at].code == 0 {
            self.used.push(at as u16);
        }
        self.entries[at] = JumpEntry { tag: rip, code };
        self.local |= !page.is_global();
        widen(&mut self.pages, rip >> 12);
        if page.is_large() {
            widen(&mut self.large, rip >> 12);
        }
    }

    /// Takes the entries of the page, and those of the page before it, for one of them may be an instruction that goes on here.
    fn flush_page(&mut self, linear: u64) {
        const PAGES: u32 = LARGEST_PAGE - 12;
        let page = linear >> 12;
        let before = linear.wrapping_sub(4096) >> 12;
        let near = |(low, high): (u64, u64), shift: u32| {
            [page, before].iter().any(|page| (low >> shift..=high >> shift).contains(&(page >> shift)))
        };
        let near_large = self.large.is_some_and(|range| near(range, PAGES));
        if !near_large && !self.pages.is_some_and(|range| near(range, 0)) {
            return;
        }
        let shift = if near_large { PAGES } else { 0 };
        let entries = &mut self.entries;
        self.used.retain(|&at| {
            let entry = &mut entries[usize::from(at)];
            let gone = [page, before].iter().any(|page| entry.tag >> 12 >> shift == page >> shift);
            if gone {
                *entry = no_entry(at.into());
            }
            !gone
        });
    }
}

/// One CPU's tables of jumps.
#[derive(Default)]
pub struct Jumps {
    kernel: JumpTable,
    user: JumpTable,
}

impl Jumps {
    /// Enters `code` for `rip`, which lies on `page`, and returns the address of the table for `mode`.
    pub(crate) fn insert(&mut self, mode: DecodeMode, rip: u64, code: u64, page: FetchPage) -> usize {
        let table = self.of(mode);
        table.insert(rip, code, page);
        table.address()
    }

    /// The table for `mode` and the code in it for `rip`.
    #[inline(always)]
    pub(crate) fn find(&self, mode: DecodeMode, rip: u64) -> Option<(usize, u64)> {
        let table = if mode.has(DecodeMode::USER) { &self.user } else { &self.kernel };
        let entry = table.entries.get(index(rip))?;
        (table.mode == mode && entry.tag == rip).then_some((table.entries.as_ptr() as usize, entry.code))
    }

    /// The address of the table for `mode`, empty if it was for another.
    pub(super) fn table(&mut self, mode: DecodeMode) -> usize {
        self.of(mode).address()
    }

    fn of(&mut self, mode: DecodeMode) -> &mut JumpTable {
        let table = if mode.has(DecodeMode::USER) { &mut self.user } else { &mut self.kernel };
        if table.mode != mode {
            table.mode = mode;
            table.clear();
        }
        table
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.kernel.clear();
        self.user.clear();
    }

    /// Forgets what is not on global pages: a write to CR3.
    pub(crate) fn flush_non_global(&mut self) {
        for table in [&mut self.kernel, &mut self.user] {
            if table.local {
                table.clear();
            }
        }
    }

    /// INVLPG of `linear`.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.kernel.flush_page(linear);
        self.user.flush_page(linear);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: DecodeMode = DecodeMode(DecodeMode::CODE64);
    const RIP: u64 = 0xffff_ffff_8100_0123;

    fn with(global: bool, large: bool) -> Jumps {
        let mut jumps = Jumps::default();
        jumps.insert(KERNEL, RIP, 0x1000, FetchPage::new(0x5000, global, large));
        jumps
    }

    fn found(jumps: &Jumps, rip: u64) -> bool {
        jumps.kernel.entries[index(rip)].tag == rip
    }

    #[test]
    fn a_cr3_write_leaves_a_table_of_global_pages() {
        let mut jumps = with(true, false);
        jumps.flush_non_global();
        assert!(found(&jumps, RIP));
        jumps.insert(KERNEL, RIP + 0x5000, 0x2000, FetchPage::new(0x6000, false, false));
        jumps.flush_non_global();
        assert!(!found(&jumps, RIP) && !found(&jumps, RIP + 0x5000));
    }

    #[test]
    fn invlpg_takes_the_entries_of_its_page_only() {
        let mut jumps = with(true, false);
        jumps.insert(KERNEL, RIP + 0x5000, 0x2000, FetchPage::new(0x6000, true, false));
        jumps.flush_page(RIP + 0x2000);
        jumps.flush_page(RIP - 0x1000);
        assert!(found(&jumps, RIP));
        jumps.flush_page(RIP);
        assert!(!found(&jumps, RIP) && found(&jumps, RIP + 0x5000));
    }

    #[test]
    fn invlpg_takes_an_instruction_that_begins_on_the_page_before() {
        let mut jumps = with(true, false);
        jumps.flush_page((RIP & !0xfff) + 0x1000);
        assert!(!found(&jumps, RIP));
    }

    #[test]
    fn invlpg_in_a_large_page_takes_all_its_entries() {
        let mut jumps = with(true, true);
        jumps.flush_page(RIP + 0x10_0000);
        assert!(!found(&jumps, RIP));
    }

    #[test]
    fn another_mode_empties_the_table_of_its_privilege() {
        let mut jumps = with(true, false);
        jumps.insert(DecodeMode(KERNEL.0 | DecodeMode::SSE), RIP + 8, 0x3000, FetchPage::new(0x5000, true, false));
        assert!(!found(&jumps, RIP) && found(&jumps, RIP + 8));
    }

    #[test]
    fn an_empty_entry_matches_no_address_that_is_looked_for_in_it() {
        let mut jumps = with(true, false);
        jumps.clear();
        assert!((0..JUMP_ENTRIES).all(|at| index(jumps.kernel.entries[at].tag) != at));
    }
}
