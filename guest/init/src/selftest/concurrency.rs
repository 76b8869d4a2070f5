//! Several processors at once: each of them, and all of them over the same memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use super::{arithmetic, expect};

/// How often each thread adds to the shared counters.
const ADDITIONS: u64 = 5_000;

/// How often the ball goes forth and back.
const ROUNDS: u32 = 100;

/// Runs the arithmetic in a thread that is bound to processor `cpu`.
pub(super) fn on_cpu(cpu: usize) -> Result<(), String> {
    in_thread(move || {
        bind(cpu)?;
        expect("processor", sched_getcpu().map_err(|error| error.to_string())?, cpu)?;
        arithmetic::integer()?;
        arithmetic::float()?;
        expect("processor", sched_getcpu().map_err(|error| error.to_string())?, cpu)
    })
}

/// Lets a thread on each processor add to one atomic and to one counter under a lock.
pub(super) fn contention(cpus: usize) -> Result<(), String> {
    let threads = cpus.max(2);
    let atomic = AtomicU64::new(0);
    let locked = Mutex::new(0_u64);
    let outcomes: Vec<Result<(), String>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|index| {
                let (atomic, locked) = (&atomic, &locked);
                scope.spawn(move || {
                    bind(index % cpus.max(1))?;
                    for _ in 0..ADDITIONS {
                        atomic.fetch_add(1, Ordering::Relaxed);
                        *locked.lock().map_err(|error| error.to_string())? += 1;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err("a thread died".to_owned()))).collect()
    });
    outcomes.into_iter().collect::<Result<Vec<()>, String>>()?;
    let expected = ADDITIONS.saturating_mul(threads as u64);
    expect("atomic counter", atomic.into_inner(), expected)?;
    expect("locked counter", locked.into_inner().map_err(|error| error.to_string())?, expected)
}

/// Two threads wake one another in turn: futexes, the scheduler, and interrupts between processors.
pub(super) fn ping_pong() -> Result<(), String> {
    let ball = Arc::new((Mutex::new(0_u32), Condvar::new()));
    let other = Arc::clone(&ball);
    let player = thread::spawn(move || play(&other, 1));
    play(&ball, 0)?;
    player.join().unwrap_or_else(|_| Err("a thread died".to_owned()))?;
    expect("turns", *ball.0.lock().map_err(|error| error.to_string())?, ROUNDS * 2)
}

/// Takes every turn of the given parity.
fn play(ball: &(Mutex<u32>, Condvar), parity: u32) -> Result<(), String> {
    let (turn, changed) = ball;
    let mut turn = turn.lock().map_err(|error| error.to_string())?;
    for _ in 0..ROUNDS {
        while *turn % 2 != parity {
            turn = changed.wait(turn).map_err(|error| error.to_string())?;
        }
        *turn += 1;
        changed.notify_all();
    }
    Ok(())
}

fn bind(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(|error| format!("affinity: {error}"))
}

fn in_thread(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    thread::spawn(work).join().unwrap_or_else(|_| Err("the thread died".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_take_turns_to_the_end() {
        assert_eq!(ping_pong(), Ok(()));
    }
}
