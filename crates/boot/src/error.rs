//! Why a kernel cannot be started.

use thiserror::Error;

/// Why a kernel cannot be started. Every variant names the image and shows the values that collide.
#[derive(Debug, Error)]
pub enum BootError {
    /// Neither a bzImage nor an ELF file.
    #[error("{name} is neither a Linux bzImage nor an ELF vmlinux")]
    UnknownImage {
        /// The image.
        name: String,
    },
    /// The file ends before what its header announces.
    #[error("{name} is truncated: {what} needs {expected} bytes, but the file has {found}")]
    Truncated {
        /// The image.
        name: String,
        /// What is cut off.
        what: &'static str,
        /// Size that the header announces, from the file's start.
        expected: u64,
        /// The file's size.
        found: u64,
    },
    /// A kernel older than the 64-bit boot protocol.
    #[error("{name} speaks boot protocol {}.{:02}, but 2.12 (Linux 3.8) is needed", found >> 8, found & 0xff)]
    OldProtocol {
        /// The image.
        name: String,
        /// `major << 8 | minor`.
        found: u16,
    },
    /// A kernel without the 64-bit entry point.
    #[error("{name} has no 64-bit entry point (xloadflags {found:#x}); only x86-64 kernels can be booted")]
    NotSixtyFourBit {
        /// The image.
        name: String,
        /// Its xloadflags.
        found: u16,
    },
    /// The bzImage's payload lies outside the file.
    #[error("{name}: payload of {len} bytes at {offset:#x} lies outside the file of {size} bytes")]
    Payload {
        /// The image.
        name: String,
        /// From the file's start.
        offset: u64,
        /// Its length.
        len: u64,
        /// The file's size.
        size: u64,
    },
    /// The image wants memory that the machine does not have.
    #[error(
        "{name} needs memory {start:#x}..{end:#x}, but the machine has RAM {ram_start:#x}..{ram_end:#x} there; give it more memory"
    )]
    KernelDoesNotFit {
        /// The image.
        name: String,
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
        /// First RAM address that a kernel may use.
        ram_start: u64,
        /// Where that RAM ends.
        ram_end: u64,
    },
    /// An ELF file that is no 64-bit x86 executable.
    #[error("{name}: ELF {field} is {found:#x}, expected {expected:#x}")]
    ElfField {
        /// The image.
        name: String,
        /// Which field of its header.
        field: &'static str,
        /// What it says.
        found: u64,
        /// What a 64-bit x86 kernel says.
        expected: u64,
    },
    /// An ELF program header that cannot be.
    #[error("{name}: ELF segment {index} {what}")]
    ElfSegment {
        /// The image.
        name: String,
        /// Number of its program header.
        index: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The entry point is in no segment.
    #[error("{name}: ELF entry point {entry:#x} lies in no segment")]
    ElfEntry {
        /// The image.
        name: String,
        /// The entry point.
        entry: u64,
    },
    /// A kernel's relocation leads out of the kernel.
    #[error(
        "{name}: the relocation of linear address {linear:#x} lies outside the kernel, which is at {:#x}..{:#x}; the image is damaged",
        kernel.start, kernel.end
    )]
    Relocation {
        /// The image.
        name: String,
        /// The linear address, where the kernel was linked.
        linear: u64,
        /// Where the kernel lies in RAM.
        kernel: std::ops::Range<u64>,
    },
    /// The ramdisk does not fit beside the kernel.
    #[error(
        "an initial ramdisk of {len} bytes does not fit between the kernel's end {kernel_end:#x} and {top:#x}; \
         give the machine at least {needed_mib} MiB of memory"
    )]
    InitrdDoesNotFit {
        /// Its size in bytes.
        len: u64,
        /// Where the kernel's memory ends.
        kernel_end: u64,
        /// The address that the ramdisk may not pass.
        top: u64,
        /// Memory that would do, in MiB.
        needed_mib: u64,
    },
    /// The ramdisk is larger than any kernel can take.
    #[error("an initial ramdisk of {len} bytes can never fit: the kernel takes none past {max:#x}")]
    InitrdTooLarge {
        /// Its size in bytes.
        len: u64,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, but this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The kernel's limit.
        max: u64,
    },
    /// The command line contains a NUL, which would end it.
    #[error("the kernel command line has a NUL byte at position {position}")]
    CmdlineNul {
        /// Where, from 0.
        position: usize,
    },
    /// More memory ranges than the zero page holds.
    #[error("{found} memory ranges are too many for the boot parameters, which hold {max}")]
    E820 {
        /// How many there are.
        found: usize,
        /// How many fit.
        max: usize,
    },
    /// An image could not be read, or its compression is damaged.
    #[error("cannot read {name}")]
    Read {
        /// The image.
        name: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A zstd payload is damaged, or larger than the kernel says.
    #[error("cannot decompress {name}")]
    Zstd {
        /// The image.
        name: String,
        /// The reason.
        #[source]
        source: crate::zstd::ZstdError,
    },
    /// The boot structures themselves do not fit.
    #[error("the machine has no memory at {start:#x}..{end:#x}, where boot structures belong; give it at least 1 MiB")]
    NoMemory {
        /// First address.
        start: u64,
        /// Address after the last.
        end: u64,
    },
}
