//! The virtio devices that drivers found, and the random numbers of `/dev/hwrng`.

use std::fs::{File, read_dir, read_link};
use std::io::Read;
use std::path::Path;

use crate::console::Console;
use crate::system::read_line;

const VIRTIO_BUS: &str = "/sys/bus/virtio/devices";
const HWRNG: &str = "/dev/hwrng";
const HWRNG_STATE: &str = "/sys/class/misc/hw_random";

/// How much of the random number generator is shown.
const RANDOM_BYTES: usize = 32;

/// What is on the virtio bus, and what the random number generator gives.
pub(crate) struct Devices {
    virtio: Vec<String>,
    /// The generator behind [`HWRNG`].
    pub(crate) hwrng_current: String,
    hwrng_available: String,
    /// 32 bytes in hexadecimal, or why there are none.
    pub(crate) random: Result<String, String>,
}

impl Devices {
    /// Looks at the buses and reads the random bytes.
    pub(crate) fn read() -> Self {
        let mut virtio: Vec<String> = read_dir(VIRTIO_BUS)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(describe_virtio(&entry.ok()?.path())))
            .collect();
        virtio.sort();
        Self {
            virtio,
            hwrng_current: read_line(&format!("{HWRNG_STATE}/rng_current")),
            hwrng_available: read_line(&format!("{HWRNG_STATE}/rng_available")),
            random: read_random(),
        }
    }

    /// Reports every device and the random bytes.
    pub(crate) fn report(&self, console: &mut Console) {
        for device in &self.virtio {
            console.report("virtio", device);
        }
        console.report("hwrng_available", &self.hwrng_available);
        console.report("hwrng_current", &self.hwrng_current);
        match &self.random {
            Ok(bytes) => console.report("hwrng", bytes),
            Err(error) => console.report("hwrng_error", error),
        }
    }
}

/// Name, device id in decimal (virtio 1.3, section 5) and driver of one device.
fn describe_virtio(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let id = read_line(&path.join("device").to_string_lossy());
    let id = id.strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let driver = read_link(path.join("driver"))
        .ok()
        .and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "none".to_owned());
    format!("{name} id={id} driver={driver}")
}

fn read_random() -> Result<String, String> {
    let mut bytes = [0; RANDOM_BYTES];
    File::open(HWRNG).and_then(|mut file| file.read_exact(&mut bytes)).map_err(|error| format!("{HWRNG}: {error}"))?;
    Ok(hex(&bytes))
}

/// Bytes in hexadecimal, lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
