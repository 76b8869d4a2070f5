//! Signals that interrupt arithmetic: the frame must keep every register, the floating-point ones among them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use super::{arithmetic, expect};

/// The distance of two signals.
const PERIOD: Duration = Duration::from_millis(2);

/// How many signals must have come.
const ENOUGH: u32 = 5;

/// How long they may take, a thousand times what they should.
const PATIENCE: Duration = Duration::from_secs(10);

static RECEIVED: AtomicU32 = AtomicU32::new(0);
static SCRATCH: AtomicU32 = AtomicU32::new(0);

/// Counts, and uses the registers that the interrupted code uses.
extern "C" fn count(_: i32) {
    let received = RECEIVED.fetch_add(1, Ordering::Relaxed);
    let root = (received as f32 + 2.0).sqrt();
    SCRATCH.store(root.to_bits(), Ordering::Relaxed);
}

/// Computes checksums while a timer sends signals, until enough have come.
pub(super) fn during_arithmetic() -> Result<(), String> {
    install_handler()?;
    let event = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGUSR1, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, event).map_err(|error| format!("timer: {error}"))?;
    timer
        .set(Expiration::Interval(PERIOD.into()), TimerSetTimeFlags::empty())
        .map_err(|error| format!("timer: {error}"))?;
    let (expected_float, expected_integer) = (arithmetic::float_checksum(), arithmetic::integer_checksum());
    let start = Instant::now();
    while RECEIVED.load(Ordering::Relaxed) < ENOUGH {
        expect("float checksum", arithmetic::float_checksum(), expected_float)?;
        expect("integer checksum", arithmetic::integer_checksum(), expected_integer)?;
        if start.elapsed() > PATIENCE {
            return Err(format!("{} signals in {PATIENCE:?}", RECEIVED.load(Ordering::Relaxed)));
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a signal handler can be installed in no other way")]
fn install_handler() -> Result<(), String> {
    let action = SigAction::new(SigHandler::Handler(count), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler touches nothing but two atomics, which is allowed at any point of any thread.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.map(drop).map_err(|error| format!("sigaction: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_survives_signals_on_a_real_processor() {
        assert_eq!(during_arithmetic(), Ok(()));
    }
}
