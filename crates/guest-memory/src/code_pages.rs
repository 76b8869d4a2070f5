//! Which 64-byte lines of RAM hold guest code somebody keeps a decoded copy of, and how often each page's code was overwritten.

#![expect(unsafe_code, reason = "zeroed atomic integers")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

/// Granule of code tracking, in bytes: 64 of them make a 4 KiB page, so that one `u64` is a page's mask.
pub const CODE_LINE_SIZE: usize = 64;

const PAGE_SHIFT: usize = 12;

/// How often watched code has been overwritten, in all memories of the process: while it stays the same, so does every generation.
static OVERWRITES: AtomicU64 = AtomicU64::new(0);

/// How often watched code has been overwritten, in all memories of this process. A keeper of many copies that finds it unchanged need not look at
/// the generations; load it before them.
#[inline(always)]
pub fn code_overwrites() -> u64 {
    OVERWRITES.load(Ordering::Acquire)
}

#[derive(Debug, Default)]
struct Pages {
    lines: Box<[AtomicU64]>,
    generations: Box<[AtomicU32]>,
}

/// The code watch of one RAM region. Clones share the same watch.
///
/// A keeper of decoded code calls [`CodePages::watch`] *before* it reads the bytes, remembers the generation it returns, and trusts its copy
/// for as long as [`CodePages::generation`] stays the same. A writer stores first and calls [`CodePages::written`] after.
#[derive(Debug, Clone, Default)]
pub struct CodePages(Arc<Pages>);

/// The lines that `len > 0` bytes from `start` touch, both within one page.
fn line_mask(start: usize, len: usize) -> u64 {
    let first = start / CODE_LINE_SIZE;
    let last = (start + len - 1) / CODE_LINE_SIZE;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

impl CodePages {
    /// Starts to watch `len` bytes of code at `offset` within the region and returns the page's generation.
    /// The range must not cross a page.
    pub fn watch(&self, offset: usize, len: usize) -> u32 {
        let page = offset >> PAGE_SHIFT;
        let start = offset & 0xfff;
        debug_assert!(len > 0 && start + len <= 4096, "a watched range lies within one page");
        if let Some(lines) = self.0.lines.get(page) {
            lines.fetch_or(line_mask(start, len), Ordering::SeqCst);
        }
        self.generation(page)
    }

    /// How often code on this page (region offset / 4096) has been overwritten.
    #[inline]
    pub fn generation(&self, page: usize) -> u32 {
        self.0.generations.get(page).map_or(0, |g| g.load(Ordering::Acquire))
    }

    /// The counter behind [`CodePages::generation`], for a keeper that compares it often.
    pub fn generation_cell(&self, page: usize) -> Option<&AtomicU32> {
        self.0.generations.get(page)
    }

    /// Whether any line of this page (region offset / 4096) is watched.
    #[inline]
    pub fn has_code(&self, page: usize) -> bool {
        self.0.lines.get(page).is_some_and(|l| l.load(Ordering::SeqCst) != 0)
    }

    /// Whether all lines of `len > 0` bytes at `offset` (within one page) are watched.
    pub fn is_watched(&self, offset: usize, len: usize) -> bool {
        let mask = line_mask(offset & 0xfff, len);
        self.0.lines.get(offset >> PAGE_SHIFT).is_some_and(|l| l.load(Ordering::SeqCst) & mask == mask)
    }

    /// Stops watching this page (region offset / 4096): it seems to hold data now. Copies of its code count as overwritten, so their keepers watch again
    /// before they trust them. A keeper that is just reading must therefore look at [`CodePages::is_watched`] after it has read.
    pub fn unwatch(&self, page: usize) {
        if let (Some(lines), Some(generation)) = (self.0.lines.get(page), self.0.generations.get(page)) {
            lines.store(0, Ordering::SeqCst);
            generation.fetch_add(1, Ordering::AcqRel);
            OVERWRITES.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Reports that `len` bytes at `offset` have been stored to; true if watched code was among them.
    pub fn written(&self, offset: usize, len: usize) -> bool {
        let mut hit = false;
        let mut at = offset;
        let end = offset.saturating_add(len);
        while at < end {
            let page = at >> PAGE_SHIFT;
            let Some(lines) = self.0.lines.get(page) else { break };
            let here = (end - at).min(4096 - (at & 0xfff));
            if lines.load(Ordering::SeqCst) & line_mask(at & 0xfff, here) != 0 {
                // The page's other lines stay watched: their copies are checked against the bytes again and mostly survive.
                self.0.generations[page].fetch_add(1, Ordering::AcqRel);
                OVERWRITES.fetch_add(1, Ordering::AcqRel);
                hit = true;
            }
            at += here;
        }
        hit
    }
}

/// A part of a region's watch, which `vm-memory` hands to volatile slices.
#[derive(Debug, Clone, Copy)]
pub struct CodeSlice<'a> {
    pages: &'a CodePages,
    base: usize,
}

impl<'a> WithBitmapSlice<'a> for CodePages {
    type S = CodeSlice<'a>;
}

impl Bitmap for CodePages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.written(offset, len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> CodeSlice<'_> {
        CodeSlice { pages: self, base: offset }
    }
}

impl NewBitmap for CodePages {
    fn with_len(len: usize) -> Self {
        let pages = len.div_ceil(1 << PAGE_SHIFT);
        // Zeroed by the host when they are first touched: where nobody watches code, as on KVM, they take no memory.
        let (lines, generations) = (Box::new_zeroed_slice(pages), Box::new_zeroed_slice(pages));
        // SAFETY: all zeros is a valid value of an atomic integer.
        let (lines, generations) = unsafe { (lines.assume_init(), generations.assume_init()) };
        Self(Arc::new(Pages { lines, generations }))
    }
}

impl<'a> CodeSlice<'a> {
    /// The watch this is a part of.
    pub fn pages(&self) -> &'a CodePages {
        self.pages
    }
}

impl WithBitmapSlice<'_> for CodeSlice<'_> {
    type S = Self;
}

impl BitmapSlice for CodeSlice<'_> {}

impl Bitmap for CodeSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.pages.written(self.base.saturating_add(offset), len);
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { pages: self.pages, base: self.base.saturating_add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_beside_the_code_leaves_its_generation_alone() {
        let pages = CodePages::with_len(8192);
        let generation = pages.watch(4096 + 130, 10);
        assert!(!pages.written(4096, 128));
        assert!(!pages.written(4096 + 192, 3904));
        assert_eq!(pages.generation(1), generation);
    }

    #[test]
    fn a_write_over_the_code_bumps_its_page_only() {
        let pages = CodePages::with_len(8192);
        pages.watch(100, 4);
        pages.watch(4096, 64);
        assert!(pages.written(4000, 97));
        assert_eq!((pages.generation(0), pages.generation(1)), (0, 1));
    }

    #[test]
    fn a_write_past_the_region_is_ignored() {
        assert!(!CodePages::with_len(4096).written(4000, 9000));
    }
}
