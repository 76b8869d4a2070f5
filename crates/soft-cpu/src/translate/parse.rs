//! The parts of an instruction's encoding in 64- and 32-bit code, and what the translator knows of its operands.
//!
//! Only what has a template is described here: the general-purpose instructions of the one-byte and the 0F opcode maps. Everything else is executed
//! by the interpreter's handler.

/// The parts of an instruction with a ModRM byte or a register in its opcode.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    /// LOCK.
    pub(super) lock: bool,
    /// Operand-size prefix.
    pub(super) word: bool,
    /// F2 or F3, zero for none.
    pub(super) repeat: u8,
    /// The REX prefix, zero for none.
    pub(super) rex: u8,
    /// The 0F map.
    pub(super) two_byte: bool,
    /// The opcode.
    pub(super) opcode: u8,
    /// ModRM, with reg and rm extended by REX.
    pub(super) reg: u8,
    /// The register in rm, if `memory` is not set.
    pub(super) rm: u8,
    /// rm is memory.
    pub(super) memory: bool,
    /// The immediate's bytes.
    pub(super) immediate: &'a [u8],
}

/// Whether an operand is read, written or both.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    pub(super) read: bool,
    pub(super) write: bool,
}

/// Not an operand: the field extends the opcode.
pub(super) const NOT: Access = Access { read: false, write: false };
/// Read.
pub(super) const READ: Access = Access { read: true, write: false };
/// Written.
pub(super) const WRITE: Access = Access { read: false, write: true };
/// Read and written.
pub(super) const BOTH: Access = Access { read: true, write: true };

/// What a template does with ModRM's operands.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    pub(super) reg: Access,
    pub(super) rm: Access,
    /// `reg` is an 8-bit register.
    pub(super) byte_reg: bool,
    /// `rm` is an 8-bit operand.
    pub(super) byte_rm: bool,
    /// The count may be zero, and then the flags stay.
    pub(super) by_cl: bool,
}

const fn operands(reg: Access, rm: Access, byte: bool) -> Operands {
    Operands { reg, rm, byte_reg: byte, byte_rm: byte, by_cl: false }
}

/// Takes an encoding of 64-bit code, or else of 32-bit code with addresses of 32 bits, apart; `None` if it has a prefix or an opcode map that no template knows.
/// Short forms that have no template, or that 64-bit code does not have, become the long ones that do the same.
pub(super) fn parse(bytes: &[u8], code64: bool) -> Option<Parts<'_>> {
    let mut parts = Parts {
        lock: false,
        word: false,
        repeat: 0,
        rex: 0,
        two_byte: false,
        opcode: 0,
        reg: 0,
        rm: 0,
        memory: false,
        immediate: &[],
    };
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            0x66 => parts.word = true,
            0xf0 => parts.lock = true,
            prefix @ (0xf2 | 0xf3) => parts.repeat = prefix,
            // The decoder has dealt with segments and addresses.
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
            _ => break,
        }
        at += 1;
    }
    if code64 && *bytes.get(at)? & 0xf0 == 0x40 {
        parts.rex = bytes[at];
        at += 1;
    }
    if *bytes.get(at)? == 0x0f {
        parts.two_byte = true;
        at += 1;
    }
    parts.opcode = *bytes.get(at)?;
    at += 1;
    match parts.opcode {
        // INC and DEC of a register, in 32-bit code.
        0x40..=0x4f if !code64 && !parts.two_byte => {
            let digit = parts.opcode >> 3 & 1;
            return Some(Parts { opcode: 0xff, reg: digit, rm: parts.opcode & 7, ..parts });
        }
        // MOV between the accumulator and an address in the instruction.
        0xa0..=0xa3 if !parts.two_byte => {
            let opcode = [0x8a, 0x8b, 0x88, 0x89][usize::from(parts.opcode & 3)];
            return Some(Parts { opcode, memory: true, ..parts });
        }
        _ => {}
    }
    if has_modrm(parts.two_byte, parts.opcode) {
        let modrm = *bytes.get(at)?;
        at += 1;
        parts.reg = modrm >> 3 & 7 | (parts.rex & 4) << 1;
        let (mode, rm) = (modrm >> 6, modrm & 7);
        if mode == 3 {
            parts.rm = rm | (parts.rex & 1) << 3;
        } else {
            parts.memory = true;
            let mut displacement = match mode {
                1 => 1,
                2 => 4,
                _ if rm == 5 => 4,
                _ => 0,
            };
            if rm == 4 {
                if mode == 0 && *bytes.get(at)? & 7 == 5 {
                    displacement = 4;
                }
                at += 1;
            }
            at += displacement;
        }
    }
    parts.immediate = bytes.get(at..)?;
    Some(parts)
}

/// Whether an opcode that may have a template has a ModRM byte.
fn has_modrm(two_byte: bool, opcode: u8) -> bool {
    if two_byte {
        return !matches!(opcode, 0xc8..=0xcf | 0x80..=0x8f);
    }
    match opcode {
        0x00..=0x3f => opcode & 7 < 4,
        0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xf6 | 0xf7 | 0xfe | 0xff => true,
        _ => false,
    }
}

/// What the instruction does with its ModRM operands; `None` if it has no template.
pub(super) fn describe(parts: &Parts<'_>) -> Option<Operands> {
    let opcode = parts.opcode;
    let byte = opcode & 1 == 0;
    let digit = parts.reg & 7;
    // Of the prefixes F2 and F3 these opcodes know none but those of POPCNT, TZCNT and LZCNT.
    if parts.repeat != 0 && !(parts.two_byte && matches!(opcode, 0xb8 | 0xbc | 0xbd) && parts.repeat == 0xf3) {
        return None;
    }
    if parts.two_byte {
        return describe_two_byte(parts, byte, digit);
    }
    Some(match opcode {
        0x00..=0x3f if opcode & 7 < 4 => {
            let compare = opcode >> 3 == 7;
            let to_reg = opcode & 2 != 0;
            let target = if compare { READ } else { BOTH };
            if to_reg { operands(target, READ, byte) } else { operands(READ, target, byte) }
        }
        0x63 if parts.rex & 8 != 0 => operands(WRITE, READ, false),
        0x69 | 0x6b => operands(WRITE, READ, false),
        0x80 | 0x81 | 0x83 => operands(NOT, if digit == 7 { READ } else { BOTH }, byte),
        0x84 | 0x85 => operands(READ, READ, byte),
        0x86 | 0x87 => operands(BOTH, BOTH, byte),
        0x88 | 0x89 => operands(READ, WRITE, byte),
        0x8a | 0x8b => operands(WRITE, READ, byte),
        0xc0 | 0xc1 => {
            let mask = if parts.rex & 8 != 0 { 63 } else { 31 };
            if parts.immediate.first()? & mask == 0 {
                return None;
            }
            // A rotation through CF may come full circle, and then the flags stay.
            Operands { by_cl: matches!(digit, 2 | 3), ..operands(NOT, BOTH, byte) }
        }
        0xd0 | 0xd1 => operands(NOT, BOTH, byte),
        0xd2 | 0xd3 => Operands { by_cl: true, ..operands(NOT, BOTH, byte) },
        0xc6 | 0xc7 if digit == 0 => operands(NOT, WRITE, byte),
        0xf6 | 0xf7 => match digit {
            0 | 1 => operands(NOT, READ, byte),
            2 | 3 => operands(NOT, BOTH, byte),
            // MUL and IMUL with RDX:RAX, which are themselves.
            4 | 5 => operands(NOT, READ, byte),
            _ => return None,
        },
        0xfe | 0xff if digit < 2 => operands(NOT, BOTH, byte),
        _ => return None,
    })
}

fn describe_two_byte(parts: &Parts<'_>, byte: bool, digit: u8) -> Option<Operands> {
    Some(match parts.opcode {
        0x40..=0x4f => operands(BOTH, READ, false),
        0x90..=0x9f => operands(NOT, WRITE, true),
        // With a bit offset in a register, memory reaches beyond the operand.
        0xa3 if !parts.memory => operands(READ, READ, false),
        0xab | 0xb3 | 0xbb if !parts.memory => operands(READ, BOTH, false),
        0xba if digit >= 4 => operands(NOT, if digit == 4 { READ } else { BOTH }, false),
        0xa4 | 0xac if !parts.word => {
            let mask = if parts.rex & 8 != 0 { 63 } else { 31 };
            if parts.immediate.first()? & mask == 0 {
                return None;
            }
            operands(READ, BOTH, false)
        }
        0xa5 | 0xad if !parts.word => Operands { by_cl: true, ..operands(READ, BOTH, false) },
        0xaf => operands(BOTH, READ, false),
        0xb0 | 0xb1 => operands(READ, BOTH, byte),
        0xc0 | 0xc1 => operands(BOTH, BOTH, byte),
        0xb6 | 0xbe => Operands { byte_rm: true, ..operands(WRITE, READ, false) },
        0xb7 | 0xbf => operands(WRITE, READ, false),
        0xb8 if parts.repeat == 0xf3 => operands(WRITE, READ, false),
        // The destination stays if the source is zero.
        0xbc | 0xbd => operands(BOTH, READ, false),
        _ => return None,
    })
}
