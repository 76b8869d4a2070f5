//! The vsock's throughput and round trip, ours in the launcher's own process against QEMU with `vhost-device-vsock`.
//!
//! Both run the small kernel, and one client of the hybrid socket measures both, turn by turn. The guest sends pieces of 16 KiB: the peer of QEMU's takes
//! a packet's data from one buffer only, and Linux spreads larger ones over several.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::ratio::Ratio;
use super::sample::middle;
use crate::command::{self, start_error};
use crate::error::{Error, FileContext, Result};
use crate::image::Image;
use crate::launch::{self, End, Guest, Machine, QEMU, Vmm};
use crate::supervise::cpu_time;
use crate::vsock_test::served::{PORT, Served};
use crate::vsock_test::{PEER, there_in_time};

/// What the filter of `bench --only` is compared with.
pub(super) const NAME: &str = "vsock";

/// Bytes of a transfer, and round trips of one byte.
const BYTES: u64 = 64 << 20;
const ROUND_TRIPS: usize = 2000;

/// The guest's memory in MiB, and its CID.
const MEMORY: u32 = 256;
const CID: u32 = 4;

/// The lines of the table: what the guest is asked for, and the most that our time may be of QEMU's.
const LINES: [(&str, Work); 3] = [
    ("vsock, host to guest, s per GiB", Work::ToGuest),
    ("vsock, guest to host, s per GiB", Work::FromGuest),
    ("vsock, round trip, ms", Work::RoundTrip),
];
const LIMIT: f64 = 0.5;

#[derive(Debug, Clone, Copy)]
enum Work {
    ToGuest,
    FromGuest,
    RoundTrip,
}

/// A time by the clock and one of the processes' processors, in the unit of the line.
#[derive(Debug, Clone, Copy)]
struct Time {
    wall: f64,
    cpu: f64,
}

/// A guest that serves, and the processes whose time counts.
struct Contender {
    served: Served,
    peer: Option<Peer>,
}

/// So many pairs that the peer spoils are measured again, for each that is wanted.
const MOST_LOST_PAIRS: usize = 5;

/// A vhost-user process, killed when it is dropped.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures `runs` pairs; nothing where QEMU or its peer is missing.
pub(super) fn run(runs: usize, image: &Image, vmm: &Vmm) -> Result<Vec<Ratio>> {
    if let Some(missing) = [QEMU, PEER].into_iter().find(|program| !command::exists(program)) {
        eprintln!("{missing} is not installed: no comparison of the vsock");
        return Ok(Vec::new());
    }
    let mut pairs: [Vec<(Time, Time)>; LINES.len()] = Default::default();
    let (mut round, mut lost) = (1, 0);
    while round <= runs {
        eprintln!("run {round} of {runs}: vsock, vmm and qemu");
        let directory = tempfile::tempdir().file("create", &std::env::temp_dir())?;
        let ours = times(ours(image, vmm, directory.path())?, "vmm")?;
        let theirs = match theirs(image, directory.path()).and_then(|theirs| times(theirs, QEMU)) {
            Ok(theirs) => theirs,
            // The peer closes connections in the middle of a transfer now and then: such a pair says nothing of speed.
            Err(error) if lost < MOST_LOST_PAIRS * runs => {
                eprintln!("left out: {error}");
                lost += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        for ((pairs, own), other) in pairs.iter_mut().zip(ours).zip(theirs) {
            pairs.push((own, other));
        }
        round += 1;
    }
    if lost > 0 {
        eprintln!("{lost} pairs left out: {QEMU} with {PEER} did not get to the end");
    }
    Ok(LINES.iter().zip(pairs).filter_map(|((work, _), pairs)| ratio(work, &pairs)).collect())
}

fn guest<'a>(image: &'a Image, settings: &'a [&'a str]) -> Guest<'a> {
    let append = format!("{} vmm.vsock=serve:{PORT}", End::Reset.argument());
    Guest { machine: Machine::Microvm, image, acpi: false, cpus: 1, memory: MEMORY, append, settings }
}

fn ours(image: &Image, vmm: &Vmm, directory: &Path) -> Result<Contender> {
    let socket = directory.join("ours");
    let (cid, uds) = (format!("vsock.cid={CID}"), format!("vsock.uds-path={}", socket.display()));
    let served = Served::start(vmm.command(&guest(image, &[&cid, &uds])), &socket)?;
    Ok(Contender { served, peer: None })
}

fn theirs(image: &Image, directory: &Path) -> Result<Contender> {
    let (vhost, socket) = (directory.join("vhost"), directory.join("theirs"));
    let vm = format!("guest-cid={CID},socket={},uds-path={}", vhost.display(), socket.display());
    let mut peer = Command::new(PEER);
    peer.args(["--vm", &vm]).stdout(Stdio::null()).stderr(Stdio::null());
    let peer = Peer(peer.spawn().map_err(|source| start_error(&peer, source))?);
    if !there_in_time(&vhost) {
        return Err(Error::Advice(format!("{PEER} does not listen")));
    }
    let mut qemu = launch::qemu_command(&guest(image, &[]), None);
    // Another process has to see the guest's memory.
    qemu.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY}M,share=on")])
        .args(["-machine", "memory-backend=ram"])
        .args(["-chardev", &format!("socket,id=vsock,path={}", vhost.display())])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"]);
    Ok(Contender { served: Served::start(qemu, &socket)?, peer: Some(peer) })
}

impl Contender {
    /// The processor time of all its processes.
    fn cpu(&self) -> f64 {
        let of = |pid| cpu_time(pid).unwrap_or(Duration::ZERO).as_secs_f64();
        of(self.served.pid()) + self.peer.as_ref().map_or(0.0, |peer| of(peer.0.id()))
    }

    fn measure(&self, work: Work) -> io::Result<Time> {
        let mut stream = match work {
            Work::ToGuest => self.served.ask("sink", BYTES)?,
            Work::FromGuest => self.served.ask("pieces", BYTES)?,
            Work::RoundTrip => self.served.ask("echo", 0)?,
        };
        let (mut piece, cpu, start) = (vec![0; 256 << 10], self.cpu(), Instant::now());
        let mut trips = Vec::new();
        match work {
            Work::ToGuest => {
                for _ in 0..BYTES / piece.len() as u64 {
                    stream.write_all(&piece)?;
                }
                // The guest's word that it has everything.
                stream.read_exact(&mut [0; 8])?;
            }
            Work::FromGuest => {
                let mut left = BYTES;
                while left > 0 {
                    let count = stream.read(&mut piece)?;
                    if count == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    left = left.saturating_sub(count as u64);
                }
            }
            Work::RoundTrip => {
                for _ in 0..ROUND_TRIPS {
                    let start = Instant::now();
                    stream.write_all(&[1])?;
                    stream.read_exact(&mut [0])?;
                    trips.push(start.elapsed().as_secs_f64());
                }
            }
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), self.cpu() - cpu);
        Ok(match (work, middle(trips)) {
            // A busy host disturbs some trips by whole time slices, so the one in the middle counts.
            (Work::RoundTrip, trip) => Time { wall: trip.unwrap_or(wall) * 1e3, cpu: cpu * 1e3 / ROUND_TRIPS as f64 },
            (Work::ToGuest | Work::FromGuest, _) => {
                let per_gib = f64::from(1 << 30) / BYTES as f64;
                Time { wall: wall * per_gib, cpu: cpu * per_gib }
            }
        })
    }
}

/// Every line's time; the first transfer each way is for warming up.
fn times(mut contender: Contender, name: &str) -> Result<Vec<Time>> {
    let mut times = Vec::new();
    for (line, work) in LINES {
        let failed = |source: io::Error| Error::Advice(format!("{name}: {line} failed: {source}"));
        contender.measure(work).map_err(failed)?;
        times.push(contender.measure(work).map_err(failed)?);
    }
    contender.served.stop().map_err(Error::Advice)?;
    Ok(times)
}

fn ratio(work: &'static str, pairs: &[(Time, Time)]) -> Option<Ratio> {
    let of = |value: &dyn Fn(&(Time, Time)) -> f64| -> Vec<f64> { pairs.iter().map(value).collect() };
    let mut ratios = of(&|(own, other)| own.wall / other.wall);
    ratios.sort_by(f64::total_cmp);
    Some(Ratio {
        work,
        limit: LIMIT,
        ours: middle(of(&|(own, _)| own.wall))?,
        theirs: middle(of(&|(_, other)| other.wall))?,
        pairs: pairs.len(),
        least: *ratios.first()?,
        most: *ratios.last()?,
        median: middle(ratios)?,
        cpu_median: middle(of(&|(own, other)| own.cpu / other.cpu)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_compares_turn_by_turn_and_by_processor_time() {
        let time = |wall, cpu| Time { wall, cpu };
        let pairs = [(time(1.0, 1.0), time(4.0, 8.0)), (time(3.0, 1.0), time(4.0, 4.0))];
        let ratio = ratio("work", &pairs).expect("two pairs");
        assert_eq!((ratio.least, ratio.median, ratio.most, ratio.cpu_median), (0.25, 0.5, 0.75, Some(0.1875)));
    }
}
