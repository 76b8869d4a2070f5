//! Each instruction form against the host CPU: the same registers, flags and memory, once natively in a child process ([`host`]) and once in the
//! interpreter ([`guest`]); then registers, flags, vectors, memory and exceptions are compared.
//!
//! Single instructions come from the list of forms or from random bytes and are executed one by one; sequences go through the CPU's own loop, by blocks.
//!
//! `VMM_COMPARE_ROUNDS=n` runs n cases of each form instead of a few, `VMM_COMPARE_SEED=n` others, `VMM_COMPARE_FORM=name` only the forms whose name
//! (of `iced_x86::Code`) contains it. [`rules`] says what is left out and why. Besides that, these are not compared: the x87 instruction and
//! data pointers, system instructions beyond their faults, and segment registers.

mod case;
mod encode;
mod findings;
mod guest;
mod host;
mod inputs;
mod random;
mod rules;

use iced_x86::{Code, Instruction};

use case::{CODE, CODE_SIZE, Case, Effect, MAX_CODE, MAX_LEN, Trap};
use encode::Bytes;
use findings::Findings;
use guest::Guest;
use host::{BATCH, Host};
use random::Random;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Both sides and what they found.
struct Comparison {
    host: Host,
    guest: Guest,
    bitness: u32,
    random: Random,
    findings: Findings,
}

impl Comparison {
    /// `None`, with the reason printed, where the host cannot be compared with.
    fn new(bitness: u32) -> Option<Self> {
        let host = match Host::new() {
            Ok(host) => host,
            Err(error) => {
                println!("skipped: instructions cannot be run on this host: {error}");
                return None;
            }
        };
        let guest = Guest::new(bitness == 32);
        let random = Random::new(number("VMM_COMPARE_SEED", 1));
        Some(Self { host, guest, bitness, random, findings: Findings::default() })
    }

    /// Makes cases with `next` until it returns `None` for good, and compares them batch by batch.
    fn run(&mut self, mut next: impl FnMut(&mut Self) -> Next) {
        loop {
            let memory = inputs::memory(&mut self.random);
            self.guest.set_memory(&memory);
            let mut cases: Vec<Case> = Vec::with_capacity(BATCH);
            let mut rest = Vec::with_capacity(BATCH);
            let mut more = true;
            while cases.len() < BATCH && more {
                match next(self) {
                    Next::Case(case, instruction) => {
                        let ours = self.guest.run(&memory, &case);
                        if lands_in_itself(&case, &ours) {
                            self.findings.skip("branches to itself");
                            continue;
                        }
                        cases.push(*case);
                        rest.push((instruction, ours));
                    }
                    Next::None => {}
                    Next::End => more = false,
                }
            }
            let effects = self.host.run(&memory, &cases).expect("children can be forked, as the first one was");
            for ((case, (instruction, ours)), host) in cases.iter().zip(&rest).zip(&effects) {
                self.findings.compare(case, instruction.as_ref(), host.as_ref(), ours, &memory);
            }
            if !more {
                return;
            }
        }
    }

    /// A case for these bytes, unless the instruction is left out.
    fn case(&mut self, bytes: Bytes, rip: u64, instruction: &Instruction) -> Next {
        if let Some(reason) = rules::skip_reason(instruction, &bytes.bytes, self.bitness) {
            self.findings.skip(reason);
            return Next::None;
        }
        let (case, instruction) = inputs::case(bytes, self.bitness, rip, &mut self.random);
        Next::Case(Box::new(case), Some(instruction))
    }

    /// `rounds` cases of each form.
    fn every_form(&mut self, rounds: u64) {
        let forms: Vec<Code> = Code::values()
            .filter(|code| encode::is_candidate(*code, self.bitness) && findings::wanted(*code))
            .collect();
        let mut at = 0;
        self.run(|this| {
            if at >= rounds * forms.len() as u64 {
                return Next::End;
            }
            let code = forms[at as usize % forms.len()];
            at += 1;
            // The place depends on the length, and the length on the bytes: the bytes come first, for some place.
            let Some((bytes, _)) = encode::encode(code, this.bitness, CODE, &mut this.random) else {
                this.findings.skip("no encoding found");
                return Next::None;
            };
            let rip = inputs::place(bytes.len, &mut this.random);
            match encode::decode(&bytes.bytes[..bytes.len], this.bitness, rip) {
                Some((bytes, instruction)) => this.case(bytes, rip, &instruction),
                None => Next::None,
            }
        });
    }

    /// The forms of which our CPU executes one in a few: the others would end every sequence.
    fn forms_that_complete(&mut self) -> Vec<Code> {
        let memory = inputs::memory(&mut self.random);
        self.guest.set_memory(&memory);
        let mut completes = |code: Code| {
            let Some((bytes, instruction)) = encode::encode(code, self.bitness, CODE, &mut self.random) else {
                return false;
            };
            if rules::skip_reason(&instruction, &bytes.bytes, self.bitness).is_some() {
                return false;
            }
            let (case, _) = inputs::case(bytes, self.bitness, CODE, &mut self.random);
            self.guest.run(&memory, &case).trap == Trap::NONE
        };
        Code::values()
            .filter(|code| encode::is_candidate(*code, self.bitness))
            .filter(|code| (0..4).any(|_| completes(*code)))
            .collect()
    }

    /// `count` runs of instructions that have no memory operand, or one relative to RIP.
    fn sequences(&mut self, count: u64) {
        let forms = self.forms_that_complete();
        let mut at = 0;
        self.run(|this| {
            if at >= count {
                return Next::End;
            }
            at += 1;
            let rip = inputs::place(MAX_CODE, &mut this.random).min(CODE + CODE_SIZE as u64 - MAX_CODE as u64);
            let mut code: Vec<u8> = Vec::with_capacity(MAX_CODE);
            while code.len() + MAX_LEN < MAX_CODE {
                let here = rip + code.len() as u64;
                let form = this.random.pick(&forms);
                let Some((bytes, instruction)) = encode::encode(form, this.bitness, here, &mut this.random) else {
                    continue;
                };
                let left_out = rules::skip_reason(&instruction, &bytes.bytes, this.bitness).is_some()
                    || !rules::fits_a_sequence(&instruction);
                if !left_out {
                    code.extend_from_slice(&inputs::aimed(bytes, this.bitness, here, &mut this.random));
                }
            }
            let mut case =
                Case::new(&code, this.bitness, inputs::masked_registers(rip, this.bitness == 32, &mut this.random));
            case.sequence = true;
            Next::Case(Box::new(case), None)
        });
    }

    /// `count` cases of random bytes.
    fn random_bytes(&mut self, count: u64) {
        let mut at = 0;
        self.run(|this| {
            if at >= count {
                return Next::End;
            }
            at += 1;
            let mut bytes = [0; MAX_LEN];
            fuzz(&mut bytes, &mut this.random);
            let rip = inputs::place(MAX_LEN, &mut this.random).min(CODE + CODE_SIZE as u64 - MAX_LEN as u64);
            match encode::decode(&bytes, this.bitness, rip) {
                Some((bytes, instruction)) => this.case(bytes, rip, &instruction),
                None if rules::may_be_mask_instruction(&bytes) || rules::is_odd_system_instruction(&bytes) => {
                    Next::None
                }
                None => {
                    let registers = inputs::registers(rip, this.bitness == 32, &mut this.random);
                    Next::Case(Box::new(Case::new(&bytes, this.bitness, registers)), None)
                }
            }
        });
    }
}

/// What a generator of cases says.
enum Next {
    /// A case, with its instruction if it is one.
    Case(Box<Case>, Option<Instruction>),
    /// Nothing this time.
    None,
    /// Nothing any more.
    End,
}

/// Random prefixes before random bytes.
fn fuzz(bytes: &mut [u8; MAX_LEN], random: &mut Random) {
    for byte in bytes.iter_mut() {
        *byte = if random.one_in(8) { random.edge() as u8 } else { random.bits() as u8 };
    }
    let mut at = 0;
    while random.one_in(3) && at < 4 {
        bytes[at] = random.pick(&[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]);
        at += 1;
    }
    match random.below(8) {
        0 => bytes[at] = 0x40 | random.bits() as u8 & 15,
        1 => bytes[at] = random.pick(&[0xc4, 0xc5]),
        2..=4 => bytes[at] = 0x0f,
        _ => {}
    }
}

/// Whether the instruction went to its own bytes: on the host it would run again, or another one would.
fn lands_in_itself(case: &Case, ours: &Effect) -> bool {
    let start = case.registers.rip;
    !case.sequence && ours.trap == Trap::NONE && (start..start + u64::from(case.len)).contains(&ours.registers.rip)
}

#[test]
fn every_form_in_64_bit_code_does_what_the_host_does() {
    let Some(mut comparison) = Comparison::new(64) else { return };
    comparison.every_form(number("VMM_COMPARE_ROUNDS", 20));
    comparison.findings.finish("64-bit code");
}

#[test]
fn every_form_in_32_bit_code_does_what_the_host_does() {
    let Some(mut comparison) = Comparison::new(32) else { return };
    comparison.every_form(number("VMM_COMPARE_ROUNDS", 20));
    comparison.findings.finish("32-bit code");
}

#[test]
fn random_bytes_in_64_bit_code_do_what_they_do_on_the_host() {
    let Some(mut comparison) = Comparison::new(64) else { return };
    comparison.random_bytes(number("VMM_COMPARE_ROUNDS", 20) * 1000);
    comparison.findings.finish("random bytes in 64-bit code");
}

#[test]
fn random_bytes_in_32_bit_code_do_what_they_do_on_the_host() {
    let Some(mut comparison) = Comparison::new(32) else { return };
    comparison.random_bytes(number("VMM_COMPARE_ROUNDS", 20) * 1000);
    comparison.findings.finish("random bytes in 32-bit code");
}

#[test]
fn sequences_in_64_bit_code_do_what_they_do_on_the_host() {
    let Some(mut comparison) = Comparison::new(64) else { return };
    comparison.sequences(number("VMM_COMPARE_ROUNDS", 20) * 200);
    comparison.findings.finish("sequences in 64-bit code");
}

#[test]
fn sequences_in_32_bit_code_do_what_they_do_on_the_host() {
    let Some(mut comparison) = Comparison::new(32) else { return };
    comparison.sequences(number("VMM_COMPARE_ROUNDS", 20) * 200);
    comparison.findings.finish("sequences in 32-bit code");
}
