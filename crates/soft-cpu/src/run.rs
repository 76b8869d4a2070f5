//! The interpreter's loop: blocks in, events between them.

use x86::{InterruptShadow, exception, rflags};

use crate::block::{Block, BlockCache};
use crate::core::{Core, Fault, GPR_PAGE, Outcome, Stop, seg};
use crate::layer::Layer;
use crate::lockstep::Lockstep;
use crate::op::Op;
use crate::smp::attention;
use crate::statistics::TranslatorStatistics;
use crate::translate::Translator;

/// Why [`Cpu::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Somebody set [`attention::KICK`].
    Kicked,
    /// HLT with nothing to deliver: sleep until there is, then run again.
    Halted,
    /// [`attention::EVENT`] was set (and is cleared): the owner asks the local APIC what it is.
    Event,
    /// A triple fault.
    Shutdown,
    /// The instruction budget is used up.
    Budget,
    /// In lockstep: a translated block did not do what the interpreter does; [`Cpu::divergence`] says what.
    Diverged,
}

/// What came of [`Cpu::run_one`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Single {
    /// The instruction completed, or its exception is delivered.
    Done,
    /// It is undefined here (#UD), and nothing has changed: the processor whose instruction it is may know it.
    Undefined,
    /// A triple fault.
    Shutdown,
}

/// What came of an attempt to run generated code.
pub(crate) enum Entered {
    /// There is none for this block (yet): interpret it.
    No,
    /// It ran; the instruction pointer and the state are those of an instruction boundary.
    Ran,
    /// It ran into something.
    Stopped(Stop),
    /// In lockstep: the interpreter comes to something else.
    Diverged,
}

/// A CPU: its state and its decoded code.
pub struct Cpu {
    /// The state.
    pub core: Box<Core>,
    /// The decoded code.
    pub blocks: BlockCache,
    translator: Option<Box<Translator>>,
    lockstep: Option<Box<Lockstep>>,
}

/// Whether hot blocks are translated to host code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TranslatorMode {
    /// Everything is interpreted.
    Off,
    /// Blocks are translated.
    On {
        /// At which execution: 1 is the first.
        threshold: u32,
        /// Exceptions see every status flag, also those that the code overwrites unread: slower, and what comparisons need.
        precise: bool,
    },
}

impl TranslatorMode {
    /// Whether this build has a translator: the feature `translator`. Without it everything is interpreted, whatever the mode.
    pub const AVAILABLE: bool = cfg!(feature = "translator");

    /// Translation of what pays.
    pub const DEFAULT: Self = Self::On { threshold: 8, precise: false };
}

/// What is done for those who look for errors of the translator, or for where the time goes. All of it is slow but the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Debugging {
    /// Each translated block is executed by the interpreter too, and what both did is compared; the first difference ends the run. Only for a machine with one
    /// CPU.
    pub lockstep: bool,
    /// The TLB forgets everything at once: each access to memory takes its slow path.
    pub slow_paths: bool,
    /// Blocks are single instructions.
    pub short_blocks: bool,
    /// All translations, and all of the TLB, are forgotten every few hundred entries into generated code.
    pub flushes: bool,
    /// The names of translated blocks go to `/tmp/perf-PID.map`, for `perf report`.
    pub perf_map: bool,
    /// Room for generated code in bytes, where it is to be less than usual: so that it is forgotten often.
    pub code_cache: Option<usize>,
    /// Looks into the TLB are counted ([`Counters::accesses`](crate::statistics::Counters::accesses)), which costs a few per cent.
    pub count_accesses: bool,
}

impl Cpu {
    /// A CPU with nothing decoded yet.
    pub fn new(core: Box<Core>) -> Self {
        Self { core, blocks: BlockCache::new(), translator: None, lockstep: None }
    }

    /// Says whether blocks are translated; it is off at first. Translations that exist are forgotten.
    pub fn set_translator(&mut self, mode: TranslatorMode) {
        self.translator = match mode {
            TranslatorMode::Off => None,
            TranslatorMode::On { threshold, precise } => Translator::new(threshold, precise).map(Box::new),
        };
    }

    /// Says what is done to find errors of the translator, which must have been chosen before; nothing is at first.
    pub fn set_debugging(&mut self, debugging: Debugging) {
        let Debugging { lockstep, slow_paths, short_blocks, flushes, perf_map, code_cache, count_accesses } = debugging;
        self.lockstep = lockstep.then(|| Box::new(Lockstep::new()));
        self.core.tlb.set_useless(slow_paths);
        self.blocks.set_short(short_blocks);
        self.blocks.count_accesses(count_accesses);
        if let Some(size) = code_cache {
            self.translator = self.translator.take().and_then(|translator| translator.limited_to(size)).map(Box::new);
        }
        if let Some(translator) = &mut self.translator {
            translator.set_debugging(lockstep, flushes, perf_map);
        }
    }

    /// After [`Exit::Diverged`]: the block, and what differs.
    pub fn divergence(&self) -> Option<&str> {
        self.lockstep.as_ref().and_then(|lockstep| lockstep.report())
    }

    /// Blocks that were compared in lockstep.
    pub fn compared(&self) -> u64 {
        self.lockstep.as_ref().map_or(0, |lockstep| lockstep.compared)
    }

    /// Spoils generated code: every `from` in it becomes `to`.
    #[cfg(all(test, feature = "translator"))]
    pub(crate) fn plant(&mut self, from: &[u8], to: &[u8]) {
        self.translator.as_mut().unwrap().plant(from, to);
    }

    #[cfg(all(test, feature = "translator"))]
    pub(crate) fn use_translator(&mut self, translator: Translator) {
        self.translator = Some(Box::new(translator));
    }

    /// What the translator has counted; zeros where there is none.
    pub fn translator_statistics(&self) -> TranslatorStatistics {
        self.translator.as_ref().map_or_else(TranslatorStatistics::default, |translator| translator.statistics())
    }

    /// Runs until something needs the owner, or at least `budget` instructions have completed.
    pub fn run(&mut self, budget: u64) -> Exit {
        self.core.link.enter_guest();
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.start(&mut self.core);
        }
        self.core.layer.set(Layer::Interpreter);
        let exit = self.run_blocks(budget);
        self.core.layer.set(Layer::Idle);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.stop(&mut self.core);
        }
        self.core.link.leave_guest();
        exit
    }

    /// Executes one instruction and delivers nothing: an exception stays in [`Core::fault`], and what waits goes on waiting. For tests
    /// that compare single instructions.
    ///
    /// # Errors
    /// Why the instruction did not complete; the instruction pointer is then at it.
    pub fn step(&mut self) -> Outcome {
        let core = &mut *self.core;
        let block = self.blocks.lookup(core)?;
        let Some(op) = block.ops.first() else { return Ok(()) };
        let rip = core.rip;
        core.block_end = 1;
        core.gpr[usize::from(GPR_PAGE)] = rip & !0xfff;
        core.rip = block.end(rip);
        let result = (op.execute)(core, op);
        if result.is_err() {
            core.rip = rip;
            core.attribute_fault(op);
        } else if block.ops.len() > 1 {
            core.rip = rip.wrapping_add(u64::from(op.len)) & block.mode().ip_mask();
        }
        result
    }

    /// Executes one instruction and delivers the exception that it raises; what waits from outside goes on waiting. Nothing that was decoded or translated before is
    /// believed: this is for a CPU that does nothing else, and executes another processor's next instruction after that one's state was loaded.
    pub fn run_one(&mut self) -> Single {
        self.blocks.set_short(true);
        self.core.shadow = InterruptShadow::None;
        let trap = self.core.system_flags & rflags::TF != 0;
        let stop = match self.step() {
            Ok(()) if trap => self.core.single_step_trap().err(),
            Ok(()) => None,
            Err(Stop::Exception) if self.core.fault.vector == exception::UD => return Single::Undefined,
            Err(stop) => Some(stop),
        };
        match stop.and_then(|stop| self.core.after(stop)) {
            None => Single::Done,
            Some(_) => Single::Shutdown,
        }
    }

    /// As [`Cpu::step`], by the instruction's translation where there is a translator and a translation.
    ///
    /// # Errors
    /// As [`Cpu::step`].
    pub fn step_translated(&mut self) -> Outcome {
        let core = &mut *self.core;
        if let Some(translator) = &mut self.translator {
            let block = self.blocks.lookup(core)?;
            core.shadow = InterruptShadow::None;
            if let Some(result) = translator.step(core, block) {
                return result;
            }
        }
        self.step()
    }

    fn run_blocks(&mut self, budget: u64) -> Exit {
        let core = &mut *self.core;
        let limit = core.counters.instructions.saturating_add(budget);
        core.serve_shootdowns();
        if let Some(vector) = core.acknowledged_interrupt.take()
            && core.take_interrupt(vector).is_err()
        {
            return Exit::Shutdown;
        }
        loop {
            let mut shadowed = false;
            if core.has_attention() || core.halted {
                if let Some(exit) = core.serve_attention() {
                    return exit;
                }
                // What waits comes right after the one instruction that the shadow covers: it may be followed by a CLI in the same block.
                shadowed = core.shadow != InterruptShadow::None;
            }
            if core.counters.instructions >= limit {
                return Exit::Budget;
            }
            if let Some(translator) = &mut self.translator
                && self.lockstep.is_none()
                && !shadowed
                && core.system_flags & rflags::TF == 0
            {
                let budget = limit - core.counters.instructions;
                match translator.run_known(core, self.blocks.clears(), budget) {
                    Entered::No | Entered::Diverged => {}
                    Entered::Ran => continue,
                    Entered::Stopped(stop) => match core.after(stop) {
                        Some(exit) => return exit,
                        None => continue,
                    },
                }
            }
            // In lockstep what would have run is only compared with what the look-up of the block finds.
            let clears = self.blocks.clears();
            let known = match (&self.lockstep, &self.translator) {
                (Some(_), Some(translator)) => translator.known_entry(core, clears),
                _ => None,
            };
            let stop = match self.blocks.find(core) {
                Err(stop) => stop,
                Ok(slot) => {
                    let Some(block) = self.blocks.at(slot) else { unreachable!("a block was just found there") };
                    if let Some(translator) = &mut self.translator
                        && !shadowed
                        && core.system_flags & rflags::TF == 0
                    {
                        let budget = limit - core.counters.instructions;
                        let entered = match &mut self.lockstep {
                            None => translator.run(core, &self.blocks, block, budget),
                            Some(lockstep) => lockstep.run(core, &self.blocks, block, known, translator),
                        };
                        match entered {
                            Entered::Diverged => return Exit::Diverged,
                            Entered::No => {}
                            Entered::Ran => continue,
                            Entered::Stopped(stop) => match core.after(stop) {
                                Some(exit) => return exit,
                                None => continue,
                            },
                        }
                    }
                    core.shadow = InterruptShadow::None;
                    let trap = core.system_flags & rflags::TF != 0;
                    core.counters.blocks += 1;
                    core.counters.accesses += u64::from(block.accesses());
                    match core.interpret(block, 0, if trap || shadowed { 1 } else { block.ops.len() }) {
                        Ok(()) => {
                            if trap && core.single_step_trap().is_err() {
                                return Exit::Shutdown;
                            }
                            continue;
                        }
                        Err(stop) => stop,
                    }
                }
            };
            if let Some(exit) = core.after(stop) {
                return exit;
            }
        }
    }
}

impl Core {
    /// Executes operations of `block` from number `from`, where the instruction pointer is, to before number `to`, or until one ends the block.
    ///
    /// # Errors
    /// Why an instruction did not complete; the instruction pointer is then at it.
    #[inline(always)]
    pub(crate) fn interpret(&mut self, block: &Block, from: usize, to: usize) -> Outcome {
        let start = block.ops.get(from).map_or(0, |op| u64::from(op.offset));
        let rip = self.rip.wrapping_sub(start);
        self.block_end = to;
        self.gpr[usize::from(GPR_PAGE)] = rip & !0xfff;
        self.rip = block.end(rip);
        let mut at = from;
        let result = loop {
            let Some(op) = block.ops.get(at) else { break Ok(()) };
            if let Err(stop) = (op.execute)(self, op) {
                break Err((stop, op));
            }
            at += 1;
            if at >= self.block_end {
                break Ok(());
            }
        };
        self.counters.instructions += (at - from) as u64;
        match result {
            Ok(()) => {
                if at < block.ops.len() {
                    // Left early: the next instruction is the one after the last executed.
                    let op = &block.ops[at - 1];
                    self.rip = rip.wrapping_add(u64::from(op.offset) + u64::from(op.len)) & block.mode().ip_mask();
                }
                Ok(())
            }
            Err((stop, op)) => {
                self.attribute_fault(op);
                self.rip = rip.wrapping_add(u64::from(op.offset)) & block.mode().ip_mask();
                Err(stop)
            }
        }
    }

    /// Does what `stop` asks for.
    fn after(&mut self, stop: Stop) -> Option<Exit> {
        match stop {
            Stop::Again => None,
            Stop::Exception => {
                let fault = self.fault;
                self.deliver_exception(fault).is_err().then_some(Exit::Shutdown)
            }
            Stop::Shutdown => Some(Exit::Shutdown),
        }
    }

    /// Makes #GP for an address that is not canonical #SS where `op` names the stack segment, by RSP or RBP (SDM vol. 3, 7.15, #SS).
    #[cold]
    pub(crate) fn attribute_fault(&mut self, op: &Op) {
        let stack = usize::from(op.mem.segment) == seg::FLAT_STACK;
        if stack && self.fault.vector == exception::GP && self.fault.address != 0 {
            self.fault.vector = exception::SS;
        }
    }

    /// Drops the write translations that siblings want gone.
    fn serve_shootdowns(&mut self) {
        let tlb = &mut self.tlb;
        self.link.take_shootdowns(|page| tlb.flush_writes_to(page));
    }

    /// Begins to handle an interrupt that has been acknowledged.
    fn take_interrupt(&mut self, vector: u8) -> Outcome {
        self.halted = false;
        self.counters.events += 1;
        self.deliver_interrupt(vector)
    }

    /// Looks at everything that may wait for this CPU, in the order of SDM vol. 3, table 7-2.
    #[cold]
    #[inline(never)]
    fn serve_attention(&mut self) -> Option<Exit> {
        let waiting = self.link.attention();
        if waiting & attention::SHOOTDOWN != 0 {
            self.serve_shootdowns();
        }
        if waiting & attention::KICK != 0 {
            self.link.clear(attention::KICK);
            return Some(Exit::Kicked);
        }
        if waiting & attention::EVENT != 0 {
            self.link.clear(attention::EVENT);
            return Some(Exit::Event);
        }
        if waiting & attention::NMI != 0 && !self.nmi_blocked && self.shadow != InterruptShadow::MovSs {
            self.link.clear(attention::NMI);
            self.halted = false;
            self.nmi_blocked = true;
            self.counters.events += 1;
            if self.deliver_exception(Fault { vector: exception::NMI, ..Fault::default() }).is_err() {
                return Some(Exit::Shutdown);
            }
            return None;
        }
        if waiting & attention::INTERRUPT != 0
            && self.system_flags & rflags::IF != 0
            && self.shadow == InterruptShadow::None
        {
            // Cleared first: what arrives after the platform has been asked sets it again.
            self.link.clear(attention::INTERRUPT);
            if let Some(vector) = self.platform.acknowledge_interrupt() {
                return self.take_interrupt(vector).is_err().then_some(Exit::Shutdown);
            }
        }
        if self.halted { Some(Exit::Halted) } else { None }
    }
}
