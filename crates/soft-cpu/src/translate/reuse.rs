//! One look-up for several operands: which memory accesses of a block lie so near one another that the first one's look-up can serve the others.
//!
//! Accesses belong together if their addresses differ by a constant that is known beforehand: the same base, index, scale and segment, with registers that nothing
//! changes in between but by constants (PUSH, POP, ADD and the like). The first of them looks up the whole range that the group will touch; if the range lies on one
//! page that the TLB knows, its host address is put into [`NativeState::places`](super::state::NativeState), where the others find it. If not, zero is put
//! there, and each looks up its own, out of line. So nothing is checked earlier than it was, and every fault is the right instruction's.
//!
//! It is sound because nothing takes a translation back while a block runs: TLBs are flushed by handlers, behind whose calls a block starts anew here, and between
//! runs of generated code, where also what other CPUs ask for is done.
//!
//! The host address stays in the first scratch register until something else needs that; then only whether it is there is looked at, off the path that the operand waits for.
//!
//! DEVNOTE: keeping it in a register of its own would save its load, but there is none to spare; a pinned register given up for it costs more elsewhere.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind};

use super::classify::{Classified, Template};
use super::emit::{Form, Rm, host};
use super::generate::{Generator, Misses, Slow, core_field, field};
use super::steps::Step;
use super::width::Width;
use crate::core::{GPR_ZERO, seg};
use crate::op::{Mem, Op};

/// Ranges that a translation may have.
pub(super) const PLACES: usize = 16;

/// Most bytes of one range: the longer, the more often it crosses a page.
const LONGEST: i64 = 256;

/// How an instruction's operand is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// By a look-up of its own.
    Alone,
    /// By one that serves others too, of `span` bytes that begin `distance` bytes before the operand.
    First { place: u8, distance: i32, span: usize, write: bool },
    /// At `distance` bytes from an address that was found before.
    Later { place: u8, distance: i32 },
}

/// A memory access of an instruction.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) mem: Mem,
    /// Bytes.
    pub(super) size: usize,
    pub(super) write: bool,
}

impl Access {
    /// The word that a push writes.
    pub(super) fn pushed(width: Width) -> Self {
        Self::stack(width, RSP, -i64::from(width.bytes()), true)
    }

    /// The word that is popped from where a register points.
    pub(super) fn popped(width: Width, register: usize) -> Self {
        Self::stack(width, register, 0, false)
    }

    /// A word at a register plus `displacement`, on the stack.
    fn stack(width: Width, base: usize, displacement: i64, write: bool) -> Self {
        let mem =
            Mem { displacement: displacement as u64, base: base as u8, segment: seg::FLAT_STACK as u8, ..Mem::NONE };
        Self { mem: Mem { unused_bits: width.unused_bits(), ..mem }, size: width.bytes() as usize, write }
    }
}

const RSP: usize = x86::gpr::RSP;
const RBP: usize = x86::gpr::RBP;

/// An instruction's access, where its template knows how to share a look-up.
pub(super) fn access(c: &Classified<'_>, op: &Op, width: Width) -> Option<Access> {
    match &c.template {
        Template::ModRm(parts, operands) if parts.memory => {
            Some(Access { mem: op.mem, size: c.instruction.memory_size().size(), write: operands.rm.write })
        }
        Template::Vector(vector) => vector.access(&op.mem),
        Template::Divide(parts) if parts.memory => {
            Some(Access { mem: op.mem, size: c.instruction.memory_size().size(), write: false })
        }
        Template::Push { .. } | Template::PushConstant(_) | Template::Call { .. } => Some(Access::pushed(width)),
        Template::Pop { .. } | Template::Return { .. } => Some(Access::popped(width, RSP)),
        Template::Leave => Some(Access::popped(width, RBP)),
        _ => None,
    }
}

/// What is known of the registers: how often each took a value that is not known, and what was added to it since.
struct Registers {
    width: Width,
    versions: [u32; 32],
    added: [i64; 32],
    factory: Option<InstructionInfoFactory>,
}

/// What accesses of a group have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    base: (u8, u32),
    index: (u8, u32),
    shift: u8,
    segment: u8,
    unused_bits: u8,
}

impl Registers {
    fn new(width: Width) -> Self {
        Self { width, versions: [0; 32], added: [0; 32], factory: None }
    }

    /// The group that an address belongs to, and where in it.
    fn place(&self, mem: &Mem) -> (Key, i64) {
        let version = |register: u8| (register, self.versions[usize::from(register & 31)]);
        let added = |register: u8| self.added[usize::from(register & 31)];
        let key = Key {
            base: version(mem.base),
            index: version(mem.index),
            shift: mem.shift,
            segment: segment_of(mem).unwrap_or(seg::FLAT) as u8,
            unused_bits: mem.unused_bits,
        };
        let at = (mem.displacement as i64)
            .wrapping_add(added(mem.base))
            .wrapping_add(added(mem.index).wrapping_shl(mem.shift.into()));
        (key, at)
    }

    fn add(&mut self, register: usize, value: i64) {
        self.added[register] = self.added[register].wrapping_add(value);
    }

    /// Follows what an instruction does to them.
    fn execute(&mut self, c: &Classified<'_>) {
        match c.template {
            Template::Nop => {}
            Template::Push { .. } | Template::PushConstant(_) | Template::PushMemory => {
                self.add(RSP, -i64::from(self.width.bytes()));
            }
            Template::Pop { reg } => {
                self.add(RSP, self.width.bytes().into());
                self.versions[usize::from(reg & 31)] += 1;
            }
            Template::Leave => {
                self.versions[RSP] += 1;
                self.versions[RBP] += 1;
            }
            _ => match constant_added(&c.instruction, self.width) {
                Some((register, value)) => self.add(register, value),
                None => {
                    let factory = self.factory.get_or_insert_with(InstructionInfoFactory::new);
                    for used in factory.info(&c.instruction).used_registers() {
                        if used.register().is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead) {
                            self.versions[used.register().full_register().number()] += 1;
                        }
                    }
                }
            },
        }
    }
}

/// The segment whose base belongs to the operand's address; `None` for those that begin at zero.
pub(super) fn segment_of(mem: &Mem) -> Option<usize> {
    Some(usize::from(mem.segment)).filter(|segment| matches!(*segment, seg::FS | seg::GS))
}

/// The register of all an address's bits that an instruction adds a constant to, and the constant.
fn constant_added(i: &Instruction, width: Width) -> Option<(usize, i64)> {
    let register = i.op0_register();
    if i.op0_kind() != OpKind::Register || !register.is_gpr() || register.size() != width.bytes() as usize {
        return None;
    }
    let by_constant = i.op_count() == 2 && !matches!(i.op1_kind(), OpKind::Register | OpKind::Memory);
    let value = match i.mnemonic() {
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Add if by_constant => i.immediate(1) as i64,
        Mnemonic::Sub if by_constant => (i.immediate(1) as i64).wrapping_neg(),
        _ => return None,
    };
    Some((register.number(), value))
}

struct Group {
    key: Key,
    low: i64,
    high: i64,
    write: bool,
    /// Instructions and where their operands are.
    members: Vec<(usize, i64)>,
}

/// Each instruction's role, in order.
pub(super) fn plan(steps: &[Step<'_>], width: Width) -> Vec<Role> {
    let mut roles = vec![Role::Alone; steps.len()];
    if steps.iter().filter(|step| access(&step.c, step.op, width).is_some()).count() < 2 {
        return roles;
    }
    let mut registers = Registers::new(width);
    let mut groups: Vec<Group> = Vec::new();
    // Those before a handler's call are closed.
    let mut open = 0;
    for (n, Step { c, op, .. }) in steps.iter().enumerate() {
        if let Some(Access { mem, size, write }) = access(c, op, width) {
            let (key, at) = registers.place(&mem);
            // Displacements and canonical addresses are far from where numbers end.
            let end = at.wrapping_add(size as i64);
            let fits = |g: &Group| g.key == key && end.max(g.high).wrapping_sub(at.min(g.low)) <= LONGEST;
            match groups[open..].iter_mut().find(|g| fits(g)) {
                Some(group) => {
                    group.low = group.low.min(at);
                    group.high = group.high.max(end);
                    group.write |= write;
                    group.members.push((n, at));
                }
                None => groups.push(Group { key, low: at, high: end, write, members: vec![(n, at)] }),
            }
        }
        match c.template {
            Template::Handler => open = groups.len(),
            _ => registers.execute(c),
        }
    }
    groups.retain(|group| group.members.len() > 1 && begins_within_reach(group, steps));
    for (place, group) in groups.iter().take(PLACES).enumerate() {
        let place = place as u8;
        for (order, (n, at)) in group.members.iter().enumerate() {
            let distance = (at - group.low) as i32;
            roles[*n] = if order == 0 {
                Role::First { place, distance, span: (group.high - group.low) as usize, write: group.write }
            } else {
                Role::Later { place, distance }
            };
        }
    }
    roles
}

/// Whether the range's beginning can be encoded: with a register, displacements have 32 bits.
fn begins_within_reach(group: &Group, steps: &[Step<'_>]) -> bool {
    let (n, at) = group.members[0];
    let mem = &steps[n].op.mem;
    let displacement = (mem.displacement as i64).wrapping_sub(at - group.low);
    mem.base == GPR_ZERO && mem.index == GPR_ZERO || i32::try_from(displacement).is_ok()
}

/// A look-up of its own for an operand whose group was not found.
pub(super) struct Retry {
    jumps: Misses,
    access: Access,
    /// The place that says from now on that there is nothing.
    empties: Option<u8>,
    /// What the code expects the operand's address less.
    distance: i32,
    back: usize,
    /// Which of the slow pieces executes the instruction if this fails too.
    slow: usize,
}

/// Where a place's address is kept.
pub(super) fn place_field(place: u8) -> Rm {
    core_field(field::PLACES + usize::from(place) * 8)
}

impl Generator<'_> {
    /// Emits what finds an operand of the instruction `n`, and returns its distance from the first scratch register. Clobbers the flags and both scratch registers.
    /// What is not found, and what is not aligned to `alignment` bytes, goes to the handler; [`Generator::slow_back`] says where it comes back.
    pub(super) fn locate(&mut self, access: Access, alignment: usize, op: &Op, n: usize) -> i32 {
        let site = self.site(op, n, true);
        let slow = self.slow.len();
        let place = match self.roles[n] {
            Role::Alone => None,
            Role::First { place, .. } | Role::Later { place, .. } => Some(place),
        };
        self.slow.push(Slow { loaded: self.loaded, place, ..Slow::new(Vec::new(), site) });
        let distance = match self.roles[n] {
            Role::Alone => {
                let misses = self.find(&access.mem, access.size, access.write);
                self.slow[slow].jumps.extend(misses);
                0
            }
            Role::First { place, distance, span, write } => {
                let displacement = access.mem.displacement.wrapping_sub(i64::from(distance) as u64);
                let jumps = self.find(&Mem { displacement, ..access.mem }, span, write);
                self.e.store(place_field(place), host::A);
                let back = self.e.code.len();
                self.retries.push(Retry { jumps, access, empties: Some(place), distance, back, slow });
                distance
            }
            Role::Later { place, distance } => {
                if self.found == Some((place, self.e.writes_of_a)) {
                    // CMP: the address is there, but may have been found for another operand alone.
                    self.e.modrm(Form::long(0x83), 7, place_field(place));
                    self.e.bytes(&[0]);
                } else {
                    self.e.load(host::A, place_field(place));
                    // TEST
                    self.e.modrm(Form::long(0x85), host::A, Rm::Reg(host::A));
                }
                let jumps = Misses([None, Some(self.e.jump_if(4))]);
                let back = self.e.code.len();
                self.retries.push(Retry { jumps, access, empties: None, distance, back, slow });
                distance
            }
        };
        self.found = place.map(|place| (place, self.e.writes_of_a));
        if alignment > 1 {
            let mask = alignment as u8 - 1;
            let mut at = host::A;
            if distance as u8 & mask != 0 {
                at = host::B;
                self.e.lea(at, Rm::Disp(host::A, distance));
            }
            // TEST of the low byte: host and guest pages begin alike.
            self.e.modrm(Form { rex: true, ..Form::short(0xf6) }, 0, Rm::Reg(at));
            self.e.bytes(&[mask]);
            let misaligned = self.e.jump_if(5);
            self.slow[slow].jumps.push(misaligned);
        }
        distance
    }

    /// The look-ups that [`Self::locate`] put out of line.
    pub(super) fn retry_out_of_line(&mut self) {
        for Retry { jumps, access, empties, distance, back, slow } in std::mem::take(&mut self.retries) {
            for jump in jumps {
                self.e.aim_here(jump);
            }
            if let Some(place) = empties {
                self.e.modrm(Form::long(0xc7), 0, place_field(place));
                self.e.bytes(&0u32.to_le_bytes());
            }
            let misses = self.find(&access.mem, access.size, access.write);
            self.slow[slow].jumps.extend(misses);
            self.e.lea(host::A, Rm::Disp(host::A, -distance));
            let again = self.e.jump();
            self.e.aim(again, back);
        }
    }
}
