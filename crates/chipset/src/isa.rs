//! Eight-bit chips on the port bus: a wider access is a series of byte cycles at consecutive ports.

/// Reads byte by byte.
pub(crate) fn read_bytes(offset: u16, data: &mut [u8], mut read: impl FnMut(u16) -> u8) {
    for (byte, port) in data.iter_mut().zip(offset..) {
        *byte = read(port);
    }
}

/// Writes byte by byte.
pub(crate) fn write_bytes(offset: u16, data: &[u8], mut write: impl FnMut(u16, u8)) {
    for (&byte, port) in data.iter().zip(offset..) {
        write(port, byte);
    }
}
