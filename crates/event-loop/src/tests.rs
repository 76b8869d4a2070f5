//! The event loop over real descriptors and the host's clock, with time-outs generous enough for a busy machine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use bus::MonotonicClock;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(50);

fn start() -> (EventLoop, Handle, Arc<MonotonicClock>) {
    let clock = Arc::new(MonotonicClock::start());
    let event_loop = EventLoop::start(clock.clone()).unwrap();
    let handle = event_loop.handle();
    (event_loop, handle, clock)
}

fn watched_pair(
    handle: &Handle,
    interest: Interest,
    sender: Sender<(Ready, Vec<u8>)>,
) -> (UnixStream, Arc<UnixStream>, SourceId) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let theirs = Arc::new(theirs);
    let reader = theirs.clone();
    let id = handle
        .add_source(theirs.clone(), interest, move |ready| {
            let mut bytes = vec![0; 16];
            let n = if ready.readable { (&*reader).read(&mut bytes).unwrap_or(0) } else { 0 };
            bytes.truncate(n);
            let _ = sender.send((ready, bytes));
        })
        .unwrap();
    (ours, theirs, id)
}

#[test]
fn a_readable_descriptor_calls_its_callback() {
    let (_loop, handle, _) = start();
    let (sender, receiver) = mpsc::channel();
    let (mut ours, _, _) = watched_pair(&handle, Interest::READ, sender);
    ours.write_all(b"hello").unwrap();
    let (ready, bytes) = receiver.recv_timeout(SOON).unwrap();
    assert_eq!((ready.readable, ready.writable, bytes.as_slice()), (true, false, b"hello".as_slice()));
}

#[test]
fn interest_can_be_taken_back_and_given_again() {
    let (_loop, handle, _) = start();
    let (sender, receiver) = mpsc::channel();
    let (mut ours, _, id) = watched_pair(&handle, Interest::READ, sender);
    handle.set_interest(id, Interest::NONE).unwrap();
    ours.write_all(b"x").unwrap();
    assert!(receiver.recv_timeout(QUIET).is_err());
    handle.set_interest(id, Interest::READ_WRITE).unwrap();
    assert!(receiver.recv_timeout(SOON).unwrap().0.writable);
}

#[test]
fn a_removed_source_is_silent_and_gone() {
    let (_loop, handle, _) = start();
    let (sender, receiver) = mpsc::channel();
    let (mut ours, theirs, id) = watched_pair(&handle, Interest::READ, sender);
    handle.remove_source(id);
    ours.write_all(b"x").unwrap();
    assert!(receiver.recv_timeout(QUIET).is_err());
    assert!(matches!(handle.set_interest(id, Interest::READ), Err(EventLoopError::NoSource)));
    assert_eq!(Arc::strong_count(&theirs), 1, "the loop and the callback let go");
}

#[test]
fn a_source_may_remove_itself_on_hangup() {
    let (_loop, handle, _) = start();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, receiver) = mpsc::channel();
    let inner = handle.clone();
    let slot = Arc::new(Mutex::new(None));
    let mine = slot.clone();
    let mut guard = slot.lock().unwrap();
    *guard = Some(
        handle
            .add_source(Arc::new(theirs), Interest::READ, move |ready| {
                inner.remove_source(mine.lock().unwrap().unwrap());
                sender.send(ready).unwrap();
            })
            .unwrap(),
    );
    drop(guard);
    drop(ours);
    assert!(receiver.recv_timeout(SOON).unwrap().hangup);
    assert!(receiver.recv_timeout(QUIET).is_err());
}

#[test]
fn regular_files_are_refused() {
    let (_loop, handle, _) = start();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let result = handle.add_source(Arc::new(file), Interest::READ, |_| {});
    assert!(matches!(result, Err(EventLoopError::Watch { .. })));
}

#[test]
fn a_timer_fires_at_its_deadline_and_not_before() {
    let (_loop, handle, clock) = start();
    let (sender, receiver) = mpsc::channel();
    let timer = handle.add_timer(move |now_ns| {
        sender.send(now_ns).unwrap();
        None
    });
    let deadline = clock.now_ns() + 20_000_000;
    timer.arm(Some(deadline));
    assert!(receiver.recv_timeout(SOON).unwrap() >= deadline);
    assert!(receiver.recv_timeout(QUIET).is_err(), "once");
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines_however_they_were_armed() {
    let (_loop, handle, clock) = start();
    let (sender, receiver) = mpsc::channel();
    let start = clock.now_ns() + 20_000_000;
    for (name, delay) in [(3, 60_000_000), (1, 0), (2, 30_000_000)] {
        let sender = sender.clone();
        let timer = handle.add_timer(move |_| {
            sender.send(name).unwrap();
            None
        });
        timer.arm(Some(start + delay));
    }
    let order: Vec<i32> = (0..3).map(|_| receiver.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn a_disarmed_timer_is_silent_and_a_past_deadline_fires_at_once() {
    let (_loop, handle, clock) = start();
    let (sender, receiver) = mpsc::channel();
    let timer = handle.add_timer(move |_| {
        sender.send(()).unwrap();
        None
    });
    timer.arm(Some(clock.now_ns() + 10_000_000));
    timer.arm(None);
    assert!(receiver.recv_timeout(QUIET).is_err());
    timer.arm(Some(0));
    receiver.recv_timeout(SOON).unwrap();
}

#[test]
fn a_timer_whose_callback_names_a_deadline_goes_on() {
    let (_loop, handle, clock) = start();
    let (sender, receiver) = mpsc::channel();
    let timer = handle.add_timer(move |now_ns| {
        sender.send(()).unwrap();
        Some(now_ns + 1_000_000)
    });
    timer.arm(Some(clock.now_ns()));
    for _ in 0..5 {
        receiver.recv_timeout(SOON).unwrap();
    }
}

struct Ticker {
    next: Option<u64>,
    timer: Timer,
    sender: Sender<u64>,
}

impl TimedDevice for Ticker {
    fn next_deadline(&self) -> Option<u64> {
        self.next
    }
    fn advance(&mut self, now_ns: u64) {
        if self.next.take_if(|next| *next <= now_ns).is_some() {
            self.sender.send(now_ns).unwrap();
        }
        self.timer.arm(self.next);
    }
    fn attach_timer(&mut self, timer: Timer) {
        self.timer = timer;
        self.timer.arm(self.next);
    }
}

fn ticker(handle: &Handle, next: Option<u64>) -> (Arc<Mutex<Ticker>>, Receiver<u64>) {
    let (sender, receiver) = mpsc::channel();
    let device = Arc::new(Mutex::new(Ticker { next, timer: Timer::detached(), sender }));
    handle.add_timed_device(&device);
    (device, receiver)
}

#[test]
fn a_timed_device_is_advanced_when_it_is_due() {
    let (_loop, handle, _) = start();
    let (device, receiver) = ticker(&handle, Some(1_000_000));
    assert!(receiver.recv_timeout(SOON).unwrap() >= 1_000_000);
    // As a register write would: move the deadline and arm.
    let mut device = device.lock().unwrap();
    device.next = Some(2_000_000);
    device.timer.arm(Some(2_000_000));
    drop(device);
    receiver.recv_timeout(SOON).unwrap();
}

#[test]
fn tasks_run_on_the_loops_thread() {
    let (_loop, handle, _) = start();
    let (sender, receiver) = mpsc::channel();
    handle.run_soon(move || sender.send(thread::current().name().map(str::to_owned)).unwrap());
    assert_eq!(receiver.recv_timeout(SOON).unwrap().as_deref(), Some("event-loop"));
}

#[test]
fn stopping_joins_and_drops_everything_registered() {
    let (event_loop, handle, _) = start();
    let (device, _receiver) = ticker(&handle, Some(u64::MAX));
    let (sender, _receiver2) = mpsc::channel();
    let (_ours, theirs, _) = watched_pair(&handle, Interest::READ, sender);
    event_loop.stop();
    assert_eq!((Arc::strong_count(&device), Arc::strong_count(&theirs)), (1, 1));
    device.lock().unwrap().timer.arm(Some(5));
}

#[test]
fn an_idle_loop_does_not_spin() {
    let (_loop, handle, clock) = start();
    let timer = handle.add_timer(|_| None);
    timer.arm(Some(clock.now_ns() + 1_000_000));
    // The thread's own CPU time, in clock ticks, over a while in which nothing is due.
    let (sender, receiver) = mpsc::channel();
    handle.run_soon(move || sender.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap());
    let path = std::path::Path::new("/proc").join(receiver.recv_timeout(SOON).unwrap()).join("stat");
    let before = Instant::now();
    thread::sleep(Duration::from_millis(300));
    let stat = std::fs::read_to_string(path).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    assert!(ticks < 10, "{ticks} clock ticks in {:?}", before.elapsed());
}
