//! Starting a Linux kernel: images in, guest memory and the first [`CpuState`] out.
//!
//! Modelled is the 64-bit boot protocol of Documentation/arch/x86/boot.rst (Linux 6.12). A bzImage is either entered at its own decompression
//! stub, or its payload is decompressed here and the vmlinux within is entered directly, at random addresses as the stub would
//! choose them; an ELF vmlinux is loaded as it is, where it was linked.
//!
//! Deliberately missing: the 16-bit and 32-bit entries, kernels before protocol 2.12 (Linux 3.8), PVH, multiboot, and payloads other than
//! gzip and zstd, which the guest's own stub decompresses.
//!
//! DEVNOTE: linux-loader's `bootparam` structures were tempting, but exist only where the *host* is x86, and its loaders trust sizes
//! in the image; the zero page here is bytes at documented offsets.

mod cpu;
mod e820;
mod elf;
mod error;
mod initrd;
mod kaslr;
pub mod layout;
mod payload;
mod ram;
mod setup_header;
#[cfg(test)]
mod testing;
mod unpacked;
mod zero_page;
pub mod zstd;

use std::io::{Cursor, Read};
use std::ops::Range;

use guest_memory::GuestMemory;
use tracing::{debug, info};
use x86::CpuState;

pub use e820::{E820Entry, E820Kind};
use elf::{Manner, Stream};
pub use error::BootError;
use kaslr::{Relocations, Shift};
use payload::{Packed, Payload};
use ram::Ram;
use setup_header::SetupHeader;
use unpacked::Unpacked;
use zero_page::ZeroPage;

/// Bytes to be copied into guest memory, from wherever they are.
pub struct Blob<'a> {
    /// The name that errors use: a path, or `"ramdisk 1 of enclave.eif"`.
    pub name: String,
    /// How many bytes.
    pub len: u64,
    /// Where they come from; exactly `len` bytes are read.
    pub reader: Box<dyn Read + 'a>,
}

/// Who decompresses a bzImage's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decompressor {
    /// The VMM, where it knows the compression; the guest's stub otherwise.
    Vmm,
    /// The guest's own stub.
    Guest,
}

/// What to start, and what to tell it.
pub struct Request<'a> {
    /// The kernel's name in errors, usually its path.
    pub kernel_name: &'a str,
    /// The kernel: a bzImage or an ELF vmlinux.
    pub kernel: &'a [u8],
    /// The initial ramdisk's parts, placed one after another.
    pub initrd: Vec<Blob<'a>>,
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// The physical memory map that the guest is told; RAM entries must be backed by memory.
    pub e820: &'a [E820Entry],
    /// Guest-physical address of the ACPI RSDP, where there is one.
    pub rsdp: Option<u64>,
    /// Who decompresses a bzImage.
    pub decompressor: Decompressor,
    /// Two random numbers that move a kernel which we decompress; `None` keeps it where it was linked. The guest's stub draws its own.
    pub kaslr: Option<[u64; 2]>,
}

/// A kernel in guest memory, ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// State of the bootstrap processor at the kernel's entry.
    pub cpu: CpuState,
    /// Where the kernel lies, with the memory that it needs before it reads the memory map.
    pub kernel: Range<u64>,
    /// Where the initial ramdisk lies, if there is one.
    pub initrd: Option<Range<u64>>,
    /// Whether the guest's own stub has to decompress the kernel.
    pub guest_decompresses: bool,
}

/// What kind of kernel image some bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// A Linux bzImage ("HdrS" at 0x202).
    BzImage,
    /// An ELF file.
    Elf,
}

impl ImageKind {
    /// Tells the kind from the first bytes (0x206 suffice), or `None` for anything that cannot be booted.
    pub fn detect(image: &[u8]) -> Option<Self> {
        if image.starts_with(elf::MAGIC) {
            Some(Self::Elf)
        } else if image.get(0x202..0x206) == Some(b"HdrS") {
            Some(Self::BzImage)
        } else {
            None
        }
    }
}

struct Entered {
    entry: u64,
    memory: Range<u64>,
    guest_decompresses: bool,
}

/// Puts the kernel, its ramdisk, its parameters and the tables of long mode into guest memory.
///
/// Everything is written, zeroes included, so that memory which a previous run has used may be loaded again. Nobody else may use the memory meanwhile: no
/// processor runs, and no device has a queue in it.
///
/// # Errors
/// [`BootError`] when the image is none that can be booted, is damaged, or does not fit.
pub fn load(memory: &GuestMemory, request: Request<'_>) -> Result<Loaded, BootError> {
    let ram = Ram::new(memory, request.e820);
    let name = request.kernel_name;
    let (header, entered) = match ImageKind::detect(request.kernel) {
        Some(ImageKind::BzImage) => {
            let mut header = SetupHeader::parse(name, request.kernel)?;
            let entered = load_bzimage(&ram, &request, &mut header)?;
            (header, entered)
        }
        Some(ImageKind::Elf) => {
            let manner = Manner { limit: request.kernel.len() as u64, shift: 0, with_rest: false };
            let loaded = elf::load(&ram, name, &mut Stream::new(name, Cursor::new(request.kernel)), manner)?;
            let entered = Entered { entry: loaded.entry, memory: loaded.memory, guest_decompresses: false };
            (SetupHeader::of_elf(), entered)
        }
        None => return Err(BootError::UnknownImage { name: name.to_owned() }),
    };
    let mut zero_page = ZeroPage::new(&header);
    ram.write_cmdline(request.cmdline, header.cmdline_size)?;
    zero_page.set_cmdline(layout::CMDLINE);
    zero_page.set_e820(request.e820)?;
    zero_page.set_rsdp(request.rsdp.unwrap_or(0));
    let initrd = initrd::place(&ram, request.initrd, &entered.memory, &header)?;
    if let Some(range) = &initrd {
        zero_page.set_ramdisk(range.start, range.end - range.start);
    }
    ram.write(layout::ZERO_PAGE, zero_page.as_bytes())?;
    cpu::write_tables(&ram)?;
    debug!(entry = format_args!("{:#x}", entered.entry), memory = ?entered.memory, ?initrd, "kernel loaded");
    Ok(Loaded {
        cpu: cpu::at_entry(entered.entry),
        kernel: entered.memory,
        initrd,
        guest_decompresses: entered.guest_decompresses,
    })
}

fn load_bzimage(ram: &Ram<'_>, request: &Request<'_>, header: &mut SetupHeader) -> Result<Entered, BootError> {
    let name = request.kernel_name;
    // The room that the kernel asks for holds it decompressed, whoever does that.
    let memory = ram.kernel_range(name, header.pref_address, header.init_size.into())?;
    if request.decompressor == Decompressor::Vmm {
        match Payload::of(request.kernel, header)? {
            Payload::Known(packed) => return load_payload(ram, request, header, packed),
            Payload::Unknown(what) => info!("{name}: {what} payload is left to the kernel's own decompressor"),
        }
    }
    let entry = header.pref_address + SetupHeader::ENTRY_64;
    ram.write(header.pref_address, header.protected_mode(request.kernel))?;
    Ok(Entered { entry, memory, guest_decompresses: true })
}

/// Loads the vmlinux that is in the payload, and moves it if that is asked for and possible.
fn load_payload(
    ram: &Ram<'_>,
    request: &Request<'_>,
    header: &mut SetupHeader,
    packed: Packed<'_>,
) -> Result<Entered, BootError> {
    let inner = format!("{} (its payload)", request.kernel_name);
    let top = initrd::lowest_address(ram, &request.initrd, header);
    let drawn = request.kaslr.and_then(|random| Shift::draw(header, request.cmdline, top, random));
    let shift = drawn.unwrap_or_default();
    let manner = Manner { limit: header.init_size.into(), shift: shift.physical, with_rest: drawn.is_some() };
    // The stub's stack and the kernel's early page tables are counted in init_size, so it may be more than the segments; it is
    // no less than the payload, which the stub puts there too.
    let wanted = ram.kernel_range(&inner, header.pref_address + shift.physical, header.init_size.into())?;
    let loaded = match packed {
        Packed::Stream(reader) => elf::load(ram, &inner, &mut Stream::new(&inner, reader), manner)?,
        Packed::Zstd(frame) => {
            let unpacked = ram.fill(&wanted, |room| zstd::decompress(frame, room))?;
            let len = unpacked.map_err(|source| BootError::Zstd { name: inner.clone(), source })? as u64;
            let place = wanted.start..wanted.start + len;
            elf::load(ram, &inner, &mut Unpacked { name: &inner, ram, place }, manner)?
        }
    };
    let memory = wanted.start.min(loaded.memory.start)..wanted.end.max(loaded.memory.end);
    if let Some(relocations) = Relocations::parse(&loaded.rest) {
        relocations.apply(ram, &inner, &loaded.memory, shift)?;
        header.set_kaslr_flag();
    }
    Ok(Entered { entry: loaded.entry, memory, guest_decompresses: false })
}

#[cfg(test)]
mod tests;
