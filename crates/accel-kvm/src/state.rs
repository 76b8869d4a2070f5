//! Between KVM's structures and the plain-data [`CpuState`].
//!
//! What KVM has begun to deliver and not finished: a fault happens again when its instruction does; an interrupt of the local APIC goes back there, as if it had not
//! been acknowledged ([`crate::local_apic`]); one of the PIC's, which cannot go back, is [`CpuState::acknowledged_interrupt`]. [`crate::vcpu`] completes I/O before it returns.

#![expect(unsafe_code, reason = "KVM_SET_XSAVE reads as many bytes as the host's processor has state")]

use accel::AccelError;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, Msrs, kvm_debugregs, kvm_dtable,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use tracing::debug;
use x86::{
    Activity, CpuState, DescriptorTable, InterruptShadow, LocalApicState, Segment, XSAVE_SIZE, cr4, exception, msr,
};

use crate::{host, local_apic};

/// Bytes of the XSAVE area that plain KVM_GET_XSAVE knows; a processor with more state needs KVM_CAP_XSAVE2, and nobody enables such state here.
const KVM_XSAVE_SIZE: usize = 4096;
/// Offset of XSTATE_BV, the components in use (SDM vol. 1, 13.4.2).
const XSTATE_BV: usize = 512;
/// Offset of MXCSR_MASK, which is the processor's and not the program's.
const MXCSR_MASK: usize = 28;

/// The MSRs that belong to a `CpuState`, where the host's KVM has them.
pub(crate) fn saved_msrs() -> impl Iterator<Item = u32> {
    msr::saved().chain([
        msr::KVM_WALL_CLOCK,
        msr::KVM_SYSTEM_TIME,
        msr::KVM_WALL_CLOCK_NEW,
        msr::KVM_SYSTEM_TIME_NEW,
        msr::KVM_STEAL_TIME,
        msr::KVM_PV_EOI_EN,
    ])
}

/// A KVM call that takes a list of at most a few entries cannot fail for its length.
fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, AccelError> {
    Msrs::from_entries(entries).map_err(|_| AccelError::State { what: "more MSRs than KVM takes at a time".to_owned() })
}

fn msr_entry((index, data): (u32, u64)) -> kvm_msr_entry {
    kvm_msr_entry { index, data, ..Default::default() }
}

/// Writes MSRs; what the host's KVM does not have, or not with this value, is left out with a note in the log.
pub(crate) fn write_msrs(fd: &VcpuFd, msrs: &[(u32, u64)]) -> Result<(), AccelError> {
    let mut rest: Vec<kvm_msr_entry> = msrs.iter().copied().map(msr_entry).collect();
    while !rest.is_empty() {
        let written = fd.set_msrs(&msr_list(&rest)?).map_err(host("KVM_SET_MSRS"))?;
        if let Some(refused) = rest.get(written) {
            debug!(
                msr = format_args!("{:#x}", refused.index),
                value = format_args!("{:#x}", refused.data),
                "KVM does not take this MSR"
            );
        }
        rest.drain(..(written + 1).min(rest.len()));
    }
    Ok(())
}

fn segment_from(s: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u16| u16::from(value & 1) << at;
    Segment {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attributes: u16::from(s.type_ & 0xf)
            | bit(s.s, 4)
            | u16::from(s.dpl & 3) << 5
            | bit(s.present & !s.unusable, 7)
            | bit(s.avl, 12)
            | bit(s.l, 13)
            | bit(s.db, 14)
            | bit(s.g, 15),
    }
}

/// A segment as KVM has it.
pub(crate) fn segment_to(s: &Segment) -> kvm_segment {
    let bit = |at: u16| (s.attributes >> at & 1) as u8;
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.attributes & 0xf) as u8,
        present: bit(7),
        dpl: s.dpl(),
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(7) ^ 1,
        padding: 0,
    }
}

fn table_from(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable { base: t.base, limit: t.limit }
}

fn table_to(t: &DescriptorTable) -> kvm_dtable {
    kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] }
}

fn regs_of(state: &CpuState) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gprs;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
}

fn sregs_of(state: &CpuState) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to(&state.cs),
        ds: segment_to(&state.ds),
        es: segment_to(&state.es),
        fs: segment_to(&state.fs),
        gs: segment_to(&state.gs),
        ss: segment_to(&state.ss),
        tr: segment_to(&state.tr),
        ldt: segment_to(&state.ldtr),
        gdt: table_to(&state.gdtr),
        idt: table_to(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// Puts what `regs` and `sregs` hold into `state`.
fn take_registers(state: &mut CpuState, regs: &kvm_regs, sregs: &kvm_sregs) {
    let r = regs;
    state.gprs =
        [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    (state.rip, state.rflags) = (r.rip, r.rflags);
    let s = sregs;
    (state.es, state.cs, state.ss) = (segment_from(&s.es), segment_from(&s.cs), segment_from(&s.ss));
    (state.ds, state.fs, state.gs) = (segment_from(&s.ds), segment_from(&s.fs), segment_from(&s.gs));
    (state.ldtr, state.tr) = (segment_from(&s.ldt), segment_from(&s.tr));
    (state.gdtr, state.idtr) = (table_from(&s.gdt), table_from(&s.idt));
    (state.cr0, state.cr2, state.cr3, state.cr4) = (s.cr0, s.cr2, s.cr3, s.cr4);
    (state.cr8, state.efer, state.apic_base) = (s.cr8, s.efer, s.apic_base);
}

/// Puts the XSAVE image of a `CpuState` among KVM's words, whose other components stay. Its x87 and SSE components are always there, whatever XSTATE_BV says: RESET leaves another x87 control word
/// than a component in its first state has. A host without AVX refuses that component, so it is there only where it holds something.
fn put_xsave(xsave: &mut kvm_xsave, image: &[u8]) {
    const LEGACY_WORDS: usize = XSTATE_BV / 4;
    const AVX_WORDS: usize = (XSTATE_BV + 64) / 4;
    let avx = image[XSTATE_BV + 64..].iter().any(|byte| *byte != 0);
    for (n, (word, bytes)) in xsave.region.iter_mut().zip(image.chunks_exact(4)).enumerate() {
        if !(LEGACY_WORDS..AVX_WORDS).contains(&n) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
    }
    xsave.region[LEGACY_WORDS] = xsave.region[LEGACY_WORDS] & !7 | if avx { 7 } else { 3 };
}

/// KVM's words as an XSAVE image. KVM leaves components out that are in their first state; the image's are all there, as the format of `CpuState` wants.
fn xsave_from(xsave: &kvm_xsave) -> Vec<u8> {
    let mut image: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).take(XSAVE_SIZE).collect();
    let used = image[XSTATE_BV];
    if used & 1 == 0 {
        image[..24].fill(0);
        image[32..160].fill(0);
        image[0..2].copy_from_slice(&0x037fu16.to_le_bytes());
    }
    if used & 2 == 0 {
        image[160..416].fill(0);
    }
    if used & 4 == 0 {
        image[576..832].fill(0);
    }
    image[MXCSR_MASK..32].copy_from_slice(&0xffffu32.to_le_bytes());
    image[416..XSTATE_BV].fill(0);
    image[XSTATE_BV..576].fill(0);
    image[XSTATE_BV] = 7;
    image
}

/// Which of `Activity`'s a KVM_GET_MP_STATE answer is.
fn activity_from(mp_state: u32) -> Activity {
    match mp_state {
        KVM_MP_STATE_RUNNABLE => Activity::Running,
        KVM_MP_STATE_HALTED => Activity::Halted,
        // Uninitialized, or INIT or a start-up IPI is being taken.
        _ => Activity::WaitForSipi,
    }
}

/// What a vCPU's state depends on besides its file descriptor.
pub(crate) struct Features {
    /// KVM_CAP_XCRS: the guest has XCR0.
    pub(crate) xcrs: bool,
    /// The local APIC is the kernel's, and so is what a vCPU does between runs. Otherwise their owner fills in both.
    pub(crate) kernel_apic: bool,
    /// The MSRs of [`saved_msrs`] that the host's KVM has.
    pub(crate) msrs: Vec<u32>,
}

/// Changes what is under way. What has a flag that is not among `flags` stays as it is: an NMI may have come meanwhile.
fn change_events(fd: &VcpuFd, flags: u32, change: impl FnOnce(&mut kvm_vcpu_events)) -> Result<(), AccelError> {
    let mut events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    change(&mut events);
    events.flags = flags;
    fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS"))
}

/// Gives the processor an interrupt that the PIC's acknowledge cycle named, which it can take now.
///
/// DEVNOTE: KVM_INTERRUPT is the obvious call. With the kernel's local APIC it leaves the vector where no call can read it until the next entry, and a kick before that would lose it; as an
/// event under way it is seen by KVM_GET_VCPU_EVENTS, and a halted vCPU has to be woken by hand.
pub(crate) fn queue_interrupt(fd: &VcpuFd, vector: u8) -> Result<(), AccelError> {
    change_events(fd, 0, |events| {
        (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, vector, 0);
    })?;
    let mp_state = fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?.mp_state;
    if mp_state == KVM_MP_STATE_HALTED {
        fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(host("KVM_SET_MP_STATE"))?;
    }
    Ok(())
}

/// Whether interrupts are held off for an instruction.
fn shadow_from(events: &kvm_vcpu_events) -> InterruptShadow {
    match u32::from(events.interrupt.shadow) {
        shadow if shadow & KVM_X86_SHADOW_INT_MOV_SS != 0 => InterruptShadow::MovSs,
        shadow if shadow & KVM_X86_SHADOW_INT_STI != 0 => InterruptShadow::Sti,
        _ => InterruptShadow::None,
    }
}

fn shadow_to(shadow: InterruptShadow) -> u8 {
    match shadow {
        InterruptShadow::None => 0,
        InterruptShadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        InterruptShadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    }
}

/// Raises #UD at the next instruction.
pub(crate) fn queue_invalid_opcode(fd: &VcpuFd) -> Result<(), AccelError> {
    change_events(fd, 0, |events| {
        (events.exception.injected, events.exception.nr, events.exception.has_error_code) = (1, exception::UD, 0);
    })
}

/// Reads MSRs; those that the host's KVM does not have are left out.
pub(crate) fn read_msrs(fd: &VcpuFd, numbers: impl Iterator<Item = u32>) -> Result<Vec<(u32, u64)>, AccelError> {
    let mut rest: Vec<kvm_msr_entry> = numbers.map(|number| msr_entry((number, 0))).collect();
    let mut found = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let mut list = msr_list(&rest)?;
        let read = fd.get_msrs(&mut list).map_err(host("KVM_GET_MSRS"))?;
        found.extend(list.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        rest.drain(..(read + 1).min(rest.len()));
    }
    Ok(found)
}

/// Reads what instructions work on, and what is under way: everything but the local APIC, and what the processor does between runs.
pub(crate) fn save_processor(fd: &VcpuFd, features: &Features) -> Result<(CpuState, kvm_vcpu_events), AccelError> {
    let mut state = CpuState::reset(true);
    let regs = fd.get_regs().map_err(host("KVM_GET_REGS"))?;
    let sregs = fd.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    take_registers(&mut state, &regs, &sregs);
    let debug = fd.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
    (state.dr, state.dr6, state.dr7) = (debug.db, debug.dr6, debug.dr7);
    state.xsave = xsave_from(&fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?);
    if features.xcrs {
        let xcrs = fd.get_xcrs().map_err(host("KVM_GET_XCRS"))?;
        let known = &xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(xcrs.xcrs.len())];
        state.xcr0 = known.iter().find(|x| x.xcr == 0).map_or(1, |x| x.value);
    }
    state.msrs = read_msrs(fd, [msr::IA32_TSC].into_iter().chain(features.msrs.iter().copied()))?;
    state.tsc = match state.msrs.first() {
        Some(&(msr::IA32_TSC, _)) => state.msrs.swap_remove(0).1,
        _ => 0,
    };
    state.msrs.sort_unstable();
    let events = fd.get_vcpu_events().map_err(host("KVM_GET_VCPU_EVENTS"))?;
    state.interrupt_shadow = shadow_from(&events);
    state.nmi_blocked = events.nmi.masked != 0;
    state.nmi_pending = events.nmi.pending != 0 || events.nmi.injected != 0;
    Ok((state, events))
}

/// Reads the whole state, but for a shutdown, which KVM does not remember. `apic` is the local APIC that is not the kernel's.
pub(crate) fn save(fd: &VcpuFd, features: &Features, apic: Option<LocalApicState>) -> Result<CpuState, AccelError> {
    let (mut state, events) = save_processor(fd, features)?;
    let mut apic = match apic {
        Some(apic) => apic,
        None => local_apic::save(fd)?,
    };
    if events.interrupt.injected != 0 && events.interrupt.soft == 0 {
        state.acknowledged_interrupt = local_apic::unacknowledge(&mut apic.registers, events.interrupt.nr);
    }
    state.local_apic = Some(Box::new(apic));
    if features.kernel_apic {
        state.activity = activity_from(fd.get_mp_state().map_err(host("KVM_GET_MP_STATE"))?.mp_state);
    }
    Ok(state)
}

fn load_debug_registers(fd: &VcpuFd, state: &CpuState) -> Result<(), AccelError> {
    let debug = kvm_debugregs { db: state.dr, dr6: state.dr6, dr7: state.dr7, ..Default::default() };
    fd.set_debug_regs(&debug).map_err(host("KVM_SET_DEBUGREGS"))
}

fn load_xcr0(fd: &VcpuFd, state: &CpuState) -> Result<(), AccelError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = state.xcr0;
    fd.set_xcrs(&xcrs).map_err(host("KVM_SET_XCRS"))
}

fn load_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), AccelError> {
    // SAFETY: the structure has the 4096 bytes that KVM reads where no state is enabled that is larger, and no such state is: nobody asks the host
    // for permission to use it (arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)).
    unsafe { fd.set_xsave(xsave) }.map_err(host("KVM_SET_XSAVE"))
}

/// Has KVM forget the guest's translations: as if CR4.PGE had changed and come back, which is all that a VMM can do.
pub(crate) fn forget_translations(fd: &VcpuFd, state: &CpuState) -> Result<(), AccelError> {
    for cr4 in [state.cr4 ^ cr4::PGE, state.cr4] {
        fd.set_sregs(&kvm_sregs { cr4, ..sregs_of(state) }).map_err(host("KVM_SET_SREGS"))?;
    }
    Ok(())
}

/// Loads what of [`save_processor`]'s state has changed since it was saved as `before`. The time stamp counter goes on, and what is under way goes on.
pub(crate) fn load_changes(
    fd: &VcpuFd,
    features: &Features,
    before: &CpuState,
    after: &CpuState,
) -> Result<(), AccelError> {
    let regs = regs_of(after);
    if regs != regs_of(before) {
        fd.set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
    }
    let sregs = sregs_of(after);
    if sregs != sregs_of(before) {
        fd.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
    }
    if features.xcrs && after.xcr0 != before.xcr0 {
        load_xcr0(fd, after)?;
    }
    if after.xsave != before.xsave {
        // Components that a `CpuState` does not have stay as they are.
        let mut xsave = fd.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
        put_xsave(&mut xsave, &after.xsave);
        load_xsave(fd, &xsave)?;
    }
    if (after.dr, after.dr6, after.dr7) != (before.dr, before.dr6, before.dr7) {
        load_debug_registers(fd, after)?;
    }
    let value_before = |number| before.msrs.iter().find(|(known, _)| *known == number).map(|(_, value)| *value);
    let is_changed = |&(number, value): &(u32, u64)| value_before(number).is_some_and(|before| before != value);
    let changed: Vec<_> = after.msrs.iter().copied().filter(is_changed).collect();
    write_msrs(fd, &changed)?;
    let flow = |state: &CpuState| (state.interrupt_shadow, state.nmi_blocked);
    if flow(after) != flow(before) {
        change_events(fd, KVM_VCPUEVENT_VALID_SHADOW, |events| {
            events.interrupt.shadow = shadow_to(after.interrupt_shadow);
            events.nmi.masked = after.nmi_blocked.into();
        })?;
    }
    Ok(())
}

/// Loads the whole state. Other events that were being delivered are forgotten.
pub(crate) fn load(fd: &VcpuFd, features: &Features, state: &CpuState) -> Result<(), AccelError> {
    if state.xsave.len() != XSAVE_SIZE {
        return Err(AccelError::State { what: "the XSAVE image has the wrong size".to_owned() });
    }
    fd.set_regs(&regs_of(state)).map_err(host("KVM_SET_REGS"))?;
    fd.set_sregs(&sregs_of(state)).map_err(host("KVM_SET_SREGS"))?;
    if features.xcrs {
        load_xcr0(fd, state)?;
    }
    let mut xsave = kvm_xsave::default();
    put_xsave(&mut xsave, &state.xsave);
    load_xsave(fd, &xsave)?;
    load_debug_registers(fd, state)?;
    write_msrs(fd, &state.msrs)?;
    write_msrs(fd, &[(msr::IA32_TSC, state.tsc)])?;
    if let Some(saved) = &state.local_apic
        && features.kernel_apic
    {
        local_apic::load(fd, saved)?;
    }
    let mut events =
        kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
    events.interrupt.shadow = shadow_to(state.interrupt_shadow);
    if let Some(vector) = state.acknowledged_interrupt {
        (events.interrupt.injected, events.interrupt.nr) = (1, vector);
    }
    events.nmi.masked = state.nmi_blocked.into();
    events.nmi.pending = state.nmi_pending.into();
    fd.set_vcpu_events(&events).map_err(host("KVM_SET_VCPU_EVENTS"))?;
    if !features.kernel_apic {
        // KVM knows no other activity than running, then.
        return Ok(());
    }
    let mp_state = match state.activity {
        // An interrupt that was acknowledged ends HLT.
        Activity::Halted if state.acknowledged_interrupt.is_some() => KVM_MP_STATE_RUNNABLE,
        // A processor that shut down is kept from running by its owner.
        Activity::Running | Activity::Shutdown => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_UNINITIALIZED,
    };
    fd.set_mp_state(kvm_mp_state { mp_state }).map_err(host("KVM_SET_MP_STATE"))
}

const _: () = assert!(size_of::<kvm_xsave>() >= KVM_XSAVE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_survives_the_round_trip() {
        for raw in [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x1200_8b34_5678_0067] {
            let segment = Segment::from_descriptor(0x10, raw);
            assert_eq!(segment_from(&segment_to(&segment)), segment);
        }
    }

    #[test]
    fn a_segment_that_is_not_present_is_unusable() {
        assert_eq!(segment_to(&Segment::default()).unusable, 1);
    }

    #[test]
    fn registers_survive_the_round_trip() {
        let mut state = CpuState::reset(true);
        state.gprs = std::array::from_fn(|n| 0x1000 + n as u64);
        (state.rip, state.cr3, state.cr8) = (0x1234, 0x5000, 5);
        let mut copy = CpuState::reset(false);
        take_registers(&mut copy, &regs_of(&state), &sregs_of(&state));
        copy.activity = state.activity;
        assert_eq!(copy, state);
    }

    #[test]
    fn components_that_a_state_does_not_have_stay() {
        let mut xsave = kvm_xsave::default();
        // The x87 is in use, and so are protection keys and something behind the AVX registers.
        (xsave.region[128], xsave.region[0], xsave.region[300]) = (1 | 1 << 9, 0x0bad, 0x1234);
        let mut state = CpuState::reset(true);
        state.xsave[160] = 7;
        put_xsave(&mut xsave, &state.xsave);
        assert_eq!((xsave.region[128], xsave.region[0], xsave.region[40]), (3 | 1 << 9, 0x40, 7));
        assert_eq!(xsave.region[300], 0x1234);
        state.xsave[576] = 1;
        put_xsave(&mut xsave, &state.xsave);
        assert_eq!((xsave.region[128], xsave.region[144]), (7 | 1 << 9, 1));
    }

    #[test]
    fn a_component_in_its_first_state_is_written_out() {
        let mut xsave = kvm_xsave::default();
        // XMM0 has garbage, and XSTATE_BV says that SSE is in its first state.
        xsave.region[40] = 0xdead;
        let image = xsave_from(&xsave);
        assert_eq!((image[160], image[XSTATE_BV], image[0]), (0, 7, 0x7f));
    }
}
