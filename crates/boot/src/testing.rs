//! Synthetic kernels, and a machine's memory to load them into.

use std::io::Cursor;

use guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::{Blob, BootError, Decompressor, E820Entry, E820Kind, Loaded, Request};

pub(crate) const MIB: u64 = 1 << 20;

/// A segment of a synthetic ELF file: physical address, contents, size in memory.
pub(crate) struct TestSegment {
    pub address: u64,
    pub bytes: Vec<u8>,
    pub memory_size: u64,
}

pub(crate) fn segment(address: u64, bytes: &[u8], memory_size: u64) -> TestSegment {
    TestSegment { address, bytes: bytes.to_vec(), memory_size }
}

/// An ELF64 executable with these segments, their contents at multiples of 0x1000.
pub(crate) fn elf(entry: u64, segments: &[TestSegment]) -> Vec<u8> {
    let mut file = vec![0u8; 64];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..18].copy_from_slice(&2u16.to_le_bytes());
    file[18..20].copy_from_slice(&62u16.to_le_bytes());
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(segments.len() as u16).to_le_bytes());
    let mut offset = 0x1000u64;
    for s in segments {
        let words = [1 | 7 << 32, offset, s.address, s.address, s.bytes.len() as u64, s.memory_size, 0x1000];
        file.extend(words.iter().flat_map(|w: &u64| w.to_le_bytes()));
        offset += (s.bytes.len() as u64).next_multiple_of(0x1000);
    }
    for s in segments {
        file.resize(file.len().next_multiple_of(0x1000), 0);
        file.extend_from_slice(&s.bytes);
    }
    file
}

/// A bzImage of protocol 2.15 that wants 4 MiB at 16 MiB, around a payload.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 512 * 2];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    image[0x234] = 1;
    image[0x236..0x238].copy_from_slice(&0x7fu16.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&0x400u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image[0x258..0x260].copy_from_slice(&(16 * MIB).to_le_bytes());
    image[0x260..0x264].copy_from_slice(&(4 * MIB as u32).to_le_bytes());
    image.resize(1024 + 0x400, 0x90);
    image.extend_from_slice(payload);
    image.resize(image.len().next_multiple_of(16), 0);
    let paragraphs = ((image.len() - 1024) / 16) as u32;
    image[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
    image
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut packed = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    packed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    packed
}

/// The relocations that follow a vmlinux: lists of places, each after a zero.
pub(crate) fn relocations(lists: &[&[u32]]) -> Vec<u8> {
    lists.iter().flat_map(|list| [0].into_iter().chain(list.iter().copied())).flat_map(u32::to_le_bytes).collect()
}

/// A vmlinux of two segments, entered at 16 MiB + 0x10.
pub(crate) fn vmlinux() -> Vec<u8> {
    elf(16 * MIB + 0x10, &[segment(16 * MIB, b"the kernel's text", 0x2000), segment(17 * MIB, b"its data", 0x5000)])
}

/// 32 MiB of RAM with the usual holes, and what to load into it.
pub(crate) struct Bench {
    pub memory: GuestMemory,
    pub e820: Vec<E820Entry>,
    pub kernel: Vec<u8>,
    pub initrd: Vec<Vec<u8>>,
    pub cmdline: String,
    pub decompressor: Decompressor,
    pub kaslr: Option<[u64; 2]>,
}

impl Bench {
    pub(crate) fn new(kernel: Vec<u8>) -> Self {
        let entry = |start, end, kind| E820Entry { start, end, kind };
        Self {
            memory: guest_memory::allocate(&[(0, 32 << 20)]).unwrap(),
            e820: vec![
                entry(0, 0x9fc00, E820Kind::Ram),
                entry(0x9fc00, 0x100000, E820Kind::Reserved),
                entry(MIB, 32 * MIB, E820Kind::Ram),
            ],
            kernel,
            initrd: Vec::new(),
            cmdline: "console=ttyS0".to_owned(),
            decompressor: Decompressor::Vmm,
            kaslr: None,
        }
    }

    pub(crate) fn load(&self) -> Result<Loaded, BootError> {
        let blob = |(i, part): (usize, &Vec<u8>)| Blob {
            name: format!("ramdisk {i}"),
            len: part.len() as u64,
            reader: Box::new(Cursor::new(part.clone())),
        };
        crate::load(
            &self.memory,
            Request {
                kernel_name: "test.bin",
                kernel: &self.kernel,
                initrd: self.initrd.iter().enumerate().map(blob).collect(),
                cmdline: &self.cmdline,
                e820: &self.e820,
                rsdp: Some(0xe0000),
                decompressor: self.decompressor,
                kaslr: self.kaslr,
            },
        )
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }
}
