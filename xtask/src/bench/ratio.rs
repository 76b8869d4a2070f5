//! The table that the software CPU is held to: for each kind of work, our time over QEMU's, turn by turn, and the most that
//! it may be.

use serde::Serialize;

use super::Summary;
use super::sample::{Sample, middle};

/// The contenders' names.
pub(super) const OURS: &str = "vmm";
pub(super) const THEIRS: &str = "qemu";

/// The benchmarks' names.
pub(super) const SMALL: &str = "small kernel";
pub(super) const STOCK: &str = "stock kernel";
pub(super) const PROGRAMS: &str = "programs";
pub(super) const ONE_CPU: &str = "parallel, 1 cpu";
pub(super) const TWO_CPUS: &str = "parallel, 2 cpus";

/// Programs of integer code, and of SIMD, cryptography, moves and floating point.
const INTEGER: &[&str] = &["compress", "sort", "parse"];
const VECTOR: &[&str] = &["sha256", "aes", "copy", "matrix", "bodies"];

/// A benchmark's name with the contender's.
pub(super) fn full_name(name: &str, contender: &str) -> String {
    format!("{name}, {contender}")
}

/// What is taken out of a sample.
#[derive(Debug, Clone, Copy)]
enum Value {
    /// Seconds to init's first line.
    Init,
    /// Seconds to the end.
    End,
    /// MiB above the guest's RAM.
    Memory,
    /// Seconds of these programs together.
    Programs(&'static [&'static str]),
}

impl Value {
    fn of(self, sample: &Sample) -> Option<f64> {
        match self {
            Self::Init => Some(sample.init_seconds),
            Self::End => Some(sample.total_seconds),
            Self::Memory => sample.above_guest_mib,
            Self::Programs(names) => names.iter().map(|name| sample.programs.get(*name)).sum(),
        }
    }

    /// The same in processor time, if it is a time.
    fn cpu_of(self, sample: &Sample) -> Option<f64> {
        match self {
            Self::Init => Some(sample.init_cpu_seconds),
            Self::End => Some(sample.total_cpu_seconds),
            Self::Memory => None,
            Self::Programs(names) => names.iter().map(|name| sample.programs_cpu.get(*name)).sum(),
        }
    }
}

/// One line of the table: a benchmark of ours over the same of QEMU's.
const LINES: &[(&str, &str, Value, f64)] = &[
    ("small kernel, start to init", SMALL, Value::Init, 0.5),
    ("small kernel, start to exit", SMALL, Value::End, 0.5),
    ("stock kernel, start to init", STOCK, Value::Init, 0.5),
    ("integer code, all", PROGRAMS, Value::Programs(INTEGER), 0.5),
    ("- compress", PROGRAMS, Value::Programs(&["compress"]), 0.5),
    ("- sort", PROGRAMS, Value::Programs(&["sort"]), 0.5),
    ("- parse (a compiler's front end)", PROGRAMS, Value::Programs(&["parse"]), 0.5),
    ("SIMD and crypto code, all", PROGRAMS, Value::Programs(VECTOR), 0.2),
    ("- sha256", PROGRAMS, Value::Programs(&["sha256"]), 0.2),
    ("- aes", PROGRAMS, Value::Programs(&["aes"]), 0.2),
    ("- copy (memcpy)", PROGRAMS, Value::Programs(&["copy"]), 0.2),
    ("- matrix (AVX2 doubles)", PROGRAMS, Value::Programs(&["matrix"]), 0.2),
    ("- bodies (scalar doubles)", PROGRAMS, Value::Programs(&["bodies"]), 0.2),
    ("fork, exec, wait", PROGRAMS, Value::Programs(&["spawn"]), 0.7),
    ("pipe ping-pong", PROGRAMS, Value::Programs(&["pipe"]), 0.7),
    ("memory above RAM, small kernel", SMALL, Value::Memory, 0.5),
    ("memory above RAM, stock kernel", STOCK, Value::Memory, 0.5),
    ("memory above RAM, programs", PROGRAMS, Value::Memory, 0.5),
];

/// The one line that compares ours with ours.
const PARALLEL: &str = "2 vCPUs over 1, ours";
const PARALLEL_LIMIT: f64 = 0.56;

/// A line with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// The kind of work.
    pub(super) work: &'static str,
    /// The most that the median may be.
    pub(super) limit: f64,
    /// Our median, in seconds or MiB.
    pub(super) ours: f64,
    /// What it is compared with.
    pub(super) theirs: f64,
    /// Turns in which both came to their end.
    pub(super) pairs: usize,
    /// The smallest, the middle and the largest of the turns' ratios.
    pub(super) least: f64,
    pub(super) median: f64,
    pub(super) most: f64,
    /// The middle of the turns' ratios of processor time, which a busy host disturbs least.
    pub(super) cpu_median: Option<f64>,
}

/// Every line of which there is at least one pair.
pub(super) fn all(benchmarks: &[Summary]) -> Vec<Ratio> {
    let samples = |name: &str, contender: &str| -> &[Sample] {
        let full = full_name(name, contender);
        benchmarks.iter().find(|summary| summary.name == full).map_or(&[], |summary| summary.samples.as_slice())
    };
    let mut ratios: Vec<Ratio> = LINES
        .iter()
        .filter_map(|&(work, name, value, limit)| line(work, value, limit, samples(name, OURS), samples(name, THEIRS)))
        .collect();
    let job = Value::Programs(&["parallel"]);
    ratios.extend(line(PARALLEL, job, PARALLEL_LIMIT, samples(TWO_CPUS, OURS), samples(ONE_CPU, OURS)));
    ratios
}

/// The line of what the host itself makes of a second thread, in seconds with two and with one: no guest can do better.
pub(super) fn of_host(turns: &[(f64, f64)]) -> Option<Ratio> {
    of_pairs("2 threads over 1, the host itself", 1.0, turns)
}

fn line(work: &'static str, value: Value, limit: f64, ours: &[Sample], theirs: &[Sample]) -> Option<Ratio> {
    let line = of_pairs(work, limit, &pairs(ours, theirs, |sample| value.of(sample)))?;
    let cpu = pairs(ours, theirs, |sample| value.cpu_of(sample));
    let cpu_median = middle(cpu.iter().map(|(own, other)| own / other).collect());
    Some(Ratio { cpu_median, ..line })
}

fn of_pairs(work: &'static str, limit: f64, pairs: &[(f64, f64)]) -> Option<Ratio> {
    let mut ratios: Vec<f64> = pairs.iter().map(|(own, other)| own / other).collect();
    ratios.sort_by(f64::total_cmp);
    Some(Ratio {
        work,
        limit,
        ours: middle(pairs.iter().map(|pair| pair.0).collect())?,
        theirs: middle(pairs.iter().map(|pair| pair.1).collect())?,
        pairs: pairs.len(),
        least: *ratios.first()?,
        most: *ratios.last()?,
        median: middle(ratios)?,
        cpu_median: None,
    })
}

/// The values of each turn that both have.
fn pairs(ours: &[Sample], theirs: &[Sample], value: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let both = ours.iter().filter_map(|own| Some((own, theirs.iter().find(|other| other.round == own.round)?)));
    both.filter_map(|(own, other)| Some((value(own)?, value(other).filter(|other| *other > 0.0)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn only_runs_of_the_same_turn_are_compared() {
        let value = Value::Programs(&["sort"]);
        let ours = [sample(1, &[("sort", 1.0)]), sample(2, &[("sort", 3.0)]), sample(3, &[("sort", 2.0)])];
        let theirs = [sample(1, &[("sort", 2.0)]), sample(3, &[("sort", 8.0)])];
        let ratio = line("sorting", value, 0.5, &ours, &theirs).expect("two pairs");
        assert_eq!((ratio.pairs, ratio.least, ratio.median, ratio.most), (2, 0.25, 0.375, 0.5));
    }

    #[test]
    fn programs_together_are_compared_by_their_sum() {
        let value = Value::Programs(&["a", "b"]);
        let (ours, theirs) = ([sample(1, &[("a", 1.0), ("b", 2.0)])], [sample(1, &[("a", 5.0), ("b", 1.0)])]);
        assert_eq!(line("both", value, 0.5, &ours, &theirs).map(|ratio| ratio.median), Some(0.5));
        assert_eq!(line("both", value, 0.5, &ours, &[sample(1, &[("a", 5.0)])]), None);
    }
}
