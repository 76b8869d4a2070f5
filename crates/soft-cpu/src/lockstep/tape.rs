//! The world around a CPU that executes everything twice: the first time it answers, and what it says is kept; the second time it hears the same questions and
//! gives the same answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use x86::cpuid::CpuidResult;

use crate::platform::{GeneralProtection, Platform};

/// What is done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// It goes through.
    Pass,
    /// It goes through and is kept.
    Record,
    /// It is answered from what was kept.
    Replay,
}

/// A question: what is asked, and the operands.
type Question = (&'static str, [u64; 5]);
/// An answer.
type Answer = [u64; 4];

/// The calls of one block.
pub(super) struct Tape {
    platform: Box<dyn Platform>,
    pub(super) mode: Mode,
    calls: Vec<(Question, Answer)>,
    at: usize,
    /// The first call that was another one when everything was repeated.
    strayed: Option<String>,
}

/// A tape that the CPU's platform and the one who compares both hold.
#[derive(Clone)]
pub(super) struct SharedTape(Arc<Mutex<Tape>>);

impl SharedTape {
    pub(super) fn new(platform: Box<dyn Platform>) -> Self {
        Self(Arc::new(Mutex::new(Tape { platform, mode: Mode::Pass, calls: Vec::new(), at: 0, strayed: None })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Tape> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, question: Question, answer: impl FnOnce(&mut dyn Platform) -> Answer) -> Answer {
        self.lock().call(question, answer)
    }
}

impl Tape {
    /// Starts anew.
    pub(super) fn record(&mut self) {
        self.mode = Mode::Record;
        self.calls.clear();
        self.rewind();
    }

    /// Answers from the first call on.
    pub(super) fn replay(&mut self) {
        self.mode = Mode::Replay;
        self.rewind();
    }

    fn rewind(&mut self) {
        self.at = 0;
        self.strayed = None;
    }

    /// What was asked differently the second time, if anything.
    pub(super) fn difference(&self) -> Option<String> {
        let left = self.calls.get(self.at).map(|(question, _)| format!("not asked any more: {}", shown(question)));
        self.strayed.clone().or(left)
    }

    /// The platform, to be put back.
    pub(super) fn take_platform(&mut self) -> Box<dyn Platform> {
        std::mem::replace(&mut self.platform, Box::new(crate::platform::Nothing))
    }

    fn call(&mut self, question: Question, answer: impl FnOnce(&mut dyn Platform) -> Answer) -> Answer {
        match self.mode {
            Mode::Pass => answer(&mut *self.platform),
            Mode::Record => {
                let answer = answer(&mut *self.platform);
                self.calls.push((question, answer));
                answer
            }
            Mode::Replay => match self.calls.get(self.at) {
                Some((known, answer)) if *known == question => {
                    self.at += 1;
                    *answer
                }
                other => {
                    let expected = other.map_or_else(|| "nothing".to_owned(), |(known, _)| shown(known));
                    let strayed = format!("asked for {}, expected {expected}", shown(&question));
                    self.strayed.get_or_insert(strayed);
                    [0; 4]
                }
            },
        }
    }
}

fn shown((name, operands): &Question) -> String {
    format!("{name} {operands:#x?}").replace('\n', "")
}

fn word(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

fn fill(data: &mut [u8], word: u64) {
    let len = data.len();
    data.copy_from_slice(&word.to_le_bytes()[..len]);
}

/// The platform that a CPU has meanwhile.
pub(super) struct Recorder(pub(super) SharedTape);

impl Recorder {
    fn read(&self, name: &'static str, at: u64, data: &mut [u8], mut read: impl FnMut(&mut dyn Platform, &mut [u8])) {
        let len = data.len();
        let [answer, ..] = self.0.call((name, [at, len as u64, 0, 0, 0]), |platform| {
            let mut bytes = [0; 8];
            read(platform, &mut bytes[..len]);
            [u64::from_le_bytes(bytes), 0, 0, 0]
        });
        fill(data, answer);
    }
}

impl Platform for Recorder {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.read("port read", port.into(), data, |platform, data| platform.port_read(port, data));
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.0.call(("port write", [port.into(), data.len() as u64, word(data), 0, 0]), |platform| {
            platform.port_write(port, data);
            [0; 4]
        });
    }

    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.read("load", address, data, |platform, data| platform.mmio_read(address, data));
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.0.call(("store", [address, data.len() as u64, word(data), 0, 0]), |platform| {
            platform.mmio_write(address, data);
            [0; 4]
        });
    }

    fn msr_read(&mut self, number: u32) -> Option<Result<u64, GeneralProtection>> {
        let answer = self.0.call(("RDMSR", [number.into(), 0, 0, 0, 0]), |platform| match platform.msr_read(number) {
            None => [0; 4],
            Some(Err(_)) => [1, 0, 0, 0],
            Some(Ok(value)) => [2, value, 0, 0],
        });
        match answer {
            [0, ..] => None,
            [1, ..] => Some(Err(GeneralProtection)),
            [_, value, ..] => Some(Ok(value)),
        }
    }

    fn msr_write(&mut self, number: u32, value: u64) -> Option<Result<(), GeneralProtection>> {
        let [answer, ..] = self.0.call(("WRMSR", [number.into(), value, 0, 0, 0]), |platform| {
            match platform.msr_write(number, value) {
                None => [0; 4],
                Some(Err(_)) => [1, 0, 0, 0],
                Some(Ok(())) => [2, 0, 0, 0],
            }
        });
        match answer {
            0 => None,
            1 => Some(Err(GeneralProtection)),
            _ => Some(Ok(())),
        }
    }

    fn cr8(&mut self) -> u64 {
        self.0.call(("CR8", [0; 5]), |platform| [platform.cr8(), 0, 0, 0])[0]
    }

    fn set_cr8(&mut self, value: u64) {
        self.0.call(("CR8 write", [value, 0, 0, 0, 0]), |platform| {
            platform.set_cr8(value);
            [0; 4]
        });
    }

    fn tsc(&mut self) -> u64 {
        self.0.call(("TSC", [0; 5]), |platform| [platform.tsc(), 0, 0, 0])[0]
    }

    fn set_tsc(&mut self, value: u64) {
        self.0.call(("TSC write", [value, 0, 0, 0, 0]), |platform| {
            platform.set_tsc(value);
            [0; 4]
        });
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> CpuidResult {
        let [eax, ebx, ecx, edx] = self
            .0
            .call(("CPUID", [leaf.into(), subleaf.into(), 0, 0, 0]), |platform| {
                let CpuidResult { eax, ebx, ecx, edx } = platform.cpuid(leaf, subleaf);
                [eax, ebx, ecx, edx].map(u64::from)
            })
            .map(|register| register as u32);
        CpuidResult { eax, ebx, ecx, edx }
    }

    fn acknowledge_interrupt(&mut self) -> Option<u8> {
        let [some, vector, ..] = self.0.call(("interrupt", [0; 5]), |platform| {
            platform.acknowledge_interrupt().map_or([0; 4], |vector| [1, vector.into(), 0, 0])
        });
        (some != 0).then_some(vector as u8)
    }

    fn pause(&mut self) {
        self.0.lock().platform.pause();
    }

    fn hypercall(&mut self, number: u64, arguments: [u64; 4]) -> Option<u64> {
        let [a, b, c, d] = arguments;
        let [some, result, ..] = self.0.call(("hypercall", [number, a, b, c, d]), |platform| {
            platform.hypercall(number, arguments).map_or([0; 4], |result| [1, result, 0, 0])
        });
        (some != 0).then_some(result)
    }
}
