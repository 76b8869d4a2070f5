//! Whole loads of synthetic kernels.

use super::*;
use crate::layout::ZERO_PAGE;
use crate::testing::{Bench, MIB, bzimage, elf, gzip, relocations, segment, vmlinux, zstd};

#[test]
fn a_gzip_payload_is_decompressed_and_entered_directly() {
    let bench = Bench::new(bzimage(&gzip(&vmlinux())));
    let loaded = bench.load().unwrap();
    assert_eq!((loaded.cpu.rip, loaded.guest_decompresses), (16 * MIB + 0x10, false));
    assert_eq!(bench.bytes(17 * MIB, 9), b"its data\0");
}

#[test]
fn a_zstd_payload_is_decompressed_and_entered_directly() {
    let bench = Bench::new(bzimage(&zstd(&vmlinux())));
    assert_eq!(bench.load().unwrap().cpu.rip, 16 * MIB + 0x10);
    assert_eq!(bench.bytes(16 * MIB, 17), b"the kernel's text");
}

#[test]
fn a_payload_of_unknown_compression_is_left_to_the_stub() {
    let bench = Bench::new(bzimage(b"\xfd7zXZ\0..."));
    let loaded = bench.load().unwrap();
    assert_eq!((loaded.cpu.rip, loaded.guest_decompresses), (16 * MIB + 0x200, true));
    assert_eq!(bench.bytes(16 * MIB, 0x400), vec![0x90; 0x400]);
}

#[test]
fn the_stub_decompresses_when_asked_to() {
    let mut bench = Bench::new(bzimage(&gzip(&vmlinux())));
    bench.decompressor = Decompressor::Guest;
    assert!(bench.load().unwrap().guest_decompresses);
}

#[test]
fn a_vmlinux_is_entered_at_its_entry_point() {
    let bench = Bench::new(vmlinux());
    let loaded = bench.load().unwrap();
    assert_eq!((loaded.cpu.rip, loaded.kernel), (16 * MIB + 0x10, 16 * MIB..17 * MIB + 0x5000));
    assert_eq!(bench.bytes(ZERO_PAGE + 0x202, 4), b"HdrS");
}

#[test]
fn memory_after_a_segments_bytes_is_zeroed_even_if_it_was_used() {
    let bench = Bench::new(vmlinux());
    vm_memory::Bytes::write_slice(&bench.memory, &[0xaa; 64], vm_memory::GuestAddress(17 * MIB)).unwrap();
    bench.load().unwrap();
    assert_eq!(bench.bytes(17 * MIB + 8, 56), [0; 56]);
}

#[test]
fn the_processor_starts_in_long_mode_with_the_zero_page_in_rsi() {
    let cpu = Bench::new(vmlinux()).load().unwrap().cpu;
    assert_eq!((cpu.cs.selector, cpu.ds.selector, cpu.gprs[x86::gpr::RSI]), (0x10, 0x18, ZERO_PAGE));
    assert!(cpu.cs.attributes & x86::Segment::L != 0 && cpu.efer & x86::efer::LMA != 0);
    assert_eq!(cpu.rflags, x86::rflags::RESERVED_ONE);
}

#[test]
fn page_tables_map_the_last_page_below_4_gib_to_itself() {
    let bench = Bench::new(vmlinux());
    let cr3 = bench.load().unwrap().cpu.cr3;
    let entry = |table: u64, index: u64| {
        u64::from_le_bytes(bench.bytes((table & x86::paging::ADDRESS) + index * 8, 8).try_into().unwrap())
    };
    let directory = entry(entry(cr3, 0), 3);
    assert_eq!(entry(directory, 511), 0xffe0_0000 | 0x83);
}

#[test]
fn ramdisk_parts_lie_at_the_top_of_memory_each_on_a_multiple_of_four() {
    let mut bench = Bench::new(vmlinux());
    bench.initrd = vec![b"first".to_vec(), b"second".to_vec()];
    assert_eq!(bench.load().unwrap().initrd, Some(32 * MIB - 4096..32 * MIB - 4096 + 14));
    assert_eq!(bench.bytes(32 * MIB - 4096, 14), b"first\0\0\0second");
    assert_eq!((bench.u32(ZERO_PAGE + 0x218), bench.u32(ZERO_PAGE + 0x21c)), (32 * MIB as u32 - 4096, 14));
}

#[test]
fn a_ramdisk_stays_below_the_kernels_limit() {
    let mut image = bzimage(&gzip(&vmlinux()));
    image[0x22c..0x230].copy_from_slice(&(24 * MIB as u32 - 1).to_le_bytes());
    let mut bench = Bench::new(image);
    bench.initrd = vec![vec![1; 100]];
    assert_eq!(bench.load().unwrap().initrd.unwrap().start, 24 * MIB - 4096);
}

#[test]
fn a_ramdisk_that_would_overlap_the_kernel_says_how_much_memory_would_do() {
    let mut bench = Bench::new(vmlinux());
    bench.initrd = vec![vec![0; 15 * MIB as usize]];
    assert!(matches!(bench.load(), Err(BootError::InitrdDoesNotFit { needed_mib: 33, .. })), "{:?}", bench.load());
}

#[test]
fn a_command_line_of_the_kernels_limit_fits_and_one_more_byte_does_not() {
    let mut bench = Bench::new(bzimage(&gzip(&vmlinux())));
    bench.cmdline = "x".repeat(2047);
    bench.load().unwrap();
    assert_eq!(bench.bytes(layout::CMDLINE + 2046, 2), b"x\0");
    bench.cmdline.push('x');
    assert!(matches!(bench.load(), Err(BootError::CmdlineTooLong { len: 2048, max: 2047 })));
}

#[test]
fn a_command_line_with_a_nul_is_refused() {
    let mut bench = Bench::new(vmlinux());
    bench.cmdline = "a\0b".to_owned();
    assert!(matches!(bench.load(), Err(BootError::CmdlineNul { position: 1 })));
}

#[test]
fn anything_else_is_no_kernel() {
    assert!(matches!(Bench::new(b".eif".to_vec()).load(), Err(BootError::UnknownImage { .. })));
    assert!(matches!(Bench::new(Vec::new()).load(), Err(BootError::UnknownImage { .. })));
}

#[test]
fn an_old_or_32_bit_kernel_is_refused() {
    let mut image = bzimage(b"");
    image[0x236] = 0;
    assert!(matches!(Bench::new(image.clone()).load(), Err(BootError::NotSixtyFourBit { .. })));
    image[0x206] = 5;
    assert!(matches!(Bench::new(image).load(), Err(BootError::OldProtocol { found: 0x0205, .. })));
}

#[test]
fn a_payload_outside_the_file_is_refused() {
    let mut image = bzimage(b"");
    image[0x24c..0x250].fill(0xff);
    assert!(matches!(Bench::new(image).load(), Err(BootError::Payload { len: 0xffff_ffff, .. })));
}

#[test]
fn a_kernel_that_wants_more_memory_than_there_is_is_refused() {
    let mut image = bzimage(&gzip(&vmlinux()));
    image[0x260..0x264].fill(0xff);
    assert!(matches!(Bench::new(image).load(), Err(BootError::KernelDoesNotFit { ram_end: 0x200_0000, .. })));
}

#[test]
fn a_kernel_over_the_boot_structures_is_refused() {
    let image = elf(0x9000, &[segment(0x9000, b"x", 1)]);
    assert!(matches!(Bench::new(image).load(), Err(BootError::KernelDoesNotFit { start: 0x9000, .. })));
}

#[test]
fn a_segment_may_hold_the_files_own_headers() {
    let mut image = elf(16 * MIB + 0x1000, &[segment(16 * MIB, b"code", 0x2000)]);
    image[72..80].fill(0);
    image[96..104].copy_from_slice(&0x1004u64.to_le_bytes());
    let bench = Bench::new(image);
    bench.load().unwrap();
    assert_eq!((bench.bytes(16 * MIB, 4), bench.bytes(16 * MIB + 0x1000, 4)), (b"\x7fELF".to_vec(), b"code".to_vec()));
}

#[test]
fn segments_over_each_other_are_refused() {
    let image = elf(16 * MIB, &[segment(16 * MIB, b"a", 0x2000), segment(16 * MIB + 0x1000, b"b", 1)]);
    assert!(matches!(Bench::new(image).load(), Err(BootError::ElfSegment { index: 1, .. })));
}

#[test]
fn a_segment_past_the_end_of_the_address_space_is_refused() {
    let image = elf(0, &[segment(u64::MAX - 5, b"a", u64::MAX)]);
    assert!(matches!(Bench::new(image).load(), Err(BootError::KernelDoesNotFit { end: u64::MAX, .. })));
}

#[test]
fn an_entry_point_outside_the_segments_is_refused() {
    let image = elf(20 * MIB, &[segment(16 * MIB, b"a", 0x1000)]);
    assert!(matches!(Bench::new(image).load(), Err(BootError::ElfEntry { entry: 0x140_0000, .. })));
}

#[test]
fn a_kernel_cut_off_anywhere_is_an_error_and_never_a_panic() {
    for whole in [bzimage(&gzip(&vmlinux())), vmlinux()] {
        let needed = whole.iter().rposition(|b| *b != 0).unwrap();
        for len in (0..needed).step_by(7) {
            assert!(Bench::new(whole[..len].to_vec()).load().is_err(), "{len} of {}", whole.len());
        }
    }
}

#[test]
fn damaged_headers_never_panic() {
    for whole in [bzimage(&gzip(&vmlinux())), bzimage(&zstd(&vmlinux())), vmlinux()] {
        let bench = Bench::new(Vec::new());
        for at in (0..0x80).chain(0x1f0..0x270).chain(0x800..0x840) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut kernel = whole.clone();
                kernel[at] = value;
                let _ = Bench { kernel, memory: bench.memory.clone(), ..Bench::new(Vec::new()) }.load();
            }
        }
    }
}

#[test]
fn more_memory_ranges_than_the_page_holds_are_refused() {
    let mut bench = Bench::new(vmlinux());
    bench.e820.extend(vec![bench.e820[1]; 126]);
    assert!(matches!(bench.load(), Err(BootError::E820 { found: 129, max: 128 })));
}

/// The golden is this crate's own output, checked field by field against zero-page.rst.
#[test]
fn the_zero_page_matches_its_golden() {
    use std::fmt::Write;
    let mut bench = Bench::new(bzimage(&gzip(&vmlinux())));
    bench.initrd = vec![b"initrd".to_vec()];
    bench.load().unwrap();
    let mut found = String::new();
    for (row, bytes) in bench.bytes(ZERO_PAGE, 4096).chunks(16).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0)) {
        let _ = write!(found, "{:03x}:", row * 16);
        for (column, byte) in bytes.iter().enumerate() {
            // The payload's length depends on the compressor.
            let masked = (0x1f4..0x1f8).chain(0x24c..0x250).any(|m| m == row * 16 + column);
            let _ = if masked { write!(found, " --") } else { write!(found, " {byte:02x}") };
        }
        found.push('\n');
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/goldens/zero_page.hex");
    if std::env::var_os("VMM_BLESS").is_some_and(|v| v == "1") {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/goldens")).unwrap();
        std::fs::write(path, &found).unwrap();
    }
    assert!(
        found == std::fs::read_to_string(path).unwrap_or_default(),
        "{path} differs; VMM_BLESS=1 rewrites it:\n{found}"
    );
}

/// A bzImage whose vmlinux has one address of each kind, and the relocations for them.
fn relocatable() -> Bench {
    let mut data = vec![0u8; 24];
    data[..8].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    data[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
    data[16..20].copy_from_slice(&0x8100_0010u32.to_le_bytes());
    let mut payload = elf(16 * MIB + 0x10, &[segment(16 * MIB, &[0x90; 64], 0x2000), segment(17 * MIB, &data, 0x5000)]);
    payload.extend(relocations(&[&[0x8110_0000], &[0x8110_0008], &[0x8110_0010]]));
    Bench::new(bzimage(&gzip(&payload)))
}

#[test]
fn a_kernel_moves_in_ram_and_its_addresses_with_its_linear_place() {
    let mut bench = relocatable();
    bench.kaslr = Some([2, 5]);
    let loaded = bench.load().unwrap();
    assert_eq!((loaded.cpu.rip, loaded.kernel.start), (20 * MIB + 0x10, 20 * MIB));
    assert_eq!(bench.bytes(21 * MIB, 8), 0xffff_ffff_81a0_0000u64.to_le_bytes());
    assert_eq!((bench.u32(21 * MIB + 8), bench.u32(21 * MIB + 16)), (0x1000u32.wrapping_sub(0xa0_0000), 0x81a0_0010));
    assert_eq!(bench.bytes(ZERO_PAGE + 0x211, 1)[0] & 2, 2, "KASLR_FLAG");
}

#[test]
fn a_kernel_stays_without_random_numbers() {
    let bench = relocatable();
    assert_eq!(bench.load().unwrap().cpu.rip, 16 * MIB + 0x10);
    assert_eq!(bench.bytes(17 * MIB, 8), 0xffff_ffff_8100_0000u64.to_le_bytes());
    assert_eq!(bench.bytes(ZERO_PAGE + 0x211, 1)[0] & 2, 0, "KASLR_FLAG");
}

#[test]
fn a_kernel_leaves_room_for_its_ramdisk_wherever_it_moves() {
    let mut bench = relocatable();
    bench.initrd = vec![vec![7; 5 << 20]];
    for random in 0..8 {
        bench.kaslr = Some([random, 0]);
        let loaded = bench.load().unwrap();
        assert!(loaded.kernel.end <= loaded.initrd.unwrap().start, "{random}");
    }
}

#[test]
fn a_kernel_without_relocations_keeps_its_linear_place() {
    let mut bench = Bench::new(bzimage(&gzip(&vmlinux())));
    bench.kaslr = Some([1, 1]);
    assert_eq!(bench.load().unwrap().cpu.rip, 18 * MIB + 0x10);
    assert_eq!(bench.bytes(ZERO_PAGE + 0x211, 1)[0] & 2, 0, "KASLR_FLAG");
}

#[test]
fn a_relocation_outside_the_kernel_is_refused() {
    let mut payload = vmlinux();
    payload.extend(relocations(&[&[], &[], &[0x8120_0000]]));
    let mut bench = Bench::new(bzimage(&gzip(&payload)));
    bench.kaslr = Some([0, 1]);
    assert_eq!(
        bench.load().unwrap_err().to_string(),
        "test.bin (its payload): the relocation of linear address 0xffffffff81200000 lies outside the kernel, which is at \
         0x1000000..0x1105000; the image is damaged"
    );
}

#[test]
fn a_zstd_payload_moves_with_its_relocations_too() {
    let mut data = vec![0u8; 24];
    data[..8].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    let mut payload = elf(16 * MIB + 0x10, &[segment(16 * MIB, &[0x90; 64], 0x2000), segment(17 * MIB, &data, 0x5000)]);
    payload.extend(relocations(&[&[0x8110_0000], &[], &[]]));
    let mut bench = Bench::new(bzimage(&zstd(&payload)));
    bench.kaslr = Some([2, 5]);
    // What was there before must not show.
    vm_memory::Bytes::write_slice(&bench.memory, &[0xaa; 64], vm_memory::GuestAddress(21 * MIB + 16)).unwrap();
    assert_eq!(bench.load().unwrap().cpu.rip, 20 * MIB + 0x10);
    assert_eq!(bench.bytes(21 * MIB, 8), 0xffff_ffff_81a0_0000u64.to_le_bytes());
    assert_eq!(bench.bytes(20 * MIB, 64), [0x90; 64]);
    assert_eq!(bench.bytes(21 * MIB + 24, 0x5000 - 24), [0; 0x5000 - 24]);
}

#[test]
fn a_zstd_payload_that_is_larger_than_the_kernel_says_or_damaged_is_refused() {
    let mut large = vmlinux();
    large.resize(4 * MIB as usize + 1, 0);
    let error = Bench::new(bzimage(&zstd(&large))).load().unwrap_err();
    assert!(matches!(error, BootError::Zstd { source: zstd::ZstdError::Room { room: 0x40_0000 }, .. }), "{error:?}");
    let mut damaged = zstd(&vmlinux());
    // A reserved bit of the frame's header.
    damaged[4] |= 8;
    assert!(matches!(Bench::new(bzimage(&damaged)).load(), Err(BootError::Zstd { .. })));
}

/// The first segment would be moved over the second, which lies behind it in the file.
#[test]
fn a_zstd_payload_whose_segments_are_in_each_others_way_is_refused() {
    let image = elf(16 * MIB + 0x2000, &[segment(16 * MIB + 0x2000, &[1; 64], 64), segment(18 * MIB, &[2; 64], 64)]);
    let error = Bench::new(bzimage(&zstd(&image))).load().unwrap_err();
    assert!(matches!(error, BootError::ElfSegment { index: 1, .. }), "{error:?}");
    assert!(Bench::new(bzimage(&gzip(&image))).load().is_ok(), "a stream has nothing in the way");
}

#[test]
fn ram_is_moved_over_itself_in_either_direction() {
    let bench = Bench::new(Vec::new());
    let ram = Ram::new(&bench.memory, &bench.e820);
    let content: Vec<u8> = (0..700_000u32).map(|at| ((at / 3) ^ (at >> 9)) as u8).collect();
    for (from, to) in [(0x20_0000, 0x20_1003), (0x20_1003, 0x20_0000), (0x20_0000, 0x60_0000), (0x20_0000, 0x20_0000)] {
        ram.write(from, &content).unwrap();
        ram.shift(from..from + content.len() as u64, to).unwrap();
        assert!(ram.read(to, content.len() as u64).unwrap() == content, "{from:#x} to {to:#x}");
    }
}
