//! What the guest's init said: its `vmm-guest: key=value` lines.

use std::time::{Duration, SystemTime};

use crate::supervise::{Line, Run};

const PREFIX: &str = "vmm-guest: ";

/// One line of init's.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Before the first `=`.
    pub(crate) key: String,
    /// After it.
    pub(crate) value: String,
    /// When it came, since the start of the run.
    pub(crate) at: Duration,
    /// When it came, by the host's clock.
    pub(crate) time: SystemTime,
    /// The launcher's processor time by then.
    pub(crate) cpu: Duration,
}

/// Everything that init said in one run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    entries: Vec<Entry>,
}

impl Report {
    /// Picks init's lines out of the console.
    pub(crate) fn of(run: &Run) -> Self {
        Self { entries: run.console.iter().filter_map(parse).collect() }
    }

    /// The first value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }

    /// The first line of a key.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Every line of a key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.key == key)
    }

    /// The lines whose keys start like this.
    pub(crate) fn starting_with<'a>(&'a self, start: &'a str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.key.starts_with(start))
    }
}

/// The prefix may stand behind the rest of a kernel message whose line break is still to come.
fn parse(line: &Line) -> Option<Entry> {
    let (_, entry) = line.text.split_once(PREFIX)?;
    let (key, value) = entry.split_once('=')?;
    Some(Entry { key: key.to_owned(), value: value.trim_end().to_owned(), at: line.at, time: line.time, cpu: line.cpu })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::supervise::Outcome;

    /// A run of one second that wrote these lines at its start, now.
    pub(crate) fn run_with(lines: &[&str]) -> Run {
        let time = SystemTime::now();
        let console = lines
            .iter()
            .map(|text| Line { at: Duration::ZERO, time, cpu: Duration::ZERO, text: (*text).to_owned() })
            .collect();
        Run {
            console,
            errors: Vec::new(),
            outcome: Outcome::Exited(0),
            elapsed: Duration::from_secs(1),
            cpu: Duration::from_secs(1),
            peak_kib: 1,
            above_guest_kib: None,
        }
    }

    #[test]
    fn a_value_may_hold_the_equals_sign() {
        let report = Report::of(&run_with(&["vmm-guest: cmdline=console=ttyS0 reboot=k"]));
        assert_eq!(report.value("cmdline"), Some("console=ttyS0 reboot=k"));
    }

    #[test]
    fn a_kernel_message_before_the_prefix_is_cut_off() {
        let report = Report::of(&run_with(&["[    1.0] somethingvmm-guest: init=reached", "Linux version"]));
        assert_eq!(report.value("init"), Some("reached"));
    }
}
