//! What a CPU counts for `--stats`.

/// What the CPU counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Guest instructions completed.
    pub instructions: u64,
    /// Blocks entered.
    pub blocks: u64,
    /// Blocks decoded.
    pub decoded: u64,
    /// Operands in memory of the blocks that were entered, each of which is one look into the TLB; zero unless
    /// [`Debugging::count_accesses`](crate::run::Debugging::count_accesses) was asked for.
    pub accesses: u64,
    /// Looks into the TLB that found nothing.
    pub misses: u64,
    /// Page walks for data.
    pub walks: u64,
    /// Exceptions and interrupts delivered.
    pub events: u64,
    /// Port and MMIO accesses.
    pub io: u64,
}

/// What the translator counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct TranslatorStatistics {
    /// Blocks translated.
    pub translated: u64,
    /// Instructions executed in generated code.
    pub instructions: u64,
    /// Entries into generated code.
    pub entries: u64,
    /// How these ended.
    pub exits: Exits,
    /// Times that all translations were forgotten: the code cache was full, or the blocks behind them were forgotten.
    pub flushes: u64,
    /// Bytes of generated code that are kept.
    pub code_bytes: u64,
    /// Bytes that there is room for.
    pub code_room: u64,
}

/// Why generated code was left: each entry into it is counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exits {
    /// By a jump to a block that is not translated, or was not linked yet.
    pub jumps: u64,
    /// Its slice of instructions was used up.
    pub slices: u64,
    /// An interrupt, or something else from outside, waited.
    pub attention: u64,
    /// An instruction raised an exception.
    pub exceptions: u64,
    /// An instruction has to be executed again: a string instruction that ran long.
    pub again: u64,
    /// What follows cannot be executed by it, but by the interpreter.
    pub interpreted: u64,
    /// After an instruction that changes how the next ones are fetched, decoded or interrupted.
    pub changes: u64,
}

impl Exits {
    /// All of them.
    pub fn sum(&self) -> u64 {
        let Self { jumps, slices, attention, exceptions, again, interpreted, changes } = self;
        jumps + slices + attention + exceptions + again + interpreted + changes
    }
}
