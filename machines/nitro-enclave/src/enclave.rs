//! The enclave as a variant of the microvm board.

use std::fs::File;
use std::io::{BufReader, Cursor};

use attestation::{Authority, Signer};
use eif::{BootImage, Measurements};
use microvm::{Blob, ImageKind, Options, Payload, Variant, VariantError};
use nsm::{Attestor, BootMeasurements, ModuleId, Nsm, PcrBank};
use tracing::{info, warn};
use virtio::VirtioDevice;
use virtio::nsm::NsmDevice;

use crate::authority::OnFirstUse;
use crate::{AuthorityChoice, EnclaveError, EnclaveOptions};

/// What nitro-enclave answers to the board: it takes EIFs only, measures them, and adds an NSM.
#[derive(Debug)]
pub struct Enclave {
    options: EnclaveOptions,
    /// The module's name, where the user gave one.
    id: Option<ModuleId>,
    measured: Option<Measurements>,
    /// The authority, where it is not the user's own, which is made on first use.
    authority: Option<Authority>,
}

impl Enclave {
    /// An enclave with these options.
    ///
    /// # Errors
    /// [`EnclaveError::ModuleId`] when the user's id is not of an NSM's form, [`EnclaveError::Authority`] when the authority that the user
    /// names is not to be had.
    pub fn new(options: EnclaveOptions) -> Result<Self, EnclaveError> {
        let id = options.id.as_deref().map(ModuleId::parse).transpose()?;
        let authority = match &options.authority {
            AuthorityChoice::User => None,
            choice => Some(choice.load()?),
        };
        Ok(Self { options, id, measured: None, authority })
    }

    /// The image with the user's initrd and command line appended.
    fn read(options: &Options) -> Result<BootImage, EnclaveError> {
        let path = &options.kernel;
        let file = |source| EnclaveError::File { what: "image", path: path.clone(), source };
        let reader = BufReader::new(File::open(path).map_err(file)?);
        let mut image = BootImage::read(reader).map_err(|source| EnclaveError::Image { path: path.clone(), source })?;
        if let Some(initrd) = &options.initrd {
            let file = |source| EnclaveError::File { what: "initrd", path: initrd.clone(), source };
            image.append_ramdisk(File::open(initrd).map_err(file)?).map_err(file)?;
        }
        let unmeasured = image.append_cmdline(&options.cmdline);
        for warning in image.warnings.iter().chain(&unmeasured) {
            warn!("{}: {warning}", path.display());
        }
        Ok(image)
    }

    /// The module's name: the user's, or one of the parent's instance and the image, so that it says which enclave answers.
    pub(crate) fn module_id(&self, measured: &Measurements) -> ModuleId {
        if let Some(id) = &self.id {
            return id.clone();
        }
        let enclave = measured.pcr0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // QEMU takes any text for the parent's id; one that no instance can have is measured, but cannot be part of a name.
        ModuleId::new(&self.options.parent_id, enclave).unwrap_or_else(|_| ModuleId::with_default_instance(enclave))
    }

    /// The PCR bank as the hypervisor leaves it.
    pub(crate) fn boot_bank(&self, measured: &Measurements) -> PcrBank {
        if self.options.debug_mode {
            return PcrBank::debug_boot();
        }
        let Measurements { pcr0, pcr1, pcr2, pcr8 } = *measured;
        let mut measurements = BootMeasurements::new(pcr0, pcr1, pcr2).with_instance_id(&self.options.parent_id);
        if let Some(role) = &self.options.parent_role {
            measurements = measurements.with_role_arn(role);
        }
        if let Some(certificate) = pcr8 {
            measurements = measurements.with_certificate(certificate);
        }
        PcrBank::boot(&measurements)
    }
}

fn hex(digest: &eif::Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Variant for Enclave {
    fn check_image(&self, options: &Options, head: &[u8]) -> Result<(), VariantError> {
        let path = options.kernel.clone();
        if eif::is_eif(head) {
            return Ok(());
        }
        let error = match ImageKind::detect(head) {
            Some(ImageKind::BzImage) => EnclaveError::NotAnEif { path, found: "a Linux bzImage" },
            Some(ImageKind::Elf) => EnclaveError::NotAnEif { path, found: "an ELF file" },
            None => EnclaveError::UnknownImage { path, found: head.iter().take(4).copied().collect() },
        };
        Err(error.into())
    }

    fn load(&mut self, options: &Options) -> Result<Payload, VariantError> {
        let image = Self::read(options)?;
        let measured = image.measurements();
        match &self.measured {
            // The module keeps the measurements of the first start, so a reset must not boot anything else.
            Some(first) if *first != measured => {
                return Err(EnclaveError::Changed { path: options.kernel.clone() }.into());
            }
            Some(_) => {}
            None => {
                for (pcr, digest) in [(0, measured.pcr0), (1, measured.pcr1), (2, measured.pcr2)] {
                    info!("PCR{pcr}: {}", hex(&digest));
                }
                self.measured = Some(measured);
            }
        }
        let name = options.kernel.display();
        // One part, as the AWS hypervisor does: archives are concatenated without padding.
        let initrd = Blob {
            name: format!("{name} (its ramdisks)"),
            len: image.initrd.len() as u64,
            reader: Box::new(Cursor::new(image.initrd)),
        };
        Ok(Payload {
            kernel_name: format!("{name} (its kernel)"),
            kernel: image.kernel,
            initrd: vec![initrd],
            cmdline: image.cmdline,
        })
    }

    fn devices(&mut self) -> Result<Vec<Box<dyn VirtioDevice>>, VariantError> {
        // Without a measured image the board would have stopped before.
        let Some(measured) = &self.measured else { return Ok(Vec::new()) };
        let form = self.options.document_map;
        let attestor: Box<dyn Attestor> = match &self.authority {
            Some(authority) => Box::new(Signer::new(authority.clone(), form)),
            None => Box::new(OnFirstUse::new(form)),
        };
        let module = Nsm::new(self.module_id(measured), self.boot_bank(measured)).with_attestor(attestor);
        Ok(vec![Box::new(NsmDevice::new(module))])
    }

    /// Nothing beside what [`Enclave::load`] checks: the NSM puts its PCRs back when the board power-cycles its devices.
    fn reset(&mut self) {}
}
