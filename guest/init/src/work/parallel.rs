//! One amount of arithmetic, shared by a thread on each processor.
//!
//! The threads take pieces from one counter, as the jobs of a build are taken: in fixed shares, all would wait for a processor that its host gives less time.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Stopwatch;
use crate::selftest::arithmetic::{INTEGER_RESULT, integer_checksum};

/// Pieces of the work, many more than threads: at the end some thread works on the last one alone.
const PIECES: usize = 96;

/// Divides the pieces between as many threads as there are processors.
pub(super) fn split(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    watch.repeat(times, PIECES, || {
        let taken = AtomicUsize::new(0);
        let pieces = || std::iter::from_fn(|| (taken.fetch_add(1, Ordering::Relaxed) < PIECES).then(integer_checksum));
        thread::scope(|scope| {
            let workers: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| pieces().filter(|sum| *sum == INTEGER_RESULT).count())).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
        })
    })
}
