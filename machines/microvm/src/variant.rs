//! What distinguishes one machine type on this board from another: four questions, and plain microvm's answers.

use std::fs::File;
use std::io::Read;

use boot::{Blob, BootError, ImageKind};
use virtio::VirtioDevice;

use crate::{MachineError, Options, VariantError};

/// Magic of an Enclave Image, known here only to refuse it well.
const EIF_MAGIC: &[u8] = b".eif";

/// How many of an image's first bytes [`Variant::check_image`] gets: enough for every magic.
pub const IMAGE_HEAD: usize = 1024;

/// A kernel with its ramdisk and command line, wherever they came from.
pub struct Payload {
    /// The kernel's name in errors.
    pub kernel_name: String,
    /// A bzImage or an ELF vmlinux.
    pub kernel: Vec<u8>,
    /// The initial ramdisk's parts, in order.
    pub initrd: Vec<Blob<'static>>,
    /// The kernel's command line, without what the board adds.
    pub cmdline: String,
}

/// What a machine type answers to the board.
///
/// The board calls [`Variant::check_image`], [`Variant::load`] and [`Variant::devices`] once each, in that order, when it is built, and
/// [`Variant::reset`] and again [`Variant::load`] at each reset of the machine.
pub trait Variant: Send {
    /// Does this image belong to me? `head` is its first bytes, at most [`IMAGE_HEAD`].
    ///
    /// # Errors
    /// A message that names the file, says what it is, and what to type instead.
    fn check_image(&self, options: &Options, head: &[u8]) -> Result<(), VariantError>;

    /// Load it.
    ///
    /// # Errors
    /// Whatever is wrong with the files.
    fn load(&mut self, options: &Options) -> Result<Payload, VariantError>;

    /// Which devices do you add? They get the first transports.
    ///
    /// # Errors
    /// Whatever keeps a device from being made.
    fn devices(&mut self) -> Result<Vec<Box<dyn VirtioDevice>>, VariantError> {
        Ok(Vec::new())
    }

    /// What do you do on reset? All devices have been power-cycled already.
    fn reset(&mut self) {}
}

/// Plain microvm: a kernel, an initrd and a command line of the user's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Variant for Plain {
    fn check_image(&self, options: &Options, head: &[u8]) -> Result<(), VariantError> {
        if head.starts_with(EIF_MAGIC) {
            return Err(MachineError::EifForMicrovm { path: options.kernel.clone() }.into());
        }
        // Before the whole file is read: it may be anything, and of any size.
        match ImageKind::detect(head) {
            Some(_) => Ok(()),
            None => Err(BootError::UnknownImage { name: options.kernel.display().to_string() }.into()),
        }
    }

    fn load(&mut self, options: &Options) -> Result<Payload, VariantError> {
        let path = &options.kernel;
        let file = |source| MachineError::File { what: "kernel", path: path.clone(), source };
        Ok(Payload {
            kernel_name: path.display().to_string(),
            kernel: std::fs::read(path).map_err(file)?,
            initrd: open_initrd(options)?.into_iter().collect(),
            cmdline: options.cmdline.clone(),
        })
    }
}

/// The user's initrd as a part to be loaded, if there is one.
///
/// # Errors
/// [`MachineError::File`] when it cannot be opened.
pub fn open_initrd(options: &Options) -> Result<Option<Blob<'static>>, MachineError> {
    let Some(path) = &options.initrd else { return Ok(None) };
    let error = |source| MachineError::File { what: "initrd", path: path.clone(), source };
    let file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() {
        // Its size must be known before it can be placed, and a pipe has none.
        return Err(error(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")));
    }
    Ok(Some(Blob { name: path.display().to_string(), len: metadata.len(), reader: Box::new(file) }))
}

/// The first bytes of the user's image.
pub(crate) fn image_head(options: &Options) -> Result<Vec<u8>, MachineError> {
    let error = |source| MachineError::File { what: "kernel", path: options.kernel.clone(), source };
    let mut head = Vec::new();
    File::open(&options.kernel).map_err(error)?.take(IMAGE_HEAD as u64).read_to_end(&mut head).map_err(error)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enclave_image_is_refused_with_what_to_type_instead() {
        let error = Plain.check_image(&Options::new("demo.eif"), b".eif\0\x04").unwrap_err().to_string();
        assert!(error.contains("demo.eif is an Enclave Image (EIF)"), "{error}");
        assert!(error.contains("--machine nitro-enclave --kernel demo.eif"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_by_its_first_bytes() {
        let error = Plain.check_image(&Options::new("/dev/zero"), &[0; IMAGE_HEAD]).unwrap_err().to_string();
        assert!(error.starts_with("/dev/zero is neither"), "{error}");
    }

    #[test]
    fn an_initrd_without_a_size_is_refused() {
        let options = Options { initrd: Some("/dev/null".into()), ..Options::new("bzImage") };
        assert_eq!(open_initrd(&options).err().unwrap().to_string(), "cannot read initrd /dev/null");
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let error = image_head(&Options::new("/nonexistent/bzImage")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read kernel /nonexistent/bzImage");
    }
}
