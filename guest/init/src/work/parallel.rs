//! One amount of arithmetic, shared by a thread on each processor.

use std::num::NonZero;
use std::thread;

use super::Stopwatch;
use crate::selftest::arithmetic::{INTEGER_RESULT, integer_checksum};

/// Pieces of the work; a number that two, three and four threads share evenly.
const PIECES: usize = 24;

/// Splits the pieces evenly over as many threads as there are processors.
pub(super) fn split(watch: &mut Stopwatch, times: u32) -> Result<(), String> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    watch.repeat(times, PIECES, || {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|index| {
                    let pieces = (index..PIECES).step_by(threads);
                    scope.spawn(move || pieces.filter(|_| integer_checksum() == INTEGER_RESULT).count())
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(0)).sum()
        })
    })
}
