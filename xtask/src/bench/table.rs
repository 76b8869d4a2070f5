//! The results as a table for people.

use super::{Results, Summary};

/// The head, then a line for each benchmark.
pub(super) fn render(results: &Results) -> String {
    let qemu = results.qemu.as_deref().unwrap_or("no QEMU");
    let mut text = format!(
        "\n{}, {} x {}, {qemu}; medians\n\n{:<30} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11} {:>6}\n",
        results.revision,
        results.host_processors,
        results.host_processor,
        "",
        "to init s",
        "to end s",
        "peak MiB",
        "M instr.",
        "reg. MIPS",
        "mem. MIPS",
        "hangs"
    );
    for summary in &results.benchmarks {
        text.push_str(&row(summary));
    }
    text
}

fn row(summary: &Summary) -> String {
    let Summary { name, runs, hangs, failures, median, samples: _ } = summary;
    let value = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let median = median.as_ref();
    let failed = if *failures == 0 { String::new() } else { format!(", {failures} failed") };
    format!(
        "{name:<30} {:>9} {:>9} {:>9} {:>9} {:>11} {:>11} {:>6}{failed}\n",
        value(median.map(|sample| sample.init_seconds), 2),
        value(median.map(|sample| sample.total_seconds), 2),
        value(median.map(|sample| sample.peak_mib), 0),
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
        assert_eq!(row.matches(" -").count(), 6, "{row}");
    }
}
