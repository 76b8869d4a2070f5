//! The guests that every backend must pass: a few instructions each, in 64-bit mode, on a board of a few ports.
//!
//! A guest reports by writing bytes to port [`board::REPORT`] and ends by writing to [`board::END`]; what it reported is compared with what the architecture
//! promises. [`run`] runs one and returns what it saw; [`all`] gives them all. [`compare`] holds
//! two backends against each other, [`relay`] moves a guest between them.

pub mod board;
mod code;
pub mod compare;
pub mod guests;
pub mod i8259;
pub mod ioapic;
pub mod many;
pub mod platform;
pub mod refused;
pub mod relay;
pub mod user;

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_memory::{GuestMemory, allocate};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use x86::{Activity, CpuState, Segment, cr0, cr4, efer, gpr};

use crate::{AccelError, Accelerator, Kicker, Vcpu, VcpuExit, VmConfig};
use board::Board;

/// Guest RAM of a conformance guest, in bytes.
pub const RAM: usize = 4 << 20;
/// Where its code starts.
pub const CODE: u64 = 0x10_0000;
/// Top of the bootstrap processor's stack.
pub const STACK: u64 = 0xf_0000;
/// The interrupt descriptor table, 256 gates of 16 bytes.
pub const IDT: u64 = 0x3000;
/// The global descriptor table: null, 64-bit code at 0x8, data at 0x10.
pub const GDT: u64 = 0x2000;
/// Scratch memory.
pub const SCRATCH: u64 = 0x8000;

/// How long a guest may take: some seconds on a KVM that emulates, and far more where others keep the host busy.
const LIMIT: Duration = Duration::from_secs(180);

/// How long a guest that has ended is run at a time, to its last HLT, and how often at most.
const SETTLE: Duration = Duration::from_millis(20);
const SETTLING_RUNS: u32 = 100;

const PML4: u64 = 0x4000;
const PDPT: u64 = 0x5000;
/// Four page directories.
const DIRECTORIES: u64 = 0x1_0000;

/// A guest: how many vCPUs it has, its code, and what it must report.
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// Number of vCPUs; all but the first wait to be started.
    pub vcpus: u32,
    /// Writes its code.
    pub build: fn(&mut code::Guest) -> Result<(), iced_x86::IcedError>,
    /// What it must report.
    pub expected: &'static [u8],
    /// How it must end.
    pub end: End,
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By writing to [`board::END`].
    Finished,
    /// By a triple fault.
    TripleFault,
    /// Not within the time it was given.
    TimedOut,
}

/// How a guest ends on a backend that is known not to do what the architecture promises.
#[derive(Debug, Clone, Copy)]
pub struct Deviation {
    /// The guest's name.
    pub guest: &'static str,
    /// What it reports, as on a board that sees the ends of interrupts.
    pub reported: &'static [u8],
    /// How it ends.
    pub end: End,
    /// What the backend does.
    pub because: &'static str,
}

/// What a run showed.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// What it reported.
    pub bytes: Vec<u8>,
    /// The bootstrap processor at the end.
    pub state: CpuState,
    /// The guest's memory at the end.
    pub memory: GuestMemory,
    /// Whether the board saw the ends of level-triggered interrupts, which are in `bytes` then.
    pub sees_ends: bool,
}

/// How the board marks the end of an interrupt, whose vector follows, among what a guest reports.
const END_OF_INTERRUPT: u8 = 0xe0;

/// What is left of a report on a backend that has the IOAPIC itself.
fn without_ends(bytes: &[u8]) -> Vec<u8> {
    let mut left = Vec::new();
    let mut rest = bytes;
    while let [first, tail @ ..] = rest {
        if *first == END_OF_INTERRUPT {
            rest = tail.get(1..).unwrap_or_default();
        } else {
            left.push(*first);
            rest = tail;
        }
    }
    left
}

impl Report {
    /// Whether this is what `guest` must report, and how it must end.
    pub fn is_right(&self, guest: &Guest) -> bool {
        self.is(guest.end, guest.expected)
    }

    /// Whether this is one of the `known` deviations, which is then printed.
    fn deviates(&self, guest: &Guest, known: &[Deviation]) -> bool {
        let found = known.iter().find(|known| known.guest == guest.name && self.is(known.end, known.reported));
        if let Some(found) = found {
            println!("{}: {:?} with {:x?}: {}", guest.name, self.end, self.bytes, found.because);
        }
        found.is_some()
    }

    /// Whether it ended like this and reported this, as on a board that sees the ends of interrupts.
    fn is(&self, end: End, expected: &[u8]) -> bool {
        let bytes_right = if self.sees_ends { self.bytes == expected } else { self.bytes == without_ends(expected) };
        self.end == end && bytes_right
    }
}

/// A 64-bit processor at the start of `code`, with flat segments and the first 4 GiB mapped one to one.
fn long_mode() -> CpuState {
    let mut state = CpuState::reset(true);
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    state.cs = Segment::from_descriptor(0x08, CODE_DESCRIPTOR);
    let data = Segment::from_descriptor(0x10, DATA_DESCRIPTOR);
    (state.ds, state.es, state.fs, state.gs, state.ss) = (data, data, data, data, data);
    state.gdtr = x86::DescriptorTable { base: GDT, limit: 0x17 };
    state.idtr = x86::DescriptorTable { base: IDT, limit: 0xfff };
    state.rip = CODE;
    state.gprs[gpr::RSP] = STACK;
    state
}

const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

fn memory_with(code: &[u8]) -> GuestMemory {
    let memory = allocate(&[(0, RAM)]).expect("4 MiB of guest memory");
    let put = |value: u64, address: u64| memory.write_obj(value, GuestAddress(address)).expect("tables lie in RAM");
    put(CODE_DESCRIPTOR, GDT + 8);
    put(DATA_DESCRIPTOR, GDT + 16);
    put(PDPT | 3, PML4);
    for gigabyte in 0..4 {
        put((DIRECTORIES + gigabyte * 0x1000) | 3, PDPT + gigabyte * 8);
    }
    for large_page in 0..4 * 512 {
        // Present, writable, 2 MiB: a KVM that shadows the guest's page tables may not have 1 GiB pages.
        put(large_page << 21 | 0x83, DIRECTORIES + large_page * 8);
    }
    memory.write_slice(code, GuestAddress(CODE)).expect("the code lies in RAM");
    memory
}

/// Runs one guest for at most `limit`.
///
/// # Errors
/// What the backend reports.
///
/// # Panics
/// When the guest cannot be assembled or a vCPU thread panics: mistakes in the test itself.
pub fn run(accelerator: &dyn Accelerator, guest: &Guest, limit: Duration) -> Result<Report, AccelError> {
    let code = code::assemble(guest.build).unwrap_or_else(|error| panic!("{}: {error}", guest.name));
    let memory = memory_with(&code);
    let vm = accelerator.create_vm(VmConfig { vcpus: guest.vcpus, memory: memory.clone() })?;
    let board = Arc::new(Board::new(Arc::clone(&vm)));
    let mut vcpus = (0..guest.vcpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    vcpus[0].set_state(&long_mode())?;
    let kickers: Vec<Arc<dyn Kicker>> = vcpus.iter().map(|vcpu| vcpu.kicker()).collect();
    let deadline = Instant::now() + limit;
    let ends = std::thread::scope(|scope| {
        let threads: Vec<_> = vcpus
            .into_iter()
            .map(|mut vcpu| {
                let board = Arc::clone(&board);
                scope.spawn(move || {
                    let io: Arc<dyn crate::CpuIo> = Arc::clone(&board) as Arc<dyn crate::CpuIo>;
                    let exit = vcpu.run(&io);
                    board.stopped();
                    let exit = exit?;
                    if board.finished() {
                        settle(vcpu.as_mut(), &io)?;
                    }
                    Ok((exit, vcpu.state()?))
                })
            })
            .collect();
        board.wait_for_end(deadline);
        for kicker in &kickers {
            kicker.kick();
        }
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a vCPU thread panicked"))
            .collect::<Result<Vec<_>, AccelError>>()
    })?;
    let end = if ends.iter().any(|(exit, _)| *exit == VcpuExit::TripleFault) {
        End::TripleFault
    } else if board.finished() {
        End::Finished
    } else {
        End::TimedOut
    };
    let state = ends.into_iter().next().map(|(_, state)| state).expect("at least one vCPU");
    Ok(Report { end, bytes: board.reported(), state, memory, sees_ends: board.sees_ends() })
}

/// Lets a vCPU whose guest has ended reach its last HLT, so that final states can be compared.
fn settle(vcpu: &mut dyn Vcpu, io: &Arc<dyn crate::CpuIo>) -> Result<(), AccelError> {
    for _ in 0..SETTLING_RUNS {
        if vcpu.state()?.activity != Activity::Running {
            break;
        }
        let kicker = vcpu.kicker();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(SETTLE);
                kicker.kick();
            });
            vcpu.run(io)
        })?;
    }
    Ok(())
}

/// Every guest.
pub fn all() -> impl Iterator<Item = &'static Guest> {
    guests::ALL.iter().chain(platform::ALL).chain(ioapic::ALL).chain(i8259::ALL).chain(refused::ALL).chain(user::ALL)
}

/// Every guest but those that `without` names with a reason, which is printed.
fn all_without(without: &[(&str, &str)]) -> Vec<&'static Guest> {
    for (name, reason) in without {
        assert!(all().any(|guest| guest.name == *name), "there is no guest {name:?}");
        println!("skipped: {name}: {reason}");
    }
    all().filter(|guest| !without.iter().any(|(name, _)| *name == guest.name)).collect()
}

/// Runs every guest, but for those that `without` names with a reason, and panics with the names of all that failed. What is one of the `known` deviations is printed instead.
///
/// # Panics
/// When a guest does not report what it must.
pub fn check_all(accelerator: &dyn Accelerator, without: &[(&str, &str)], known: &[Deviation]) {
    let mut failures = Vec::new();
    for guest in all_without(without) {
        match run(accelerator, guest, LIMIT) {
            Ok(report) if report.is_right(guest) || report.deviates(guest, known) => {}
            Ok(report) => failures.push(format!(
                "{}: ended {:?} at rip {:#x} and reported {:x?}; expected {:?} and {:x?}",
                guest.name, report.end, report.state.rip, report.bytes, guest.end, guest.expected
            )),
            Err(error) => failures.push(format!("{}: {error}", guest.name)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Runs every guest, but for those that `without` names with a reason, on both backends and panics with all that differs at their ends. Where the first has one of the `known` deviations, that is printed and nothing compared.
///
/// # Panics
/// When a guest cannot run, or does not end in the same state.
pub fn check_equal(one: &dyn Accelerator, other: &dyn Accelerator, without: &[(&str, &str)], known: &[Deviation]) {
    let mut failures = Vec::new();
    for guest in all_without(without) {
        match run(one, guest, LIMIT).and_then(|a| Ok((a, run(other, guest, LIMIT)?))) {
            Ok((a, _)) if a.deviates(guest, known) => {}
            Ok((a, b)) => {
                failures.extend(compare::differences(guest, &a, &b).iter().map(|d| format!("{}: {d}", guest.name)));
            }
            Err(error) => failures.push(format!("{}: {error}", guest.name)),
        }
    }
    assert!(failures.is_empty(), "on {} and {}:\n{}", one.name(), other.name(), failures.join("\n"));
}

/// Kicks a vCPU that spins, or sleeps in HLT, `times` times; returns the longest time until its run ended.
///
/// # Errors
/// What the backend reports.
///
/// # Panics
/// When a kick is lost: the run does not end within 20 seconds.
pub fn kick_latency(accelerator: &dyn Accelerator, asleep: bool, times: u32) -> Result<Duration, AccelError> {
    // 1: jmp 1b; or: 1: hlt; jmp 1b
    let code: &[u8] = if asleep { &[0xf4, 0xeb, 0xfd] } else { &[0xeb, 0xfe] };
    let vm = accelerator.create_vm(VmConfig { vcpus: 1, memory: memory_with(code) })?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_state(&long_mode())?;
    let kicker = vcpu.kicker();
    let io: Arc<dyn crate::CpuIo> = Arc::new(Board::new(vm));
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..times {
                let exit = vcpu.run(&io);
                if ended.send(exit).is_err() {
                    return;
                }
            }
        });
        let mut longest = Duration::ZERO;
        for n in 0..times {
            // Now before, now within the run.
            std::thread::sleep(Duration::from_micros(u64::from(n) * 97 % 3000));
            let kicked = Instant::now();
            kicker.kick();
            let exit = ends.recv_timeout(Duration::from_secs(20)).expect("a kick was lost")?;
            assert_eq!(exit, VcpuExit::Kicked);
            longest = longest.max(kicked.elapsed());
        }
        Ok(longest)
    })
}

/// Runs a guest that stores a one and a two to one address, of which the one has an event where the backend makes such events; how often it was signalled, or `None` without one.
///
/// # Errors
/// What the backend reports.
///
/// # Panics
/// When a store that has no event does not reach the board, or one that has does.
pub fn doorbell(accelerator: &dyn Accelerator) -> Result<Option<u64>, AccelError> {
    // mov edi, 0xd0000050; mov dword [rdi], 1; mov dword [rdi], 2; mov dword [rdi], 1; out END, al; 1: hlt; jmp 1b
    const ADDRESS: u64 = board::MMIO + 0x50;
    let mut code = vec![0xbf, 0x50, 0, 0, 0xd0];
    [1, 2, 1].iter().for_each(|value| code.extend([0xc7, 0x07, *value, 0, 0, 0]));
    code.extend([0xe6, board::END as u8, 0xf4, 0xeb, 0xfd]);
    let vm = accelerator.create_vm(VmConfig { vcpus: 1, memory: memory_with(&code) })?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_state(&long_mode())?;
    let event = vm.ioeventfd(ADDRESS, 1);
    let kicker = vcpu.kicker();
    let board = Arc::new(Board::new(vm));
    let io: Arc<dyn crate::CpuIo> = board.clone();
    std::thread::scope(|scope| {
        let runner = scope.spawn(move || vcpu.run(&io));
        board.wait_for_end(Instant::now() + LIMIT);
        kicker.kick();
        runner.join().expect("the vCPU thread panicked")
    })?;
    let store = |value: u8| [4, ADDRESS as u8, value, 0, 0, 0];
    let expected = if event.is_some() { store(2).to_vec() } else { [store(1), store(2), store(1)].concat() };
    assert_eq!(board.reported(), expected);
    Ok(event.map(|event| event.read().expect("the event was signalled")))
}

/// Signals an event that interrupts a guest by itself, where the backend makes such events: with one message and another, and while it has none. How many interrupts the guest took, or `None` without such events.
///
/// # Errors
/// What the backend reports.
///
/// # Panics
/// When a signal is lost, or is not the message that it was to be.
pub fn interrupting_event(accelerator: &dyn Accelerator) -> Result<Option<usize>, AccelError> {
    const EDGE: (u64, u32) = (0xfee0_0000, 0x4061);
    const LEVEL: (u64, u32) = (0xfee0_0000, 0xc062);
    let code = code::assemble(|g| {
        guests::reporting_handler(g, 0x61)?;
        guests::reporting_handler(g, 0x62)?;
        g.apic_on()?;
        g.report(1)?;
        g.sti()?;
        let mut again = g.create_label();
        g.set_label(&mut again)?;
        g.hlt()?;
        g.jmp(again)
    })
    .expect("the guest assembles");
    let vm = accelerator.create_vm(VmConfig { vcpus: 1, memory: memory_with(&code) })?;
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an event"));
    let Some(mut irqfd) = vm.irqfd(&event) else { return Ok(None) };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_state(&long_mode())?;
    let kicker = vcpu.kicker();
    let board = Arc::new(Board::new(vm));
    let io: Arc<dyn crate::CpuIo> = board.clone();
    let expected = [1, 0x61, 0x61, 0x62, 0x62, 0x61];
    let reported = |count: usize| {
        let deadline = Instant::now() + LIMIT;
        while board.reported().len() < count && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        board.reported()
    };
    let seen = std::thread::scope(|scope| {
        let runner = scope.spawn(move || vcpu.run(&io));
        let mut seen = reported(1);
        event.write(2).expect("a signal");
        assert_eq!(event.read().ok(), Some(2), "a signal without a message is left alone");
        event.write(1).expect("a signal");
        for (count, message) in [(2, Some(EDGE)), (3, None), (4, Some(LEVEL)), (5, None), (6, Some(EDGE))] {
            if let Some(message) = message {
                irqfd.set_message(Some(message));
            } else {
                event.write(1).expect("a signal");
            }
            seen = reported(count);
            if count == 3 {
                irqfd.set_message(None);
                event.write(1).expect("a signal that waits for the next message");
            } else if count == 5 {
                irqfd.set_message(Some(EDGE));
                event.write(1).expect("a signal with another message");
            }
        }
        drop(irqfd);
        event.write(1).expect("a signal");
        assert_eq!(event.read().ok(), Some(1), "a signal after the end is left alone");
        kicker.kick();
        runner.join().expect("the vCPU thread panicked").map(|_| seen)
    })?;
    assert_eq!(seen, expected);
    Ok(Some(seen.len() - 1))
}
