//! The host's side: instructions run as they are, in a child process, between two signals.
//!
//! The child enters a signal handler once and then never leaves it in the usual way: the handler writes the next case's registers into the signal frame, and
//! returning from the handler loads them all (vector registers, flags and a 32-bit code segment included). INT3 fills the code area
//! around the instruction, so whatever it does ends in the next signal, whose frame holds all registers again. No assembly is needed
//! for any of this. A child that dies (a signal during the handler, a loop) costs one case.
//!
//! The code area is mapped twice, once to write and once to execute. Between fork and exit the child calls nothing that allocates or locks.

#![expect(unsafe_code, reason = "mappings, signals and a forked child that executes arbitrary instructions")]

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use soft_cpu::fpu::offset;
use x86::XSAVE_SIZE;

use super::case::*;

/// Cases that one child runs.
pub(crate) const BATCH: usize = 256;
/// Seconds of CPU time after which a child is taken to be in a loop.
const LOOP_SECONDS: i64 = 1;
/// Seconds after which it is taken to wait for something.
const WAIT_SECONDS: i64 = 60;
/// Timers of `setitimer` (sys/time.h).
const ITIMER_REAL: c_int = 0;
const ITIMER_PROF: c_int = 2;
/// Size of the signal stack: frames with AVX-512 state take about 4 KiB.
const SIGNAL_STACK: usize = 0x10000;

/// The page fault error code's bit for an instruction fetch.
const FETCH: u32 = 1 << 4;
/// `arch_prctl` (asm/prctl.h).
const ARCH_SET_GS: c_int = 0x1001;
const ARCH_SET_FS: c_int = 0x1002;

const VECTOR_BP: u32 = 3;
const VECTOR_PF: u32 = 14;

/// Where the kernel puts the size of the frame's extended state: `fpx_sw_bytes.magic1` and `xfeatures`.
const SW_MAGIC: usize = 464;
const SW_XFEATURES: usize = 472;
const MAGIC1: u32 = 0x4650_5853;

/// What parent and child share.
#[repr(C)]
struct Shared {
    memory: Memory,
    cases: [Case; BATCH],
    effects: [Effect; BATCH],
    count: usize,
    /// The case that is running, and whether one is.
    index: usize,
    running: bool,
    /// Where the child writes code.
    code: *mut u8,
    signal_stack: [u8; SIGNAL_STACK],
}

/// The child's [`Shared`], for its signal handler. Set only after the fork: each child has its own.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(ptr::null_mut());

/// The host CPU.
pub(crate) struct Host {
    shared: *mut Shared,
    code: *mut u8,
    code_fd: c_int,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for Host {}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn map(at: u64, len: usize, protection: c_int, flags: c_int, fd: c_int) -> io::Result<*mut u8> {
    let fixed = if at == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE keeps the old ones.
    let address = unsafe { libc::mmap(at as *mut c_void, len, protection, flags | fixed, fd, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if at != 0 && address as u64 != at {
        return Err(io::Error::other("the kernel does not know MAP_FIXED_NOREPLACE"));
    }
    Ok(address.cast())
}

impl Host {
    /// Prepares what children share, and lets one run nothing to see that it can.
    ///
    /// # Errors
    /// Whatever keeps this process from mapping or forking.
    pub(crate) fn new() -> io::Result<Self> {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return Err(io::Error::other("the host has no AVX2"));
        }
        let read_write = libc::PROT_READ | libc::PROT_WRITE;
        let shared = map(0, size_of::<Shared>(), read_write, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)?;
        // SAFETY: the name is a string that ends with NUL.
        let code_fd = check(unsafe { libc::memfd_create(c"code".as_ptr(), libc::MFD_CLOEXEC) })?;
        // SAFETY: the descriptor is ours.
        check(unsafe { libc::ftruncate(code_fd, CODE_SIZE as i64) })?;
        let code = map(0, CODE_SIZE, read_write, libc::MAP_SHARED, code_fd)?;
        // SAFETY: `code` is CODE_SIZE bytes that nothing else uses yet.
        unsafe { ptr::write_bytes(code, FILLER, CODE_SIZE) };
        let host = Self { shared: shared.cast(), code, code_fd };
        // SAFETY: `shared` is a zeroed mapping of this type's size.
        unsafe { (*host.shared).code = code };
        host.run_child(0, 0)?;
        Ok(host)
    }

    /// Runs up to [`BATCH`] cases, each starting from `memory`. `None` where the child died.
    ///
    /// # Errors
    /// Whatever keeps this process from forking.
    pub(crate) fn run(&mut self, memory: &Memory, cases: &[Case]) -> io::Result<Vec<Option<Effect>>> {
        let cases = &cases[..cases.len().min(BATCH)];
        // SAFETY: no child runs now, so this process has `shared` to itself.
        let shared = unsafe { &mut *self.shared };
        shared.memory.clone_from(memory);
        shared.cases[..cases.len()].copy_from_slice(cases);
        let mut effects = Vec::with_capacity(cases.len());
        while effects.len() < cases.len() {
            let first = effects.len();
            self.run_child(first, cases.len())?;
            // SAFETY: the child is gone; volatile because it was not this process that wrote them.
            let reached = unsafe { (&raw const (*self.shared).index).read_volatile() };
            // SAFETY: as above.
            let shared = unsafe { &*self.shared };
            effects.extend(shared.effects[first..reached.min(cases.len())].iter().cloned().map(Some));
            if effects.len() < cases.len() {
                effects.push(None);
            }
        }
        Ok(effects)
    }

    /// Runs the cases from `first` to `count` in a new child and waits for its end.
    fn run_child(&self, first: usize, count: usize) -> io::Result<()> {
        // SAFETY: no child runs now.
        let shared = unsafe { &mut *self.shared };
        (shared.index, shared.count, shared.running) = (first, count, false);
        // SAFETY: the child calls only system calls and its own code until it ends.
        let pid = check(unsafe { libc::fork() })?;
        if pid == 0 {
            child(self.shared, self.code_fd);
        }
        let mut status = 0;
        // SAFETY: waits for the child just made.
        check(unsafe { libc::waitpid(pid, &raw mut status, 0) })?;
        if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 {
            return Err(io::Error::other("a child could not set up its mappings and signals"));
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the mappings were made by `new` with these sizes, and nothing refers to them any more.
        unsafe {
            libc::munmap(self.shared.cast(), size_of::<Shared>());
            libc::munmap(self.code.cast(), CODE_SIZE);
            libc::close(self.code_fd);
        }
    }
}

/// The child's life: areas, signals, then one signal that the handler turns into the first case.
fn child(shared: *mut Shared, code_fd: c_int) -> ! {
    SHARED.store(shared, Ordering::Relaxed);
    let result = set_up_child(shared, code_fd);
    if result.is_ok() {
        // SAFETY: raises a signal that the handler takes; it does not return. From here on FS is not that of the C library, so nothing of it
        // may be called that uses its thread area: no `raise`, and no `errno`.
        unsafe {
            let pid = libc::getpid();
            libc::syscall(libc::SYS_arch_prctl, ARCH_SET_FS, FS_BASE);
            libc::syscall(libc::SYS_kill, pid, libc::SIGUSR1);
        }
    }
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(if result.is_ok() { 0 } else { 1 }) }
}

fn set_up_child(shared: *mut Shared, code_fd: c_int) -> io::Result<()> {
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let read_write = libc::PROT_READ | libc::PROT_WRITE;
    map(CODE, CODE_SIZE, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_SHARED, code_fd)?;
    let data = map(DATA, DATA_SIZE + 4096, read_write, anonymous, -1)?;
    let stack = map(STACK, STACK_SIZE, read_write, anonymous, -1)?;
    // SAFETY: the areas were just mapped with these sizes; the parent waits and does not touch `shared`.
    unsafe {
        let memory = &raw const (*shared).memory;
        let writable = (&raw const (*memory).writable).cast::<u8>();
        ptr::copy_nonoverlapping(writable, data, DATA_SIZE);
        ptr::copy_nonoverlapping(writable.add(DATA_SIZE), stack, STACK_SIZE);
        ptr::copy_nonoverlapping((&raw const (*memory).read_only).cast(), data.add(DATA_SIZE), 4096);
        check(libc::mprotect(data.add(DATA_SIZE).cast(), 4096, libc::PROT_READ))?;

        let alternate =
            libc::stack_t { ss_sp: (&raw mut (*shared).signal_stack).cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
        check(libc::sigaltstack(&raw const alternate, ptr::null_mut()))?;
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in
            [libc::SIGUSR1, libc::SIGTRAP, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS]
        {
            check(libc::sigaction(signal, &raw const action, ptr::null_mut()))?;
        }
        // Death by SIGPROF or SIGALRM. Interval timers are not inherited.
        for (which, seconds) in [(ITIMER_PROF, LOOP_SECONDS), (ITIMER_REAL, WAIT_SECONDS)] {
            let never = libc::timeval { tv_sec: 0, tv_usec: 0 };
            let once = libc::timeval { tv_sec: seconds, tv_usec: 0 };
            let timer = libc::itimerval { it_interval: never, it_value: once };
            check(libc::syscall(libc::SYS_setitimer, which, &raw const timer, ptr::null_mut::<c_void>()) as c_int)?;
        }
        check(libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE) as c_int)?;
        // 64-bit processes run with null DS and ES, with which 32-bit code could access nothing.
        asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) u32::from(SS), options(nostack, preserves_flags));
    }
    Ok(())
}

/// General registers of the signal frame, by their encoding in instructions.
const GREGS: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Takes the end of one case and starts the next.
extern "C" fn handler(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    let shared = SHARED.load(Ordering::Relaxed);
    // SAFETY: `shared` is the child's mapping and nothing else uses it; the kernel gives a valid frame. Indices are bounded by `count`, at
    // most BATCH. Nothing here panics or allocates.
    unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let gregs = (&raw mut (*context).uc_mcontext.gregs).cast::<i64>();
        let frame = (*context).uc_mcontext.fpregs.cast::<u8>();
        let index = (*shared).index;
        if (*shared).running {
            save(shared, index, gregs, frame);
            (&raw mut (*shared).index).write_volatile(index + 1);
            (*shared).running = false;
        }
        let index = (*shared).index;
        if index >= (*shared).count {
            libc::_exit(0);
        }
        load(shared, index, gregs, frame);
        (*shared).running = true;
    }
}

/// Whether the frame has room for AVX state.
///
/// # Safety
/// `frame` is the kernel's floating-point frame.
unsafe fn has_avx(frame: *const u8) -> bool {
    // SAFETY: the legacy area is always there, and these fields lie in it.
    unsafe {
        frame.add(SW_MAGIC).cast::<u32>().read_unaligned() == MAGIC1
            && frame.add(SW_XFEATURES).cast::<u64>().read_unaligned() & 4 != 0
    }
}

/// Writes case `index` into the signal frame.
///
/// # Safety
/// Called in the child by its handler, with that handler's frame.
unsafe fn load(shared: *mut Shared, index: usize, gregs: *mut i64, frame: *mut u8) {
    // SAFETY: `index` is below BATCH; the areas are mapped; a case's RIP lies in the code area.
    unsafe {
        let case = &raw const (*shared).cases[index];
        let registers = &raw const (*case).registers;
        for (n, greg) in GREGS.iter().enumerate() {
            *gregs.add(*greg as usize) = (*registers).gpr[n] as i64;
        }
        *gregs.add(libc::REG_RIP as usize) = (*registers).rip as i64;
        *gregs.add(libc::REG_EFL as usize) = (*registers).rflags as i64;
        let cs = if (*case).compatibility { CS32 } else { CS64 };
        let kept = *gregs.add(libc::REG_CSGSFS as usize) & 0x0000_ffff_ffff_0000;
        *gregs.add(libc::REG_CSGSFS as usize) = kept | i64::from(cs) | i64::from(SS) << 48;

        let image = (&raw const (*registers).fpu).cast::<u8>();
        ptr::copy_nonoverlapping(image, frame, offset::MXCSR_MASK);
        ptr::copy_nonoverlapping(image.add(offset::ST), frame.add(offset::ST), offset::XMM + 256 - offset::ST);
        if has_avx(frame) {
            let bv = frame.add(offset::XSTATE_BV).cast::<u64>();
            bv.write_unaligned(bv.read_unaligned() | 7);
            ptr::copy_nonoverlapping(image.add(offset::YMM_HIGH), frame.add(offset::YMM_HIGH), 256);
        }

        let at = ((*registers).rip - CODE) as usize;
        let len = usize::from((*case).len).min(CODE_SIZE - at);
        ptr::copy_nonoverlapping((&raw const (*case).bytes).cast(), (*shared).code.add(at), len);
        let (address, value) = (*case).patch;
        if address != 0 {
            (address as *mut u64).write_unaligned(value);
        }
    }
}

/// Takes the effect of case `index` from the signal frame, and puts memory back.
///
/// # Safety
/// As for [`load`].
unsafe fn save(shared: *mut Shared, index: usize, gregs: *const i64, frame: *const u8) {
    // SAFETY: `index` is below BATCH and the areas are mapped.
    unsafe {
        let case = &raw const (*shared).cases[index];
        let effect = &raw mut (*shared).effects[index];
        let registers = &raw mut (*effect).registers;
        for (n, greg) in GREGS.iter().enumerate() {
            (*registers).gpr[n] = *gregs.add(*greg as usize) as u64;
        }
        let mut rip = *gregs.add(libc::REG_RIP as usize) as u64;
        (*registers).rflags = *gregs.add(libc::REG_EFL as usize) as u64;
        let start = (*case).registers.rip;
        let mut trap = Trap {
            vector: *gregs.add(libc::REG_TRAPNO as usize) as u32,
            error: *gregs.add(libc::REG_ERR as usize) as u32,
            address: 0,
        };
        if trap.vector == VECTOR_BP {
            rip = rip.wrapping_sub(1);
            trap = Trap::NONE;
        } else if trap.vector == VECTOR_PF {
            trap.address = *gregs.add(libc::REG_CR2 as usize) as u64;
            if trap.error & FETCH != 0 && rip != start && rip == trap.address {
                // The instruction went to where nothing is mapped: it has completed.
                trap = Trap::NONE;
            }
        }
        (*registers).rip = rip;
        (*effect).trap = trap;

        let image = (&raw mut (*registers).fpu).cast::<u8>();
        ptr::copy_nonoverlapping(frame, image, offset::XMM + 256);
        ptr::write_bytes(image.add(offset::XMM + 256), 0, XSAVE_SIZE - offset::XMM - 256);
        if has_avx(frame) {
            let bv = frame.add(offset::XSTATE_BV).cast::<u64>().read_unaligned();
            if bv & 1 == 0 {
                ptr::write_bytes(image, 0, offset::MXCSR);
                ptr::write_bytes(image.add(offset::ST), 0, 128);
                image.cast::<u16>().write_unaligned(soft_cpu::fpu::FCW_DEFAULT);
            }
            if bv & 2 == 0 {
                ptr::write_bytes(image.add(offset::XMM), 0, 256);
            }
            if bv & 4 != 0 {
                ptr::copy_nonoverlapping(frame.add(offset::YMM_HIGH), image.add(offset::YMM_HIGH), 256);
            }
        }

        let at = (start - CODE) as usize;
        let len = usize::from((*case).len).min(CODE_SIZE - at);
        ptr::write_bytes((*shared).code.add(at), FILLER, len);

        let (address, _) = (*case).patch;
        let writable = (&raw const (*shared).memory.writable).cast::<u8>();
        let after = (&raw mut (*effect).memory).cast::<u8>();
        (*effect).memory_changed = address != 0;
        for (area, offset, size) in [(DATA, 0, DATA_SIZE), (STACK, DATA_SIZE, STACK_SIZE)] {
            ptr::copy_nonoverlapping(area as *const u8, after.add(offset), size);
            if libc::memcmp(after.add(offset).cast(), writable.add(offset).cast(), size) != 0 {
                (*effect).memory_changed = true;
                ptr::copy_nonoverlapping(writable.add(offset), area as *mut u8, size);
            }
        }
    }
}

const _: () = assert!(offset_of!(Registers, fpu) % 8 == 0);
