//! Processes: starting them, and going to and fro between two.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, execv, fork, pipe as new_pipe, read, write};

use super::Stopwatch;

/// The first argument with which this program does nothing, and does it well, as `/bin/true`.
pub(crate) const TRUE_ARGUMENT: &str = "work-true";
const TRUE: &CStr = c"work-true";

/// This program.
const SELF: &CStr = c"/proc/self/exe";

/// Processes that are started at each time.
const PROCESSES: u32 = 100;

/// Times that the byte goes there and back at each time.
const TURNS: u32 = 1000;

/// Forks, executes `true` and waits for it, as a shell script does for each of its lines.
pub(super) fn spawn(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    watch.repeat(times, Ok(()), || (0..PROCESSES).try_for_each(|_| one()))
}

fn one() -> Result<(), String> {
    let child = in_child(|| {
        // It only returns if it fails.
        let _ = execv(SELF, &[SELF, TRUE]);
        1
    })?;
    end_of(child)
}

/// Two processes hand one byte to and fro through two pipes.
pub(super) fn pipe(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let (there, back) = (pipes()?, pipes()?);
    let rounds = times.saturating_mul(TURNS);
    let child = in_child(|| {
        let echo = |_| take(&there.0).and_then(|byte| hand(&back.1, byte.wrapping_add(1)));
        if (0..rounds).try_for_each(echo).is_ok() { 0 } else { 1 }
    })?;
    let mut turn = 0_u8;
    watch.repeat(rounds, Ok(true), || {
        turn = turn.wrapping_add(3);
        hand(&there.1, turn)?;
        Ok::<_, String>(take(&back.0)? == turn.wrapping_add(1))
    })?;
    end_of(child)
}

fn pipes() -> Result<(OwnedFd, OwnedFd), String> {
    new_pipe().map_err(|error| format!("pipe: {error}"))
}

fn hand(pipe: impl AsFd, byte: u8) -> Result<(), String> {
    write(pipe, &[byte]).map(drop).map_err(|error| format!("write: {error}"))
}

fn take(pipe: impl AsFd) -> Result<u8, String> {
    let mut byte = [0];
    match read(pipe, &mut byte) {
        Ok(1) => Ok(byte[0]),
        Ok(_) => Err("read: the other end is closed".to_owned()),
        Err(error) => Err(format!("read: {error}")),
    }
}

/// Runs `work` in a forked process, which exits with what it returns.
#[expect(unsafe_code, reason = "the standard library starts programs, and does not fork")]
fn in_child(work: impl FnOnce() -> i32) -> Result<nix::unistd::Pid, String> {
    // SAFETY: the child only makes system calls before it exits: nothing that a lock held by another thread could stop.
    match unsafe { fork() }.map_err(|error| format!("fork: {error}"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = work();
            // SAFETY: it ends this process at once and never returns.
            unsafe { nix::libc::_exit(code) }
        }
    }
}

fn end_of(child: nix::unistd::Pid) -> Result<(), String> {
    match waitpid(child, None).map_err(|error| format!("wait: {error}"))? {
        WaitStatus::Exited(_, 0) => Ok(()),
        status => Err(format!("a process ended with {status:?}")),
    }
}
