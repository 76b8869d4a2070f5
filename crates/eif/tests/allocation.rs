//! What a header claims costs nothing: only what the file holds is allocated.

#![expect(unsafe_code, reason = "a counting allocator has to implement GlobalAlloc")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use support::*;

/// Remembers the largest allocation of each thread.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // The thread-local is gone while a thread ends; nothing is measured then.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

#[test]
fn section_that_claims_two_to_the_sixty_bytes_allocates_nothing_of_its_size() {
    for size in [1u64 << 60, 1 << 40, 1 << 30, u64::MAX] {
        for index in 0..5 {
            let mut image = plain_image();
            let offset = section_offset(&image, index);
            put(&mut image, SIZES + 8 * index, &size.to_be_bytes());
            put(&mut image, offset + 4, &size.to_be_bytes());
            let largest = largest_allocation(|| {
                assert!(boot(&image).is_err());
                assert!(describe(&image).is_err());
            });
            assert!(largest < 4096, "{largest} bytes for section {index} of {size} bytes");
        }
    }
}

#[test]
fn booting_allocates_no_more_than_the_file_holds() {
    let metadata = eif::Metadata::new("large", "1").to_json();
    let large = vec![9; 3_000_000];
    let image = image_of(&[(KERNEL, &large), (CMDLINE, b"a"), (METADATA, &metadata), (RAMDISK, &large)]);
    let largest = largest_allocation(|| assert!(boot(&image).is_ok()));
    assert!(largest <= large.len(), "{largest}");
}

#[test]
fn describing_allocates_a_constant_amount() {
    let metadata = eif::Metadata::new("large", "1").to_json();
    let large = vec![9; 3_000_000];
    let image = image_of(&[(KERNEL, &large), (CMDLINE, b"a"), (METADATA, &metadata), (RAMDISK, &large)]);
    let largest = largest_allocation(|| assert!(describe(&image).is_ok()));
    assert!(largest <= 256 << 10, "{largest}");
}
