//! What `--stats` prints at the end of a run: a table for people, or one JSON object.

use std::io::Write;
use std::time::Duration;

use clap::ValueEnum;

/// How statistics are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Lines with a column a vCPU
    Table,
    /// One line, a JSON object
    Json,
}

/// A vCPU's counts with their names.
type Counts = Vec<(&'static str, u64)>;

/// What was counted in a run.
pub(crate) struct Statistics {
    pub(crate) elapsed: Duration,
    pub(crate) vcpus: Vec<Counts>,
    pub(crate) vsock: Option<vsock::Statistics>,
}

impl Statistics {
    pub(crate) fn print(&self, to: &mut dyn Write, form: Form) {
        let text = match form {
            Form::Table => self.table(),
            Form::Json => self.json(),
        };
        // Statistics are not worth failing a run for.
        let _ = to.write_all(text.as_bytes());
    }

    /// The vCPUs' counts added up.
    fn sums(&self) -> Counts {
        let names = self.vcpus.first().into_iter().flatten().enumerate();
        let sum =
            |index| self.vcpus.iter().filter_map(|counts: &Counts| counts.get(index)).map(|(_, count)| count).sum();
        names.map(|(index, (name, _))| (*name, sum(index))).collect()
    }

    fn table(&self) -> String {
        let (seconds, sums) = (self.elapsed.as_secs_f64(), self.sums());
        let instructions = sums.iter().find(|(name, _)| *name == "instructions").map_or(0, |(_, count)| *count);
        let rate = if seconds > 0.0 { instructions as f64 / seconds / 1e6 } else { 0.0 };
        let mut text = format!("vmm: stats: wall time {seconds:.3} s, {rate:.1} million instructions/s\n");
        let name_width = sums.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut row = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:>14}")).collect();
            text.push_str(&format!("vmm: stats: {name:<name_width$}{cells}\n"));
        };
        let several = self.vcpus.len() > 1;
        if several {
            let ids = (0..self.vcpus.len()).map(|id| format!("vCPU {id}"));
            row("", &std::iter::once("all".to_owned()).chain(ids).collect::<Vec<_>>());
        }
        for (index, (name, sum)) in sums.iter().enumerate() {
            let each = self.vcpus.iter().filter(|_| several).filter_map(|counts| counts.get(index));
            let cells = std::iter::once(sum).chain(each.map(|(_, count)| count)).map(u64::to_string);
            row(name, &cells.collect::<Vec<_>>());
        }
        if let Some(vsock) = &self.vsock {
            text.push_str(&vsock_lines(vsock));
        }
        text
    }

    fn json(&self) -> String {
        let vcpus: Vec<String> = self.vcpus.iter().map(|counts| object(counts)).collect();
        let vsock = self.vsock.as_ref().map_or("null".to_owned(), |vsock| object(&vsock_counts(vsock)));
        format!(
            "{{\"wall_seconds\": {:.6}, \"all\": {}, \"vcpus\": [{}], \"vsock\": {vsock}}}\n",
            self.elapsed.as_secs_f64(),
            object(&self.sums()),
            vcpus.join(", "),
        )
    }
}

/// A JSON object. The names are ours: they hold nothing that JSON would write differently from Rust.
fn object(counts: &[(&'static str, u64)]) -> String {
    let members: Vec<String> = counts.iter().map(|(name, count)| format!("{name:?}: {count}")).collect();
    format!("{{{}}}", members.join(", "))
}

fn vsock_counts(counted: &vsock::Statistics) -> Counts {
    // Destructured, so that what is counted is printed.
    let vsock::Statistics {
        connections,
        most_connections,
        refused,
        resets,
        bad_packets,
        bytes_from_guest,
        bytes_to_guest,
        stalls_from_guest,
        stalls_to_guest,
    } = *counted;
    vec![
        ("connections", connections),
        ("most connections at a time", most_connections),
        ("refused", refused),
        ("resets", resets),
        ("bad packets", bad_packets),
        ("bytes from the guest", bytes_from_guest),
        ("bytes to the guest", bytes_to_guest),
        ("data from the guest that had to wait", stalls_from_guest),
        ("data to the guest that had to wait", stalls_to_guest),
    ]
}

fn vsock_lines(counted: &vsock::Statistics) -> String {
    let vsock::Statistics { connections, most_connections, refused, resets, bad_packets, .. } = counted;
    let vsock::Statistics { bytes_from_guest, bytes_to_guest, stalls_from_guest, stalls_to_guest, .. } = counted;
    format!(
        "vmm: stats: vsock connections {connections} (at most {most_connections} at a time), refused {refused}, \
         resets {resets}, bad packets {bad_packets}\n\
         vmm: stats: vsock bytes from the guest {bytes_from_guest}, data that had to wait {stalls_from_guest}\n\
         vmm: stats: vsock bytes to the guest {bytes_to_guest}, data that had to wait {stalls_to_guest}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(vcpus: &[&[(&'static str, u64)]], form: Form) -> String {
        let vcpus = vcpus.iter().map(|counts| counts.to_vec()).collect();
        let mut text = Vec::new();
        let vsock = vsock::Statistics { connections: 3, ..vsock::Statistics::default() };
        Statistics { elapsed: Duration::from_millis(1500), vcpus, vsock: Some(vsock) }.print(&mut text, form);
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_single_vcpu_has_one_column_and_a_rate_of_instructions() {
        let text = printed(&[&[("instructions", 3_000_000), ("TLB misses", 7)]], Form::Table);
        assert!(
            text.starts_with(
                "vmm: stats: wall time 1.500 s, 2.0 million instructions/s\n\
                 vmm: stats: instructions        3000000\n\
                 vmm: stats: TLB misses                7\n\
                 vmm: stats: vsock connections 3 ("
            ),
            "{text}"
        );
    }

    #[test]
    fn several_vcpus_have_a_column_each_beside_their_sum() {
        let text = printed(&[&[("TLB misses", 7)], &[("TLB misses", 1)]], Form::Table);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().skip(2).collect()).collect();
        assert_eq!(lines[1], ["all", "vCPU", "0", "vCPU", "1"]);
        assert_eq!(lines[2], ["TLB", "misses", "8", "7", "1"]);
    }

    #[test]
    fn json_has_the_same_names() {
        let text = printed(&[&[("TLB misses", 7)], &[("TLB misses", 1)]], Form::Json);
        let start = "{\"wall_seconds\": 1.500000, \"all\": {\"TLB misses\": 8}, \"vcpus\": [{\"TLB misses\": 7}, \
                     {\"TLB misses\": 1}], \"vsock\": {\"connections\": 3, ";
        assert!(text.starts_with(start) && text.ends_with("}}\n"), "{text}");
    }
}
