//! The translations of one CPU: which blocks are hot, where their code is, and when it is no longer good.
//!
//! The code lies in one arena that is flushed whole when it is full. A translation is good as long as the code generation of its page is what it was;
//! the generations are compared when [`code_overwrites`] has changed, which the loop asks each time it is in. Within generated code nothing asks: a store of this
//! CPU to watched code leaves it, and the slice of instructions that generated code may run bounds how late another CPU's store is seen.

use std::cell::Cell;
use std::collections::HashMap;

use guest_memory::{CodePages, code_overwrites};
use tracing::{debug, error};
use x86::InterruptShadow;

use super::generate::{Generated, Place, Source, generate};
use super::gs_base;
use super::perf_map::PerfMap;
use super::runtime::{self, Stubs};
use super::state::{from_raw, to_raw};
use super::trace::{self, MOST_OPS, Part};
use crate::block::{Block, BlockCache, MAX_BLOCK_OPS};
use crate::core::{Core, DecodeMode, GPR_PAGE, Outcome, Stop};
use crate::layer::Layer;
use crate::op::Op;
use crate::run::Entered;
use crate::simd::{self, Arena};
use crate::statistics::TranslatorStatistics;

/// Size of the code arena in bytes; pages are taken as they are filled.
const ARENA_SIZE: usize = 64 << 20;

/// Most instructions of a translation.
const MAX_OPS: usize = if MOST_OPS > MAX_BLOCK_OPS { MOST_OPS } else { MAX_BLOCK_OPS };

/// No translation is longer in either part of the arena, in bytes: that many instructions of less than 320 bytes each.
const MAX_CODE: usize = 320 * MAX_OPS;

/// The smallest arena that is worth having.
const LEAST_ARENA: usize = 8 * MAX_CODE;

/// Most instructions that generated code runs before it looks at what waits: a few microseconds.
const SLICE: u64 = 16384;

/// Entries into generated code after which [`Debugging::flushes`](crate::run::Debugging::flushes) forgets everything.
const ENTRIES_BETWEEN_FLUSHES: u64 = 331;

/// A block's share of the translator.
#[derive(Debug, Default)]
pub(crate) struct NativeBlock {
    /// Executions by the interpreter.
    heat: Cell<u32>,
    /// Number of its translation, plus one; zero if there is none.
    translation: Cell<u32>,
    /// Generated code may hold on to the block's operations.
    held: Cell<bool>,
    /// The epoch of its page when it was made.
    epoch: Cell<u64>,
    /// How often all blocks, with the thunks that their operations call, had been forgotten when it was decoded.
    clears: u32,
}

impl NativeBlock {
    /// Whether generated code may hold on to the block's operations.
    pub(crate) fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Generated code is going to.
    pub(super) fn hold(&self) {
        self.held.set(true);
    }

    /// How hot the block is: executions by the interpreter, or all there are if it is translated.
    pub(super) fn warmth(&self) -> u32 {
        if self.translation.get() != 0 { u32::MAX } else { self.heat.get() }
    }

    /// Executions by the interpreter.
    pub(crate) fn heat(&self) -> u32 {
        self.heat.get()
    }

    /// Says how often all blocks have been forgotten before this one was decoded.
    pub(crate) fn set_generation(&mut self, clears: u32) {
        self.clears = clears;
    }
}

struct Translation {
    host_entry: u64,
    memory_entry: u64,
    page: u32,
    epoch: u64,
    /// The other page, and its epoch, of an instruction across two pages.
    second: Option<(u32, u64)>,
    place: Place,
    mode: DecodeMode,
    /// See [`Translator::live`].
    live: u32,
    /// Instructions.
    count: u16,
    /// Where its further blocks begin, in the page.
    further: Box<[u16]>,
}

/// A page with translations.
struct Page {
    code: CodePages,
    number: usize,
    generation: u32,
    /// Changes when its translations are lost; never the same again.
    epoch: u64,
}

/// A jump in generated code that may be aimed at a block of the same page.
struct Link {
    /// Its displacement, from the start of the arena.
    at: u32,
    /// Number of the translation that it is in.
    from: u32,
    /// Where it goes: the offset in the page.
    target: u16,
    host_flags: bool,
}

/// One CPU's translator.
pub(crate) struct Translator {
    threshold: u32,
    precise: bool,
    arena: Arena,
    stubs: Stubs,
    translations: Vec<Translation>,
    pages: Vec<Page>,
    page_numbers: HashMap<u64, usize>,
    links: Vec<Link>,
    next_epoch: u64,
    overwrites: u64,
    cleared: u32,
    left_by: u32,
    /// Everything is forgotten often.
    flushes: bool,
    /// See [`Source::alone`].
    alone: bool,
    perf_map: Option<PerfMap>,
    statistics: TranslatorStatistics,
}

impl Translator {
    /// A translator for blocks that were executed `threshold` times; `None` if there is no memory for code. `precise`: an exception's frame has also the
    /// flags that nothing else will read.
    pub(crate) fn new(threshold: u32, precise: bool) -> Option<Self> {
        Self::with_arena(threshold, precise, ARENA_SIZE)
    }

    /// The same with an arena of `size` bytes.
    pub(super) fn with_arena(threshold: u32, precise: bool, size: usize) -> Option<Self> {
        if !gs_base::is_available() {
            error!("this system lets no program set the base of GS: blocks are interpreted");
            return None;
        }
        let mut arena = match Arena::with_size(size, size / 5 * 2) {
            Ok(arena) => arena,
            Err(error) => {
                error!(%error, "no memory for generated code: blocks are interpreted");
                return None;
            }
        };
        let stubs = place_stubs(&mut arena)?;
        Some(Self {
            threshold,
            precise,
            arena,
            stubs,
            translations: Vec::new(),
            pages: Vec::new(),
            page_numbers: HashMap::new(),
            links: Vec::new(),
            next_epoch: 1,
            overwrites: 0,
            cleared: 0,
            left_by: 0,
            flushes: false,
            alone: false,
            perf_map: None,
            statistics: TranslatorStatistics::default(),
        })
    }

    /// What was counted.
    pub(crate) fn statistics(&self) -> TranslatorStatistics {
        let (code_bytes, code_room) = (self.arena.used() as u64, self.arena.size() as u64);
        TranslatorStatistics { code_bytes, code_room, ..self.statistics }
    }

    /// See [`Debugging`](crate::run::Debugging).
    pub(crate) fn set_debugging(&mut self, lockstep: bool, flushes: bool, perf_map: bool) {
        self.alone = lockstep;
        self.flushes = flushes;
        self.perf_map = if perf_map { PerfMap::open() } else { None };
    }

    /// The same translator with room for so many bytes of code, at least some blocks'. There are no translations yet.
    pub(crate) fn limited_to(self, size: usize) -> Option<Self> {
        Self::with_arena(self.threshold, self.precise, size.max(LEAST_ARENA))
    }

    /// Forgets every translation.
    fn flush(&mut self, core: &mut Core) {
        self.statistics.flushes += 1;
        debug!(translations = self.translations.len(), "code cache flushed");
        self.arena.clear();
        self.translations.clear();
        self.pages.clear();
        self.page_numbers.clear();
        self.links.clear();
        self.left_by = 0;
        core.jumps.clear();
        if let Some(stubs) = place_stubs(&mut self.arena) {
            self.stubs = stubs;
        }
    }

    /// Drops the translations of pages whose code has changed.
    fn follow_overwrites(&mut self, core: &mut Core) {
        let overwrites = code_overwrites();
        if overwrites == self.overwrites {
            return;
        }
        self.overwrites = overwrites;
        let mut changed = false;
        for page in &mut self.pages {
            let generation = page.code.generation(page.number);
            if generation != page.generation {
                page.generation = generation;
                page.epoch = self.next_epoch;
                self.next_epoch += 1;
                changed = true;
            }
        }
        if changed {
            core.jumps.clear();
        }
    }

    /// Runs `block`, which is current, and what it leads to, if it is translated or hot enough to be; for at most about `budget` instructions.
    #[inline(always)]
    pub(crate) fn run(&mut self, core: &mut Core, blocks: &BlockCache, block: &Block, budget: u64) -> Entered {
        let Some(number) = self.prepare(core, blocks, block) else { return Entered::No };
        // At least the translation itself, or nothing would ever be executed.
        let slice = budget.min(SLICE).max(self.translations[number].count.into()) as i32;
        self.run_translation(core, block, number, slice)
    }

    /// The number of `block`'s translation, if it is translated or hot enough to be.
    #[inline(always)]
    pub(crate) fn prepare(&mut self, core: &mut Core, blocks: &BlockCache, block: &Block) -> Option<usize> {
        if !block.mode().is_flat() {
            self.left_by = 0;
            return None;
        }
        if self.cleared != block.native.clears {
            self.cleared = block.native.clears;
            self.flush(core);
        }
        if std::mem::take(&mut core.native.interpret) {
            return None;
        }
        if self.flush_is_due() {
            core.tlb.flush_all();
            self.flush(core);
        }
        self.follow_overwrites(core);
        let number = self.translation(core, blocks, block);
        match number {
            None => self.left_by = 0,
            Some(number) if self.left_by != 0 => self.link(self.left_by, number),
            Some(_) => {}
        }
        number
    }

    /// Under [`Debugging::flushes`](crate::run::Debugging::flushes): everything is to be forgotten before the next entry.
    fn flush_is_due(&self) -> bool {
        self.flushes && self.statistics.entries.is_multiple_of(ENTRIES_BETWEEN_FLUSHES)
    }

    /// Status flags, as the decoder names them, that translation `number` or what follows it reads.
    pub(crate) fn live(&self, number: usize) -> u32 {
        self.translations[number].live
    }

    /// How many instructions translation `number` has.
    pub(crate) fn count(&self, number: usize) -> usize {
        self.translations[number].count.into()
    }

    /// The offsets in their page of the blocks of translation `number` that follow its first.
    pub(crate) fn further(&self, number: usize) -> &[u16] {
        &self.translations[number].further
    }

    /// Runs translation `number`, which [`Translator::prepare`] has just returned, and what it leads to, for about `slice` instructions.
    #[inline(always)]
    pub(crate) fn run_translation(&mut self, core: &mut Core, block: &Block, number: usize, slice: i32) -> Entered {
        let entry = self.translations[number].memory_entry;
        let user = core.cpl == 3;
        let page = match (core.fetch.lookup(core.rip, user), block.second_page()) {
            (Some(page), None) => Some(page),
            (Some(page), Some(_)) => {
                core.fetch.lookup(core.rip.wrapping_add(4096), user).map(|second| page.and(second))
            }
            (None, _) => None,
        };
        core.native.jump_table = match page {
            Some(page) => core.jumps.insert(block.mode(), core.rip, entry, page),
            None => core.jumps.table(block.mode()),
        };
        self.enter(core, entry, slice)
    }

    /// Runs the code that the table of jumps has for the current instruction pointer, as generated code itself would; for at most about `budget` instructions.
    /// `clears` is how often all blocks have been forgotten: code that was made before has nothing left to call.
    ///
    /// Half of what leaves generated code goes on so (STI, system calls and their ends), and to find the block first would be seven cache misses.
    #[inline(always)]
    pub(crate) fn run_known(&mut self, core: &mut Core, clears: u32, budget: u64) -> Entered {
        if self.left_by != 0 || budget < MAX_OPS as u64 {
            return Entered::No;
        }
        let Some((table, entry)) = self.known(core, clears) else { return Entered::No };
        core.native.jump_table = table;
        self.enter(core, entry, budget.min(SLICE) as i32)
    }

    /// The table of jumps for the current mode, and what it has for the current instruction pointer, if that can be trusted now.
    #[inline(always)]
    fn known(&self, core: &Core, clears: u32) -> Option<(usize, u64)> {
        let settled = !self.flush_is_due() && self.cleared == clears && self.overwrites == code_overwrites();
        if !settled || core.native.interpret {
            return None;
        }
        core.jumps.find(core.mode, core.rip)
    }

    /// The entry that [`Translator::run_known`] would use now; for lockstep, where the block is always looked up as well.
    pub(crate) fn known_entry(&self, core: &Core, clears: u32) -> Option<u64> {
        self.known(core, clears).map(|(_, entry)| entry)
    }

    /// Whether `entry` is that of a good translation of `block`, which is current. A block that is mapped twice may have several.
    pub(crate) fn is_code_of(&self, core: &Core, block: &Block, entry: u64) -> bool {
        let page = self.page_numbers.get(&(block.physical() >> 12));
        let good = |translation: &Translation| {
            translation.memory_entry == entry
                && translation.mode == block.mode()
                && translation.place == place(core, block.mode())
                && page.is_some_and(|page| *page == translation.page as usize)
                && self.is_of_its_epoch(translation)
        };
        let own = (block.native.translation.get() as usize).checked_sub(1).and_then(|at| self.translations.get(at));
        own.is_some_and(good) || self.translations.iter().any(good)
    }

    #[inline(always)]
    fn enter(&mut self, core: &mut Core, entry: u64, slice: i32) -> Entered {
        core.layer.set(Layer::Generated);
        core.gpr[usize::from(GPR_PAGE)] = core.rip & !0xfff;
        core.native.flags = to_raw(&core.flags);
        core.native.slice = slice;
        core.shadow = InterruptShadow::None;
        self.left_by = runtime::enter(&self.stubs, core, entry);
        core.layer.set(Layer::Interpreter);
        core.flags = from_raw(core.native.flags);
        let executed =
            i64::from(slice) - i64::from(core.native.slice) - i64::from(std::mem::take(&mut core.native.unused));
        core.counters.instructions = core.counters.instructions.wrapping_add_signed(executed);
        self.statistics.instructions = self.statistics.instructions.wrapping_add_signed(executed);
        self.statistics.entries += 1;
        let stop = core.native.stop.take();
        let by_handler = std::mem::take(&mut core.native.handler_left);
        *self.exit_counter(core, stop, by_handler) += 1;
        match stop {
            Some(stop) => Entered::Stopped(stop),
            None => Entered::Ran,
        }
    }

    /// What counts the exit that was just made.
    fn exit_counter(&mut self, core: &Core, stop: Option<Stop>, by_handler: bool) -> &mut u64 {
        let exits = &mut self.statistics.exits;
        match stop {
            Some(Stop::Again) => &mut exits.again,
            Some(Stop::Exception | Stop::Shutdown) => &mut exits.exceptions,
            None if core.native.interpret => &mut exits.interpreted,
            None if by_handler && core.has_attention() => &mut exits.attention,
            None if by_handler => &mut exits.changes,
            // Not enough was left for another translation; a jump to another page that missed just then counts here too.
            None if self.left_by == 0 && core.native.slice < MAX_OPS as i32 => &mut exits.slices,
            None => &mut exits.jumps,
        }
    }

    /// Spoils generated code: every `from` in it becomes `to`.
    #[cfg(test)]
    pub(crate) fn plant(&mut self, from: &[u8], to: &[u8]) {
        for translation in &self.translations {
            self.arena.replace(translation.host_entry, 512, from, to);
        }
    }

    /// Translates the first instruction of `block`, which is current, and runs it; for [`Cpu::step_translated`](crate::run::Cpu::step_translated).
    pub(crate) fn step(&mut self, core: &mut Core, block: &Block) -> Option<Outcome> {
        let (op, bytes) = (block.ops.first()?, block.bytes());
        // All of its block, and there until the code is left.
        let op = &Op { left: 1, ..*op };
        if !block.mode().is_flat() {
            return None;
        }
        if self.is_nearly_full() {
            self.flush(core);
        }
        let bytes = &bytes[..usize::from(op.len)];
        let generated = generate(
            &Source {
                parts: &[Part::new(bytes, place(core, block.mode()), std::slice::from_ref(op))],
                mode: block.mode(),
                alone: true,
            },
            (self.arena.next(simd::Part::Hot), self.arena.next(simd::Part::Cold)),
            &self.stubs,
            self.links.len() as u32,
            self.precise,
        )?;
        let base = self.place(&generated)?;
        // Nothing of this may be found again.
        core.jumps.clear();
        core.native.jump_table = core.jumps.table(block.mode());
        core.gpr[usize::from(GPR_PAGE)] = core.rip & !0xfff;
        core.native.flags = to_raw(&core.flags);
        core.native.slice = 1;
        runtime::enter(&self.stubs, core, base + generated.memory_entry as u64);
        core.flags = from_raw(core.native.flags);
        if std::mem::take(&mut core.native.interpret) {
            return None;
        }
        Some(core.native.stop.take().map_or(Ok(()), Err))
    }

    /// The code of its pages is what it was.
    #[inline(always)]
    fn is_of_its_epoch(&self, translation: &Translation) -> bool {
        let is_of = |page: u32, epoch: u64| self.pages[page as usize].epoch == epoch;
        is_of(translation.page, translation.epoch) && translation.second.is_none_or(|(page, epoch)| is_of(page, epoch))
    }

    #[inline(always)]
    fn translation(&mut self, core: &mut Core, blocks: &BlockCache, block: &Block) -> Option<usize> {
        let native = &block.native;
        let number = native.translation.get();
        if number != 0 {
            let at = number as usize - 1;
            if let Some(translation) = self.translations.get(at)
                && translation.epoch == native.epoch.get()
                && self.is_of_its_epoch(translation)
            {
                if translation.place == place(core, block.mode()) {
                    return Some(at);
                }
                // Kernel code at another address than before: it is translated for this one when it gets hot there.
            } else {
                native.translation.set(0);
                native.heat.set(0);
            }
        }
        let heat = native.heat.get() + 1;
        native.heat.set(heat);
        if heat < self.threshold {
            return None;
        }
        self.translate(core, blocks, block)
    }

    #[cold]
    #[inline(never)]
    fn translate(&mut self, core: &mut Core, blocks: &BlockCache, block: &Block) -> Option<usize> {
        let before = core.layer.replace(Layer::Translator);
        let number = self.add_translation(core, blocks, block);
        core.layer.set(before);
        number
    }

    fn add_translation(&mut self, core: &mut Core, blocks: &BlockCache, block: &Block) -> Option<usize> {
        block.native.heat.set(0);
        let place = place(core, block.mode());
        let page = self.page(core, block.physical(), block.generation())?;
        let epoch = self.pages[page].epoch;
        let second = match block.second_page() {
            Some((physical, generation)) => {
                let page = self.page(core, physical, generation)?;
                Some((page as u32, self.pages[page].epoch))
            }
            None => None,
        };
        if self.is_nearly_full() {
            self.flush(core);
            return None;
        }
        let (base, cold) = (self.arena.next(simd::Part::Hot), self.arena.next(simd::Part::Cold));
        let parts = trace::follow(blocks, block, place, self.threshold.div_ceil(2));
        let source = Source { parts: &parts, mode: block.mode(), alone: self.alone };
        let generated = generate(&source, (base, cold), &self.stubs, self.links.len() as u32, self.precise)?;
        let placed = self.place(&generated)?;
        debug_assert_eq!(placed, base);
        if let Some(map) = &mut self.perf_map {
            map.name(base, generated.hot.len(), core.rip, block.mode());
            map.name(cold, generated.cold.len(), core.rip, block.mode());
        }
        let known = self.translations.len();
        for link in &generated.links {
            self.links.push(Link {
                at: (link.at - self.stubs.enter) as u32,
                from: known as u32,
                target: (link.target & 0xfff) as u16,
                host_flags: link.host_flags,
            });
        }
        self.translations.push(Translation {
            host_entry: base,
            memory_entry: base + generated.memory_entry as u64,
            page: page as u32,
            epoch,
            second,
            place,
            live: generated.live,
            mode: block.mode(),
            count: parts.iter().map(|part| part.ops.len() as u16).sum(),
            further: parts.iter().skip(1).map(|part| (part.place.rip() & 0xfff) as u16).collect(),
        });
        block.native.hold();
        block.native.translation.set(known as u32 + 1);
        block.native.epoch.set(epoch);
        self.statistics.translated += 1;
        Some(known)
    }

    /// A block might not fit any more.
    fn is_nearly_full(&self) -> bool {
        [simd::Part::Hot, simd::Part::Cold].into_iter().any(|part| self.arena.room(part) < MAX_CODE)
    }

    /// Puts finished code where it was generated for, and returns the address of the hot part.
    fn place(&mut self, generated: &Generated) -> Option<u64> {
        self.arena.append(simd::Part::Cold, &generated.cold)?;
        self.arena.append(simd::Part::Hot, &generated.hot)
    }

    /// The record of a page; `None` if it has changed since the block was looked up.
    fn page(&mut self, core: &Core, physical: u64, generation: u32) -> Option<usize> {
        if let Some(&at) = self.page_numbers.get(&(physical >> 12)) {
            return (self.pages[at].generation == generation).then_some(at);
        }
        let (code, offset) = core.ram.code(physical)?;
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        self.pages.push(Page { code: code.clone(), number: offset >> 12, generation, epoch });
        self.page_numbers.insert(physical >> 12, self.pages.len() - 1);
        // What has happened to the page since is found when the overwrites are next compared.
        self.overwrites = u64::MAX;
        Some(self.pages.len() - 1)
    }

    /// Aims the jump that was left by at a block, if that is where it goes.
    fn link(&mut self, left_by: u32, number: usize) {
        let Some(link) = self.links.get(left_by as usize - 1) else { return };
        let (from, to) = (&self.translations[link.from as usize], &self.translations[number]);
        let (rip, page) = (to.place.rip(), from.place.rip() & !0xfff);
        let same_page = from.page == to.page && from.epoch == to.epoch && from.mode == to.mode;
        // A link would not see where the second page is mapped.
        if !same_page || to.second.is_some() || rip != page | u64::from(link.target) {
            return;
        }
        let entry = if link.host_flags { to.host_entry } else { to.memory_entry };
        let at = self.stubs.enter + u64::from(link.at);
        let displacement = entry.wrapping_sub(at + 4) as i32;
        self.arena.patch(at, &displacement.to_le_bytes());
    }
}

/// What the translation of a block at the current instruction pointer may rely on. Programs are mapped at another address each time they are executed, so their
/// code must serve at any; the kernel stays where it is, and addresses in its code are constants.
fn place(core: &Core, mode: DecodeMode) -> Place {
    if mode.has(DecodeMode::USER) { Place::InPage(core.rip & 0xfff) } else { Place::At(core.rip) }
}

fn place_stubs(arena: &mut Arena) -> Option<Stubs> {
    let (code, stubs) = runtime::stubs(arena.next(simd::Part::Hot));
    arena.append(simd::Part::Hot, &code)?;
    Some(stubs)
}
