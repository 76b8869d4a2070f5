//! What is said when there is no peer, or a wrong one; and how notifications and interrupts go, with and without this process between.

use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Instant;

use bus::{IrqLine, IrqTarget, MmioDevice, MonotonicClock};
use event_loop::EventLoop;
use guest_memory::{GuestMemory, Sharing, allocate_for};
use vm_memory::Bytes;

use super::*;
use crate::MmioTransport;
use crate::fake_peer::FakePeer;

fn events() -> EventLoop {
    EventLoop::start(Arc::new(MonotonicClock::start())).unwrap()
}

#[test]
fn without_a_peer_the_socket_is_named() {
    let events = events();
    let error = VhostUserVsock::connect(Path::new("no/such.sock"), 4, true, events.handle()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "no vhost-user process listens on no/such.sock: start one first, such as vhost-device-vsock"
    );
}

#[test]
fn a_peer_that_hangs_up_is_no_peer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let hangs_up = thread::spawn(move || drop(listener.accept().unwrap()));
    let error = VhostUserVsock::connect(&path, 4, true, events().handle()).err().unwrap();
    assert!(matches!(error, VhostUserError::Handshake { what: "tell its features", .. }), "{error}");
    hangs_up.join().unwrap();
}

const CID: u32 = 4;
/// Where the rings of the queues are; each has these bytes for each of its three.
const RINGS: [u64; SERVED] = [0x1_0000, 0x2_0000];
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const TRANSMIT: usize = 1;

/// A wire that remembers its level, and binds events if it is to: nobody takes their signals, as when a pin is masked.
#[derive(Default)]
struct Wire {
    high: AtomicBool,
    binds: bool,
    bound: Arc<Mutex<Vec<Arc<EventFd>>>>,
}

impl IrqTarget for Wire {
    fn set_irq(&self, _: u32, level: bool) {
        self.high.store(level, Ordering::SeqCst);
    }

    fn bind(&self, _: u32, event: &Arc<EventFd>) -> Option<EventBinding> {
        struct Guard(Arc<Mutex<Vec<Arc<EventFd>>>>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.lock().unwrap().pop();
            }
        }
        self.binds.then(|| {
            self.bound.lock().unwrap().push(event.clone());
            EventBinding::new(Guard(self.bound.clone()))
        })
    }
}

/// A device with its driver in the test's hands, and its peer.
struct Stand {
    transport: MmioTransport,
    memory: GuestMemory,
    wire: Arc<Wire>,
    peer: FakePeer,
    /// The transmit queue's, where the device takes it.
    notification: Option<Arc<EventFd>>,
    available: u16,
    _events: EventLoop,
    _directory: tempfile::TempDir,
}

impl Stand {
    /// `events`: whether notifications are signals; `binds`: whether the wire can bind.
    fn new(direct: bool, events: bool, binds: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v.sock");
        let peer = FakePeer::listen(&path, CID, |_| ()).unwrap();
        let event_loop = EventLoop::start(Arc::new(MonotonicClock::start())).unwrap();
        let device = VhostUserVsock::connect(&path, CID, direct, event_loop.handle()).unwrap();
        let memory = allocate_for(Sharing::Shared, &[(0, 1 << 20)]).unwrap();
        let wire = Arc::new(Wire { binds, ..Wire::default() });
        let line = IrqLine::new(wire.clone(), 5);
        let mut transport = MmioTransport::new(Box::new(device), memory.clone(), line);
        let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let notification = (events && transport.takes_notifications(TRANSMIT as u32, &event)).then_some(event);
        let mut stand = Self {
            transport,
            memory,
            wire,
            peer,
            notification,
            available: 0,
            _events: event_loop,
            _directory: directory,
        };
        stand.start();
        stand
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn start(&mut self) {
        self.available = 0;
        for (offset, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
            self.write(offset, value);
        }
        for (queue, ring) in (0..).zip(RINGS) {
            self.memory.write_slice(&[0; 0x3000], GuestAddress(ring)).unwrap();
            for (offset, value) in [(0x30, queue), (0x38, 8), (0x80, ring as u32), (0x90, (ring + AVAILABLE) as u32)] {
                self.write(offset, value);
            }
            self.write(0xa0, (ring + USED) as u32);
            self.write(0x44, 1);
        }
        self.write(0x70, 15);
        assert_eq!(self.read(0x70), 15);
    }

    /// Transmits one buffer.
    fn transmit(&mut self) {
        self.available += 1;
        self.memory.write_obj(self.available.to_le(), GuestAddress(RINGS[TRANSMIT] + AVAILABLE + 2)).unwrap();
        match &self.notification {
            Some(event) => event.write(1).unwrap(),
            None => self.write(0x50, TRANSMIT as u32),
        }
    }

    fn used(&self) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(RINGS[TRANSMIT] + USED + 2)).unwrap())
    }

    fn waits_for(&mut self, what: &str, condition: impl Fn(&mut Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn interrupted(&mut self) {
        self.waits_for("the wire is high", |stand| stand.wire.high.load(Ordering::SeqCst));
    }

    fn ends(self) {
        let Self { transport, peer, .. } = self;
        drop(transport);
        peer.wait().unwrap();
    }
}

#[test]
fn a_register_write_reaches_the_peer_and_its_call_the_wire() {
    let mut stand = Stand::new(true, false, false);
    assert_eq!(stand.read(0x60), 0, "nothing was used yet");
    for count in 1..=2 {
        stand.transmit();
        stand.interrupted();
        assert_eq!((stand.used(), stand.read(0x60)), (count, 1));
        stand.write(0x64, 1);
        assert_eq!((stand.read(0x60), stand.wire.high.load(Ordering::SeqCst)), (0, false));
    }
    stand.ends();
}

#[test]
fn a_signalled_notification_reaches_the_peer_without_the_device() {
    let mut stand = Stand::new(true, true, false);
    assert!(stand.notification.is_some());
    stand.transmit();
    stand.interrupted();
    assert_eq!((stand.used(), stand.read(0x60)), (1, 1));
    stand.ends();
}

#[test]
fn queues_that_the_peer_does_not_serve_stay_with_the_device() {
    let mut stand = Stand::new(true, true, false);
    let event = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    assert!(!stand.transport.takes_notifications(2, &event) && !stand.transport.takes_notifications(3, &event));
    stand.ends();
    let mut stand = Stand::new(false, true, true);
    assert!(stand.notification.is_none() && stand.wire.bound.lock().unwrap().is_empty(), "not direct");
    stand.transmit();
    stand.interrupted();
    stand.ends();
}

#[test]
fn a_bound_interrupt_always_says_that_a_buffer_was_used_until_the_reset() {
    let mut stand = Stand::new(true, true, true);
    assert_eq!(stand.wire.bound.lock().unwrap().len(), SERVED);
    assert_eq!(stand.read(0x60), 1);
    stand.write(0x64, 1);
    assert_eq!((stand.read(0x60), stand.wire.high.load(Ordering::SeqCst)), (1, false));
    stand.write(0x70, 0);
    assert_eq!((stand.read(0x60), stand.wire.bound.lock().unwrap().len()), (0, 0));
    stand.start();
    assert_eq!((stand.read(0x60), stand.wire.bound.lock().unwrap().len()), (1, SERVED));
    stand.ends();
}

#[test]
fn a_call_that_the_wire_leaves_in_its_event_drives_the_wire() {
    let mut stand = Stand::new(true, true, true);
    stand.transmit();
    stand.interrupted();
    stand.write(0x64, 1);
    assert!(!stand.wire.high.load(Ordering::SeqCst));
    stand.ends();
}
