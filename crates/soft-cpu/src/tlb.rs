//! The software TLB: recent translations from linear pages to host addresses, one table a kind of access.
//!
//! An entry is entered only where a plain load or store needs nothing else: no MMIO, no page whose dirty bit is still to be set and, for stores, no
//! page that holds watched code. So a hit is always safe and everything interesting takes the slow path.

use crate::ram::HostAddress;

/// log2 of the entries in each table.
const INDEX_BITS: u32 = 10;
const ENTRIES: usize = 1 << INDEX_BITS;

/// Non-global entries that are remembered one by one; past that, a flush looks at every slot.
const JOURNAL: usize = 1024;

/// What an empty slot holds: the tag of a page that belongs in another slot, so that no look-up that lands here can match it.
const fn no_entry(slot: usize) -> Entry {
    Entry { tag: (slot as u64 ^ 1) << 12, page: 0 }
}

/// Whose rights an access is made with. Each has its own tables, so that a change of privilege flushes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rights {
    /// CPL 0 to 2, user pages guarded by SMAP where that is on.
    Supervisor = 0,
    /// CPL 3.
    User = 1,
    /// CPL 0 to 2 with EFLAGS.AC overriding SMAP.
    SupervisorAc = 2,
}

const RIGHTS: usize = 3;

/// Generated code reads it too.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    /// Linear page address; the low 12 bits are zero in a valid entry.
    tag: u64,
    /// Host address of the page.
    page: usize,
}

/// How far right a linear address is shifted to become the offset of an entry of 16 bytes.
pub(crate) const INDEX_SHIFT: u8 = 12 - 4;
/// The bits of that offset.
pub(crate) const INDEX_MASK: u32 = ((ENTRIES - 1) << 4) as u32;

/// Offset in [`Tlb`] of the read or the write table of `rights`.
pub(crate) const fn table_offset(rights: Rights, write: bool) -> usize {
    std::mem::offset_of!(Tlb, tables) + (rights as usize * 2 + write as usize) * size_of::<Table>()
}

type Table = [Entry; ENTRIES];

fn empty_table() -> Table {
    std::array::from_fn(no_entry)
}

/// One CPU's TLB for data.
#[repr(C)]
pub struct Tlb {
    /// By [`Rights`], then read or write. Generated code of user mode finds its own at a fixed distance from the core.
    tables: [[Table; 2]; RIGHTS],
    /// Slots (table number, index) that hold non-global entries, until it overflows.
    journal: Vec<(u8, u16)>,
    journal_overflow: bool,
    /// Where slices of large pages were entered since the last whole flush: lowest and highest page, for the lower (user) and the upper half of
    /// the address space.
    large: [Option<(u64, u64)>; 2],
    /// Nothing is entered.
    useless: bool,
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

#[inline(always)]
fn index(linear: u64) -> usize {
    (linear >> 12) as usize & (ENTRIES - 1)
}

impl Tlb {
    /// An empty TLB.
    pub fn new() -> Self {
        Self {
            tables: [[empty_table(); 2]; RIGHTS],
            journal: Vec::with_capacity(JOURNAL),
            journal_overflow: false,
            large: [None; 2],
            useless: false,
        }
    }

    /// Enters nothing from now on, or everything again: so that the paths of misses are tested.
    pub(crate) fn set_useless(&mut self, useless: bool) {
        self.useless = useless;
        self.flush_all();
    }

    /// The addresses of the read and the write table of `rights`; they stay as long as the TLB lives.
    pub(crate) fn tables(&self, rights: Rights) -> [usize; 2] {
        let [read, write] = &self.tables[rights as usize];
        [read.as_ptr() as usize, write.as_ptr() as usize]
    }

    /// The host address for an access of `size` bytes at `linear` that lies within one page, if it is known.
    #[inline(always)]
    pub fn lookup(&self, rights: Rights, write: bool, linear: u64, size: usize) -> Option<HostAddress> {
        let entry = &self.tables[rights as usize][usize::from(write)][index(linear)];
        // One comparison catches a wrong page and an access that crosses into the next.
        let offset = entry.tag ^ linear;
        if offset <= 4096 - size as u64 { Some(HostAddress::from_raw(entry.page + offset as usize)) } else { None }
    }

    /// Enters the translation of `linear`'s page to the page of `host` (both with the same offset).
    pub fn insert(&mut self, rights: Rights, write: bool, linear: u64, host: HostAddress, global: bool, large: bool) {
        if self.useless {
            return;
        }
        let slot = index(linear);
        self.tables[rights as usize][usize::from(write)][slot] =
            Entry { tag: linear & !0xfff, page: host.raw() & !0xfff };
        if large {
            self.note_large(linear & !0xfff);
        }
        if !global && !self.journal_overflow {
            if self.journal.len() == JOURNAL {
                self.journal_overflow = true;
                self.journal.clear();
            } else {
                self.journal.push((rights as u8 * 2 + u8::from(write), slot as u16));
            }
        }
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        for table in self.tables.iter_mut().flatten() {
            for (slot, entry) in table.iter_mut().enumerate() {
                *entry = no_entry(slot);
            }
        }
        self.journal.clear();
        self.journal_overflow = false;
        self.large = [None; 2];
    }

    /// Forgets what was entered as non-global (a write to CR3). A global entry that took over a journalled slot goes too, which is allowed.
    pub fn flush_non_global(&mut self) {
        if self.journal_overflow {
            return self.flush_all();
        }
        for (table, slot) in self.journal.drain(..) {
            self.tables[usize::from(table / 2)][usize::from(table % 2)][usize::from(slot)] = no_entry(slot.into());
        }
    }

    /// Forgets the write entry for the page of `linear`.
    pub(crate) fn forget_write(&mut self, rights: Rights, linear: u64) {
        let slot = index(linear);
        self.tables[rights as usize][1][slot] = no_entry(slot);
    }

    fn note_large(&mut self, page: u64) {
        let range = &mut self.large[(page >> 63) as usize];
        let (low, high) = range.unwrap_or((page, page));
        *range = Some((low.min(page), high.max(page)));
    }

    /// INVLPG: forgets the page of `linear`. Where large pages were seen, `linear` may lie in one, whose slices stand in many slots: then all that is in the
    /// same naturally aligned GiB goes, the largest page there is.
    pub fn flush_page(&mut self, linear: u64) {
        const GIB: u32 = 30;
        let page = linear & !0xfff;
        // A large page reaches up to a GiB beyond those of its slices that were entered.
        let near_large = self.large[(page >> 63) as usize]
            .is_some_and(|(low, high)| (low >> GIB..=high >> GIB).contains(&(page >> GIB)));
        for table in self.tables.iter_mut().flatten() {
            if near_large {
                for (slot, entry) in table.iter_mut().enumerate() {
                    if entry.tag >> GIB == page >> GIB {
                        *entry = no_entry(slot);
                    }
                }
            } else if table[index(page)].tag == page {
                table[index(page)] = no_entry(index(page));
            }
        }
    }

    /// Forgets write entries that lead to the host page of `host`: code is being watched there now.
    pub fn flush_writes_to(&mut self, host: HostAddress) {
        let page = host.raw() & !0xfff;
        for rights in self.tables.iter_mut() {
            for (slot, entry) in rights[1].iter_mut().enumerate() {
                if entry.page == page {
                    *entry = no_entry(slot);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0xffff_8000_1234_5000;

    fn entered(global: bool) -> Tlb {
        let mut tlb = Tlb::new();
        tlb.insert(Rights::Supervisor, false, PAGE + 8, HostAddress::from_raw(0x7000_0008), global, false);
        tlb
    }

    #[test]
    fn a_hit_keeps_the_offset() {
        let host = entered(false).lookup(Rights::Supervisor, false, PAGE + 0x123, 8);
        assert_eq!(host.map(HostAddress::raw), Some(0x7000_0123));
    }

    #[test]
    fn an_access_over_the_page_end_misses() {
        let tlb = entered(false);
        assert!(tlb.lookup(Rights::Supervisor, false, PAGE + 0xff8, 8).is_some());
        assert!(tlb.lookup(Rights::Supervisor, false, PAGE + 0xff9, 8).is_none());
    }

    #[test]
    fn reads_do_not_allow_writes_nor_other_rights() {
        let tlb = entered(false);
        assert!(tlb.lookup(Rights::Supervisor, true, PAGE, 1).is_none());
        assert!(tlb.lookup(Rights::User, false, PAGE, 1).is_none());
    }

    #[test]
    fn an_empty_slot_matches_no_address() {
        let tlb = Tlb::new();
        for linear in [0, 0xfff, 0x1000, u64::MAX] {
            assert!(tlb.lookup(Rights::User, false, linear, 1).is_none(), "{linear:#x}");
        }
    }

    #[test]
    fn global_entries_survive_a_cr3_write() {
        let mut local = entered(false);
        local.flush_non_global();
        assert!(local.lookup(Rights::Supervisor, false, PAGE, 1).is_none());
        let mut global = entered(true);
        global.flush_non_global();
        assert!(global.lookup(Rights::Supervisor, false, PAGE, 1).is_some());
    }

    fn with_page(linear: u64, large: bool) -> Tlb {
        let mut tlb = Tlb::new();
        tlb.insert(Rights::User, false, linear, HostAddress::from_raw(0x7000_0000), true, large);
        tlb
    }

    #[test]
    fn invlpg_forgets_its_page_and_no_other() {
        let mut tlb = with_page(0x5000, false);
        tlb.flush_page(0x6000);
        assert!(tlb.lookup(Rights::User, false, 0x5000, 1).is_some());
        tlb.flush_page(0x5fff);
        assert!(tlb.lookup(Rights::User, false, 0x5000, 1).is_none());
    }

    #[test]
    fn invlpg_anywhere_in_a_large_page_forgets_all_its_slices() {
        let mut tlb = with_page(0x4020_5000, true);
        tlb.flush_page(0x4020_0000);
        assert!(tlb.lookup(Rights::User, false, 0x4020_5000, 1).is_none());
    }

    #[test]
    fn large_pages_of_the_kernel_do_not_widen_an_invlpg_of_user_space() {
        let mut tlb = with_page(0x5000, false);
        tlb.insert(Rights::Supervisor, false, PAGE, HostAddress::from_raw(0x7000_0000), true, true);
        tlb.flush_page(0x6000);
        assert!(tlb.lookup(Rights::User, false, 0x5000, 1).is_some());
        assert!(tlb.lookup(Rights::Supervisor, false, PAGE, 1).is_some());
    }
}
