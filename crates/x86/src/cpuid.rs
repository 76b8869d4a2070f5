//! CPUID as a table: what a vCPU answers for each leaf and subleaf.

/// The frequency of the local APIC's timer, in kHz, on KVM and on the software CPU.
pub const APIC_BUS_KHZ: u32 = 1_000_000;

/// The four registers of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuidResult {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

/// One answer with its question. `subleaf` is `None` where ECX does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuidEntry {
    /// EAX of the question.
    pub leaf: u32,
    /// ECX of the question, where it matters.
    pub subleaf: Option<u32>,
    /// The answer.
    pub result: CpuidResult,
}

/// All answers of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuidTable(Vec<CpuidEntry>);

impl CpuidTable {
    /// A table of these answers; the first that fits a question is given.
    pub fn new(entries: Vec<CpuidEntry>) -> Self {
        Self(entries)
    }

    /// All answers, in order.
    pub fn entries(&self) -> &[CpuidEntry] {
        &self.0
    }

    /// The answer to (`leaf`, `subleaf`); zeros where the table has none, as AMD processors answer.
    pub fn get(&self, leaf: u32, subleaf: u32) -> CpuidResult {
        self.0
            .iter()
            .find(|e| e.leaf == leaf && e.subleaf.is_none_or(|s| s == subleaf))
            .map_or_else(CpuidResult::default, |e| e.result)
    }
}

/// The vendor's name in leaf 0, twelve letters.
fn vendor_name(leaf0: CpuidResult) -> [u8; 12] {
    let mut name = [0; 12];
    for (part, word) in name.chunks_exact_mut(4).zip([leaf0.ebx, leaf0.edx, leaf0.ecx]) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    name
}

/// Whether the processor with this leaf 0 is AMD's or Hygon's, which have AMD's extended leaves and MSRs.
pub fn has_amd_leaves(leaf0: CpuidResult) -> bool {
    matches!(&vendor_name(leaf0), b"AuthenticAMD" | b"HygonGenuine")
}
