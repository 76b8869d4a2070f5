//! The results as tables for people.

use super::ratio::Ratio;
use super::{Results, Summary};

/// The head, the ratios with their limits, then a line for each benchmark.
pub(super) fn render(results: &Results) -> String {
    let host = &results.host;
    let mut text = format!(
        "\n{}, {} x {}, {} MiB, Linux {}, load {}\n{}; {}\n",
        host.revision,
        host.processors,
        host.processor,
        host.memory_mib,
        host.kernel,
        host.load,
        host.qemu.as_deref().unwrap_or("no QEMU"),
        host.guests.join(", "),
    );
    if !results.ratios.is_empty() {
        text.push_str(&format!(
            "\n{:<34} {:>8} {:>8} {:>24} {:>6} {:>9} {:>6}\n",
            "medians in s or MiB", "ours", "QEMU's", "ratio: median, spread", "limit", "CPU ratio", "pairs"
        ));
        results.ratios.iter().for_each(|line| text.push_str(&ratio(line)));
    }
    text.push_str(&format!(
        "\n{:<30} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}\n",
        "medians", "to init s", "to end s", "peak MiB", "above RAM", "M instr.", "reg. MIPS", "mem. MIPS", "hangs"
    ));
    results.benchmarks.iter().for_each(|summary| text.push_str(&row(summary)));
    text
}

fn ratio(line: &Ratio) -> String {
    let Ratio { work, limit, ours, theirs, pairs, least, median, most, cpu_median } = line;
    let spread = format!("{median:.2} ({least:.2} to {most:.2})");
    let verdict = if median <= limit { "" } else { "  above the limit" };
    let cpu = cpu_median.map_or("-".to_owned(), |median| format!("{median:.2}"));
    format!("{work:<34} {ours:>8.2} {theirs:>8.2} {spread:>24} {limit:>6.2} {cpu:>9} {pairs:>6}{verdict}\n")
}

fn row(summary: &Summary) -> String {
    let Summary { name, runs, hangs, failures, median, samples: _ } = summary;
    let value = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let median = median.as_ref();
    let failed = if *failures == 0 { String::new() } else { format!(", {failures} failed") };
    format!(
        "{name:<30} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}{failed}\n",
        value(median.map(|sample| sample.init_seconds), 2),
        value(median.map(|sample| sample.total_seconds), 2),
        value(median.map(|sample| sample.peak_mib), 0),
        value(median.and_then(|sample| sample.above_guest_mib), 0),
        value(median.and_then(|sample| sample.million_instructions), 0),
        value(median.and_then(|sample| sample.register_mips), 0),
        value(median.and_then(|sample| sample.memory_mips), 0),
        format!("{hangs}/{runs}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_that_always_hung_has_dashes() {
        let summary =
            Summary { name: "small".to_owned(), runs: 3, hangs: 3, failures: 0, median: None, samples: Vec::new() };
        let row = row(&summary);
        assert!(row.contains("3/3"), "{row}");
        assert_eq!(row.matches(" -").count(), 7, "{row}");
    }

    #[test]
    fn a_ratio_above_its_limit_says_so() {
        let line = Ratio {
            work: "sort",
            limit: 0.5,
            ours: 3.0,
            theirs: 4.0,
            pairs: 7,
            least: 0.7,
            median: 0.75,
            most: 0.9,
            cpu_median: None,
        };
        assert!(ratio(&line).ends_with("above the limit\n"));
        assert!(!ratio(&Ratio { limit: 0.8, ..line }).contains("above"));
    }
}
