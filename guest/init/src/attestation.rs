//! What a guest asks of its NSM beside the interview: a signed document, and the behaviour that AWS's own test programs rely on.
//!
//! `vmm.attest=HEX` reports a document with that nonce. `vmm.attest-port=PORT` serves one connection to that vsock port: what the parent sends until
//! it closes its end is a nonce, and what it gets back is the document. `vmm.nsm-check=1` makes the assertions of `nsm-check` and `nsm-multithread` (nsm-test of
//! aws-nitro-enclaves-nsm-api 0.5), one line each; it locks every PCR, so it comes last. The multithreaded half ends after a fixed number of
//! rounds, where AWS's runs until it is killed. The names of errors, which AWS's program does not look at, are checked besides.

use std::io::{self, Read, Write};
use std::thread;

use aws_nitro_enclaves_nsm_api::api::{Request, Response};
use aws_nitro_enclaves_nsm_api::driver::{nsm_exit, nsm_init, nsm_process_request};

use crate::cmdline::CommandLine;
use crate::console::Console;
use crate::devices::hex;
use crate::vsock;

/// What the document carries besides the nonce.
const USER_DATA: &[u8] = b"vmm-guest";

/// The registers that AWS leaves open at boot.
const OPEN: std::ops::Range<u16> = 16..32;

/// The length of each field in the longest requests of AWS's test programs.
const FIELD: usize = 1024;

/// Threads that ask at the same time, and how often each does.
const THREADS: usize = 24;
const ROUNDS: usize = 2;

/// Does what the command line asks for.
pub(crate) fn run(console: &mut Console, command_line: &CommandLine) {
    let attest = command_line.value("vmm.attest");
    let port = command_line.value("vmm.attest-port");
    let check = command_line.value("vmm.nsm-check").is_some();
    if attest.is_none() && port.is_none() && !check {
        return;
    }
    let module = Module { descriptor: nsm_init() };
    if let Some(nonce) = attest {
        match unhex(nonce)
            .ok_or_else(|| "the nonce is not hexadecimal".to_owned())
            .and_then(|nonce| module.document(nonce))
        {
            Ok(document) => console.report("attestation", hex(&document)),
            Err(error) => console.report("attestation_error", error),
        }
    }
    if let Some(port) = port {
        match serve(&module, console, port) {
            Ok(()) => console.report("attest_served", port),
            Err(error) => console.report("attest_served", error),
        }
    }
    if check {
        let steps: [(&str, Step); 8] = [
            ("description", Module::description),
            ("multithread", Module::multithread),
            ("initial_pcrs", Module::initial_pcrs),
            ("errors", Module::errors),
            ("locks", Module::locks),
            ("attestation", Module::attestation),
            ("fields", Module::fields),
            ("random", Module::random),
        ];
        for (name, step) in steps {
            let outcome = step(&module).map_or_else(|error| error, |()| "ok".to_owned());
            console.report(&format!("nsm_check.{name}"), outcome);
        }
    }
    nsm_exit(module.descriptor);
}

/// Answers one connection with a document over the nonce that came by it.
fn serve(module: &Module, console: &mut Console, port: &str) -> io::Result<()> {
    let port = port.parse().map_err(|_| io::Error::other("the port is no number"))?;
    let listener = vsock::listening(port)?;
    // The host waits for this line before it connects.
    console.report("attest_listening", port);
    console.drain();
    let mut connection = vsock::accepted(&listener)?;
    let mut nonce = Vec::new();
    // One byte more than a document may carry: the module says what it thinks of that.
    (&connection).take(FIELD as u64 + 1).read_to_end(&mut nonce)?;
    let document = module.document(nonce).map_err(io::Error::other)?;
    connection.write_all(&document)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// One of AWS's checks: what is wrong, in one sentence.
type Step = fn(&Module) -> Result<(), String>;

/// An open `/dev/nsm`; threads may share it.
struct Module {
    descriptor: i32,
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

impl Module {
    fn ask(&self, request: Request) -> Response {
        nsm_process_request(self.descriptor, request)
    }

    fn attest(
        &self,
        user_data: Option<Vec<u8>>,
        nonce: Option<Vec<u8>>,
        public_key: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, String> {
        let request = Request::Attestation {
            user_data: user_data.map(Into::into),
            nonce: nonce.map(Into::into),
            public_key: public_key.map(Into::into),
        };
        match self.ask(request) {
            Response::Attestation { document } if !document.is_empty() => Ok(document),
            other => Err(format!("Attestation: {other:?}")),
        }
    }

    fn document(&self, nonce: Vec<u8>) -> Result<Vec<u8>, String> {
        self.attest(Some(USER_DATA.to_vec()), Some(nonce), None)
    }

    fn pcr(&self, index: u16) -> Result<(bool, Vec<u8>), String> {
        match self.ask(Request::DescribePCR { index }) {
            Response::DescribePCR { lock, data } if data.len() == 48 => Ok((lock, data)),
            other => Err(format!("DescribePCR {index}: {other:?}")),
        }
    }

    /// nsm-check: there are 32 PCRs and a name.
    fn description(&self) -> Result<(), String> {
        match self.ask(Request::DescribeNSM) {
            Response::DescribeNSM { max_pcrs: 32, module_id, .. } if !module_id.is_empty() => Ok(()),
            other => Err(format!("DescribeNSM: {other:?}")),
        }
    }

    /// nsm-check: PCR0, 1, 2 and 4 are measured, the others zero; 0 to 15 are locked. PCR16 was extended by the interview before.
    fn initial_pcrs(&self) -> Result<(), String> {
        for index in 0..OPEN.end {
            let (lock, data) = self.pcr(index)?;
            let zero = data.iter().all(|byte| *byte == 0);
            let measured = matches!(index, 0 | 1 | 2 | 4 | 16);
            ensure(zero != measured, || format!("PCR{index} is {}", hex(&data)))?;
            ensure(lock != OPEN.contains(&index), || format!("the lock of PCR{index} is {lock}"))?;
        }
        Ok(())
    }

    /// What is not possible, with the name of the error; ranges of registers that are locked anyway are no error.
    fn errors(&self) -> Result<(), String> {
        let data = vec![1];
        let cases = [
            (Request::DescribePCR { index: OPEN.end }, "InvalidIndex"),
            (Request::DescribePCR { index: u16::MAX }, "InvalidIndex"),
            (Request::ExtendPCR { index: OPEN.end, data: data.clone() }, "InvalidIndex"),
            (Request::ExtendPCR { index: 0, data }, "ReadOnlyIndex"),
            (Request::LockPCR { index: OPEN.end }, "InvalidIndex"),
            (Request::LockPCR { index: 0 }, "ReadOnlyIndex"),
            (Request::LockPCRs { range: OPEN.end + 1 }, "InvalidIndex"),
        ];
        for (request, expected) in cases {
            let asked = format!("{request:?}");
            match self.ask(request) {
                Response::Error(found) if format!("{found:?}") == expected => {}
                other => return Err(format!("{asked}: {other:?}, expected {expected}")),
            }
        }
        for range in [0, 1, OPEN.start] {
            let answer = self.ask(Request::LockPCRs { range });
            ensure(matches!(answer, Response::LockPCRs), || format!("LockPCRs {range}: {answer:?}"))?;
        }
        let (lock, _) = self.pcr(OPEN.start)?;
        ensure(!lock, || format!("PCR{} is locked by a range that ends before it", OPEN.start))
    }

    /// nsm-check: locked registers cannot be locked one by one, nor extended; open ones can, once and for all.
    fn locks(&self) -> Result<(), String> {
        let data = vec![1, 2, 3];
        for index in 0..OPEN.start {
            let answer = self.ask(Request::LockPCR { index });
            ensure(matches!(answer, Response::Error(_)), || format!("LockPCR {index}: {answer:?}"))?;
        }
        for index in (0..10).flat_map(|_| OPEN) {
            match self.ask(Request::ExtendPCR { index, data: data.clone() }) {
                Response::ExtendPCR { data } if data.len() == 48 && data.iter().any(|byte| *byte != 0) => {}
                other => return Err(format!("ExtendPCR {index}: {other:?}")),
            }
        }
        for index in OPEN {
            let answer = self.ask(Request::LockPCR { index });
            ensure(matches!(answer, Response::LockPCR), || format!("LockPCR {index}: {answer:?}"))?;
        }
        let answer = self.ask(Request::LockPCRs { range: OPEN.end });
        ensure(matches!(answer, Response::LockPCRs), || format!("LockPCRs {}: {answer:?}", OPEN.end))?;
        let answer = self.ask(Request::LockPCRs { range: OPEN.end + 1 });
        ensure(matches!(answer, Response::Error(_)), || format!("LockPCRs {}: {answer:?}", OPEN.end + 1))?;
        for index in 0..OPEN.end {
            let answer = self.ask(Request::ExtendPCR { index, data: data.clone() });
            ensure(matches!(answer, Response::Error(_)), || format!("ExtendPCR {index}: {answer:?}"))?;
            let (lock, value) = self.pcr(index)?;
            let zero = value.iter().all(|byte| *byte == 0);
            let expected = index == 3 || (5..OPEN.start).contains(&index);
            ensure(lock && zero == expected, || format!("PCR{index}: lock {lock}, {}", hex(&value)))?;
        }
        Ok(())
    }

    /// nsm-check: documents with none, one, two and all three of the fields, 1024 bytes each.
    fn attestation(&self) -> Result<(), String> {
        let field = || Some(vec![128; FIELD]);
        self.attest(None, None, None)?;
        self.attest(field(), None, None)?;
        self.attest(field(), field(), None)?;
        self.attest(field(), field(), field()).map(drop)
    }

    /// Documents with and without each of the fields, and with fields that are there and empty.
    fn fields(&self) -> Result<(), String> {
        let field = |present: bool| present.then(|| vec![128; FIELD]);
        for fields in 0..8 {
            self.attest(field(fields & 1 != 0), field(fields & 2 != 0), field(fields & 4 != 0))?;
        }
        let empty = || Some(Vec::new());
        self.attest(empty(), empty(), empty()).map(drop)
    }

    /// nsm-check: sixteen answers of GetRandom, each unlike the one before.
    fn random(&self) -> Result<(), String> {
        let mut before = Vec::new();
        for _ in 0..16 {
            match self.ask(Request::GetRandom) {
                Response::GetRandom { random } if !random.is_empty() && random != before => before = random,
                other => return Err(format!("GetRandom: {other:?}")),
            }
        }
        Ok(())
    }

    /// nsm-multithread: many threads attest while others try to extend locked registers, all over one descriptor.
    fn multithread(&self) -> Result<(), String> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|number| {
                    scope.spawn(move || {
                        for round in 0..ROUNDS {
                            if number % 2 == 0 {
                                self.attestation()?;
                            } else {
                                // AWS's program extends PCR0 to PCR15, which are locked, and does not look at the answer.
                                let index = (number as u16 + round as u16) % OPEN.start;
                                let answer = self.ask(Request::ExtendPCR { index, data: vec![1, 2, 3, 4] });
                                ensure(matches!(answer, Response::Error(_)), || {
                                    format!("ExtendPCR {index}: {answer:?}")
                                })?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
        })
    }
}
