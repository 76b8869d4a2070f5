//! The kernel command line, as `/proc/cmdline` has it.

/// The command line and its `key=value` words.
pub(crate) struct CommandLine {
    text: String,
}

impl CommandLine {
    /// Reads the command line; empty where `/proc` is not there.
    pub(crate) fn read() -> Self {
        Self::new(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn new(text: &str) -> Self {
        Self { text: text.trim_end().to_owned() }
    }

    /// The whole line.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The value of the last `key=value` word, as the kernel itself lets the last one win.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.text.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_two_values_wins() {
        let line = CommandLine::new("console=ttyS0 vmm.end=halt quiet vmm.end=reboot\n");
        assert_eq!(line.value("vmm.end"), Some("reboot"));
    }

    #[test]
    fn a_longer_key_is_another_key() {
        assert_eq!(CommandLine::new("vmm.ending=halt").value("vmm.end"), None);
    }
}
