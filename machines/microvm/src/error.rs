//! Why a machine cannot be built or cannot go on.

use std::path::PathBuf;

use thiserror::Error;

/// Any error of a variant of the board, which has its own type.
pub type VariantError = Box<dyn std::error::Error + Send + Sync>;

/// Why a machine cannot be built or cannot go on.
#[derive(Debug, Error)]
pub enum MachineError {
    /// Memory that no board can have.
    #[error("memory of {memory} bytes is impossible: it must be at least {least} bytes and a multiple of {page}")]
    MemorySize {
        /// What was asked for.
        memory: u64,
        /// The least that a kernel's boot structures fit into.
        least: u64,
        /// The page size.
        page: u64,
    },
    /// An option that does nothing without ACPI.
    #[error("{option} = on needs acpi = on")]
    NeedsAcpi {
        /// The option.
        option: &'static str,
    },
    /// A second IOAPIC beside the kernel's.
    #[error(
        "ioapic2 = on does not go with kernel-irqchip = on: the kernel has one IOAPIC, and never says when a level-triggered interrupt of another has ended; \
         use kernel-irqchip = split"
    )]
    KernelHasOneIoapic,
    /// More processors than an MP table can name.
    #[error(
        "{cpus} vCPUs need acpi = on: without it the guest is told of at most {most}, as local APIC IDs of an MP table have eight bits"
    )]
    MpTableCpus {
        /// How many there are to be.
        cpus: u32,
        /// How many the table can name.
        most: u32,
    },
    /// More virtio devices than transports.
    #[error("{wanted} virtio devices do not fit: this board has {most} transports; acpi = on with ioapic2 = on has 24")]
    TooManyDevices {
        /// How many there are to be.
        wanted: usize,
        /// How many fit.
        most: u32,
    },
    /// An enclave image on a machine that boots kernels.
    #[error(
        "{path} is an Enclave Image (EIF), which the microvm machine does not boot; \
         type: vmm --machine nitro-enclave --kernel {path}"
    )]
    EifForMicrovm {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {what} {path}")]
    File {
        /// `"kernel"` or `"initrd"`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The tables do not fit where they belong.
    #[error("{what} of {size} bytes are more than the {room} bytes that are there for them; use fewer vCPUs")]
    TableSize {
        /// Which tables.
        what: &'static str,
        /// Their size.
        size: usize,
        /// What there is.
        room: u64,
    },
    /// The host has no thread left.
    #[error("{what} failed")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Two devices at one address: a mistake in this crate's tables.
    #[error(transparent)]
    Overlap(#[from] bus::OverlapError),
    /// The vsock's sockets on the host cannot be had.
    #[error("the vsock cannot be connected to the host")]
    Vsock(#[from] vsock::VsockError),
    /// The process that is to be the vsock's other side cannot be had.
    #[error(transparent)]
    VhostUser(#[from] virtio::vhost_user_vsock::VhostUserError),
    /// The event loop cannot be started.
    #[error(transparent)]
    EventLoop(#[from] event_loop::EventLoopError),
    /// Guest RAM cannot be had.
    #[error(transparent)]
    Memory(#[from] guest_memory::MemoryError),
    /// The image cannot be started.
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    /// The processor backend failed.
    #[error(transparent)]
    Accel(#[from] accel::AccelError),
    /// The variant of the board refused.
    #[error(transparent)]
    Variant(VariantError),
}

impl From<VariantError> for MachineError {
    /// A variant's error; one of ours that a variant passed on stays what it was.
    fn from(error: VariantError) -> Self {
        match error.downcast::<Self>().map(|ours| *ours) {
            Ok(ours) => ours,
            Err(theirs) => theirs.downcast::<boot::BootError>().map_or_else(Self::Variant, |boot| Self::Boot(*boot)),
        }
    }
}
