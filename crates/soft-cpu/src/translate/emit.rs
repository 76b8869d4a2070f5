//! An emitter of host instructions (x86-64), only of the forms that the translator uses (SDM vol. 2).

use std::arch::is_x86_feature_detected;

/// Host registers by encoding.
pub(super) mod host {
    /// RAX.
    pub(crate) const RAX: u8 = 0;
    /// RSP: the host's own stack.
    pub(crate) const RSP: u8 = 4;
    /// RBP.
    pub(crate) const RBP: u8 = 5;
    /// Where the guest's RSP is kept.
    pub(crate) const GUEST_RSP: u8 = 9;
    /// First scratch register: addresses, and operands that are not pinned.
    pub(crate) const A: u8 = 10;
    /// Second scratch register.
    pub(crate) const B: u8 = 11;
}

/// Operand `rm` of an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rm {
    /// A register.
    Reg(u8),
    /// Memory at a register.
    At(u8),
    /// Memory at a register plus a displacement.
    Disp(u8, i32),
    /// Memory at base + (index << shift) + displacement; `None` for no base or index.
    Sib(Option<u8>, Option<u8>, u8, i32),
    /// The [`Core`](crate::core::Core), where GS begins, plus a displacement.
    Core(i32),
    /// Likewise, plus a register.
    CoreAt(u8, i32),
}

/// An instruction with a ModRM byte.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// LOCK.
    pub(super) lock: bool,
    /// 66, F2 or F3, zero for none.
    pub(super) prefix: u8,
    /// 64-bit operands.
    pub(super) wide: bool,
    /// A REX prefix even if no bit of it is set: SPL, BPL, SIL, DIL.
    pub(super) rex: bool,
    /// The 0F map.
    pub(super) two_byte: bool,
    /// The opcode.
    pub(super) opcode: u8,
}

impl Form {
    /// A one-byte opcode with 32-bit operands.
    pub(super) const fn short(opcode: u8) -> Self {
        Self { lock: false, prefix: 0, wide: false, rex: false, two_byte: false, opcode }
    }

    /// A one-byte opcode with 64-bit operands.
    pub(super) const fn long(opcode: u8) -> Self {
        Self { wide: true, ..Self::short(opcode) }
    }
}

/// A jump that is emitted and not yet aimed: the position of its 32-bit displacement.
#[derive(Clone, Copy)]
pub(super) struct Jump(pub(super) usize);

/// Code that will run at `base`, and from some point on elsewhere.
pub(super) struct Emitter {
    pub(super) code: Vec<u8>,
    base: u64,
    /// Where the code begins that is out of the way, and its address.
    cold: Option<(usize, u64)>,
    /// How often the first scratch register may have been written, but by [`Emitter::bytes`].
    pub(super) writes_of_a: u32,
}

impl Emitter {
    /// Nothing yet, to run at `base`.
    pub(super) fn new(base: u64) -> Self {
        Self { code: Vec::with_capacity(1024), base, cold: None, writes_of_a: 0 }
    }

    /// What is emitted from here on will run at `base`. What was emitted before cannot run into it.
    pub(super) fn go_cold(&mut self, base: u64) {
        self.cold = Some((self.code.len(), base));
    }

    /// The hot and the cold code.
    pub(super) fn into_parts(mut self) -> (Vec<u8>, Vec<u8>) {
        let cold = self.cold.map(|(from, _)| self.code.split_off(from)).unwrap_or_default();
        (self.code, cold)
    }

    /// The address of the position `at`.
    pub(super) fn address(&self, at: usize) -> u64 {
        match self.cold {
            Some((from, base)) if at >= from => base + (at - from) as u64,
            _ => self.base + at as u64,
        }
    }

    /// The address of what is emitted next.
    pub(super) fn here(&self) -> u64 {
        self.address(self.code.len())
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// An instruction with ModRM; immediates follow by [`Emitter::bytes`].
    pub(super) fn modrm(&mut self, form: Form, reg: u8, rm: Rm) {
        self.note(reg, rm);
        let (x, b) = Self::extensions(rm);
        self.segment(rm);
        if form.lock {
            self.code.push(0xf0);
        }
        if form.prefix != 0 {
            self.code.push(form.prefix);
        }
        let rex = 0x40 | u8::from(form.wide) << 3 | (reg >> 3) << 2 | x << 1 | b;
        if rex != 0x40 || form.rex {
            self.code.push(rex);
        }
        if form.two_byte {
            self.code.push(0x0f);
        }
        self.code.push(form.opcode);
        self.operand(reg, rm);
    }

    /// A VEX instruction with ModRM: its opcode map (1 for 0F, 2 for 0F38, 3 for 0F3A), its implied prefix (0 for none, 1 for 66, 2 for F3, 3 for F2),
    /// its second register, whether it works on 256 bits, and W clear.
    #[expect(clippy::too_many_arguments, reason = "the fields of one prefix")]
    pub(super) fn vex(&mut self, map: u8, prefix: u8, second: u8, wide: bool, opcode: u8, reg: u8, rm: Rm) {
        self.note(reg, rm);
        let (x, b) = Self::extensions(rm);
        self.segment(rm);
        self.bytes(&[
            0xc4,
            (!reg >> 3 & 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | map,
            (!second & 15) << 3 | u8::from(wide) << 2 | prefix,
            opcode,
        ]);
        self.operand(reg, rm);
    }

    /// Counts an instruction that may write the first scratch register: one that names it, not only as a part of an address.
    fn note(&mut self, reg: u8, rm: Rm) {
        self.writes_of_a += u32::from(reg == host::A || rm == Rm::Reg(host::A));
    }

    /// The segment prefix, if the operand has one.
    fn segment(&mut self, rm: Rm) {
        if matches!(rm, Rm::Core(_) | Rm::CoreAt(..)) {
            self.code.push(0x65);
        }
    }

    /// The fourth bits of index and base.
    fn extensions(rm: Rm) -> (u8, u8) {
        match rm {
            Rm::Reg(r) | Rm::At(r) | Rm::Disp(r, _) | Rm::CoreAt(r, _) => (0, r >> 3),
            Rm::Sib(base, index, ..) => (index.unwrap_or(0) >> 3, base.unwrap_or(0) >> 3),
            Rm::Core(_) => (0, 0),
        }
    }

    fn operand(&mut self, reg: u8, rm: Rm) {
        let reg = (reg & 7) << 3;
        match rm {
            Rm::Reg(r) => self.code.push(0xc0 | reg | r & 7),
            Rm::At(r) => self.memory(reg, Some(r), None, 0, 0),
            Rm::Disp(r, disp) | Rm::CoreAt(r, disp) => self.memory(reg, Some(r), None, 0, disp),
            Rm::Core(disp) => self.memory(reg, None, None, 0, disp),
            Rm::Sib(base, index, shift, disp) => self.memory(reg, base, index, shift, disp),
        }
    }

    fn memory(&mut self, reg: u8, base: Option<u8>, index: Option<u8>, shift: u8, disp: i32) {
        let Some(base) = base else {
            // No base: mod 00 with a SIB whose base is 101, and a 32-bit displacement.
            let index = index.unwrap_or(host::RSP);
            self.bytes(&[reg | 4, shift << 6 | (index & 7) << 3 | 5]);
            return self.bytes(&disp.to_le_bytes());
        };
        let small = i8::try_from(disp).is_ok();
        let mode = match disp {
            0 if base & 7 != host::RBP => 0x00,
            _ if small => 0x40,
            _ => 0x80,
        };
        if index.is_some() || base & 7 == host::RSP {
            let index = index.unwrap_or(host::RSP);
            self.bytes(&[mode | reg | 4, shift << 6 | (index & 7) << 3 | base & 7]);
        } else {
            self.code.push(mode | reg | base & 7);
        }
        match mode {
            0x40 => self.code.push(disp as u8),
            0x80 => self.bytes(&disp.to_le_bytes()),
            _ => {}
        }
    }

    /// MOV of 64 bits between registers.
    pub(super) fn mov(&mut self, to: u8, from: u8) {
        self.modrm(Form::long(0x8b), to, Rm::Reg(from));
    }

    /// MOV of 64 bits from memory.
    pub(super) fn load(&mut self, to: u8, from: Rm) {
        self.modrm(Form::long(0x8b), to, from);
    }

    /// MOV of 64 bits to memory.
    pub(super) fn store(&mut self, to: Rm, from: u8) {
        self.modrm(Form::long(0x89), from, to);
    }

    /// The low 32 bits of `from`, shifted right by `count`, into those of `to`; above what is shifted in may be anything. Changes the flags on some hosts.
    pub(super) fn shifted_right(&mut self, to: u8, from: u8, count: u8) {
        if is_x86_feature_detected!("bmi2") {
            // RORX
            self.vex(3, 3, 0, false, 0xf0, to, Rm::Reg(from));
        } else {
            self.mov(to, from);
            self.modrm(Form::short(0xc1), 5, Rm::Reg(to));
        }
        self.bytes(&[count]);
    }

    /// LEA of 64 bits.
    pub(super) fn lea(&mut self, to: u8, from: Rm) {
        self.modrm(Form::long(0x8d), to, from);
    }

    /// A constant into a register, by the shortest encoding that leaves the flags alone.
    pub(super) fn constant(&mut self, to: u8, value: u64) {
        self.note(to, Rm::Reg(to));
        if let Ok(low) = u32::try_from(value) {
            if to >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | to & 7);
            self.bytes(&low.to_le_bytes());
        } else if let Ok(signed) = i32::try_from(value as i64) {
            self.modrm(Form::long(0xc7), 0, Rm::Reg(to));
            self.bytes(&signed.to_le_bytes());
        } else {
            self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// JMP to an address within 2 GiB.
    pub(super) fn jump_to(&mut self, target: u64) {
        self.code.push(0xe9);
        self.relative(target);
    }

    /// CALL of an address within 2 GiB.
    pub(super) fn call_to(&mut self, target: u64) {
        self.code.push(0xe8);
        self.relative(target);
    }

    fn relative(&mut self, target: u64) {
        let from = self.here() + 4;
        self.bytes(&(target.wrapping_sub(from) as i32).to_le_bytes());
    }

    /// JMP to what is told later.
    pub(super) fn jump(&mut self) -> Jump {
        self.bytes(&[0xe9, 0, 0, 0, 0]);
        Jump(self.code.len() - 4)
    }

    /// CALL of what is told later.
    pub(super) fn call(&mut self) -> Jump {
        self.bytes(&[0xe8, 0, 0, 0, 0]);
        Jump(self.code.len() - 4)
    }

    /// The address of what is told later into one of the registers 8 to 15.
    pub(super) fn lea_here(&mut self, to: u8) -> Jump {
        // LEA, RIP-relative.
        self.bytes(&[0x4c, 0x8d, 0x05 | (to & 7) << 3, 0, 0, 0, 0]);
        Jump(self.code.len() - 4)
    }

    /// Jcc (condition 0 to 15) to what is told later.
    pub(super) fn jump_if(&mut self, condition: u8) -> Jump {
        self.bytes(&[0x0f, 0x80 | condition, 0, 0, 0, 0]);
        Jump(self.code.len() - 4)
    }

    /// Aims `jump` at what is emitted next.
    pub(super) fn aim_here(&mut self, jump: Jump) {
        self.aim(jump, self.code.len());
    }

    /// Aims `jump` at the position `at` of this code.
    pub(super) fn aim(&mut self, jump: Jump, at: usize) {
        let displacement = self.address(at).wrapping_sub(self.address(jump.0) + 4);
        self.code[jump.0..jump.0 + 4].copy_from_slice(&(displacement as i32).to_le_bytes());
    }
}
