//! Lockstep: every translated block is executed twice from the same state, first by the interpreter, then as host code, and what they did is compared.
//!
//! The interpreter goes first. Its stores are noted and then taken back ([`stores`]), what it asked the platform is kept and answered again ([`tape`]), its
//! registers are put back ([`snapshot`]). The translation then runs as it always does, its stores through the write TLB, in which just the pages of the interpreter's
//! stores are entered: a store elsewhere on them shows because the pages are compared whole, a store to another page because it goes to the slow path, which notes
//! it. The guest goes on with the interpreter's state, so that one difference is not the cause of the next.
//!
//! What is not compared: flags that nobody reads before they are overwritten (the translator does not keep them), flags that an instruction leaves
//! undefined, the flags of an exception's frame, the x87 instruction and data pointers, and instructions that give random numbers. A device that stores to a compared page meanwhile looks like a
//! difference: so one counts only when it shows again each time the block is repeated. Meant for machines with one CPU: other CPUs' stores would look the same.

mod snapshot;
mod stores;
mod tape;
#[cfg(all(test, feature = "translator"))]
mod tests;

use std::collections::HashMap;
use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, RflagsBits};
use x86::{InterruptShadow, rflags};

use crate::block::{Block, BlockCache};
use crate::core::{Core, DecodeMode, Outcome, Stop};
use crate::run::Entered;
use crate::translate::Translator;
use snapshot::Snapshot;
pub(crate) use stores::StoreLog;
use tape::{Recorder, SharedTape};

const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// How often a difference must show.
const ATTEMPTS: u32 = 3;

/// What is known of a block.
#[derive(Clone, Copy)]
struct Facts {
    /// Its result is another one each time.
    random: bool,
    /// Status flags that it leaves alone, and those that are undefined after it.
    kept: u64,
    undefined: u64,
}

/// A block of a translation, and its instruction pointer.
type Part<'a> = (u64, &'a Block);

/// The comparison of one CPU.
pub(crate) struct Lockstep {
    /// By bytes.
    facts: HashMap<Box<[u8]>, Facts>,
    /// Status flags that are read by the code at a guest-physical address in a mode, as its translations have it.
    live: HashMap<(u64, DecodeMode), u64>,
    tape: Option<SharedTape>,
    report: Option<String>,
    /// Blocks that were compared.
    pub(crate) compared: u64,
}

/// A host page's address, and its words.
type Page = (usize, Vec<u64>);

/// How one of the two executions ended.
struct Execution {
    outcome: Outcome,
    after: Snapshot,
    /// How many blocks of the translation were executed, where that is known.
    parts: usize,
}

impl Lockstep {
    pub(crate) fn new() -> Self {
        Self { facts: HashMap::new(), live: HashMap::new(), tape: None, report: None, compared: 0 }
    }

    /// Before the CPU runs.
    pub(crate) fn start(&mut self, core: &mut Core) {
        let platform = std::mem::replace(&mut core.platform, Box::new(crate::platform::Nothing));
        let tape = SharedTape::new(platform);
        core.platform = Box::new(Recorder(tape.clone()));
        self.tape = Some(tape);
        core.tlb.flush_all();
        core.stores = Some(Box::default());
    }

    /// After it has run.
    pub(crate) fn stop(&mut self, core: &mut Core) {
        if let Some(tape) = self.tape.take() {
            core.platform = tape.lock().take_platform();
        }
        core.stores = None;
    }

    /// What was found to differ.
    pub(crate) fn report(&self) -> Option<&str> {
        self.report.as_deref()
    }

    /// Executes the translation of `block`, which is current, in both ways. `known` is the code that the loop would have entered without looking for the block.
    pub(crate) fn run(
        &mut self,
        core: &mut Core,
        blocks: &BlockCache,
        block: &Block,
        known: Option<u64>,
        translator: &mut Translator,
    ) -> Entered {
        let Some(tape) = self.tape.clone() else { return Entered::No };
        // Stores since the last block: an exception's frame.
        core.stores = Some(Box::default());
        if let Some(known) = known.filter(|known| !translator.is_code_of(core, block, *known)) {
            let what = format!("code: the table of jumps has {known:#x}, which is not this block's\n");
            self.report = Some(report(&[(core.rip, block)], &Snapshot::take(core), &what));
            return Entered::Diverged;
        }
        let Some(number) = translator.prepare(core, blocks, block) else { return Entered::No };
        let mut parts: Vec<Part<'_>> = vec![(core.rip, block)];
        for offset in translator.further(number) {
            let offset = u64::from(*offset);
            let Some(block) = blocks.on_page_of(block, offset) else { return Entered::No };
            parts.push((core.rip & !0xfff | offset, block));
        }
        if parts.iter().any(|(_, block)| self.facts(block).random) {
            return Entered::No;
        }
        let live = self.live.entry((block.physical(), block.mode())).or_insert(STATUS);
        *live &= status(translator.live(number));
        let before = Snapshot::take(core);
        let mut differences = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt == 0 {
                tape.lock().record();
            } else {
                tape.lock().replay();
            }
            before.restore(core);
            let interpreted = interpret(core, &parts);
            let (stored, new) = take_back(core);
            let pages: Vec<Page> = stored.pages().into_iter().map(|at| (at, stores::page(at))).collect();
            before.restore(core);
            stored.enter(&mut core.tlb);
            tape.lock().replay();
            let translated = translate(core, &parts, number, translator);
            stored.leave(&mut core.tlb);
            let asked = tape.lock().difference();
            let undefined = parts.iter().take(interpreted.parts).fold(0, |undefined, (_, block)| {
                let facts = self.facts(block);
                undefined & facts.kept | facts.undefined
            });
            let flags = self.flags_at(core, &translated, &parts) & !undefined;
            let seen: Vec<Page> = pages.iter().map(|(at, _)| (*at, stores::page(*at))).collect();
            let (by_handlers, _) = take_back(core);
            // Bytes that neither was to store to are put back too: if they were a device's, they are the same in `seen`.
            restore_pages(&pages, &seen);
            stored.redo(&new);
            differences = compare(&interpreted, &translated, flags);
            if let Some(asked) = asked {
                let _ = writeln!(differences, "platform: {asked}");
            }
            let expected: Vec<Page> = pages.iter().map(|(at, _)| (*at, stores::page(*at))).collect();
            differences += &compare_memory(&expected, &seen);
            for at in by_handlers.pages().difference(&stored.pages()) {
                let _ =
                    writeln!(differences, "memory: only the translation stores to the page at host address {at:#x}");
            }
            interpreted.after.restore(core);
            if differences.is_empty() {
                tape.lock().mode = tape::Mode::Pass;
                self.compared += 1;
                return match interpreted.outcome {
                    Ok(()) => Entered::Ran,
                    Err(stop) => Entered::Stopped(stop),
                };
            }
            // Once more from the start.
            stored.undo();
        }
        tape.lock().mode = tape::Mode::Pass;
        self.report = Some(report(&parts, &before, &differences));
        Entered::Diverged
    }

    fn facts(&mut self, block: &Block) -> Facts {
        if let Some(facts) = self.facts.get(block.bytes()) {
            return *facts;
        }
        let mut facts = Facts { random: false, kept: STATUS, undefined: 0 };
        for i in instructions(block) {
            facts.random |= matches!(i.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
            facts.kept &= !status(i.rflags_modified());
            facts.undefined &= !status(i.rflags_modified());
            facts.undefined |= status(i.rflags_undefined());
        }
        self.facts.insert(block.bytes().into(), facts);
        facts
    }

    /// The status flags that count where a translation of `parts` has come to.
    fn flags_at(&self, core: &Core, translated: &Execution, parts: &[Part<'_>]) -> u64 {
        if translated.outcome.is_err() {
            return 0;
        }
        let rip = translated.after.rip;
        // It may have been left in a block: after a store to watched code, for example.
        let within = |(start, block): &Part<'_>| {
            let offset = rip.wrapping_sub(*start);
            offset != 0 && block.ops.iter().any(|op| u64::from(op.offset) == offset)
        };
        if let Some(at) = parts.iter().position(within) {
            return read_from(&parts[at..], rip.wrapping_sub(parts[at].0));
        }
        let physical = core.fetch.lookup(rip, core.cpl == 3).map(|page| page.physical() | rip & 0xfff);
        let live = physical.and_then(|physical| self.live.get(&(physical, core.mode)));
        live.copied().unwrap_or(STATUS)
    }
}

/// Flags as the decoder names them, as bits of RFLAGS.
fn status(flags: u32) -> u64 {
    let names = [
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::OF, rflags::OF),
    ];
    names.iter().filter(|(name, _)| flags & name != 0).map(|(_, bit)| bit).sum()
}

/// Status flags that these blocks, the first from `offset` on, read before they overwrite them, or leave to what follows.
fn read_from(parts: &[Part<'_>], offset: u64) -> u64 {
    let rest = |(number, (_, block)): (usize, &Part<'_>)| {
        let all = block.ops.iter().map(|op| u64::from(op.offset)).zip(instructions(block)).collect::<Vec<_>>();
        all.into_iter().filter(move |(at, _)| number > 0 || *at >= offset)
    };
    let (mut read, mut written) = (0, 0);
    for (_, i) in parts.iter().enumerate().flat_map(rest) {
        read |= status(i.rflags_read()) & !written;
        written |= status(i.rflags_modified());
    }
    read | STATUS & !written
}

fn instructions(block: &Block) -> impl Iterator<Item = Instruction> {
    let bytes = block.bytes();
    let len = block.ops.last().map_or(0, |op| usize::from(op.offset) + usize::from(op.len)).min(bytes.len());
    let mut decoder = Decoder::with_ip(64, &bytes[..len], 0, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

/// Takes back all stores since the last time, and returns them with the bytes that they had stored.
fn take_back(core: &mut Core) -> (StoreLog, Vec<u8>) {
    let stored = core.stores.as_mut().map(|log| std::mem::take(&mut **log)).unwrap_or_default();
    let new = stored.now();
    stored.undo();
    (stored, new)
}

fn interpret(core: &mut Core, parts: &[Part<'_>]) -> Execution {
    core.shadow = InterruptShadow::None;
    let (outcome, parts) = interpret_parts(core, parts, 0);
    Execution { outcome, after: Snapshot::take(core), parts }
}

/// Executes the blocks as long as control goes from one to the next, the first from its operation number `from`. Also returns how many were executed.
fn interpret_parts(core: &mut Core, parts: &[Part<'_>], from: usize) -> (Outcome, usize) {
    let mut executed = 0;
    for (start, block) in parts {
        if executed > 0 && core.rip != *start {
            break;
        }
        let outcome = core.interpret(block, if executed == 0 { from } else { 0 }, block.ops.len());
        let outcome = interpret_rest(core, block, *start, outcome);
        executed += 1;
        if outcome.is_err() {
            return (outcome, executed);
        }
    }
    (Ok(()), executed)
}

/// Goes on after `outcome` where a string instruction wanted a look at what waits: how far each of them gets until then depends on the TLB.
fn interpret_rest(core: &mut Core, block: &Block, start: u64, mut outcome: Outcome) -> Outcome {
    while outcome == Err(Stop::Again) {
        let at = block.ops.iter().position(|op| start.wrapping_add(op.offset.into()) == core.rip);
        let Some(at) = at else { break };
        outcome = core.interpret(block, at, block.ops.len());
    }
    outcome
}

/// Runs the translation. What it leaves over, because something waits for the CPU, is interpreted.
fn translate(core: &mut Core, parts: &[Part<'_>], number: usize, translator: &mut Translator) -> Execution {
    let executed = core.counters.instructions;
    let (_, block) = parts[0];
    let slice = translator.count(number) as i32;
    let mut outcome = match translator.run_translation(core, block, number, slice) {
        Entered::Stopped(stop) => Err(stop),
        _ => Ok(()),
    };
    core.native.interpret = false;
    // Where it is after so many instructions, if control went from block to block.
    let (mut at, mut done) = (0, (core.counters.instructions - executed) as usize);
    while let Some((_, block)) = parts.get(at)
        && done >= block.ops.len()
    {
        done -= block.ops.len();
        at += 1;
    }
    if let Some((start, block)) = parts.get(at) {
        let next = start.wrapping_add(block.ops[done].offset.into());
        let again = outcome == Err(Stop::Again);
        if next == core.rip && (again || outcome.is_ok() && core.block_end != 0) {
            outcome = interpret_parts(core, &parts[at..], done).0;
        }
    }
    Execution { outcome, after: Snapshot::take(core), parts: 0 }
}

/// Puts pages back to what they were, where they have changed.
fn restore_pages(pages: &[Page], seen: &[Page]) {
    for ((at, old), (_, now)) in pages.iter().zip(seen) {
        for (n, (old, now)) in old.iter().zip(now).enumerate() {
            if old != now {
                stores::put(at + n * 8, &old.to_le_bytes());
            }
        }
    }
}

fn compare(interpreted: &Execution, translated: &Execution, flags: u64) -> String {
    let mut text = String::new();
    if interpreted.outcome != translated.outcome {
        let _ = writeln!(text, "end: interpreted {:?}, translated {:?}", interpreted.outcome, translated.outcome);
    }
    let faults = (interpreted.after.fault, translated.after.fault);
    if interpreted.outcome == Err(Stop::Exception) && faults.0 != faults.1 {
        let _ = writeln!(text, "exception: interpreted {:x?}, translated {:x?}", faults.0, faults.1);
    }
    for line in interpreted.after.differences(&translated.after, flags) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn compare_memory(expected: &[Page], seen: &[Page]) -> String {
    const MOST: usize = 8;
    let mut text = String::new();
    for ((at, expected), (_, seen)) in expected.iter().zip(seen).filter(|(expected, seen)| expected != seen) {
        let differ = expected.iter().zip(seen).enumerate().filter(|(_, (expected, seen))| expected != seen);
        for (n, (expected, seen)) in differ.take(MOST) {
            let at = at + n * 8;
            let _ = writeln!(text, "memory at host address {at:#x}: interpreted {expected:#x}, translated {seen:#x}");
        }
    }
    text
}

fn report(parts: &[Part<'_>], before: &Snapshot, differences: &str) -> String {
    let mut text = format!("translated code and the interpreter differ in the block at rip {:#x}:\n", before.rip);
    for (start, block) in parts {
        for (op, i) in block.ops.iter().zip(instructions(block)) {
            let at = usize::from(op.offset);
            let bytes = block.bytes().get(at..at + usize::from(op.len)).unwrap_or_default();
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let rip = start.wrapping_add(at as u64);
            let _ = writeln!(text, "  {rip:#x}: {:<32} {:?}", hex.join(" "), i.code());
        }
    }
    let _ = writeln!(text, "before, rax to r15: {:x?}", &before.gpr[..16]);
    let _ = writeln!(text, "before, status flags: {:#x}", before.flags.bits());
    text + differences
}
