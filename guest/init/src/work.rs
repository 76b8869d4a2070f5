//! Work for benchmarks, whose results are checked and whose time is taken by the guest's own clock.
//!
//! `vmm.work=NAME:N`, a comma between several, does the work of that name N times over:
//! - `loop`, `memory`: N instructions of register arithmetic, or with memory ([`loops`]); reported as
//!   `work=loop:N instructions=N ns=T`.
//! - `compress`, `sort`, `parse`: programs of integer code ([`integer`]).
//! - `sha256`, `aes`, `copy`, `matrix`, `bodies`: SIMD, cryptography, moves and floating point ([`vector`]).
//! - `spawn`, `pipe`: processes and context switches ([`processes`]).
//! - `parallel`: arithmetic split over all processors ([`parallel`]).
//!
//! All but the loops are reported as `work_start=NAME` and `work.NAME=SECONDS`, so that the host can time them too: a guest whose
//! clock counts ticks loses time on a busy host. What goes wrong, a wrong result too, is reported as `work_error=...`.

mod integer;
mod loops;
mod parallel;
mod processes;
mod vector;

use std::fmt::Debug;
use std::time::Instant;

use crate::console::Console;

pub(crate) use processes::TRUE_ARGUMENT;

/// A program that prepares, and then does its work so many times by a stopwatch.
type Program = fn(&mut Stopwatch, u32) -> Result<(), String>;

/// Every program by its name.
const PROGRAMS: [(&str, Program); 11] = [
    ("compress", integer::compress),
    ("sort", integer::sort),
    ("parse", integer::parse),
    ("sha256", vector::sha256),
    ("aes", vector::aes),
    ("copy", vector::copy),
    ("matrix", vector::matrix),
    ("bodies", vector::bodies),
    ("spawn", processes::spawn),
    ("pipe", processes::pipe),
    ("parallel", parallel::split),
];

/// Does what the command line asks for, in that order.
pub(crate) fn run(console: &mut Console, wanted: Option<&str>) {
    for item in wanted.into_iter().flat_map(|list| list.split(',')) {
        if let Err(error) = one(console, item) {
            console.report("work_error", format_args!("{item}: {error}"));
        }
    }
}

fn one(console: &mut Console, item: &str) -> Result<(), String> {
    let (name, amount) = item.split_once(':').ok_or("there is no amount")?;
    let amount: u64 = amount.parse().map_err(|_| "the amount is no number")?;
    let counted = match name {
        "loop" => Some(loops::register as fn(u64) -> u64),
        "memory" => Some(loops::memory as fn(u64) -> u64),
        _ => None,
    };
    if let Some(counted) = counted {
        let start = Instant::now();
        let instructions = counted(amount);
        let nanoseconds = start.elapsed().as_nanos();
        console.report("work", format_args!("{item} instructions={instructions} ns={nanoseconds}"));
        return Ok(());
    }
    let (_, program) = PROGRAMS.iter().find(|(known, _)| *known == name).ok_or("it is unknown")?;
    let amount = u32::try_from(amount).map_err(|_| "the amount is too large")?;
    program(&mut Stopwatch { name, console }, amount)
}

/// Times the work of one program.
struct Stopwatch<'a> {
    name: &'a str,
    console: &'a mut Console,
}

impl Stopwatch<'_> {
    /// Does `once` so many times and reports how long all of them took. Each must come to the expected result.
    fn repeat<T: PartialEq + Debug>(
        &mut self,
        times: u32,
        expected: T,
        mut once: impl FnMut() -> T,
    ) -> Result<(), String> {
        self.console.report("work_start", self.name);
        // The line must be out, or the work would wait for the serial line.
        self.console.drain();
        let start = Instant::now();
        for _ in 0..times {
            let found = once();
            if found != expected {
                return Err(format!("found {found:x?}, expected {expected:x?}"));
            }
        }
        self.console.report(&format!("work.{}", self.name), format_args!("{:.6}", start.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// A checksum of bytes that takes few instructions: eight at a time.
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let start = rest.iter().fold(bytes.len() as u64, |sum, byte| (sum << 8) | u64::from(*byte));
    words.iter().fold(start, |sum, word| sum.rotate_left(5).wrapping_add(u64::from_le_bytes(*word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_comes_to_its_result_on_a_real_processor() {
        // The others start this program again, which a test is not.
        let programs = PROGRAMS.iter().filter(|(name, _)| *name != "spawn");
        let wrong: Vec<String> = programs
            .filter_map(|(name, program)| {
                Some(format!(
                    "{name}: {}",
                    program(&mut Stopwatch { name, console: &mut Console::nowhere() }, 1).err()?
                ))
            })
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn a_wrong_result_is_an_error() {
        let mut results = [7, 7, 8].into_iter();
        let mut watch = Stopwatch { name: "none", console: &mut Console::nowhere() };
        assert_eq!(watch.repeat(3, Some(7), || results.next()), Err("found Some(8), expected Some(7)".to_owned()));
    }

    #[test]
    fn a_checksum_tells_order_and_length() {
        assert_ne!(checksum(b"0123456789abcdef"), checksum(b"89abcdef01234567"));
        assert_ne!(checksum(b"\0\0"), checksum(b"\0"));
    }
}
