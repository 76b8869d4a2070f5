//! A running guest that is moved from one backend to another in the middle of its work.
//!
//! The guest says when, so that neither a fast nor a slow backend can spoil the test: twice it polls a port that lets it go on only on the next board.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dx, ecx, edx, qword_ptr, rax, rbx, rcx};
use x86::CpuState;

use super::board::{Board, HOLD, PIC};
use super::code::{self, Guest as Code};
use super::guests::report_bytes;
use super::{LIMIT, SCRATCH, long_mode, memory_with};
use crate::{AccelError, Accelerator, CpuIo, Kicker, VcpuExit, VmConfig};

/// Rounds of the calculating guest.
const ROUNDS: u32 = 60_000;
/// With so many rounds left, it waits for its next board.
const MOVES: [u32; 2] = [40_000, 20_000];
const MULTIPLIER: u32 = 0x0019_660d;

/// Vectors of the interrupted guest, the most urgent first.
const IN_SERVICE: u8 = 0x71;
const REQUESTED: u8 = 0x62;
const TIMER: u8 = 0x53;
/// Counts of the local APIC's timer, whose period is a nanosecond: long enough for the moves to come first.
const TIMER_COUNT: u32 = 400_000_000;

/// Polls until the guest is on its next board. Clobbers AL and DX.
fn wait_for_the_next_board(g: &mut Code) -> Result<(), IcedError> {
    let mut held = g.create_label();
    g.mov(edx, u32::from(HOLD))?;
    g.out(dx, al)?;
    g.set_label(&mut held)?;
    g.in_(al, dx)?;
    g.test(al, al)?;
    g.je(held)
}

/// Iterates a linear congruence and reports the result.
fn calculate(g: &mut Code) -> Result<(), IcedError> {
    g.mov(rbx, 1u64)?;
    g.mov(ecx, ROUNDS)?;
    let (mut again, mut hold, mut go_on) = (g.create_label(), g.create_label(), g.create_label());
    g.set_label(&mut again)?;
    g.imul_3(rbx, rbx, MULTIPLIER as i32)?;
    g.add(rbx, rcx)?;
    for left in MOVES {
        g.cmp(ecx, left)?;
        g.je(hold)?;
    }
    g.set_label(&mut go_on)?;
    g.sub(ecx, 1)?;
    g.jne(again)?;
    g.mov(rax, rbx)?;
    report_bytes(g, 8)?;
    g.end()?;
    g.set_label(&mut hold)?;
    wait_for_the_next_board(g)?;
    g.jmp(go_on)
}

/// What [`calculate`] reports.
fn result() -> [u8; 8] {
    (1..=u64::from(ROUNDS))
        .rev()
        .fold(1u64, |x, round| x.wrapping_mul(MULTIPLIER.into()).wrapping_add(round))
        .to_le_bytes()
}

/// Moves first with two interrupts requested and the timer running, then from within the handler of the more urgent one.
fn be_interrupted(g: &mut Code) -> Result<(), IcedError> {
    let mut over = g.create_label();
    let handlers = [IN_SERVICE, REQUESTED, TIMER].map(|vector| (vector, g.create_label()));
    g.jmp(over)?;
    for (vector, mut label) in handlers {
        g.set_label(&mut label)?;
        g.report(vector)?;
        if vector == IN_SERVICE {
            wait_for_the_next_board(g)?;
        }
        if vector == TIMER {
            g.mov(qword_ptr(SCRATCH), 1)?;
        }
        g.apic_eoi()?;
        g.iretq()?;
    }
    g.set_label(&mut over)?;
    for (vector, label) in handlers {
        g.set_gate(vector, label)?;
    }
    g.apic_on()?;
    // Divided by 1; one-shot.
    g.apic_write(0x3e0, 0xb)?;
    g.apic_write(0x320, TIMER.into())?;
    g.apic_write(0x380, TIMER_COUNT)?;
    for vector in [REQUESTED, IN_SERVICE] {
        // To itself.
        g.apic_write(0x300, 0x4_4000 | u32::from(vector))?;
    }
    wait_for_the_next_board(g)?;
    g.sti()?;
    g.wait_for(SCRATCH)?;
    g.cli()?;
    g.end()
}

/// A guest that is moved twice.
struct Traveller {
    build: fn(&mut Code) -> Result<(), IcedError>,
    /// What it reports on its three boards together.
    reports: Vec<u8>,
}

fn travellers() -> [Traveller; 2] {
    [
        Traveller { build: calculate, reports: result().to_vec() },
        Traveller { build: be_interrupted, reports: vec![IN_SERVICE, REQUESTED, TIMER] },
    ]
}

/// One stay of the guest, from `state` until it waits or ends: its state then, what it reported, and whether it has finished.
fn stay(
    accelerator: &dyn Accelerator,
    memory: &guest_memory::GuestMemory,
    state: &CpuState,
) -> Result<(CpuState, Vec<u8>, bool), AccelError> {
    let vm = accelerator.create_vm(VmConfig { vcpus: 1, memory: memory.clone() })?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_state(state)?;
    let board = Arc::new(Board::new(vm));
    let io: Arc<dyn CpuIo> = board.clone();
    let kicker = vcpu.kicker();
    thread::scope(|scope| {
        let runner = scope.spawn(move || {
            let exit = vcpu.run(&io)?;
            assert_eq!(exit, VcpuExit::Kicked);
            vcpu.state()
        });
        board.wait_for_end(Instant::now() + LIMIT);
        kicker.kick();
        let state = runner.join().expect("the vCPU thread panicked")?;
        Ok((state, board.reported(), board.finished()))
    })
}

/// Starts each guest on the first of `stations`, moves it to the second and to the third in the middle of its work, and checks what it reports.
///
/// # Errors
/// What a backend reports.
///
/// # Panics
/// When a guest did not do its work.
pub fn check(stations: [&dyn Accelerator; 3]) -> Result<(), AccelError> {
    for traveller in travellers() {
        let memory = memory_with(&code::assemble(traveller.build).expect("the guest can be assembled"));
        let mut state = long_mode();
        let mut reports = Vec::new();
        for (n, accelerator) in stations.into_iter().enumerate() {
            let (end, reported, finished) = stay(accelerator, &memory, &state)?;
            reports.extend(reported);
            assert_eq!(finished, n == 2, "on {} after {reports:x?}", accelerator.name());
            state = end;
        }
        assert_eq!(reports, traveller.reports);
    }
    Ok(())
}

/// The vector of [`check_acknowledged`].
const PIC_VECTOR: u8 = 0x33;

/// A board that ends the vCPU's run in the moment in which the processor has acknowledged the PIC's interrupt and not begun to handle it.
struct KicksAtAcknowledge {
    board: Arc<Board>,
    kicker: Arc<dyn Kicker>,
}

impl CpuIo for KicksAtAcknowledge {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        self.board.pio_read(port, data);
    }
    fn pio_write(&self, port: u16, data: &[u8]) {
        self.board.pio_write(port, data);
    }
    fn mmio_read(&self, address: u64, data: &mut [u8]) {
        self.board.mmio_read(address, data);
    }
    fn mmio_write(&self, address: u64, data: &[u8]) {
        self.board.mmio_write(address, data);
    }
    fn ack_pic(&self) -> Option<u8> {
        self.kicker.kick();
        self.board.ack_pic()
    }
    fn eoi(&self, vector: u8) {
        self.board.eoi(vector);
    }
}

/// Raises the PIC's wire, and sleeps if `HALTED`, else spins, until the interrupt ends it.
fn be_interrupted_by_the_pic<const HALTED: bool>(g: &mut Code) -> Result<(), IcedError> {
    let (mut handler, mut over, mut stay) = (g.create_label(), g.create_label(), g.create_label());
    g.jmp(over)?;
    g.set_label(&mut handler)?;
    g.report(PIC_VECTOR)?;
    g.end()?;
    g.set_label(&mut over)?;
    g.set_gate(PIC_VECTOR, handler)?;
    g.apic_on()?;
    g.apic_write(0x350, 0x700)?;
    g.mov(edx, u32::from(PIC))?;
    g.mov(al, u32::from(PIC_VECTOR))?;
    g.out(dx, al)?;
    g.sti()?;
    g.set_label(&mut stay)?;
    if HALTED {
        g.hlt()?;
    } else {
        g.pause()?;
    }
    g.jmp(stay)
}

/// Moves a guest from `from` to `to` in the moment in which the processor has acknowledged an interrupt of the PIC's and not begun to handle it, and checks that it is
/// handled, once. What the moved states had acknowledged is returned, for a processor that spins and for one that sleeps: a backend that does both at once has nothing.
///
/// # Errors
/// What a backend reports.
///
/// # Panics
/// When the interrupt is lost or comes twice.
pub fn check_acknowledged(from: &dyn Accelerator, to: &dyn Accelerator) -> Result<[Option<u8>; 2], AccelError> {
    let one = |build| -> Result<Option<u8>, AccelError> {
        let memory = memory_with(&code::assemble(build).expect("the guest can be assembled"));
        let vm = from.create_vm(VmConfig { vcpus: 1, memory: memory.clone() })?;
        let mut vcpu = vm.create_vcpu(0)?;
        vcpu.set_state(&long_mode())?;
        let board = Arc::new(Board::new(vm));
        let io: Arc<dyn CpuIo> = Arc::new(KicksAtAcknowledge { board: board.clone(), kicker: vcpu.kicker() });
        assert_eq!(vcpu.run(&io)?, VcpuExit::Kicked);
        let state = vcpu.state()?;
        let (_, reported, finished) = stay(to, &memory, &state)?;
        let reports = [board.reported(), reported].concat();
        assert_eq!((reports.as_slice(), finished || board.finished()), (&[PIC_VECTOR][..], true), "to {}", to.name());
        Ok(state.acknowledged_interrupt)
    };
    Ok([one(be_interrupted_by_the_pic::<false>)?, one(be_interrupted_by_the_pic::<true>)?])
}
