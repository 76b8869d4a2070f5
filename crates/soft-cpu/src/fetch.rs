//! The instruction TLB: from linear pages to the guest-physical pages that code is fetched from.
//!
//! It forgets what the architecture demands and no more: a write to CR3 leaves global pages, INVLPG takes one page or, where large pages were seen, what
//! lies in the same GiB, the largest page there is.

const SLOTS: usize = 256;

/// The mapping is global; in [`FetchPage`]'s low bits.
const GLOBAL: u64 = 1 << 0;
/// The mapping is larger than 4 KiB.
const LARGE: u64 = 1 << 1;

/// log2 of the largest page.
pub(crate) const LARGEST_PAGE: u32 = 30;

/// Where a linear page of code lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FetchPage(u64);

impl FetchPage {
    /// The page of `physical`, and what its mapping is.
    pub fn new(physical: u64, global: bool, large: bool) -> Self {
        let flags = if global { GLOBAL } else { 0 } | if large { LARGE } else { 0 };
        Self(physical & !0xfff | flags)
    }

    /// The guest-physical address of the page.
    #[inline(always)]
    pub fn physical(self) -> u64 {
        self.0 & !0xfff
    }

    /// For code on this page and on `other`: what both mappings have in common.
    pub(crate) fn and(self, other: Self) -> Self {
        Self::new(self.physical(), self.is_global() && other.is_global(), self.is_large() || other.is_large())
    }

    /// The mapping outlives a write to CR3.
    pub fn is_global(self) -> bool {
        self.0 & GLOBAL != 0
    }

    /// The mapping is larger than 4 KiB.
    pub fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }
}

#[derive(Clone, Copy)]
struct Entry {
    /// Linear page, with bit 0 set for user mode; all ones if empty.
    tag: u64,
    page: FetchPage,
}

const NO_ENTRY: Entry = Entry { tag: u64::MAX, page: FetchPage(0) };

/// One CPU's TLB for instructions.
pub struct FetchTlb(Box<[Entry; SLOTS]>);

impl Default for FetchTlb {
    fn default() -> Self {
        Self(Box::new([NO_ENTRY; SLOTS]))
    }
}

#[inline(always)]
fn slot(linear: u64) -> usize {
    (linear >> 12) as usize & (SLOTS - 1)
}

#[inline(always)]
fn tag(linear: u64, user: bool) -> u64 {
    linear & !0xfff | u64::from(user)
}

impl FetchTlb {
    /// The page of `linear`, if it is known for code of this privilege.
    #[inline(always)]
    pub fn lookup(&self, linear: u64, user: bool) -> Option<FetchPage> {
        let entry = &self.0[slot(linear)];
        (entry.tag == tag(linear, user)).then_some(entry.page)
    }

    /// Enters the page of `linear`.
    pub fn insert(&mut self, linear: u64, user: bool, page: FetchPage) {
        self.0[slot(linear)] = Entry { tag: tag(linear, user), page };
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        self.0.fill(NO_ENTRY);
    }

    /// Forgets what is not global: a write to CR3.
    pub fn flush_non_global(&mut self) {
        for entry in self.0.iter_mut().filter(|entry| !entry.page.is_global()) {
            *entry = NO_ENTRY;
        }
    }

    /// INVLPG of `linear`.
    pub fn flush_page(&mut self, linear: u64) {
        let page = linear & !0xfff;
        for entry in self.0.iter_mut() {
            let same_page = entry.tag & !0xfff == page;
            let may_be_of_the_same = entry.page.is_large() && entry.tag >> LARGEST_PAGE == page >> LARGEST_PAGE;
            if same_page || may_be_of_the_same {
                *entry = NO_ENTRY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: u64 = 0x40_3000;
    const PAGE: FetchPage = FetchPage(0x7000);

    fn with(page: FetchPage) -> FetchTlb {
        let mut tlb = FetchTlb::default();
        tlb.insert(LINEAR + 0x123, true, page);
        tlb
    }

    #[test]
    fn a_page_is_found_for_its_own_privilege_only() {
        let tlb = with(PAGE);
        assert_eq!(tlb.lookup(LINEAR + 5, true).map(FetchPage::physical), Some(0x7000));
        assert_eq!(tlb.lookup(LINEAR, false), None);
        assert_eq!(tlb.lookup(LINEAR + 0x1000, true), None);
    }

    #[test]
    fn a_cr3_write_leaves_global_pages_only() {
        let mut tlb = with(PAGE);
        tlb.flush_non_global();
        assert_eq!(tlb.lookup(LINEAR, true), None);
        let mut tlb = with(FetchPage::new(0x7000, true, false));
        tlb.flush_non_global();
        assert!(tlb.lookup(LINEAR, true).is_some());
    }

    #[test]
    fn invlpg_takes_its_page_and_the_slices_of_a_large_one() {
        let mut tlb = with(PAGE);
        tlb.flush_page(LINEAR + 0x1000);
        assert!(tlb.lookup(LINEAR, true).is_some());
        tlb.flush_page(LINEAR + 0xfff);
        assert_eq!(tlb.lookup(LINEAR, true), None);
        let mut tlb = with(FetchPage::new(0x7000, false, true));
        tlb.flush_page(LINEAR + 0x1000);
        assert_eq!(tlb.lookup(LINEAR, true), None);
    }
}
