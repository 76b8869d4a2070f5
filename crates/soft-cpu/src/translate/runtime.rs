//! Entering generated code, leaving it, and what it calls.

#![expect(unsafe_code, reason = "calls generated code and is called by it")]

use x86::InterruptShadow;

use super::emit::{Emitter, Form, Rm, host};
use super::flags::save_flags;
use super::generate::{core_field, field, pinned, slot};
use super::gs_base;
use super::state::{from_raw, to_raw};
use super::vector_state;
use crate::core::{Core, DecodeMode, GPR_PAGE};
use crate::layer::Layer;
use crate::op::Op;

/// An instruction that its handler executes: what generated code hands over in its scratch registers.
#[derive(Clone, Copy)]
pub(super) struct Site {
    /// The address of the [`Op`], which the block keeps for as long as the code can run, and [`Site::CHAINS`]. Above it, in bits that no address of a program has, how
    /// many instructions of further blocks come behind the operation's own.
    pub(super) op: u64,
    /// Its instruction pointer, in user code its offset in the page.
    pub(super) rip: u64,
}

impl Site {
    /// If it is the last of its block, generated code goes on from it nevertheless.
    const CHAINS: u64 = 1;

    /// Where the number of further instructions stands.
    const REST: u32 = 48;

    pub(super) fn new(op: &Op, rip: u64, chains: bool, rest: usize) -> Self {
        const { assert!(align_of::<Op>() > Self::CHAINS as usize) };
        let address = &raw const *op as u64;
        debug_assert_eq!(address >> Self::REST, 0);
        Self { op: address | if chains { Self::CHAINS } else { 0 } | (rest as u64) << Self::REST, rip }
    }
}

/// Addresses of the pieces that all blocks share.
pub(super) struct Stubs {
    /// `extern "sysv64" fn(core, code) -> link`.
    pub(super) enter: u64,
    /// Leaves with the number of a link in the second scratch register and the flags in the host's.
    pub(super) leave_host: u64,
    /// Likewise with the flags in memory.
    pub(super) leave_memory: u64,
    /// Calls the handler of the [`Site`] in the scratch registers.
    pub(super) call_handler: u64,
    /// Loads the vector registers, if it may: see [`vector_state`].
    pub(super) load_vectors: u64,
    /// And the x87 registers.
    pub(super) load_all: u64,
}

/// Registers that a function must preserve and that generated code uses.
const PRESERVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

fn push(e: &mut Emitter, register: u8) {
    if register >= 8 {
        e.bytes(&[0x41]);
    }
    e.bytes(&[0x50 | register & 7]);
}

fn pop(e: &mut Emitter, register: u8) {
    if register >= 8 {
        e.bytes(&[0x41]);
    }
    e.bytes(&[0x58 | register & 7]);
}

fn spill(e: &mut Emitter) {
    for (guest, register) in pinned() {
        e.store(slot(guest), register);
    }
}

fn reload(e: &mut Emitter) {
    for (guest, register) in pinned() {
        e.load(register, slot(guest));
    }
}

/// The shared pieces, for the address `base`.
pub(super) fn stubs(base: u64) -> (Vec<u8>, Stubs) {
    const RDI: u8 = 7;
    const RSI: u8 = 6;
    const RDX: u8 = 2;
    let mut e = Emitter::new(base);
    // Where a return lands for which nothing was pushed: it stays there for the next one. See `flow`.
    let nothing_pushed = e.here();
    e.lea(host::RSP, Rm::Disp(host::RSP, -8));
    e.modrm(Form::short(0xff), 4, Rm::Reg(host::B));
    let enter = e.here();
    for register in PRESERVED {
        push(&mut e, register);
    }
    // Six registers and the return address: eight more bytes make 16.
    e.lea(host::RSP, Rm::Disp(host::RSP, -8));
    e.store(core_field(field::CORE), RDI);
    e.mov(host::B, RSI);
    e.store(core_field(field::HOST_STACK), host::RSP);
    e.constant(host::A, nothing_pushed);
    push(&mut e, host::A);
    reload(&mut e);
    e.modrm(Form::short(0xff), 4, Rm::Reg(host::B));

    let store_vectors = e.here();
    vector_state::emit_store(&mut e);
    let load_vectors = e.here();
    vector_state::emit_load(&mut e);
    let load_all = e.here();
    vector_state::emit_load_all(&mut e, store_vectors);

    let leave_host = e.here();
    save_flags(&mut e, host::A);
    let leave_memory = e.here();
    spill(&mut e);
    vector_state::emit_stores_if_loaded(&mut e, store_vectors);
    e.mov(host::RAX, host::B);
    let leave = e.here();
    e.load(host::RSP, core_field(field::HOST_STACK));
    e.lea(host::RSP, Rm::Disp(host::RSP, 8));
    for register in PRESERVED.into_iter().rev() {
        pop(&mut e, register);
    }
    e.bytes(&[0xc3]);

    let call_handler = e.here();
    spill(&mut e);
    vector_state::emit_stores_if_loaded(&mut e, store_vectors);
    e.store(core_field(field::CALLER_STACK), host::RSP);
    // AND: as the calling convention wants it.
    e.modrm(Form::long(0x83), 4, Rm::Reg(host::RSP));
    e.bytes(&[0xf0]);
    e.load(RDI, core_field(field::CORE));
    e.mov(RSI, host::A);
    e.mov(RDX, host::B);
    e.constant(host::RAX, execute as *const () as u64);
    e.modrm(Form::short(0xff), 2, Rm::Reg(host::RAX));
    e.load(host::RSP, core_field(field::CALLER_STACK));
    // TEST EAX, EAX
    e.bytes(&[0x85, 0xc0]);
    let stop = e.jump_if(5);
    reload(&mut e);
    e.bytes(&[0xc3]);
    e.aim_here(stop);
    // The registers are in memory.
    e.bytes(&[0x31, 0xc0]);
    e.jump_to(leave);
    (e.code, Stubs { enter, leave_host, leave_memory, call_handler, load_vectors, load_all })
}

/// Runs generated code at `code` and returns the number of the link it left by, zero for none.
pub(super) fn enter(stubs: &Stubs, core: &mut Core, code: u64) -> u32 {
    gs_base::point_to(core);
    // SAFETY: `stubs.enter` is code of this type and `code` an entry that was generated for it; both lie in the arena, which is not cleared while they
    // run. They touch the core, and guest RAM through its TLB.
    unsafe {
        let trampoline: extern "sysv64" fn(*mut Core, u64) -> u32 = std::mem::transmute(stubs.enter as *const ());
        trampoline(core, code)
    }
}

/// Executes one instruction by its handler. Zero if generated code may go on after it.
extern "sysv64" fn execute(core: *mut Core, site: u64, rip: u64) -> u32 {
    let chains = site & Site::CHAINS != 0;
    let rest = (site >> Site::REST) as i32;
    let address = site & ((1 << Site::REST) - 1) & !Site::CHAINS;
    // SAFETY: generated code passes the core that it was entered with, whose only user it is, and an operation that its block keeps: a block goes only when
    // its bytes have changed, and then its code is not entered again, or with all others, and then all code goes first.
    let (core, op) = unsafe { (&mut *core, &*(address as *const Op)) };
    core.layer.set(Layer::Handler);
    core.flags = from_raw(core.native.flags);
    let page = &mut core.gpr[usize::from(GPR_PAGE)];
    let rip = if core.mode.has(DecodeMode::USER) {
        page.wrapping_add(rip)
    } else {
        *page = rip & !0xfff;
        rip
    };
    core.rip = rip.wrapping_add(u64::from(op.len)) & core.mode.ip_mask();
    core.block_end = usize::MAX;
    core.shadow = InterruptShadow::None;
    let result = (op.execute)(core, op);
    core.native.flags = to_raw(&core.flags);
    core.layer.set(Layer::Generated);
    match result {
        Ok(()) => {
            // STI's shadow ends with the instruction after it, which is executed before anything is looked at.
            let shadowed = core.shadow != InterruptShadow::None && !(chains && core.shadow == InterruptShadow::Sti);
            let quiet = core.block_end != 0 && !core.has_attention() && !shadowed && !core.halted;
            if quiet && (op.left > 1 || chains) {
                return 0;
            }
            core.native.slice += i32::from(op.left) - 1 + rest;
            core.native.handler_left = true;
            1
        }
        Err(stop) => {
            core.attribute_fault(op);
            core.native.stop = Some(stop);
            core.rip = rip;
            core.native.slice += i32::from(op.left) + rest;
            1
        }
    }
}
