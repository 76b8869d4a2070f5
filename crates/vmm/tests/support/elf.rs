//! The smallest `vmlinux`: one segment, entered at its start in 64-bit mode.

/// Where the guest is loaded, in bytes.
pub(crate) const ENTRY: u64 = 0x10_0000;

/// An ELF file that is entered in 64-bit mode at `code`.
pub(crate) fn elf(code: &[u8]) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let size = code.len() as u64;
    // ET_EXEC for x86-64, version 1, entry, program headers at 0x40, no section headers, one PT_LOAD that may be read, written and executed.
    [2u16, 62, 1, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [ENTRY, 0x40, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0u16, 0, 0x40, 0x38, 1, 0x40, 0, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [1u16, 0, 7, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0x78, ENTRY, ENTRY, size, size, 0x1000].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}
