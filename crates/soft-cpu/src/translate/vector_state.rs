//! Where the guest's vector registers are while generated code runs.
//!
//! Generated code that works on them keeps them in the host's own, XMM or YMM `n` in `n`, and the guest's MXCSR in the host's: loaded all at once when a block
//! first needs them, and kept for as long as generated code runs. [`NativeState::vectors`] says that they are there. Every way out of generated code, to a handler or
//! to the loop, stores them again ([`emit_stores_if_loaded`]), so that Rust always finds them in [`FpuState`] and is free to use the host's.
//!
//! They are loaded only while the guest masks every floating-point exception: generated code then never traps, and leaves nothing to do but to keep the flags that
//! arise. With an exception unmasked [`load`] refuses, and the block is interpreted.
//!
//! DEVNOTE: loading and storing only the registers that a block names costs more: loops are several blocks, and each would load and store its own again. All
//! sixteen take about 20 ns there and back, once in a slice of thousands of instructions.

use std::arch::is_x86_feature_detected;
use std::mem::offset_of;

use super::emit::{Emitter, Form, Jump, Rm, host};
use super::generate::{core_field, field};
use crate::core::Core;
use crate::fpu::{FpuState, Scratch, offset};

const FPU: usize = offset_of!(Core, fpu);
const IMAGE: usize = offset_of!(FpuState, image);
const HOST_MXCSR: usize = offset_of!(FpuState, scratch) + offset_of!(Scratch, mxcsr_host);

/// The masks of MXCSR (SDM vol. 1, 10.2.3).
const MASKS: u32 = 0x1f80;

/// A field of the [`FpuState`] that `base` points to.
fn state(base: u8, at: usize) -> Rm {
    Rm::Disp(base, at as i32)
}

/// LDMXCSR (`form` 2) or STMXCSR (3).
fn mxcsr(e: &mut Emitter, form: u8, at: Rm) {
    e.modrm(Form { two_byte: true, ..Form::short(0xae) }, form, at);
}

/// Moves every vector register between the host's and the state that `base` points to. On a host with AVX that is their whole 256 bits.
fn move_all(e: &mut Emitter, base: u8, store: bool) {
    let opcode = if store { 0x29 } else { 0x28 };
    let avx = is_x86_feature_detected!("avx");
    for n in 0..16u8 {
        let low = state(base, IMAGE + offset::XMM + usize::from(n) * 16);
        let high = state(base, IMAGE + offset::YMM_HIGH + usize::from(n) * 16);
        if !avx {
            // MOVAPS
            e.modrm(Form { two_byte: true, ..Form::short(opcode) }, n, low);
            continue;
        }
        // VMOVAPS; VEXTRACTF128 or VINSERTF128.
        e.vex(1, 0, 0, false, opcode, n, low);
        if store {
            e.vex(3, 1, 0, true, 0x19, n, high);
        } else {
            e.vex(3, 1, n, true, 0x18, n, high);
        }
        e.bytes(&[1]);
    }
}

/// Emits the piece that loads them: called, it changes the two scratch registers and the flags. ZF says that they are loaded; otherwise the
/// guest has unmasked an exception.
pub(super) fn emit_load(e: &mut Emitter) {
    e.load(host::B, core_field(FPU));
    e.modrm(Form::short(0x8b), host::A, state(host::B, IMAGE + offset::MXCSR));
    // NOT; TEST with the masks: what remains is unmasked.
    e.modrm(Form::short(0xf7), 2, Rm::Reg(host::A));
    e.modrm(Form::short(0xf7), 0, Rm::Reg(host::A));
    e.bytes(&MASKS.to_le_bytes());
    let masked = e.jump_if(4);
    e.bytes(&[0xc3]);
    e.aim_here(masked);
    mxcsr(e, 2, state(host::B, IMAGE + offset::MXCSR));
    move_all(e, host::B, false);
    set_loaded(e, true);
    // ZF
    e.modrm(Form::short(0x3b), host::A, Rm::Reg(host::A));
    e.bytes(&[0xc3]);
}

/// Emits the piece that stores them. Called, it changes RCX.
pub(super) fn emit_store(e: &mut Emitter) {
    const RCX: u8 = 1;
    e.load(RCX, core_field(FPU));
    mxcsr(e, 3, state(RCX, IMAGE + offset::MXCSR));
    mxcsr(e, 2, state(RCX, HOST_MXCSR));
    move_all(e, RCX, true);
    if is_x86_feature_detected!("avx") {
        // VZEROUPPER: our own code is compiled to SSE instructions, which are slow after anything else on some processors.
        e.bytes(&[0xc5, 0xf8, 0x77]);
    }
    set_loaded(e, false);
    e.bytes(&[0xc3]);
}

fn set_loaded(e: &mut Emitter, loaded: bool) {
    e.modrm(Form::short(0xc6), 0, core_field(field::VECTORS));
    e.bytes(&[u8::from(loaded)]);
}

/// Compares with zero what says that they are loaded; the jump is taken if they are not.
pub(super) fn emit_check(e: &mut Emitter) -> Jump {
    compare(e);
    e.jump_if(4)
}

fn compare(e: &mut Emitter) {
    e.modrm(Form::short(0x80), 7, core_field(field::VECTORS));
    e.bytes(&[0]);
}

/// Stores them by the piece at `store` if they are loaded: what every way out of generated code does. Changes flags and RCX.
pub(super) fn emit_stores_if_loaded(e: &mut Emitter, store: u64) {
    compare(e);
    let nothing = e.jump_if(4);
    e.call_to(store);
    e.aim_here(nothing);
}
