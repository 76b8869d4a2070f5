//! What one run showed, and the middle of several.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::report::{Entry, Report};
use crate::supervise::Run;

/// One run that ended well.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Which turn it was, from 1; of a median 0.
    pub(super) round: usize,
    /// From the start of the program to init's first line.
    pub(super) init_seconds: f64,
    /// From the start of the program to its end.
    pub(super) total_seconds: f64,
    /// The launcher's processor time in these two spans.
    pub(super) init_cpu_seconds: f64,
    pub(super) total_cpu_seconds: f64,
    /// The largest resident set.
    pub(super) peak_mib: f64,
    /// The largest resident set without the guest's RAM.
    pub(super) above_guest_mib: Option<f64>,
    /// Millions of instructions that the guest executed, where the launcher counts them.
    pub(super) million_instructions: Option<f64>,
    /// Millions of instructions a second in registers, where the guest measured it.
    pub(super) register_mips: Option<f64>,
    /// The same with memory.
    pub(super) memory_mips: Option<f64>,
    /// Seconds of each program, by the host's clock.
    pub(super) programs: BTreeMap<String, f64>,
    /// The launcher's processor time for each, which a busy host does not make longer.
    pub(super) programs_cpu: BTreeMap<String, f64>,
    /// The same by the guest's clock, which counts ticks in some guests and then loses some on a busy host.
    pub(super) programs_by_guest: BTreeMap<String, f64>,
}

impl Sample {
    /// What a run showed, if the guest came to its end with every result right; otherwise what was wrong, if the guest said it.
    pub(super) fn of(run: &Run, round: usize) -> Result<Self, String> {
        let report = Report::of(run);
        if let Some(error) = report.value("work_error") {
            return Err(error.to_owned());
        }
        let (Some(init), Some(_)) = (report.entry("init"), report.entry("end")) else {
            return Err("the guest did not come to its end".to_owned());
        };
        let ends = || report.starting_with("work.").filter_map(|end| Some((end.key.strip_prefix("work.")?, end)));
        let span = |of: fn(&Entry) -> Duration| -> BTreeMap<String, f64> {
            let spans = ends().filter_map(|(name, end)| {
                let start = report.all("work_start").find(|start| start.value == name)?;
                Some((name.to_owned(), of(end).saturating_sub(of(start)).as_secs_f64()))
            });
            spans.collect()
        };
        let by_guest = ends().filter_map(|(name, end)| Some((name.to_owned(), end.value.parse().ok()?)));
        Ok(Self {
            round,
            init_seconds: init.at.as_secs_f64(),
            total_seconds: run.elapsed.as_secs_f64(),
            init_cpu_seconds: init.cpu.as_secs_f64(),
            total_cpu_seconds: run.cpu.as_secs_f64(),
            peak_mib: run.peak_kib as f64 / 1024.0,
            above_guest_mib: run.above_guest_kib.map(|kib| kib as f64 / 1024.0),
            million_instructions: instructions(run),
            register_mips: mips(&report, "loop:"),
            memory_mips: mips(&report, "memory:"),
            programs: span(|entry| entry.at),
            programs_cpu: span(|entry| entry.cpu),
            programs_by_guest: by_guest.collect(),
        })
    }

    /// The median of each value by itself.
    pub(super) fn median(samples: &[Self]) -> Option<Self> {
        let of = |value: &dyn Fn(&Self) -> Option<f64>| middle(samples.iter().filter_map(value).collect());
        let programs = |times: fn(&Self) -> &BTreeMap<String, f64>| -> BTreeMap<String, f64> {
            let names = samples.iter().flat_map(|sample| times(sample).keys());
            names.filter_map(|name| Some((name.clone(), of(&|sample| times(sample).get(name).copied())?))).collect()
        };
        Some(Self {
            round: 0,
            init_seconds: of(&|sample| Some(sample.init_seconds))?,
            total_seconds: of(&|sample| Some(sample.total_seconds))?,
            init_cpu_seconds: of(&|sample| Some(sample.init_cpu_seconds))?,
            total_cpu_seconds: of(&|sample| Some(sample.total_cpu_seconds))?,
            peak_mib: of(&|sample| Some(sample.peak_mib))?,
            above_guest_mib: of(&|sample| sample.above_guest_mib),
            million_instructions: of(&|sample| sample.million_instructions),
            register_mips: of(&|sample| sample.register_mips),
            memory_mips: of(&|sample| sample.memory_mips),
            programs: programs(|sample| &sample.programs),
            programs_cpu: programs(|sample| &sample.programs_cpu),
            programs_by_guest: programs(|sample| &sample.programs_by_guest),
        })
    }
}

/// The value in the middle, or between the two in the middle.
pub(super) fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = *values.get(values.len().checked_sub(1)? / 2)?;
    Some(f64::midpoint(lower, upper))
}

/// The speed in a line like `loop:400000000 instructions=400000000 ns=5000000000`.
fn mips(report: &Report, work: &str) -> Option<f64> {
    let entry = report.all("work").find(|entry| entry.value.starts_with(work))?;
    let number = |key: &str| entry.value.split(' ').find_map(|word| word.strip_prefix(key)?.parse::<f64>().ok());
    let (instructions, nanoseconds) = (number("instructions=")?, number("ns=")?);
    (nanoseconds > 0.0).then(|| instructions / nanoseconds * 1000.0)
}

/// The count in the launcher's line `vmm: stats: instructions        3000000`, the first of those that begin so.
fn instructions(run: &Run) -> Option<f64> {
    Some(run.statistics("instructions ").next()? as f64 / 1e6)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::tests::run_with;

    /// A run of this turn that took a second, and programs that took so many.
    pub(in crate::bench) fn sample(round: usize, programs: &[(&str, f64)]) -> Sample {
        let run = run_with(&["vmm-guest: init=reached", "vmm-guest: end=reboot"]);
        let programs = programs.iter().map(|(name, seconds)| ((*name).to_owned(), *seconds)).collect();
        Sample { programs, ..Sample::of(&run, round).expect("a sample") }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(middle(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(middle(vec![9.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(middle(Vec::new()), None);
    }

    #[test]
    fn speed_is_read_from_the_guests_work_line() {
        let run = run_with(&["vmm-guest: work=loop:800 instructions=800 ns=10000"]);
        assert_eq!(mips(&Report::of(&run), "loop:"), Some(80.0));
    }

    #[test]
    fn the_launchers_count_of_instructions_is_read() {
        let mut run =
            run_with(&["vmm: stats: instructions             3000000", "vmm: stats: instructions interpreted    7"]);
        std::mem::swap(&mut run.console, &mut run.errors);
        assert_eq!(instructions(&run), Some(3.0));
    }

    #[test]
    fn a_run_that_never_came_to_its_end_gives_no_sample() {
        assert!(Sample::of(&run_with(&["vmm-guest: init=reached"]), 1).is_err());
    }

    #[test]
    fn a_wrong_result_gives_no_sample() {
        let lines = ["vmm-guest: init=reached", "vmm-guest: work_error=sort:1: found 1", "vmm-guest: end=reboot"];
        assert_eq!(Sample::of(&run_with(&lines), 1), Err("sort:1: found 1".to_owned()));
    }

    #[test]
    fn programs_are_timed_by_every_clock() {
        let lines = [
            "vmm-guest: init=reached",
            "vmm-guest: work_start=sort",
            "vmm-guest: work.sort=0.25",
            "vmm-guest: end=reboot",
        ];
        let mut run = run_with(&lines);
        (run.console[2].at, run.console[2].cpu) = (Duration::from_millis(300), Duration::from_millis(200));
        let sample = Sample::of(&run, 1).expect("a sample");
        assert_eq!(sample.programs, BTreeMap::from([("sort".to_owned(), 0.3)]));
        assert_eq!(sample.programs_cpu, BTreeMap::from([("sort".to_owned(), 0.2)]));
        assert_eq!(sample.programs_by_guest, BTreeMap::from([("sort".to_owned(), 0.25)]));
    }

    #[test]
    fn each_program_has_a_median_of_its_own() {
        let samples = [sample(1, &[("a", 1.0), ("b", 9.0)]), sample(2, &[("a", 3.0), ("b", 5.0)])];
        let median = Sample::median(&samples).expect("a median");
        assert_eq!(median.programs, BTreeMap::from([("a".to_owned(), 2.0), ("b".to_owned(), 7.0)]));
    }
}
