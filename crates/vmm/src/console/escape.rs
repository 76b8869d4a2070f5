//! The keys after Ctrl-A, as in QEMU: the rest of what is typed belongs to the guest.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h prints.
pub(crate) const HELP: &str = "
Ctrl-A h       print this help
Ctrl-A x       end vmm
Ctrl-A b       send a break (magic SysRq)
Ctrl-A Ctrl-A  send Ctrl-A
";

/// What a typed byte means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// The guest gets it.
    Send(u8),
    /// The user wants to see [`HELP`].
    Help,
    /// The user wants to end the run.
    Quit,
    /// The guest gets a break condition.
    Break,
    /// Nobody gets it.
    Nothing,
}

/// Remembers a Ctrl-A until its second key comes, which may be in another read.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    escaped: bool,
}

impl Escape {
    pub(crate) fn feed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return if self.escaped { Key::Nothing } else { Key::Send(byte) };
        }
        match byte {
            ESCAPE => Key::Send(ESCAPE),
            b'x' | b'X' => Key::Quit,
            b'b' | b'B' => Key::Break,
            b'h' | b'H' | b'?' => Key::Help,
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes.iter().map(|byte| escape.feed(*byte)).collect()
    }

    #[test]
    fn ordinary_bytes_go_to_the_guest_even_control_c() {
        assert_eq!(keys(b"x\x03\xff"), [Key::Send(b'x'), Key::Send(3), Key::Send(0xff)]);
    }

    #[test]
    fn control_a_x_quits_and_control_a_h_helps() {
        assert_eq!(keys(b"\x01x"), [Key::Nothing, Key::Quit]);
        assert_eq!(keys(b"\x01h\x01?"), [Key::Nothing, Key::Help, Key::Nothing, Key::Help]);
    }

    #[test]
    fn control_a_twice_sends_one() {
        assert_eq!(keys(b"\x01\x01x"), [Key::Nothing, Key::Send(1), Key::Send(b'x')]);
    }

    #[test]
    fn an_unknown_second_key_is_swallowed() {
        assert_eq!(keys(b"\x01zx"), [Key::Nothing, Key::Nothing, Key::Send(b'x')]);
    }
}
