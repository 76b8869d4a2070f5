//! Cases with boots of their own: ends of the launcher, a group of enclaves, and vhost-user.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use super::cases::exchange;
use super::served::{PORT, Served, request};
use super::socat::{Data, Socat, digest, pattern_digest};
use super::{Stand, Verdict, there, there_in_time};
use crate::command;

/// rust-vmm's vhost-user process.
pub(crate) const PEER: &str = "vhost-device-vsock";

/// A case with boots of its own.
type Case = fn(&Stand) -> Verdict;

/// All of them, in order.
pub(super) const ALONE: &[(&str, Case)] =
    &[("launcher-killed", launcher_killed), ("group", group), ("vhost-user", vhost_user)];

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The guest ends as it should, and the launcher says what it counted.
pub(super) fn of_the_application(enclave: &mut Served) -> Verdict {
    let status = enclave.stop()?;
    if status.code() != Some(0) {
        return Err(format!("the launcher ended with {status}"));
    }
    let line = enclave.wait_for("stats: vsock connections")?;
    if enclave.socket().exists() {
        return Err(format!("{} is left behind", enclave.socket().display()));
    }
    Ok(line.rsplit("stats: ").next().unwrap_or_default().to_owned())
}

/// The launcher is killed in the middle of a transfer: `socat` ends, and the next launcher takes the socket over.
fn launcher_killed(stand: &Stand) -> Verdict {
    let mut enclave = stand.serve("killed.sock", &[]).map_err(text)?;
    let (_socat, mut input, mut output) = Socat::ask(enclave.socket(), "echo", 0).map_err(text)?;
    let sender = thread::spawn(move || Data::new().write(&mut input, 1 << 30).is_err());
    output.read_exact(&mut vec![0; 4 << 20]).map_err(text)?;
    enclave.kill().map_err(text)?;
    let (count, _) = digest(output).map_err(text)?;
    if !sender.join().map_err(|_| "the sender panicked")? {
        return Err("the client did not hear of it".to_owned());
    }
    let left = there(enclave.socket());
    let mut next = stand.serve("killed.sock", &[]).map_err(text)?;
    let status = next.stop()?;
    if status.code() != Some(0) {
        return Err(format!("the next launcher ended with {status}"));
    }
    Ok(format!("socat ended, {} KiB after 4 MiB; the socket {left}, and served again", count >> 10))
}

/// Three enclaves at once; each pair talks by CID.
fn group(stand: &Stand) -> Verdict {
    let directory = stand.path("group");
    std::fs::create_dir(&directory).map_err(text)?;
    let cids = [16u32, 17, 18];
    let start = |cid: &u32| {
        let settings = [format!("enclave.cid={cid}"), format!("vsock.group={}", directory.display())];
        stand.serve(&format!("{cid}.sock"), &settings).map_err(text)
    };
    let mut members = cids.iter().map(start).collect::<Result<Vec<_>, _>>()?;
    for (member, own) in members.iter().zip(cids) {
        for other in cids.into_iter().filter(|other| *other != own) {
            let mut relayed = member.ask("relay", u64::from(other) << 32 | u64::from(PORT)).map_err(text)?;
            relayed.write_all(&request("echo", 0)).map_err(text)?;
            exchange(&mut relayed, format!("from {own} to {other}").as_bytes())?;
        }
    }
    let bytes: u64 = 16 << 20;
    let [first, ..] = members.as_slice() else { return Err("no members".to_owned()) };
    let (socat, mut input, mut output) =
        Socat::ask(first.socket(), "relay", 17 << 32 | u64::from(PORT)).map_err(text)?;
    input.write_all(&request("hash", bytes)).map_err(text)?;
    let sent = Data::new().write(&mut input, bytes).map_err(text)?;
    let mut received = vec![0; sent.len()];
    output.read_exact(&mut received).map_err(text)?;
    if sent != received {
        return Err("the other enclave saw other bytes than were sent".to_owned());
    }
    // A guest ends when everybody has been served.
    drop(socat);
    for member in &mut members {
        member.stop()?;
    }
    Ok(format!("{} enclaves talk by CID, and {} MiB from one to another arrived intact", cids.len(), bytes >> 20))
}

/// A vhost-user process, killed when it is dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The published `vhost-device-vsock` carries traffic both ways; without it and after its end there is a clear error.
fn vhost_user(stand: &Stand) -> Verdict {
    if !command::exists(PEER) {
        return Ok(format!("left out: {PEER} is not installed (cargo install {PEER})"));
    }
    let (vhost, uds) = (stand.path("vhost"), stand.path("peer.sock"));
    let settings = [format!("vsock.vhost-user={}", vhost.display()), "enclave.cid=16".to_owned()];
    let alone = stand.command(&settings).stdin(Stdio::null()).output().map_err(text)?;
    let words = String::from_utf8_lossy(&alone.stderr).into_owned();
    if alone.status.code() != Some(1) || !words.contains("no vhost-user process listens on") {
        return Err(format!("without a peer: {} {words}", alone.status));
    }
    let vm = format!("guest-cid=16,socket={},uds-path={}", vhost.display(), uds.display());
    let mut peer_command = Command::new(PEER);
    let peer = peer_command.args(["--vm", &vm]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let peer = Peer(peer.map_err(text)?);
    if !there_in_time(&vhost) {
        return Err("the peer does not listen".to_owned());
    }
    let mut enclave = Served::start(stand.command(&settings), &uds).map_err(text)?;
    let bytes: u64 = if stand.long { 1 << 30 } else { 16 << 20 };
    let (_socat, mut input, mut output) = Socat::ask(&uds, "hash", bytes).map_err(text)?;
    let sent = Data::new().write(&mut input, bytes).map_err(text)?;
    let mut received = vec![0; sent.len()];
    output.read_exact(&mut received).map_err(text)?;
    if sent != received {
        return Err("the guest saw other bytes than were sent".to_owned());
    }
    // Larger writes stall in a guest whose kernel spreads a packet over several buffers: the peer takes one only.
    let (_socat, _input, output) = Socat::ask(&uds, "pieces", bytes).map_err(text)?;
    let (count, found) = digest(output.take(bytes)).map_err(text)?;
    if count != bytes || found != pattern_digest(bytes) {
        return Err(format!("{count} of {bytes} bytes came from the guest, or others"));
    }
    drop(peer);
    let words = enclave.wait_for("the guest has no vsock any more")?;
    Ok(format!("{} MiB each way through {PEER}; at its end: {}", bytes >> 20, words.trim_start_matches("vmm: error: ")))
}
