//! Traffic with one enclave: amounts, numbers, stalls, forwards, and clients and guest processes that are killed.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::served::{Served, request};
use super::socat::{Data, Socat, digest, pattern_digest};
use super::{MEMORY, Stand, Verdict};
use crate::parent::PATIENCE;
use crate::resident;

/// What the enclave finds at its parent beside the launcher.
pub(super) struct Parent {
    tcp: TcpListener,
    /// Where the guest's port 5000 is without a handshake.
    app: PathBuf,
    heartbeats: Arc<AtomicU32>,
    /// What the guest opens to port 6000.
    port_6000: UnixListener,
}

/// The guest's port of its parent that is forwarded to TCP.
const TO_TCP: u32 = 7000;

impl Parent {
    /// Listens, and answers heartbeats.
    pub(super) fn start(stand: &Stand) -> io::Result<Self> {
        let heartbeats = Arc::new(AtomicU32::new(0));
        let (counted, listener) = (heartbeats.clone(), UnixListener::bind(stand.path("enclave.sock_9000"))?);
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(io::Result::ok) {
                let mut byte = [0];
                if client.read_exact(&mut byte).and_then(|()| client.write_all(&byte)).is_ok() {
                    counted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let port_6000 = UnixListener::bind(stand.path("enclave.sock_6000"))?;
        Ok(Self { tcp: TcpListener::bind("127.0.0.1:0")?, app: stand.path("app.sock"), heartbeats, port_6000 })
    }

    /// What the launcher has to know of it.
    pub(super) fn settings(&self) -> Vec<String> {
        let tcp = self.tcp.local_addr().map_or(String::new(), |address| address.to_string());
        vec![format!("vsock.forward=guest:{TO_TCP}=tcp:{tcp},unix:{}=guest:5000", self.app.display())]
    }
}

/// A case that shares the enclave with others.
type Case = fn(&Stand, &mut Served, &mut Parent) -> Verdict;

/// All of them, in order.
pub(super) const SHARED: &[(&str, Case)] = &[
    ("heartbeat", heartbeat),
    ("echo", echoed),
    ("hash", hashed),
    ("connections", connections),
    ("stall", stall),
    ("client-killed", client_killed),
    ("process-killed", process_killed),
    ("forwards", forwards),
    ("cids", cids),
];

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The user's listener on `PATH_9000` is what the guest's init talked to.
fn heartbeat(_: &Stand, enclave: &mut Served, parent: &mut Parent) -> Verdict {
    let line = enclave.wait_for("vmm-guest: heartbeat=")?;
    match (line.ends_with("heartbeat=answered"), parent.heartbeats.load(Ordering::SeqCst)) {
        (true, 1) => Ok("the user's own listener answered it".to_owned()),
        (_, count) => Err(format!("{line}, and the user's listener had {count}")),
    }
}

/// So much through the guest and back, by `socat`.
fn echoed(stand: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    let bytes: u64 = if stand.long { 1 << 30 } else { 32 << 20 };
    // What is resident before: the guest's own programs and kernel take more when they first run.
    transfer(enclave, 8 << 20)?;
    let before = resident::above_guest(enclave.pid(), MEMORY).ok_or("the launcher's memory cannot be seen")?;
    let start = Instant::now();
    transfer(enclave, bytes)?;
    let rate = bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64();
    let after = resident::above_guest(enclave.pid(), MEMORY).ok_or("the launcher's memory cannot be seen")?;
    let grown = after.saturating_sub(before) >> 10;
    let peak = peak_mib(enclave.pid()).ok_or("the launcher's peak cannot be seen")?;
    if grown > 16 {
        return Err(format!("the launcher grew by {grown} MiB"));
    }
    Ok(format!("{} MiB each way intact at {rate:.0} MiB/s; grew by {grown} MiB, VmHWM {peak} MiB", bytes >> 20))
}

/// `VmHWM` of a process.
fn peak_mib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(kib.trim().strip_suffix(" kB")?.parse::<u64>().ok()? >> 10)
}

fn transfer(enclave: &Served, bytes: u64) -> std::result::Result<(), String> {
    let (_socat, mut input, output) = Socat::ask(enclave.socket(), "echo", 0).map_err(text)?;
    let sender = thread::spawn(move || Data::new().write(&mut input, bytes));
    let (count, received) = digest(output).map_err(text)?;
    let sent = sender.join().map_err(|_| "the sender panicked")?.map_err(|error| format!("socat: {error}"))?;
    if count != bytes || sent != received {
        return Err(format!("{bytes} bytes went, {count} came back, with the same digest: {}", sent == received));
    }
    Ok(())
}

/// The guest's own digest of what it got, and the host's of what the guest sent.
fn hashed(stand: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    let bytes: u64 = if stand.long { 1 << 28 } else { 8 << 20 };
    let (_socat, mut input, mut output) = Socat::ask(enclave.socket(), "hash", bytes).map_err(text)?;
    let sent = Data::new().write(&mut input, bytes).map_err(text)?;
    let mut received = vec![0; sent.len()];
    output.read_exact(&mut received).map_err(text)?;
    if sent != received {
        return Err("the guest saw other bytes than were sent".to_owned());
    }
    let (_socat, _input, output) = Socat::ask(enclave.socket(), "source", bytes).map_err(text)?;
    // To its end one would wait for socat, which waits for our end.
    let (count, found) = digest(output.take(bytes)).map_err(text)?;
    if count != bytes || found != pattern_digest(bytes) {
        return Err(format!("{count} of {bytes} bytes came from the guest, or others"));
    }
    Ok(format!("{} MiB in and out, as both sides saw them", bytes >> 20))
}

/// Many connections open, talk in turn, and close.
fn connections(stand: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    let number: u32 = if stand.long { 500 } else { 64 };
    let opened: io::Result<Vec<UnixStream>> = (0..number).map(|_| enclave.ask("echo", 0)).collect();
    let mut opened = opened.map_err(text)?;
    for _ in 0..2 {
        for (index, stream) in (0u32..).zip(&mut opened) {
            stream.write_all(&index.to_le_bytes()).map_err(text)?;
        }
        for (index, stream) in (0u32..).zip(&mut opened) {
            let mut back = [0; 4];
            stream.read_exact(&mut back).map_err(text)?;
            if back != index.to_le_bytes() {
                return Err(format!("connection {index} got another's bytes"));
            }
        }
    }
    for mut stream in opened {
        stream.shutdown(Shutdown::Write).map_err(text)?;
        if stream.read(&mut [0; 1]).map_err(text)? != 0 {
            return Err("a connection did not end".to_owned());
        }
    }
    Ok(format!("{number} at a time"))
}

/// A client that reads nothing while others talk, and then everything.
fn stall(_: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    let bytes: u64 = 16 << 20;
    let mut stalled = enclave.ask("source", bytes).map_err(text)?;
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    transfer(enclave, 8 << 20)?;
    let meanwhile = start.elapsed();
    let mut rest = Vec::new();
    stalled.read_to_end(&mut rest).map_err(text)?;
    let right = (0u64..).zip(&rest).all(|(at, byte)| u64::from(*byte) == at % 251);
    if rest.len() as u64 != bytes || !right {
        return Err(format!("the client that had stalled got {} of {bytes} bytes", rest.len()));
    }
    Ok(format!("another client moved 8 MiB each way in {:.1} s meanwhile", meanwhile.as_secs_f64()))
}

/// `socat` is killed in the middle of either direction; the guest's service goes on.
fn client_killed(_: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    for (name, pause) in [("source", 0), ("source", 30), ("echo", 5), ("echo", 60), ("sink", 20), ("hash", 40)] {
        let (socat, mut input, _output) = Socat::ask(enclave.socket(), name, 1 << 30).map_err(text)?;
        // Ends with an error when there is nobody to take it any more.
        let sender = thread::spawn(move || Data::new().write(&mut input, 1 << 30).is_err());
        thread::sleep(Duration::from_millis(pause));
        socat.kill().map_err(text)?;
        sender.join().map_err(|_| "the sender panicked")?;
    }
    transfer(enclave, 1 << 20)?;
    Ok("six times in the middle, and the guest serves on".to_owned())
}

/// The guest's process is killed while it echoes; the client sees the end, whatever it was doing.
fn process_killed(_: &Stand, enclave: &mut Served, _: &mut Parent) -> Verdict {
    for pause in [1, 50, 200] {
        let (_socat, mut input, output) = Socat::ask(enclave.socket(), "killed", pause).map_err(text)?;
        let sender = thread::spawn(move || Data::new().write(&mut input, 1 << 30).is_err());
        let start = Instant::now();
        let (count, _) = digest(output).map_err(text)?;
        if !sender.join().map_err(|_| "the sender panicked")? || count >= 1 << 30 || start.elapsed() > PATIENCE {
            return Err(format!("the client did not hear of it: {count} bytes"));
        }
    }
    transfer(enclave, 1 << 20)?;
    Ok("three times in the middle, and socat ended".to_owned())
}

/// From the guest to a TCP address, and from a Unix socket to the guest.
fn forwards(_: &Stand, enclave: &mut Served, parent: &mut Parent) -> Verdict {
    let _asked = enclave.ask("dial", TO_TCP.into()).map_err(text)?;
    let (mut from_guest, _) = parent.tcp.accept().map_err(text)?;
    from_guest.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    exchange(&mut from_guest, b"over TCP")?;
    let mut app = UnixStream::connect(&parent.app).map_err(text)?;
    app.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    app.write_all(&request("echo", 0)).map_err(text)?;
    exchange(&mut app, b"over a Unix socket")?;
    Ok("guest to TCP, Unix socket to guest".to_owned())
}

/// Says something to a peer that echoes.
pub(super) fn exchange(peer: &mut (impl Read + Write), words: &[u8]) -> std::result::Result<(), String> {
    peer.write_all(words).map_err(text)?;
    let mut back = vec![0; words.len()];
    peer.read_exact(&mut back).map_err(text)?;
    if back == words { Ok(()) } else { Err(format!("{} came back", back.escape_ascii())) }
}

/// The host is CID 3 and CID 2 alike; other CIDs and ports where nobody listens are refused at once.
fn cids(_: &Stand, enclave: &mut Served, parent: &mut Parent) -> Verdict {
    for cid in [0u64, 2, 3] {
        let _asked = enclave.ask("dial", cid << 32 | 6000).map_err(text)?;
        let (mut from_guest, _) = parent.port_6000.accept().map_err(text)?;
        from_guest.set_read_timeout(Some(PATIENCE)).map_err(text)?;
        exchange(&mut from_guest, b"as the host")?;
    }
    for nobody in [3u64 << 32 | 6001, 99 << 32 | 6000, 1 << 32 | 6000] {
        let mut refused = enclave.ask("relay", nobody).map_err(text)?;
        let start = Instant::now();
        if refused.read(&mut [0; 1]).map_err(text)? != 0 || start.elapsed() > Duration::from_secs(10) {
            return Err(format!("{nobody:#x} was not refused"));
        }
    }
    Ok("2 and 3 are the host, others are refused".to_owned())
}
