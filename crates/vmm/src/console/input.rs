//! Standard input to the guest's serial port.
//!
//! Two threads: one reads and looks for the escape key, the other waits for room in the UART. Were they one, a guest that reads nothing could
//! not be left by Ctrl-A x. Neither is ever joined: a blocking read cannot be called off, and the process ends soon after the run.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bus::{PowerControl, PowerRequest};
use microvm::SerialPort;

use super::escape::{Escape, HELP, Key};

/// How many reads' worth of input may wait for the guest.
const WAITING: usize = 64;

/// What goes to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Input {
    Bytes(Vec<u8>),
    Break,
}

/// Hands standard input to `serial` until it ends. `interactive` is a terminal in raw mode: there, Ctrl-A is the escape key, and what is typed
/// faster than the guest reads is dropped; a pipe is read no faster than the guest reads.
///
/// # Errors
/// When the host has no thread to give.
pub(crate) fn start_input(interactive: bool, serial: SerialPort, power: PowerControl) -> io::Result<()> {
    let (sender, receiver) = sync_channel(WAITING);
    let thread = |name: &str| thread::Builder::new().name(name.to_owned());
    thread("serial-input").spawn(move || feed(&serial, receiver))?;
    thread("console-input").spawn(move || {
        let stdin = io::stdin().lock();
        if interactive {
            type_in(stdin, &sender, &power, &mut io::stderr());
        } else {
            pipe_in(stdin, &sender);
        }
    })?;
    Ok(())
}

/// Waits for input, and for room for it.
fn feed(serial: &SerialPort, receiver: Receiver<Input>) {
    let this = thread::current();
    serial.on_room(move || this.unpark());
    for input in receiver {
        let bytes = match input {
            Input::Bytes(bytes) => bytes,
            Input::Break => {
                serial.push_break();
                continue;
            }
        };
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let taken = serial.push_input(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if !rest.is_empty() {
                // Room that came since is not missed: an unpark before the park makes it return at once.
                thread::park();
            }
        }
    }
}

fn read<'b>(from: &mut impl Read, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    loop {
        match from.read(buffer) {
            Ok(0) => return None,
            Ok(len) => return buffer.get(..len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!("standard input cannot be read any more: {error}");
                return None;
            }
        }
    }
}

fn pipe_in(mut from: impl Read, to: &SyncSender<Input>) {
    let mut buffer = [0; 4096];
    while let Some(bytes) = read(&mut from, &mut buffer) {
        if to.send(Input::Bytes(bytes.to_vec())).is_err() {
            return;
        }
    }
}

fn type_in(mut from: impl Read, to: &SyncSender<Input>, power: &PowerControl, help: &mut dyn Write) {
    let mut escape = Escape::default();
    let mut buffer = [0; 4096];
    while let Some(typed) = read(&mut from, &mut buffer) {
        let mut send = Vec::with_capacity(typed.len());
        for byte in typed {
            match escape.feed(*byte) {
                Key::Send(byte) => send.push(byte),
                Key::Quit => return power.request(PowerRequest::Quit),
                // Whoever cannot be helped cannot be told either.
                Key::Help => drop(help.write_all(HELP.as_bytes())),
                Key::Break => {
                    let _ = to.try_send(Input::Bytes(std::mem::take(&mut send)));
                    let _ = to.try_send(Input::Break);
                }
                Key::Nothing => {}
            }
        }
        if !send.is_empty() {
            let _ = to.try_send(Input::Bytes(send));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(input: &[u8]) -> (Vec<Input>, Option<PowerRequest>, String) {
        let ((sender, receiver), power, mut help) = (sync_channel(WAITING), PowerControl::new(), Vec::new());
        type_in(input, &sender, &power, &mut help);
        drop(sender);
        (receiver.iter().collect(), power.requested(), String::from_utf8(help).unwrap())
    }

    fn bytes(bytes: &[u8]) -> Input {
        Input::Bytes(bytes.to_vec())
    }

    #[test]
    fn control_a_x_asks_for_the_end_of_the_run() {
        assert_eq!(typed(b"\x01xmore"), (Vec::new(), Some(PowerRequest::Quit), String::new()));
    }

    #[test]
    fn help_goes_to_the_user_and_the_rest_to_the_guest() {
        assert_eq!(typed(b"l\x01hs\r"), (vec![bytes(b"ls\r")], None, HELP.to_owned()));
    }

    #[test]
    fn a_break_keeps_its_place_among_the_keys() {
        assert_eq!(typed(b"a\x01bc").0, [bytes(b"a"), Input::Break, bytes(b"c")]);
    }

    #[test]
    fn a_guest_that_reads_nothing_can_still_be_left() {
        struct Keys(usize);
        impl Read for Keys {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                let keys: &[u8] = if self.0 > 2 * WAITING { b"\x01x" } else { b"k" };
                buffer[..keys.len()].copy_from_slice(keys);
                Ok(keys.len())
            }
        }
        let ((sender, _receiver), power) = (sync_channel(WAITING), PowerControl::new());
        type_in(Keys(0), &sender, &power, &mut io::sink());
        assert_eq!(power.requested(), Some(PowerRequest::Quit));
    }

    #[test]
    fn a_pipe_has_no_escape_key() {
        let (sender, receiver) = sync_channel(WAITING);
        pipe_in(&b"a\x01x"[..], &sender);
        drop(sender);
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [bytes(b"a\x01x")]);
    }
}
