//! A running guest that is moved from one backend to another in the middle of its work.
//!
//! The guest says when, so that neither a fast nor a slow backend can spoil the test: twice it polls a port that lets it go on only on the next board.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dx, ecx, edx, rax, rbx, rcx};
use x86::CpuState;

use super::board::{Board, HOLD};
use super::code::{self, Guest as Code};
use super::guests::report_bytes;
use super::{long_mode, memory_with};
use crate::{AccelError, Accelerator, CpuIo, VcpuExit, VmConfig};

/// Rounds of the guest's work.
const ROUNDS: u32 = 60_000;
/// With so many rounds left, the guest waits for its next board.
const MOVES: [u32; 2] = [40_000, 20_000];
/// How long one stay may take.
const LIMIT: Duration = Duration::from_secs(20);
const MULTIPLIER: u32 = 0x0019_660d;

/// Iterates a linear congruence and reports the result.
fn work(g: &mut Code) -> Result<(), IcedError> {
    g.mov(rbx, 1u64)?;
    g.mov(ecx, ROUNDS)?;
    let (mut again, mut hold, mut held, mut go_on) =
        (g.create_label(), g.create_label(), g.create_label(), g.create_label());
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
    g.mov(edx, u32::from(HOLD))?;
    g.out(dx, al)?;
    g.set_label(&mut held)?;
    g.in_(al, dx)?;
    g.test(al, al)?;
    g.je(held)?;
    g.jmp(go_on)
}

/// What [`work`] reports.
fn result() -> [u8; 8] {
    (1..=u64::from(ROUNDS))
        .rev()
        .fold(1u64, |x, round| x.wrapping_mul(MULTIPLIER.into()).wrapping_add(round))
        .to_le_bytes()
}

/// One stay of the guest, from `state` until it waits or ends: its state then, and what it reported if it has finished.
fn stay(
    accelerator: &dyn Accelerator,
    memory: &guest_memory::GuestMemory,
    state: &CpuState,
) -> Result<(CpuState, Option<Vec<u8>>), AccelError> {
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
        Ok((state, board.finished().then(|| board.reported())))
    })
}

/// Starts a guest on the first of `stations`, moves it to the second and to the third in the middle of its work, and checks what it reports there.
///
/// # Errors
/// What a backend reports.
///
/// # Panics
/// When the guest did not do its work.
pub fn check(stations: [&dyn Accelerator; 3]) -> Result<(), AccelError> {
    let memory = memory_with(&code::assemble(work).expect("the guest can be assembled"));
    let mut state = long_mode();
    for (n, accelerator) in stations.into_iter().enumerate() {
        let (end, reported) = stay(accelerator, &memory, &state)?;
        match MOVES.get(n) {
            Some(left) => {
                assert_eq!(reported, None, "the guest finished on {} already", accelerator.name());
                assert_eq!(end.gprs[x86::gpr::RCX], u64::from(*left), "on {}", accelerator.name());
            }
            None => assert_eq!(reported.as_deref(), Some(&result()[..]), "on {}", accelerator.name()),
        }
        state = end;
    }
    Ok(())
}
