//! Placement of the initial ramdisk: at the top of low memory, below the kernel's `initrd_addr_max`.

use std::ops::Range;

use x86::paging::PAGE_SIZE;

use crate::ram::Ram;
use crate::setup_header::SetupHeader;
use crate::{Blob, BootError, layout};

/// The zero page's 32-bit fields and the identity map both end here.
const FOUR_GIB: u64 = layout::IDENTITY_GIB << 30;

/// The parts' size as they will lie in memory.
fn total(parts: &[Blob<'_>]) -> u64 {
    parts.iter().fold(0, |sum, part| sum.next_multiple_of(4).saturating_add(part.len))
}

/// The address that no ramdisk may pass.
fn limit(header: &SetupHeader) -> u64 {
    (u64::from(header.initrd_addr_max) + 1).min(FOUR_GIB)
}

/// Where the ramdisk will begin, at the earliest: the kernel must end there.
pub(crate) fn lowest_address(ram: &Ram<'_>, parts: &[Blob<'_>], header: &SetupHeader) -> u64 {
    let top = ram.high().end.min(limit(header));
    top.saturating_sub(total(parts)) & !(PAGE_SIZE - 1)
}

/// Copies the parts one after another, page-aligned, as high as they may lie.
///
/// Each part starts on a multiple of four within the whole, as the kernel's initramfs reader requires of concatenated archives.
pub(crate) fn place(
    ram: &Ram<'_>,
    parts: Vec<Blob<'_>>,
    kernel: &Range<u64>,
    header: &SetupHeader,
) -> Result<Option<Range<u64>>, BootError> {
    let len = total(&parts);
    if len == 0 {
        return Ok(None);
    }
    let limit = limit(header);
    let top = ram.high().end.min(limit);
    let kernel_end = kernel.end.next_multiple_of(PAGE_SIZE);
    let start = match top.checked_sub(len).map(|start| start & !(PAGE_SIZE - 1)) {
        Some(start) if start >= kernel_end => start,
        _ => return Err(does_not_fit(len, kernel_end, top, limit)),
    };
    let mut at = start;
    for mut part in parts {
        let aligned = at.next_multiple_of(4);
        ram.zero(at, aligned - at)?;
        ram.copy(&part.name, &mut part.reader, aligned, part.len)?;
        at = aligned + part.len;
    }
    Ok(Some(start..at))
}

fn does_not_fit(len: u64, kernel_end: u64, top: u64, limit: u64) -> BootError {
    match kernel_end.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE_SIZE)) {
        Some(end) if end <= limit => {
            BootError::InitrdDoesNotFit { len, kernel_end, top, needed_mib: end.div_ceil(1 << 20) }
        }
        _ => BootError::InitrdTooLarge { len, max: limit - 1 },
    }
}
