//! x87, MMX, SSE, AVX and the VEX-coded and 0F38 general-purpose instructions: the guest's instruction as it is, with its memory operand and general registers put
//! elsewhere.
//!
//! Vector and x87 registers are the host's own ([`super::vector_state`]). A memory operand is looked up as any other; what misses, what crosses a
//! page and what is not aligned as the instruction wants it goes to the handler. Deliberately missing: masked moves and gathers (their elements fault one by one), and what loads
//! or stores whole states or may unmask exceptions (LDMXCSR, FLDCW, FLDENV and the like); FNINIT too, which clears the pointers that generated code does not follow.

use std::arch::is_x86_feature_detected;

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::classify::Classified;
use super::emit::{Emitter, Jump, host};
use super::flags::Flags;
use super::generate::{Generator, PINNED, slot};
use super::reuse::Access;
use super::vector_state::{self, Loaded};
use crate::core::DecodeMode;
use crate::op::{Mem, Op};
use crate::simd::{Class, alignment, uses_x87_registers};

/// A general register that the instruction names.
#[derive(Clone, Copy)]
struct General {
    /// The guest's.
    guest: u8,
    /// Where its value has to be in the host.
    host: u8,
    read: bool,
    write: bool,
}

/// Its operand in memory.
#[derive(Clone, Copy)]
struct Memory {
    /// Bytes.
    size: usize,
    write: bool,
    /// The boundary that it must lie on; 1 for any.
    alignment: usize,
    /// Where in the code its displacement of 32 bits is, right behind ModRM.
    displacement: u8,
}

/// A displacement that no shorter encoding has.
const DISPLACEMENT: u32 = 0x1234_5678;

/// An instruction of this family, encoded for the host.
#[derive(Clone, Copy)]
pub(super) struct Vector {
    code: [u8; 15],
    len: u8,
    general: [Option<General>; 3],
    memory: Option<Memory>,
    /// The registers that it works on.
    pub(super) needs: Loaded,
}

impl Vector {
    /// What it does with memory, `mem` being its operand there.
    pub(super) fn access(&self, mem: &Mem) -> Option<Access> {
        self.memory.map(|Memory { size, write, .. }| Access { mem: *mem, size, write })
    }

    /// Its code, with the operand at this distance from the first scratch register.
    fn emit(&self, e: &mut Emitter, distance: i32) {
        let code = &self.code[..usize::from(self.len)];
        let Some(Memory { displacement, .. }) = self.memory else { return e.bytes(code) };
        let (head, tail) = code.split_at(usize::from(displacement));
        let Some((modrm, head)) = head.split_last() else { return };
        e.bytes(head);
        // ModRM's highest two bits say how long the displacement is.
        match i8::try_from(distance) {
            Ok(0) => e.bytes(&[modrm & 0x3f]),
            Ok(short) => e.bytes(&[modrm & 0x3f | 0x40, short as u8]),
            Err(_) => {
                e.bytes(&[*modrm]);
                e.bytes(&distance.to_le_bytes());
            }
        }
        e.bytes(&tail[4..]);
    }

    /// Whether it has an operand in memory.
    pub(super) fn has_memory(&self) -> bool {
        self.memory.is_some()
    }
}

/// Finds and encodes the instructions of this family.
pub(super) struct Vectors {
    mode: DecodeMode,
    tools: Option<(Encoder, InstructionInfoFactory)>,
}

impl Vectors {
    /// For code of this mode.
    pub(super) fn new(mode: DecodeMode) -> Self {
        Self { mode, tools: None }
    }

    /// The mode of the code.
    pub(super) fn mode(&self) -> DecodeMode {
        self.mode
    }

    /// The instruction for the host; `None` if it is none of this family.
    pub(super) fn classify(&mut self, i: &Instruction) -> Option<Vector> {
        let needs = if is_general(i.mnemonic()) { Loaded::Nothing } else { needs(i, self.mode)? };
        let (encoder, factory) = self.tools.get_or_insert_with(|| (Encoder::new(64), InstructionInfoFactory::new()));
        let info = factory.info(i);
        let mut native = *i;
        native.set_segment_prefix(Register::None);
        native.set_has_rep_prefix(false);
        native.set_has_repne_prefix(false);
        let mut vector = Vector { code: [0; 15], len: 0, general: [None; 3], memory: None, needs };
        let has_memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        for n in 0..i.op_count() {
            let access = info.op_access(n);
            let (read, write) = (reads(access), writes(access));
            match i.op_kind(n) {
                OpKind::Register if i.op_register(n).is_gpr() => {
                    let register = i.op_register(n);
                    if is_high_byte(register) {
                        return None;
                    }
                    let guest = register.full_register().number() as u8;
                    // A 16-bit result leaves the rest of its register.
                    let read = read || register.size() < 4;
                    *vector.general.get_mut(n as usize)? = Some(General { guest, host: 0, read, write });
                }
                OpKind::Register if is_kept(i.op_register(n)) => {}
                OpKind::Memory => {
                    let size = i.memory_size().size();
                    if !matches!(size, 1 | 2 | 4 | 8 | 10 | 16 | 32) || read == write {
                        return None;
                    }
                    let alignment = if needs == Loaded::Nothing { 1 } else { alignment(i) };
                    vector.memory = Some(Memory { size, write, alignment, displacement: 0 });
                    native.set_memory_base(of_size(host::A, 8)?);
                    native.set_memory_index(Register::None);
                    native.set_memory_index_scale(1);
                    native.set_memory_displ_size(8);
                    native.set_memory_displacement64(DISPLACEMENT.into());
                }
                OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
                _ => return None,
            }
        }
        place(&mut vector.general, has_memory)?;
        for n in 0..3 {
            if let Some(general) = &vector.general[n as usize] {
                native.set_op_register(n, of_size(general.host, i.op_register(n).size())?);
            }
        }
        let encoded = encoder.encode(&native, 0);
        // What failed left a part of itself.
        let code = encoder.take_buffer();
        encoded.ok()?;
        if let Some(memory) = &mut vector.memory {
            let at = code.windows(4).position(|four| four == DISPLACEMENT.to_le_bytes())?;
            memory.displacement = at as u8;
        }
        vector.code.get_mut(..code.len())?.copy_from_slice(&code);
        vector.len = code.len() as u8;
        Some(vector)
    }
}

/// Says where general registers are in the host; those that are not pinned come into scratch registers. Sources are read before results are
/// written, so both may have the same one, and a result that of the address.
fn place(general: &mut [Option<General>; 3], has_memory: bool) -> Option<()> {
    let mut for_values = if has_memory { [host::B].iter() } else { [host::A, host::B].iter() };
    let mut for_results = [host::A, host::B].iter();
    let mut placed: [Option<(u8, u8)>; 3] = [None; 3];
    for n in 0..3 {
        let Some(General { guest, read, write, .. }) = general[n] else { continue };
        let at = match PINNED[usize::from(guest)] {
            Some(pinned) => pinned,
            None if read => match placed.iter().flatten().find(|(other, _)| *other == guest) {
                Some((_, at)) => *at,
                None => *for_values.next()?,
            },
            // Two results in one register, as MULX may have: which of them stays is for the handler to know.
            None if general[..n].iter().flatten().any(|other| other.write && other.guest == guest) => return None,
            None => *for_results.next()?,
        };
        if read {
            placed[n] = Some((guest, at));
        }
        general[n] = Some(General { guest, host: at, read, write });
    }
    Some(())
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The host's register `number` as one of `size` bytes.
fn of_size(number: u8, size: usize) -> Option<Register> {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // AL to BL, then, four further on, SPL to R15L.
        1 if number < 4 => Register::AL,
        1 => return Some(Register::SPL + u32::from(number - 4)),
        _ => return None,
    };
    Some(first + u32::from(number))
}

/// General-purpose instructions that are this family's because of their encoding, where the host has them.
fn is_general(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    match mnemonic {
        Andn | Bextr | Blsi | Blsmsk | Blsr => is_x86_feature_detected!("bmi1"),
        Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => is_x86_feature_detected!("bmi2"),
        Adcx | Adox => is_x86_feature_detected!("adx"),
        Movbe => is_x86_feature_detected!("movbe"),
        Crc32 => is_x86_feature_detected!("sse4.2"),
        Movnti => true,
        _ => false,
    }
}

/// Registers that are the same in the host.
fn is_kept(register: Register) -> bool {
    register.is_xmm() || register.is_ymm() || register.is_mm() || register.is_st()
}

/// What a vector or x87 instruction needs; `None` for others and for those that are left to the handlers.
fn needs(i: &Instruction, mode: DecodeMode) -> Option<Loaded> {
    use Mnemonic::*;
    let handled = matches!(
        i.mnemonic(),
        Maskmovdqu | Vmaskmovdqu | Maskmovq | Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq | Fldcw | Fninit
    ) || i.is_vsib()
        // In 32-bit code they leave the registers alone that it does not have.
        || !mode.has(DecodeMode::CODE64) && matches!(i.mnemonic(), Vzeroupper | Vzeroall);
    if handled || !Class::of(i)?.runs_in(mode) {
        return None;
    }
    if uses_x87_registers(i) {
        return Some(Loaded::All);
    }
    let named = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && is_kept(i.op_register(n)));
    (named || matches!(i.mnemonic(), Vzeroupper | Vzeroall | Stmxcsr | Vstmxcsr)).then_some(Loaded::Vectors)
}

impl Generator<'_> {
    /// Sees to it that these registers are in the host's.
    pub(super) fn want_loaded(&mut self, wanted: Loaded, live: u32, n: usize, rip: u64) {
        if self.loaded >= wanted {
            return;
        }
        self.keep_flags(live);
        self.found = None;
        let missing = vector_state::emit_check(&mut self.e, wanted);
        self.loads.push(Load { missing, wanted, back: self.e.code.len(), n, rip });
        self.loaded = wanted;
    }

    /// What [`Self::want_loaded`] put out of line.
    pub(super) fn load_out_of_line(&mut self) {
        for Load { missing, wanted, back, n, rip } in std::mem::take(&mut self.loads) {
            self.e.aim_here(missing);
            self.call_load(wanted);
            let loaded = self.e.jump_if(4);
            self.e.aim(loaded, back);
            self.give_up(n, rip);
        }
    }

    /// Calls what loads these registers; ZF says that it did.
    pub(super) fn call_load(&mut self, wanted: Loaded) {
        match wanted {
            Loaded::Nothing => {}
            Loaded::Vectors => self.e.call_to(self.stubs.load_vectors),
            Loaded::All => self.e.call_to(self.stubs.load_all),
        }
    }

    pub(super) fn vector(&mut self, c: &Classified<'_>, vector: &Vector, op: &Op, n: usize) {
        self.want_loaded(vector.needs, c.live_before, n, self.rip_of(op));
        let mut distance = 0;
        if let (Some(access), Some(Memory { alignment, .. })) = (vector.access(&op.mem), vector.memory) {
            self.keep_flags(c.live_before);
            distance = self.locate(access, alignment, op, n);
        }
        self.flags_before(c);
        for general in vector.general.iter().flatten() {
            if general.read && PINNED[usize::from(general.guest)].is_none() {
                self.e.load(general.host, slot(general.guest));
            }
        }
        vector.emit(&mut self.e, distance);
        if vector.general.iter().flatten().any(|general| general.write && general.host == host::A) {
            self.found = None;
        }
        for general in vector.general.iter().flatten() {
            if general.write && PINNED[usize::from(general.guest)].is_none() {
                self.e.store(slot(general.guest), general.host);
            }
        }
        if c.touches {
            self.flags = Flags::Host;
        } else if vector.memory.is_some() {
            self.flags = Flags::Memory;
        }
        if vector.memory.is_some() {
            self.slow_back();
            if c.touches
                && c.live_after != 0
                && let Some(slow) = self.slow.last_mut()
            {
                slow.restore = true;
            }
        }
    }
}

/// A place where registers may have to be loaded.
pub(super) struct Load {
    missing: Jump,
    wanted: Loaded,
    back: usize,
    /// The instruction's number, and where it stands.
    n: usize,
    rip: u64,
}
