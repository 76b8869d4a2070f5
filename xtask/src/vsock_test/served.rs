//! A guest that serves a vsock port, in a process of the launcher's, and clients of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::command::start_error;
use crate::error::{Error, Result};
use crate::parent::{PATIENCE, connect};

/// The port that guests serve; see `guest/init`.
pub(crate) const PORT: u32 = 5000;

/// A running launcher whose guest serves.
pub(crate) struct Served {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    socket: PathBuf,
}

impl Served {
    /// Starts the launcher and waits until its guest listens. Clients come to `socket`.
    pub(crate) fn start(mut command: Command, socket: &Path) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| start_error(&command, source))?;
        let (sender, lines) = channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] =
            [child.stdout.take().map(|s| Box::new(s) as _), child.stderr.take().map(|s| Box::new(s) as _)];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(io::Result::ok) {
                    // Nobody listens any more once the run has been judged.
                    let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
            });
        }
        let mut this = Self { child, lines, said: Vec::new(), socket: socket.to_owned() };
        this.wait_for("vsock_listening=").map_err(Error::Advice)?;
        Ok(this)
    }

    /// Waits for a line with `words` in it, said now or before.
    pub(crate) fn wait_for(&mut self, words: &str) -> std::result::Result<String, String> {
        let start = Instant::now();
        loop {
            if let Some(line) = self.said.iter().find(|line| line.contains(words)) {
                return Ok(line.clone());
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push(line),
                Err(_) => {
                    let last = self.said.iter().rev().take(5).rev().map(|line| format!("\n    {line}"));
                    return Err(format!("the launcher never said {words}; it said:{}", last.collect::<String>()));
                }
            }
        }
    }

    /// The launcher's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where clients come to.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection to the guest's service that has asked for `name` with `number`.
    pub(crate) fn ask(&self, name: &str, number: u64) -> io::Result<UnixStream> {
        let mut stream = connect(&self.socket, PORT)?;
        stream.write_all(&request(name, number))?;
        Ok(stream)
    }

    /// Has the guest end; the launcher's exit status.
    pub(crate) fn stop(&mut self) -> std::result::Result<ExitStatus, String> {
        self.ask("stop", 0).map_err(|error| format!("cannot stop the guest: {error}"))?;
        self.wait()
    }

    /// The launcher's exit status, which must come by itself.
    pub(crate) fn wait(&mut self) -> std::result::Result<ExitStatus, String> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err("the launcher did not end".to_owned())
    }

    /// Kills the launcher.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// What a client sends first: see the guest's `vsock/server.rs`.
pub(crate) fn request(name: &str, number: u64) -> [u8; 16] {
    let mut request = [0; 16];
    let (head, tail) = request.split_at_mut(8);
    head.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    tail.copy_from_slice(&number.to_le_bytes());
    request
}
