//! The host's side over real sockets and a real event loop, with a guest that is played by a thread.

mod group;

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bus::MonotonicClock;
use event_loop::EventLoop;
use tempfile::TempDir;

use super::*;
use crate::packet::{HEADER_LEN, TYPE_STREAM, op};
use crate::{PARENT_CID, RECEIVE_BUFFER};

const GUEST: u64 = 16;
/// What the played guest's buffers hold.
const BUFFER: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection as the guest sees it.
#[derive(Default)]
struct Stream {
    sent: u32,
    peer_fwd_cnt: u32,
    received: u32,
    backlog: VecDeque<u8>,
    host_is_done: bool,
}

/// A guest that echoes on every port, or does what a test says packet by packet.
struct Guest {
    host: Host,
    packets: Receiver<()>,
    streams: HashMap<Key, Stream>,
}

impl Guest {
    fn packet(key: Key, op: u16) -> Header {
        Header {
            src_cid: GUEST,
            dst_cid: key.host_cid,
            src_port: key.guest_port,
            dst_port: key.host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: BUFFER,
            ..Header::default()
        }
    }

    fn send(&self, header: Header, payload: &[u8]) {
        let mut host = self.host.lock();
        host.receive(&Header { len: payload.len() as u32, ..header }, payload);
        host.flush();
    }

    fn try_receive(&self) -> Option<(Header, Vec<u8>)> {
        let mut host = self.host.lock();
        let mut bytes = Vec::new();
        let some = host.transmit(4096 - HEADER_LEN, &mut bytes);
        host.flush();
        some.then(|| (Header::parse(&bytes).unwrap(), bytes.split_off(HEADER_LEN)))
    }

    /// The next packet from the host.
    fn receive(&self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = self.try_receive() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no packet came");
            let _ = self.packets.recv_timeout(Duration::from_millis(20));
        }
    }

    fn expect(&self, op: u16) -> (Header, Vec<u8>) {
        let (header, payload) = self.receive();
        assert_eq!(header.op, op);
        (header, payload)
    }

    /// Opens a connection to the host's port; true if it was accepted.
    fn connect(&self, host_port: u32) -> (Key, bool) {
        let key = Key { host_cid: PARENT_CID, host_port, guest_port: 777 };
        self.send(Self::packet(key, op::REQUEST), &[]);
        (key, self.receive().0.op == op::RESPONSE)
    }

    /// Echoes until `stop`.
    fn echo(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            match self.try_receive() {
                Some((header, payload)) => self.echo_packet(&header, &payload),
                None => drop(self.packets.recv_timeout(Duration::from_millis(20))),
            }
        }
    }

    fn echo_packet(&mut self, header: &Header, payload: &[u8]) {
        let key = Key { host_cid: header.src_cid, host_port: header.src_port, guest_port: header.dst_port };
        if header.op == op::REQUEST {
            self.streams.insert(key, Stream::default());
            return self.send(Self::packet(key, op::RESPONSE), &[]);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.peer_fwd_cnt = header.fwd_cnt;
        stream.received = stream.received.wrapping_add(payload.len() as u32);
        stream.backlog.extend(payload);
        stream.host_is_done |= header.op == op::SHUTDOWN && header.flags & shutdown::SEND != 0;
        let over = header.op == op::RST || (header.op == op::SHUTDOWN && header.flags == shutdown::BOTH);
        if over {
            self.streams.remove(&key);
            if header.op != op::RST {
                self.send(Self::packet(key, op::RST), &[]);
            }
            return;
        }
        assert!(stream.backlog.len() <= BUFFER as usize, "the host sent more than it had credit for");
        let in_flight = stream.sent.wrapping_sub(stream.peer_fwd_cnt) as usize;
        let count = stream.backlog.len().min(RECEIVE_BUFFER - in_flight);
        let piece: Vec<u8> = stream.backlog.drain(..count).collect();
        stream.sent = stream.sent.wrapping_add(count as u32);
        // What is in the backlog has not been taken yet.
        let fwd_cnt = stream.received.wrapping_sub(stream.backlog.len() as u32);
        let finished = stream.host_is_done && stream.backlog.is_empty();
        if !piece.is_empty() {
            self.send(Header { fwd_cnt, ..Self::packet(key, op::RW) }, &piece);
        } else if header.op == op::CREDIT_REQUEST {
            self.send(Header { fwd_cnt, ..Self::packet(key, op::CREDIT_UPDATE) }, &[]);
        }
        if finished {
            self.send(Header { flags: shutdown::BOTH, fwd_cnt, ..Self::packet(key, op::SHUTDOWN) }, &[]);
            self.streams.remove(&key);
        }
    }
}

struct Bench {
    directory: TempDir,
    host: Host,
    power: PowerControl,
    _events: EventLoop,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Options, &Path)) -> (Self, Guest) {
        let directory = tempfile::tempdir().unwrap();
        let mut options = Options {
            uds_path: Some(directory.path().join("v.sock")),
            heartbeat: Some(Heartbeat::default()),
            ..Options::new(GUEST as u32, PARENT_CID)
        };
        change(&mut options, directory.path());
        let clock = Arc::new(MonotonicClock::start());
        let events = EventLoop::start(clock.clone()).unwrap();
        let power = PowerControl::new();
        let surroundings = Surroundings { events: events.handle(), clock, power: power.clone() };
        let host = Host::start(&options, surroundings).unwrap();
        host.lock().go_online();
        let (sender, packets) = channel();
        host.on_packets(move || sender.send(()).unwrap_or_default());
        let guest = Guest { host: host.clone(), packets, streams: HashMap::new() };
        (Self { directory, host, power, _events: events }, guest)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path("v.sock")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// A client that has shaken hands with the guest's port 5000.
    fn greeted(&self) -> UnixStream {
        let mut client = self.client();
        client.write_all(b"CONNECT 5000\n").unwrap();
        assert!(line(&mut client).starts_with("OK 10737"));
        client
    }
}

/// A guest that echoes in a thread until it is dropped.
struct Echo(Arc<AtomicBool>, Option<JoinHandle<()>>);

impl Echo {
    fn start(guest: Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        Self(stop, Some(thread::spawn(move || guest.echo(&stopped))))
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
        let outcome = self.1.take().map(JoinHandle::join);
        assert!(matches!(outcome, Some(Ok(()))) || thread::panicking(), "the guest failed");
    }
}

fn line(from: &mut impl Read) -> String {
    let mut line = String::new();
    let mut byte = [0];
    while from.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(byte[0].into());
    }
    line
}

fn text(from: &mut impl Read, len: usize) -> String {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_client_says_connect_and_may_go_on_at_once() {
    let (bench, guest) = Bench::new(|_, _| {});
    let _echo = Echo::start(guest);
    let mut client = bench.client();
    client.write_all(b"CONNECT 5000\nhello").unwrap();
    assert_eq!(line(&mut client), "OK 1073741824");
    assert_eq!(text(&mut client, 5), "hello");
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the guest has seen the end and closed");
}

#[test]
fn a_greeting_may_come_byte_by_byte() {
    let (bench, guest) = Bench::new(|_, _| {});
    let _echo = Echo::start(guest);
    let mut client = bench.client();
    for byte in b"CONNECT 5000\n" {
        client.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(line(&mut client), "OK 1073741824");
}

#[test]
fn a_client_that_says_something_else_is_turned_away() {
    let (bench, _guest) = Bench::new(|_, _| {});
    for greeting in [&b"GET / HTTP/1.1\n"[..], &[b'x'; 100]] {
        let mut client = bench.client();
        client.write_all(greeting).unwrap();
        assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_client_that_says_nothing_is_turned_away_in_time_and_one_that_does_is_not() {
    let (bench, guest) = Bench::new(|options, _| options.greeting_timeout = Duration::from_millis(50));
    let _echo = Echo::start(guest);
    let mut talker = bench.greeted();
    let mut silent = bench.client();
    let mut half = bench.client();
    half.write_all(b"CONNECT 50").unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
    talker.write_all(b"still here").unwrap();
    assert_eq!(text(&mut talker, 10), "still here");
}

#[test]
fn a_client_of_a_guest_that_refuses_or_is_not_there_is_closed() {
    let (bench, guest) = Bench::new(|_, _| {});
    let mut client = bench.client();
    client.write_all(b"CONNECT 5000\n").unwrap();
    let (request, _) = guest.expect(op::REQUEST);
    let key = Key { host_cid: request.src_cid, host_port: request.src_port, guest_port: request.dst_port };
    assert_eq!((key.host_cid, key.guest_port), (PARENT_CID, 5000));
    guest.send(Guest::packet(key, op::RST), &[]);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    bench.host.lock().go_offline();
    assert!(matches!(bench.client().read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn the_guest_reaches_the_socket_with_its_port() {
    let (bench, guest) = Bench::new(|_, _| {});
    let listener = UnixListener::bind(bench.path("v.sock_52")).unwrap();
    let (key, accepted) = guest.connect(52);
    assert!(accepted);
    let (mut server, _) = listener.accept().unwrap();
    guest.send(Guest::packet(key, op::RW), b"question");
    assert_eq!(text(&mut server, 8), "question");
    server.write_all(b"answer").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"answer");
    // The guest is done sending, and still receives.
    guest.send(Header { flags: shutdown::SEND, ..Guest::packet(key, op::SHUTDOWN) }, &[]);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.write_all(b"more").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"more");
    drop(server);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags & shutdown::SEND, shutdown::SEND);
}

#[test]
fn a_port_where_nothing_listens_is_refused() {
    let (_bench, guest) = Bench::new(|_, _| {});
    assert!(!guest.connect(53).1);
}

#[test]
fn the_heartbeat_is_answered() {
    let (bench, guest) = Bench::new(|_, _| {});
    let (key, accepted) = guest.connect(HEARTBEAT_PORT);
    assert!(accepted);
    guest.send(Guest::packet(key, op::RW), &[HEARTBEAT]);
    assert_eq!(guest.expect(op::RW).1, [HEARTBEAT]);
    guest.send(Header { flags: shutdown::BOTH, ..Guest::packet(key, op::SHUTDOWN) }, &[]);
    guest.expect(op::RST);
    assert_eq!(bench.power.requested(), None);
    let (key, _) = guest.connect(HEARTBEAT_PORT);
    guest.send(Guest::packet(key, op::RW), b"x");
    guest.expect(op::RST);
}

#[test]
fn an_enclave_that_gives_no_heartbeat_is_ended() {
    let soon = Some(Duration::from_millis(30));
    let (bench, guest) = Bench::new(|options, _| options.heartbeat = Some(Heartbeat { timeout: soon }));
    let (_, accepted) = guest.connect(HEARTBEAT_PORT);
    assert!(accepted, "a connection alone is no heartbeat");
    assert_eq!(bench.power.wait(Some(PATIENCE)), Some(PowerRequest::HeartbeatTimeout));
}

#[test]
fn a_heartbeat_in_time_lets_the_enclave_be() {
    let soon = Some(Duration::from_millis(300));
    let (bench, guest) = Bench::new(|options, _| options.heartbeat = Some(Heartbeat { timeout: soon }));
    let (key, _) = guest.connect(HEARTBEAT_PORT);
    guest.send(Guest::packet(key, op::RW), &[HEARTBEAT]);
    guest.expect(op::RW);
    assert_eq!(bench.power.wait(Some(Duration::from_millis(500))), None);
}

#[test]
fn the_users_own_heartbeat_comes_first() {
    let (bench, guest) = Bench::new(|_, _| {});
    let listener = UnixListener::bind(bench.path("v.sock_9000")).unwrap();
    assert!(guest.connect(HEARTBEAT_PORT).1);
    listener.accept().unwrap();
}

#[test]
fn forwards_go_both_ways_over_tcp_and_unix() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (bench, guest) = Bench::new(|options, directory| {
        options.uds_path = None;
        let unix = directory.join("app.sock").display().to_string();
        let forwards =
            [format!("guest:443=tcp:{address}"), format!("tcp:{free}=guest:5000"), format!("unix:{unix}=guest:5000")];
        options.forwards = forwards.map(|text| text.parse().unwrap()).into();
    });
    let (key, accepted) = guest.connect(443);
    assert!(accepted);
    let (mut accepted, _) = server.accept().unwrap();
    guest.send(Guest::packet(key, op::RW), b"hello");
    assert_eq!(text(&mut accepted, 5), "hello");
    let _echo = Echo::start(guest);
    let mut client = TcpStream::connect(free).unwrap();
    client.write_all(b"over tcp").unwrap();
    assert_eq!(text(&mut client, 8), "over tcp");
    let mut client = UnixStream::connect(bench.path("app.sock")).unwrap();
    client.write_all(b"over unix").unwrap();
    assert_eq!(text(&mut client, 9), "over unix");
}

#[test]
fn sixty_four_mebibytes_go_round_intact() {
    let (bench, guest) = Bench::new(|_, _| {});
    let _echo = Echo::start(guest);
    let client = bench.greeted();
    let total = 64 << 20;
    let byte = |at: usize| (at % 251) as u8;
    let mut writer = client.try_clone().unwrap();
    let writing = thread::spawn(move || {
        let piece: Vec<u8> = (0..251 * 1000).map(byte).collect();
        let mut left = total;
        while left > 0 {
            let count = piece.len().min(left);
            writer.write_all(&piece[..count]).unwrap();
            left -= count;
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut reader = client;
    let (mut at, mut piece) = (0, vec![0; 1 << 20]);
    loop {
        let count = reader.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        assert!(piece[..count].iter().enumerate().all(|(i, found)| *found == byte(at + i)), "near byte {at}");
        at += count;
    }
    assert_eq!(at, total);
    writing.join().unwrap();
    let statistics = bench.host.lock().statistics();
    assert_eq!((statistics.bytes_to_guest, statistics.bytes_from_guest), (total as u64, total as u64));
}

#[test]
fn a_client_that_stops_reading_stalls_only_itself() {
    let (bench, guest) = Bench::new(|_, _| {});
    let _echo = Echo::start(guest);
    let mut stalled = bench.greeted();
    stalled.set_nonblocking(true).unwrap();
    let mut written = 0;
    let mut idle = Instant::now();
    while idle.elapsed() < Duration::from_millis(300) {
        match stalled.write(&[7; 65536]) {
            Ok(count) => (written, idle) = (written + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(written < 8 << 20, "{written} bytes were taken without a reader");
    let mut other = bench.greeted();
    other.write_all(b"still here").unwrap();
    assert_eq!(text(&mut other, 10), "still here");
    // And it goes on where it stopped.
    stalled.set_nonblocking(false).unwrap();
    let mut back = vec![0; written];
    stalled.read_exact(&mut back).unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
}

#[test]
fn five_hundred_connections_open_talk_and_close() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Both ends are in this process.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum.map(|most| most.min(4096)), maximum }).unwrap();
    let (bench, guest) = Bench::new(|_, _| {});
    let _echo = Echo::start(guest);
    let mut clients: Vec<_> = (0..500).map(|_| bench.greeted()).collect();
    assert_eq!(bench.host.lock().0.endpoint.connections(), 500);
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("{number:05}").as_bytes()).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(text(client, 5), format!("{number:05}"));
    }
    drop(clients);
    let start = Instant::now();
    let left = || {
        let host = bench.host.lock();
        host.0.links.len() + host.0.endpoint.connections()
    };
    while left() > 0 {
        assert!(start.elapsed() < PATIENCE, "some connection was left behind");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_is_killed_ends_the_guests_connection_and_a_guest_that_resets_the_clients() {
    let (bench, guest) = Bench::new(|_, _| {});
    let listener = UnixListener::bind(bench.path("v.sock_52")).unwrap();
    let (key, _) = guest.connect(52);
    drop(listener.accept().unwrap());
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, shutdown::BOTH);
    guest.send(Guest::packet(key, op::RW), b"too late");
    guest.send(Guest::packet(key, op::RST), &[]);
    let (key, _) = guest.connect(52);
    let (mut server, _) = listener.accept().unwrap();
    guest.send(Guest::packet(key, op::RW), b"last words");
    guest.send(Guest::packet(key, op::RST), &[]);
    assert_eq!(text(&mut server, 10), "last words");
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_reset_of_the_driver_closes_every_client() {
    let (bench, guest) = Bench::new(|_, _| {});
    let echo = Echo::start(guest);
    let mut client = bench.greeted();
    drop(echo);
    bench.host.lock().go_offline();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(bench.host.lock().0.links.len(), 0);
}

#[test]
fn sockets_are_gone_when_the_host_is() {
    let (bench, guest) = Bench::new(|_, _| {});
    let path = bench.path("v.sock");
    assert!(path.exists());
    drop(guest);
    let Bench { directory, host, power: _, _events } = bench;
    drop(host);
    drop(_events);
    assert!(!path.exists());
    drop(directory);
}
