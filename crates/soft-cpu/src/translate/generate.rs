//! Code for one block.
//!
//! On entry the guest's registers are in the host's, and the flags either in the host's (the first entry) or in [`NativeState::flags`] (the second).
//! Each instruction's checks come before its first effect; what fails a check is executed by its handler, out of line.

use std::mem::offset_of;

use super::classify::{ALL, Classified, Template};
use super::emit::{Emitter, Form, Jump, Rm, host};
use super::flags::Flags;
use super::flow::{Far, Link, PendingLink, Return, SideExit};
use super::held::Held;
use super::parse::{NOT, Operands, Parts};
use super::reuse::{self, Access, Retry, Role};
use super::runtime::{Site, Stubs};
use super::state::NativeState;
use super::steps::{Within, steps};
use super::trace::Part;
use super::vector::Load;
use super::vector_state::Loaded;
use super::width::Width;
use crate::core::{Core, DecodeMode, GPR_PAGE, GPR_ZERO};
use crate::op::{Mem, Op};
use crate::statistics::Counters;
use crate::tlb::{self, Rights};

/// Host registers of the guest's; the others stay in memory. Those with a place in instructions of their own (RAX, RCX, RDX) and most others
/// are themselves.
pub(super) const PINNED: [Option<u8>; 16] = [
    Some(0),
    Some(1),
    Some(2),
    Some(3),
    Some(host::GUEST_RSP),
    Some(5),
    Some(6),
    Some(7),
    Some(8),
    None,
    None,
    None,
    Some(12),
    Some(13),
    Some(14),
    Some(15),
];

/// The guest's and the host's number of each pinned register.
pub(super) fn pinned() -> impl Iterator<Item = (u8, u8)> {
    PINNED.iter().enumerate().filter_map(|(guest, host)| host.map(|host| (guest as u8, host)))
}

const NATIVE: usize = offset_of!(Core, native);

/// A field of [`Core`].
pub(super) const fn core_field(offset: usize) -> Rm {
    Rm::Core(offset as i32)
}

/// Offsets in [`Core`] of what [`NativeState`] holds.
pub(super) mod field {
    use super::{Core, Counters, NATIVE, NativeState, offset_of};
    pub(crate) const SLICE: usize = NATIVE + offset_of!(NativeState, slice);
    pub(crate) const UNUSED: usize = NATIVE + offset_of!(NativeState, unused);
    pub(crate) const VECTORS: usize = NATIVE + offset_of!(NativeState, vectors);
    pub(crate) const X87: usize = NATIVE + offset_of!(NativeState, x87);
    pub(crate) const INTERPRET: usize = NATIVE + offset_of!(NativeState, interpret);
    pub(crate) const FLAGS: usize = NATIVE + offset_of!(NativeState, flags);
    pub(crate) const PLACES: usize = NATIVE + offset_of!(NativeState, places);
    pub(crate) const TARGET: usize = NATIVE + offset_of!(NativeState, target);
    pub(crate) const TARGET_CODE: usize = NATIVE + offset_of!(NativeState, target_code);
    pub(crate) const HOST_STACK: usize = NATIVE + offset_of!(NativeState, host_stack);
    pub(crate) const CALLER_STACK: usize = NATIVE + offset_of!(NativeState, caller_stack);
    pub(crate) const CORE: usize = NATIVE + offset_of!(NativeState, core);
    pub(crate) const TABLES: usize = NATIVE + offset_of!(NativeState, tables);
    pub(crate) const ACCESSES: usize = offset_of!(Core, counters) + offset_of!(Counters, accesses);
    pub(crate) const JUMP_TABLE: usize = NATIVE + offset_of!(NativeState, jump_table);
}

const RIP: usize = offset_of!(Core, rip);

/// A guest register's place in [`Core`].
pub(super) fn slot(guest: u8) -> Rm {
    core_field(offset_of!(Core, gpr) + usize::from(guest) * 8)
}

/// Where the code stands that is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At this instruction pointer and nowhere else.
    At(u64),
    /// At this offset in its page, which may be mapped anywhere: [`GPR_PAGE`] says where.
    InPage(u64),
}

impl Place {
    /// The instruction pointer, or the offset in the page: what addresses in this code are reckoned from.
    pub(super) fn rip(self) -> u64 {
        let (Self::At(rip) | Self::InPage(rip)) = self;
        rip
    }

    /// The place at this offset of the same page.
    pub(super) fn on_same_page(self, offset: u64) -> Self {
        match self {
            Self::At(rip) => Self::At(rip & !0xfff | offset),
            Self::InPage(_) => Self::InPage(offset),
        }
    }
}

/// The jumps that [`Generator::find`] takes where it finds nothing.
pub(super) struct Misses(pub(super) [Option<Jump>; 2]);

impl IntoIterator for Misses {
    type Item = Jump;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Jump>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}

/// A piece of code out of the way.
pub(super) struct Slow {
    pub(super) jumps: Vec<Jump>,
    pub(super) site: Site,
    /// Where to go on; `None` for the last instruction.
    pub(super) back: Option<usize>,
    /// The flags are to be in the host's again.
    pub(super) restore: bool,
    /// A guest's register is to be in a scratch register too.
    pub(super) reload: Option<(u8, u8)>,
    /// And so are these.
    pub(super) loaded: Loaded,
    /// And this place's address is to be in the first scratch register: see [`Generator::found`].
    pub(super) place: Option<u8>,
}

impl Slow {
    /// What these jumps go to: the handler of `site`, as the last instruction's.
    pub(super) fn new(jumps: Vec<Jump>, site: Site) -> Self {
        Self { jumps, site, back: None, restore: false, reload: None, loaded: Loaded::Nothing, place: None }
    }
}

/// A block in host code.
pub(super) struct Generated {
    pub(super) hot: Vec<u8>,
    pub(super) cold: Vec<u8>,
    /// Offset of the entry with flags in memory; the other is at zero.
    pub(super) memory_entry: usize,
    pub(super) links: Vec<Link>,
    /// Flags that it or what follows it reads.
    pub(super) live: u32,
}

/// Where `emit` leaves control.
enum End {
    Next,
    Left,
}

pub(super) struct Generator<'a> {
    pub(super) e: Emitter,
    pub(super) stubs: &'a Stubs,
    pub(super) flags: Flags,
    held: Held,
    /// The place whose address is in the first scratch register, if it has one at all; known for as long as the emitter has written that so often.
    pub(super) found: Option<(u8, u32)>,
    /// What is surely in the host's registers.
    pub(super) loaded: Loaded,
    /// How each instruction's operand is found.
    pub(super) roles: Vec<Role>,
    pub(super) retries: Vec<Retry>,
    pub(super) slow: Vec<Slow>,
    pub(super) loads: Vec<Load>,
    pub(super) exits: Vec<SideExit>,
    pub(super) far: Vec<Far>,
    pub(super) returns: Vec<Return>,
    /// Jumps of landings that found another return address.
    pub(super) landings: Vec<Jump>,
    pub(super) links: Vec<PendingLink>,
    pub(super) width: Width,
    /// Where the current instruction's block stands.
    pub(super) place: Place,
    /// Instructions of the blocks behind it.
    pub(super) rest: usize,
    /// All instructions.
    pub(super) count: usize,
}

/// What is translated.
pub(super) struct Source<'a> {
    /// At least one block.
    pub(super) parts: &'a [Part<'a>],
    pub(super) mode: DecodeMode,
    /// For an execution that is to end with these instructions: what comes next finds the slice used up, also where some were not executed.
    pub(super) alone: bool,
}

/// Generates what `source` says, to be placed at the addresses `base` and `cold_base`; `first_link` is the number of its first link.
/// `precise`: faults see all flags, also those that nothing else will.
pub(super) fn generate(
    &Source { parts, mode, alone }: &Source<'_>,
    (base, cold_base): (u64, u64),
    stubs: &Stubs,
    first_link: u32,
    precise: bool,
) -> Option<Generated> {
    let steps = steps(parts, mode, precise)?;
    let width = Width::of(mode);
    let place = parts.first()?.place;
    let live = steps.first()?.c.live_before;
    let mut g = Generator {
        e: Emitter::new(base),
        stubs,
        flags: Flags::Host,
        held: Held::NOTHING,
        found: None,
        loaded: Loaded::Nothing,
        roles: reuse::plan(&steps, width),
        retries: Vec::new(),
        slow: Vec::new(),
        loads: Vec::new(),
        exits: Vec::new(),
        far: Vec::new(),
        returns: Vec::new(),
        landings: Vec::new(),
        links: Vec::new(),
        width,
        place,
        rest: 0,
        count: steps.len(),
    };
    g.keep_flags(live);
    let memory_entry = g.e.code.len();
    let count = steps.len() as u8;
    g.e.modrm(Form::short(0x83), 5, core_field(field::SLICE));
    g.e.bytes(&[count]);
    let used_up = g.e.jump_if(8);
    let accesses: u32 = parts.iter().map(|part| part.accesses).sum();
    if accesses != 0 {
        g.e.modrm(Form::long(0x81), 0, core_field(field::ACCESSES));
        g.e.bytes(&accesses.to_le_bytes());
    }
    // Here no flags are lost by looking; behind a handler's call they have to be looked for again.
    let first = steps.iter().take(parts[0].ops.len());
    let before_handlers = first.take_while(|step| !matches!(step.c.template, Template::Handler));
    let needed = before_handlers.map(|step| step.c.needs()).max();
    g.want_loaded(needed.unwrap_or(Loaded::Nothing), 0, 0, place.rip());
    let mut end = End::Next;
    for (n, step) in steps.iter().enumerate() {
        (g.place, g.rest) = (step.place, step.rest);
        end = match step.within {
            None => g.instruction(&step.c, step.op, step.bytes, n),
            Some(Within::Always) => End::Next,
            Some(Within::Unless(condition, target)) => {
                g.leave_trace(condition, target, step.rest_accesses);
                End::Next
            }
        };
    }
    if matches!(end, End::Next) {
        let next = steps.last().map_or(0, |step| g.after(step.op));
        g.go_to(next);
    }
    g.place = place;
    g.e.go_cold(cold_base);
    g.out_of_line(used_up, count, first_link, alone);
    let address =
        |link: &PendingLink| Link { at: g.e.address(link.at), target: link.target, host_flags: link.host_flags };
    let links = g.links.iter().map(address).collect();
    let (hot, cold) = g.e.into_parts();
    Some(Generated { hot, cold, memory_entry, links, live })
}

impl Generator<'_> {
    /// The register's value in a host register: its own, or `scratch`.
    pub(super) fn value(&mut self, guest: u8, scratch: u8) -> u8 {
        if let Some(own) = PINNED[usize::from(guest)] {
            return own;
        }
        let mut held = self.held.now(&self.e);
        let other = if scratch == host::A { host::B } else { host::A };
        if held.has(scratch, guest) {
            return scratch;
        }
        if held.has(other, guest) {
            self.e.mov(scratch, other);
        } else {
            self.e.load(scratch, slot(guest));
        }
        held.put(scratch, guest);
        self.held = held.at(&self.e);
        scratch
    }

    /// Puts what is in `from` into the guest's register.
    fn set(&mut self, guest: u8, from: u8) {
        match PINNED[usize::from(guest)] {
            Some(to) if to == from => {}
            Some(to) => self.e.mov(to, from),
            None => self.store_held(guest, from),
        }
    }

    /// Stores what a scratch register holds as the guest's register, which may be found there until something else is emitted.
    fn store_held(&mut self, guest: u8, scratch: u8) {
        let mut held = self.held.now(&self.e);
        self.e.store(slot(guest), scratch);
        // The other one may hold what the register was before.
        held.forget(guest);
        held.put(scratch, guest);
        self.held = held.at(&self.e);
    }

    /// An address that is known but for the page, as [`Place::rip`] gives it, into `to`; the flags stay.
    pub(super) fn address(&mut self, to: u8, address: u64) {
        if matches!(self.place, Place::At(_)) {
            return self.e.constant(to, address);
        }
        self.e.load(to, slot(GPR_PAGE));
        match i32::try_from(address as i64) {
            Ok(0) => {}
            Ok(distance) => self.width.lea(&mut self.e, to, Rm::Disp(to, distance)),
            // A RIP-relative operand at the very end of the reach of 32 bits.
            Err(_) => {
                let half = (address as i64 / 2) as i32;
                self.e.lea(to, Rm::Disp(to, half));
                self.e.lea(to, Rm::Disp(to, (address as i64 - i64::from(half)) as i32));
            }
        }
    }

    /// The effective address of `mem`, into `to`; the flags stay.
    fn effective_address(&mut self, to: u8, mem: &Mem, wide: bool) {
        if mem.base == GPR_PAGE {
            let page = match self.place {
                Place::At(rip) => rip & !0xfff,
                Place::InPage(_) => 0,
            };
            self.address(to, page.wrapping_add(mem.displacement));
            if !wide {
                self.e.modrm(Form::short(0x89), to, Rm::Reg(to));
            }
            return;
        }
        let form = Form { wide, ..Form::short(0x8d) };
        let part = |g: &mut Self, register: u8, scratch: u8| {
            if register == GPR_ZERO { None } else { Some(g.value(register, scratch)) }
        };
        let base = part(self, mem.base, host::A);
        let index = part(self, mem.index, host::B);
        match i32::try_from(mem.displacement as i64) {
            Ok(disp) => match (base, index) {
                (Some(base), None) => self.e.modrm(form, to, Rm::Disp(base, disp)),
                (None, None) => {
                    self.e.constant(to, if wide { mem.displacement } else { mem.displacement & 0xffff_ffff })
                }
                _ => self.e.modrm(form, to, Rm::Sib(base, index, mem.shift, disp)),
            },
            // Only absolute operands, which have no registers.
            Err(_) => self.e.constant(to, if wide { mem.displacement } else { mem.displacement & 0xffff_ffff }),
        }
    }

    /// The host address of `size` bytes at `mem`, into the first scratch register; the jumps are taken if it is not known. Clobbers the flags and both scratch registers.
    pub(super) fn find(&mut self, mem: &Mem, size: usize, write: bool) -> Misses {
        let past_the_end = self.linear_address(mem, size);
        Misses([past_the_end, Some(self.look_up(size, write))])
    }

    /// The linear address of `mem`, `size` bytes, into the first scratch register. Clobbers flags if there is a segment base. In 32-bit code the jump is taken for an
    /// operand that goes on past the segment's end.
    fn linear_address(&mut self, mem: &Mem, size: usize) -> Option<Jump> {
        self.effective_address(host::A, mem, mem.unused_bits == 0);
        let base = offset_of!(Core, segment_bases) + reuse::segment_of(mem)? * 8;
        let past_the_end = (self.width == Width::Bits32).then(|| {
            // CMP with 4 GiB less the size, sign-extended.
            self.e.modrm(Form::short(0x81), 7, Rm::Reg(host::A));
            self.e.bytes(&(-(size as i32)).to_le_bytes());
            self.e.jump_if(7)
        });
        self.e.modrm(self.width.form(0x03), host::A, core_field(base));
        past_the_end
    }

    /// Turns the linear address in the first scratch register into a host address; the jump is taken if the TLB does not know it.
    fn look_up(&mut self, size: usize, write: bool) -> Jump {
        let e = &mut self.e;
        e.shifted_right(host::B, host::A, tlb::INDEX_SHIFT);
        e.modrm(Form::short(0x81), 4, Rm::Reg(host::B));
        e.bytes(&tlb::INDEX_MASK.to_le_bytes());
        let entry = |offset: i32| {
            let table = offset_of!(Core, tlb) + tlb::table_offset(Rights::User, write);
            Rm::CoreAt(host::B, table as i32 + offset)
        };
        let (tag, page) = if matches!(self.place, Place::InPage(_)) {
            (entry(0), entry(8))
        } else {
            // The kernel's rights change with EFLAGS.AC.
            e.modrm(Form::long(0x03), host::B, core_field(field::TABLES + usize::from(write) * 8));
            (Rm::At(host::B), Rm::Disp(host::B, 8))
        };
        e.modrm(Form::long(0x33), host::A, tag);
        e.modrm(Form::long(0x81), 7, Rm::Reg(host::A));
        e.bytes(&(4096 - size as i32).to_le_bytes());
        let miss = e.jump_if(7);
        e.modrm(Form::long(0x03), host::A, page);
        miss
    }

    /// Where `op` stands.
    pub(super) fn rip_of(&self, op: &Op) -> u64 {
        self.place.rip().wrapping_add(u64::from(op.offset))
    }

    pub(super) fn site(&self, op: &Op, n: usize, chains: bool) -> Site {
        debug_assert_eq!(usize::from(op.left) + self.rest, self.count - n, "an operation knows its place in its block");
        Site::new(op, self.rip_of(op), chains, self.rest)
    }

    pub(super) fn call_handler(&mut self, site: Site) {
        self.e.constant(host::A, site.op);
        self.e.constant(host::B, site.rip);
        self.e.call_to(self.stubs.call_handler);
    }

    fn instruction(&mut self, c: &Classified<'_>, op: &Op, bytes: &[u8], n: usize) -> End {
        let live = c.live_before;
        match c.template {
            Template::Nop => {}
            Template::Lea { reg, wide } => {
                let to = PINNED[usize::from(reg)].unwrap_or(host::A);
                self.effective_address(to, &op.mem, wide && op.mem.unused_bits == 0);
                self.set(reg, to);
            }
            Template::Constant { reg, value } => {
                let to = PINNED[usize::from(reg)].unwrap_or(host::A);
                self.e.constant(to, value);
                self.set(reg, to);
            }
            Template::ByteConstant { reg, value } => {
                let to = self.value(reg, host::A);
                self.e.modrm(Form { rex: true, ..Form::short(0xc6) }, 0, Rm::Reg(to));
                self.e.bytes(&[value]);
                self.set(reg, to);
            }
            Template::Swap { reg, wide } => {
                let to = self.value(reg, host::A);
                self.e.bytes(&[0x40 | u8::from(wide) << 3 | to >> 3, 0x0f, 0xc8 | to & 7]);
                self.set(reg, to);
            }
            Template::Exchange { reg, wide } => {
                let to = self.value(reg, host::A);
                self.e.modrm(Form { wide, ..Form::short(0x87) }, host::RAX, Rm::Reg(to));
                self.set(reg, to);
            }
            Template::Verbatim => {
                self.flags_before(c);
                self.e.bytes(bytes);
                if c.touches {
                    self.flags = Flags::Host;
                }
            }
            Template::ModRm(ref parts, ref operands) => self.modrm(c, parts, operands, op, n),
            Template::Vector(ref vector) => self.vector(c, vector, op, n),
            Template::Push { reg } => {
                let at = self.push_at(op, n, live);
                let value = self.value(reg, host::B);
                self.width.store(&mut self.e, at, value);
                self.move_stack(-1, 0);
                self.slow_back();
            }
            Template::PushMemory => self.push_memory(op, n, live),
            Template::PushConstant(value) => {
                let at = self.push_at(op, n, live);
                self.store_constant(at, value);
                self.move_stack(-1, 0);
                self.slow_back();
            }
            Template::Pop { reg } => {
                let at = self.pop_at(x86::gpr::RSP, op, n, live);
                let to = PINNED[usize::from(reg)].unwrap_or(host::A);
                self.width.load(&mut self.e, to, at);
                self.set(reg, to);
                if to != host::GUEST_RSP {
                    self.move_stack(1, 0);
                }
                self.slow_back();
            }
            Template::Leave => {
                let at = self.pop_at(x86::gpr::RBP, op, n, live);
                let word = self.width.bytes().into();
                self.width.lea(&mut self.e, host::GUEST_RSP, Rm::Disp(host::RBP, word));
                self.width.load(&mut self.e, host::RBP, at);
                self.slow_back();
            }
            Template::JumpIf { condition, target } => {
                self.want_flags(ALL);
                self.branch(condition, target, op);
                return End::Left;
            }
            Template::Jump { target } => {
                self.go_to(target);
                return End::Left;
            }
            Template::Divide(ref parts) => self.divide(c, parts, op, n),
            Template::Call { target } => {
                let at = self.push_at(op, n, live);
                self.push_return_address(at, op);
                self.call(target, op);
                return End::Left;
            }
            Template::Return { dropped } => {
                self.keep_flags(live);
                self.return_near(dropped, op, n);
                return End::Left;
            }
            Template::JumpRegister { reg } | Template::CallRegister { reg } => {
                self.keep_flags(live);
                let target = self.value(reg, host::A);
                if target != host::A {
                    self.width.load(&mut self.e, host::A, Rm::Reg(target));
                }
                match c.template {
                    Template::JumpRegister { .. } => self.jump_computed(Vec::new(), op, n),
                    _ => self.call_computed(Vec::new(), op, n),
                }
                return End::Left;
            }
            Template::JumpMemory | Template::CallMemory => {
                self.keep_flags(live);
                let slow = self.find(&op.mem, self.width.bytes().into(), false).into_iter().collect();
                self.width.load(&mut self.e, host::A, Rm::At(host::A));
                match c.template {
                    Template::JumpMemory => self.jump_computed(slow, op, n),
                    _ => self.call_computed(slow, op, n),
                }
                return End::Left;
            }
            Template::Handler => {
                self.keep_flags(live);
                let site = self.site(op, n, false);
                self.call_handler(site);
                self.loaded = Loaded::Nothing;
            }
            Template::Branch => {
                self.keep_flags(live);
                let site = self.site(op, n, true);
                self.call_handler(site);
                self.e.load(host::A, core_field(RIP));
                let unknown = self.find_code();
                self.enter_found();
                self.e.aim_here(unknown);
                self.leave(0);
                return End::Left;
            }
            Template::Leaving => {
                self.keep_flags(live);
                let site = self.site(op, n, false);
                self.call_handler(site);
                // The call comes back only if more of the block had followed.
                self.leave_to(self.after(op), 0);
                return End::Left;
            }
        }
        End::Next
    }

    pub(super) fn store_constant(&mut self, at: Rm, value: i32) {
        self.e.modrm(self.width.form(0xc7), 0, at);
        self.e.bytes(&value.to_le_bytes());
    }

    /// What went out of line last comes back here.
    pub(super) fn slow_back(&mut self) {
        let here = self.e.code.len();
        self.held = Held::NOTHING;
        if let Some(slow) = self.slow.last_mut() {
            slow.back = Some(here);
            if slow.place.is_none() {
                self.found = None;
            }
        }
    }

    pub(super) fn slow_end(&mut self, jumps: Vec<Jump>, op: &Op, n: usize) {
        let site = self.site(op, n, true);
        self.slow.push(Slow::new(jumps, site));
    }

    /// The word below the stack pointer.
    fn push_at(&mut self, op: &Op, n: usize, live: u32) -> Rm {
        self.keep_flags(live);
        Rm::Disp(host::A, self.locate(Access::pushed(self.width), 1, op, n))
    }

    /// The word at a register of the guest's.
    fn pop_at(&mut self, register: usize, op: &Op, n: usize, live: u32) -> Rm {
        self.keep_flags(live);
        Rm::Disp(host::A, self.locate(Access::popped(self.width, register), 1, op, n))
    }

    /// Moves the stack pointer by so many words and bytes.
    pub(super) fn move_stack(&mut self, words: i32, bytes: i32) {
        let distance = words * i32::from(self.width.bytes()) + bytes;
        self.width.lea(&mut self.e, host::GUEST_RSP, Rm::Disp(host::GUEST_RSP, distance));
    }

    /// PUSH of memory: two operands there, of which the second is looked up as a store.
    fn push_memory(&mut self, op: &Op, n: usize, live: u32) {
        self.keep_flags(live);
        let Access { mem, size, write } = Access::pushed(self.width);
        let mut slow: Vec<Jump> = self.find(&op.mem, size, false).into_iter().collect();
        self.width.load(&mut self.e, host::A, Rm::At(host::A));
        self.e.store(core_field(field::TARGET), host::A);
        slow.extend(self.find(&mem, size, write));
        self.e.load(host::B, core_field(field::TARGET));
        self.width.store(&mut self.e, Rm::At(host::A), host::B);
        self.move_stack(-1, 0);
        self.slow_end(slow, op, n);
        if let Some(slow) = self.slow.last_mut() {
            slow.loaded = self.loaded;
        }
        self.slow_back();
    }

    fn modrm(&mut self, c: &Classified<'_>, parts: &Parts<'_>, operands: &Operands, op: &Op, n: usize) {
        let wide = parts.rex & 8 != 0;
        let merges = |byte: bool| byte || parts.word;
        let mut located = Rm::At(host::A);
        if let Some(access) = reuse::access(c, op, self.width) {
            self.keep_flags(c.live_before);
            located = Rm::Disp(host::A, self.locate(access, 1, op, n));
        }
        self.flags_before(c);
        let mut to_store = Vec::new();
        let mut operand = |g: &mut Self, guest: u8, access: super::parse::Access, byte: bool, scratch: u8| {
            PINNED[usize::from(guest)].unwrap_or_else(|| {
                if access.read || merges(byte) {
                    g.value(guest, scratch);
                }
                if access.write {
                    to_store.push((guest, scratch));
                }
                scratch
            })
        };
        // A high byte register keeps its number, which without REX means the same on the host.
        let high = |byte: bool, register: u8| byte && parts.rex == 0 && (4..8).contains(&register);
        let reg = if operands.reg == NOT {
            parts.reg & 7
        } else if high(operands.byte_reg, parts.reg) {
            parts.reg
        } else {
            operand(self, parts.reg, operands.reg, operands.byte_reg, host::B)
        };
        let rm = if parts.memory {
            located
        } else if high(operands.byte_rm, parts.rm) {
            Rm::Reg(parts.rm)
        } else {
            // One register twice stays one register: XOR of a register with itself waits for nothing.
            let twice = operands.reg != NOT && parts.reg == parts.rm && !high(operands.byte_reg, parts.reg);
            Rm::Reg(operand(self, parts.rm, operands.rm, operands.byte_rm, if twice { host::B } else { host::A }))
        };
        let prefix = if parts.word { 0x66 } else { parts.repeat };
        let form = Form {
            lock: parts.lock,
            prefix,
            wide,
            rex: parts.rex != 0,
            two_byte: parts.two_byte,
            opcode: parts.opcode,
        };
        self.e.modrm(form, reg, rm);
        self.e.bytes(parts.immediate);
        for &(guest, scratch) in &to_store {
            self.store_held(guest, scratch);
        }
        if c.touches {
            self.flags = Flags::Host;
        } else if parts.memory {
            self.flags = Flags::Memory;
        }
        if parts.memory {
            let held = self.held;
            self.slow_back();
            if let Some(slow) = self.slow.last_mut() {
                slow.restore = c.touches && c.live_after != 0;
                slow.reload = to_store.first().copied();
            }
            if !to_store.is_empty() {
                self.held = held;
            }
        }
    }

    /// The handlers' calls.
    pub(super) fn slow_out_of_line(&mut self) {
        for slow in std::mem::take(&mut self.slow) {
            for jump in slow.jumps {
                self.e.aim_here(jump);
            }
            self.call_handler(slow.site);
            match slow.back {
                Some(back) => {
                    // They are only refused where an exception is unmasked, which no instruction does that has a fast path.
                    self.call_load(slow.loaded);
                    if slow.restore {
                        self.restore_flags();
                    }
                    if let Some(place) = slow.place {
                        self.e.load(host::A, reuse::place_field(place));
                    }
                    if let Some((guest, scratch)) = slow.reload {
                        self.e.load(scratch, slot(guest));
                    }
                    let jump = self.e.jump();
                    self.e.aim(jump, back);
                }
                None => self.leave(0),
            }
        }
    }
}
