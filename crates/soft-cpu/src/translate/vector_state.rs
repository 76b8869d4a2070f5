//! Where the guest's vector and x87 registers are while generated code runs.
//!
//! Generated code that works on them keeps them in the host's own, XMM or YMM `n` in `n`, and the guest's MXCSR in the host's: loaded all at once when a block
//! first needs them, and kept for as long as generated code runs. [`NativeState::vectors`] says that they are there. Every way out of generated code, to a handler or
//! to the loop, stores them again ([`emit_stores_if_loaded`]), so that Rust always finds them in [`FpuState`] and is free to use the host's.
//!
//! They are loaded only while the guest masks every floating-point exception: generated code then never traps, and leaves nothing to do but to keep the flags that
//! arise. With an exception unmasked [`emit_load`] refuses, and the block is interpreted.
//!
//! The x87 (and MMX) registers follow the vector registers where a block needs them too, by FXRSTOR and FXSAVE; with an x87 exception unmasked, or one that waits, [`emit_load_all`]
//! refuses likewise. The x87 instruction and data pointers stay those of the last instruction that a handler has executed: the processor would
//! note the host's addresses, and only handlers of exceptions that are masked here look at them.
//!
//! DEVNOTE: loading and storing only the registers that a block names costs more: loops are several blocks, and each would load and store its own again. All
//! sixteen take about 20 ns there and back, once in a slice of thousands of instructions.

use std::arch::is_x86_feature_detected;
use std::mem::offset_of;

use super::emit::{Emitter, Form, Jump, Rm, host};
use super::generate::{core_field, field, slot};
use crate::core::Core;
use crate::fpu::{FSW_ES, FpuState, Scratch, offset};

const FPU: usize = offset_of!(Core, fpu);
const IMAGE: usize = offset_of!(FpuState, image);
const RCX: u8 = 1;
const RDX: u8 = 2;
const HOST_MXCSR: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, mxcsr_host);

/// The masks of MXCSR (SDM vol. 1, 10.2.3).
const MASKS: u32 = 0x1f80;
/// The masks of the x87 control word (SDM vol. 1, 8.1.5).
const X87_MASKS: u32 = 0x3f;

const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// What is in the host's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Loaded {
    /// Only general registers.
    Nothing,
    /// XMM, YMM and MXCSR.
    Vectors,
    /// These and x87.
    All,
}

/// A field of the [`FpuState`] that `base` points to.
fn state(base: u8, at: usize) -> Rm {
    Rm::Disp(base, at as i32)
}

/// LDMXCSR (`form` 2) or STMXCSR (3).
fn mxcsr(e: &mut Emitter, form: u8, at: Rm) {
    e.modrm(Form { two_byte: true, ..Form::short(0xae) }, form, at);
}

/// Where the low half of vector register `n` is in the state that `base` points to.
fn low(base: u8, n: u8) -> Rm {
    state(base, IMAGE + offset::XMM + usize::from(n) * 16)
}

/// And its upper half.
fn high(base: u8, n: u8) -> Rm {
    state(base, IMAGE + offset::YMM_HIGH + usize::from(n) * 16)
}

/// Loads every vector register from the state that `base` points to; on a host with AVX all 256 bits.
///
/// Upper halves that are zero are left as VZEROUPPER leaves them: many processors would otherwise make each SSE instruction wait for the register that it
/// overwrites.
fn load_registers(e: &mut Emitter, base: u8) {
    const LOAD: u8 = 0x28;
    if !is_x86_feature_detected!("avx") {
        // MOVAPS
        return (0..16).for_each(|n| e.modrm(Form { two_byte: true, ..Form::short(LOAD) }, n, low(base, n)));
    }
    // VMOVAPS; VORPS; VPTEST: whether any bit of the upper halves is set.
    e.vex(1, 0, 0, false, LOAD, 0, high(base, 0));
    (1..16).for_each(|n| e.vex(1, 0, 0, false, 0x56, 0, high(base, n)));
    e.vex(2, 1, 0, false, 0x17, 0, Rm::Reg(0));
    let wide = e.jump_if(5);
    e.bytes(&VZEROUPPER);
    (0..16).for_each(|n| e.vex(1, 0, 0, false, LOAD, n, low(base, n)));
    let done = e.jump();
    e.aim_here(wide);
    for n in 0..16 {
        e.vex(1, 0, 0, false, LOAD, n, low(base, n));
        // VINSERTF128
        e.vex(3, 1, n, true, 0x18, n, high(base, n));
        e.bytes(&[1]);
    }
    e.aim_here(done);
}

/// Stores them.
fn store_registers(e: &mut Emitter, base: u8) {
    const STORE: u8 = 0x29;
    if !is_x86_feature_detected!("avx") {
        return (0..16).for_each(|n| e.modrm(Form { two_byte: true, ..Form::short(STORE) }, n, low(base, n)));
    }
    for n in 0..16 {
        e.vex(1, 0, 0, false, STORE, n, low(base, n));
        // VEXTRACTF128
        e.vex(3, 1, 0, true, 0x19, n, high(base, n));
        e.bytes(&[1]);
    }
    // Our own code is compiled to SSE instructions.
    e.bytes(&VZEROUPPER);
}

/// Emits the piece that loads them: called, it changes the two scratch registers and the flags. ZF says that they are loaded; otherwise the
/// guest has unmasked an exception.
pub(super) fn emit_load(e: &mut Emitter) {
    e.load(host::B, core_field(FPU));
    return_if_unmasked(e, offset::MXCSR, MASKS);
    mxcsr(e, 2, state(host::B, IMAGE + offset::MXCSR));
    load_registers(e, host::B);
    set(e, field::VECTORS, true);
    return_with_zf(e);
}

/// Emits the piece that loads them and the x87 registers, likewise; the vector registers may be loaded already. `store` is what [`emit_store`] has emitted.
pub(super) fn emit_load_all(e: &mut Emitter, store: u64) {
    // Storing needs RCX, which is the guest's here.
    e.store(slot(RCX), RCX);
    emit_stores_if_loaded(e, store);
    e.load(RCX, slot(RCX));
    e.load(host::B, core_field(FPU));
    return_if_unmasked(e, offset::MXCSR, MASKS);
    return_if_unmasked(e, offset::FCW, X87_MASKS);
    // TEST of the status word's low byte.
    e.modrm(Form::short(0xf6), 0, state(host::B, IMAGE + offset::FSW));
    e.bytes(&[FSW_ES as u8]);
    return_unless_zf(e);
    fxsave(e, 1, host::B);
    load_registers(e, host::B);
    set(e, field::VECTORS, true);
    set(e, field::X87, true);
    return_with_zf(e);
}

/// Returns, with ZF clear, if one of the bits `masks` of the state's word is clear.
fn return_if_unmasked(e: &mut Emitter, word: usize, masks: u32) {
    e.modrm(Form::short(0x8b), host::A, state(host::B, IMAGE + word));
    // NOT; TEST
    e.modrm(Form::short(0xf7), 2, Rm::Reg(host::A));
    e.modrm(Form::short(0xf7), 0, Rm::Reg(host::A));
    e.bytes(&masks.to_le_bytes());
    return_unless_zf(e);
}

fn return_unless_zf(e: &mut Emitter) {
    let set = e.jump_if(4);
    e.bytes(&[0xc3]);
    e.aim_here(set);
}

fn return_with_zf(e: &mut Emitter) {
    e.modrm(Form::short(0x3b), host::A, Rm::Reg(host::A));
    e.bytes(&[0xc3]);
}

/// FXSAVE (`form` 0) or FXRSTOR (1), in their 64-bit form.
fn fxsave(e: &mut Emitter, form: u8, base: u8) {
    e.modrm(Form { two_byte: true, ..Form::long(0xae) }, form, state(base, IMAGE));
}

/// Emits the piece that stores what is loaded. Called, it changes RCX, with x87 registers also RAX, RDX and RSI.
pub(super) fn emit_store(e: &mut Emitter) {
    const RSI: u8 = 6;
    let pointers = [(host::RAX, offset::FTW), (RDX, offset::FIP), (RSI, offset::FDP)];
    e.load(RCX, core_field(FPU));
    compare(e, field::X87);
    let no_x87 = e.jump_if(4);
    for (register, at) in pointers {
        e.load(register, state(RCX, IMAGE + at));
    }
    fxsave(e, 0, RCX);
    // Of the first of the three only the opcode is kept: the upper half of its low 32 bits.
    e.modrm(Form::short(0xc1), 5, Rm::Reg(host::RAX));
    e.bytes(&[16]);
    e.modrm(Form { prefix: 0x66, ..Form::short(0x89) }, host::RAX, state(RCX, IMAGE + offset::FOP));
    for (register, at) in pointers.into_iter().skip(1) {
        e.store(state(RCX, IMAGE + at), register);
    }
    // FNINIT: as our own code expects it.
    e.bytes(&[0xdb, 0xe3]);
    set(e, field::X87, false);
    e.aim_here(no_x87);
    mxcsr(e, 3, state(RCX, IMAGE + offset::MXCSR));
    mxcsr(e, 2, state(RCX, HOST_MXCSR));
    store_registers(e, RCX);
    set(e, field::VECTORS, false);
    e.bytes(&[0xc3]);
}

fn set(e: &mut Emitter, flag: usize, value: bool) {
    e.modrm(Form::short(0xc6), 0, core_field(flag));
    e.bytes(&[u8::from(value)]);
}

/// Looks whether these registers are loaded; the jump is taken if they are not.
pub(super) fn emit_check(e: &mut Emitter, wanted: Loaded) -> Jump {
    compare(e, if wanted == Loaded::All { field::X87 } else { field::VECTORS });
    e.jump_if(4)
}

fn compare(e: &mut Emitter, flag: usize) {
    e.modrm(Form::short(0x80), 7, core_field(flag));
    e.bytes(&[0]);
}

/// Stores them by the piece at `store` if they are loaded: what every way out of generated code does. Changes flags and what [`emit_store`] says.
pub(super) fn emit_stores_if_loaded(e: &mut Emitter, store: u64) {
    compare(e, field::VECTORS);
    let nothing = e.jump_if(4);
    e.call_to(store);
    e.aim_here(nothing);
}
