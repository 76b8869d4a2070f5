//! The setup header at the start of a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use crate::BootError;

/// Offset of the header in the image and in the zero page alike.
const START: usize = 0x1f1;
/// Where the header ends at most: the zero page keeps 0x1f1..0x290 for it.
const MAX_END: usize = 0x290;
/// Oldest protocol that has the 64-bit entry.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// xloadflags: the kernel has the 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;

/// Offsets of the fields that are read here.
mod field {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const HEADER_LENGTH: usize = 0x201;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PAYLOAD_OFFSET: usize = 0x248;
    pub(super) const PAYLOAD_LENGTH: usize = 0x24c;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// What a kernel says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SetupHeader {
    /// The image's name, for errors.
    pub name: String,
    /// The header's bytes, from 0x1f1 on, for the zero page.
    pub raw: Vec<u8>,
    /// Where the protected-mode part starts in the file.
    pub setup_size: usize,
    /// Longest command line, without its zero.
    pub cmdline_size: u32,
    /// Highest address that a ramdisk's last byte may have.
    pub initrd_addr_max: u32,
    /// Multiples of this are where the kernel can run.
    pub kernel_alignment: u32,
    /// It can run elsewhere than where it was linked.
    pub relocatable: bool,
    /// Where the kernel wants to run.
    pub pref_address: u64,
    /// Memory from there on that it needs before it knows the memory map.
    pub init_size: u32,
    /// Where the compressed kernel starts in the protected-mode part.
    pub payload_offset: u32,
    /// Its length.
    pub payload_length: u32,
}

fn bytes<const N: usize>(image: &[u8], offset: usize) -> [u8; N] {
    image.get(offset..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(image: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes(image, offset))
}

fn u32_at(image: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes(image, offset))
}

impl SetupHeader {
    /// Offset of the 64-bit entry in the protected-mode part.
    pub(crate) const ENTRY_64: u64 = 0x200;

    /// Reads and checks the header of a bzImage.
    pub(crate) fn parse(name: &str, image: &[u8]) -> Result<Self, BootError> {
        let truncated = |what, expected: u64| BootError::Truncated {
            name: name.to_owned(),
            what,
            expected,
            found: image.len() as u64,
        };
        let version = u16_at(image, field::VERSION);
        if version < OLDEST_PROTOCOL {
            return Err(BootError::OldProtocol { name: name.to_owned(), found: version });
        }
        let [header_length] = bytes(image, field::HEADER_LENGTH);
        // The jump at 0x200 is two bytes and leads past the header.
        let end = (0x202 + usize::from(header_length)).clamp(field::INIT_SIZE + 4, MAX_END);
        let raw = image.get(START..end).ok_or_else(|| truncated("the setup header", end as u64))?.to_vec();
        let xloadflags = u16_at(image, field::XLOADFLAGS);
        if xloadflags & XLF_KERNEL_64 == 0 {
            return Err(BootError::NotSixtyFourBit { name: name.to_owned(), found: xloadflags });
        }
        let [sectors] = bytes(image, field::SETUP_SECTS);
        // Zero means four, for boot loaders older than the field.
        let sectors = if sectors == 0 { 4 } else { sectors };
        let setup_size = (usize::from(sectors) + 1) * 512;
        let whole = setup_size as u64 + u64::from(u32_at(image, field::SYSSIZE)) * 16;
        if whole > image.len() as u64 || setup_size >= image.len() {
            return Err(truncated("the kernel", whole));
        }
        Ok(Self {
            name: name.to_owned(),
            raw,
            setup_size,
            cmdline_size: u32_at(image, field::CMDLINE_SIZE),
            initrd_addr_max: u32_at(image, field::INITRD_ADDR_MAX),
            kernel_alignment: u32_at(image, field::KERNEL_ALIGNMENT),
            relocatable: bytes::<1>(image, field::RELOCATABLE_KERNEL) != [0],
            pref_address: u64::from_le_bytes(bytes(image, field::PREF_ADDRESS)),
            init_size: u32_at(image, field::INIT_SIZE),
            payload_offset: u32_at(image, field::PAYLOAD_OFFSET),
            payload_length: u32_at(image, field::PAYLOAD_LENGTH),
        })
    }

    /// The header for a kernel that came without one, as an ELF file: what Linux 6.12 says of itself.
    pub(crate) fn of_elf() -> Self {
        const COMMAND_LINE_SIZE: u32 = 2048;
        const ALIGNMENT: u32 = 2 << 20;
        let mut page = [0u8; MAX_END];
        page[0x1fe..0x200].copy_from_slice(&0xaa55u16.to_le_bytes());
        page[0x202..0x206].copy_from_slice(b"HdrS");
        page[field::VERSION..field::VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        page[field::LOADFLAGS] = 1; // LOADED_HIGH
        page[field::INITRD_ADDR_MAX..field::INITRD_ADDR_MAX + 4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        page[field::KERNEL_ALIGNMENT..field::KERNEL_ALIGNMENT + 4].copy_from_slice(&ALIGNMENT.to_le_bytes());
        page[field::CMDLINE_SIZE..field::CMDLINE_SIZE + 4].copy_from_slice(&(COMMAND_LINE_SIZE - 1).to_le_bytes());
        Self {
            name: String::new(),
            raw: page[START..field::INIT_SIZE + 4].to_vec(),
            setup_size: 0,
            cmdline_size: COMMAND_LINE_SIZE - 1,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: ALIGNMENT,
            relocatable: false,
            pref_address: 0,
            init_size: 0,
            payload_offset: 0,
            payload_length: 0,
        }
    }

    /// Tells the kernel that its addresses are random, so that it draws the rest of them itself.
    pub(crate) fn set_kaslr_flag(&mut self) {
        /// loadflags: KASLR_FLAG.
        const KASLR_FLAG: u8 = 1 << 1;
        self.raw[field::LOADFLAGS - START] |= KASLR_FLAG;
    }

    /// The part of the image that runs in protected and long mode.
    pub(crate) fn protected_mode<'a>(&self, image: &'a [u8]) -> &'a [u8] {
        image.get(self.setup_size..).unwrap_or_default()
    }

    /// The compressed kernel within the image.
    pub(crate) fn payload<'a>(&self, image: &'a [u8]) -> Result<&'a [u8], BootError> {
        let (start, len) = (self.payload_offset as usize, self.payload_length as usize);
        let payload = self.protected_mode(image).get(start..).and_then(|rest| rest.get(..len));
        payload.ok_or_else(|| BootError::Payload {
            name: self.name.clone(),
            offset: (self.setup_size + start) as u64,
            len: len as u64,
            size: image.len() as u64,
        })
    }
}
