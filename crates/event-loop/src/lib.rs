//! One thread that waits for everything that is not a vCPU: file descriptors, timers, and small tasks that other threads hand it.
//!
//! epoll, level-triggered, with one timerfd for all timers and one eventfd for wake-ups. Registration works from any thread, callbacks among them. A callback
//! runs on the loop's thread with none of the loop's locks held; it should not block.
//!
//! Lock order: a device's lock may be held while a timer is armed; the loop holds none of its own while it calls a device.
//!
//! DEVNOTE: rust-vmm's event-manager has no timers, and wants its subscribers to be told apart by file descriptor; with timers on top it came out longer than this.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;
mod timers;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use bus::{Clock, TimedDevice, Timer, TimerTarget};
use thiserror::Error;
use timers::Timers;
use tracing::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why the event loop refused something.
#[derive(Debug, Error)]
pub enum EventLoopError {
    /// The host refused one of the loop's own descriptors or its thread.
    #[error("cannot start the event loop: {what}")]
    Start {
        /// What was to be made.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The host refused to watch a descriptor; regular files, for one, cannot be watched.
    #[error("cannot watch file descriptor {fd}")]
    Watch {
        /// The descriptor.
        fd: i32,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The source has been removed.
    #[error("no such event source")]
    NoSource,
}

/// What to wait for on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// Input waits, or the peer has closed.
    pub readable: bool,
    /// Output would not block.
    pub writable: bool,
}

impl Interest {
    /// Nothing: the descriptor stays registered but is not watched, not even for a hang-up.
    pub const NONE: Self = Self { readable: false, writable: false };
    /// Input.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Output.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Both.
    pub const READ_WRITE: Self = Self { readable: true, writable: true };

    fn event_set(self) -> EventSet {
        let mut set = EventSet::empty();
        set.set(EventSet::IN, self.readable);
        set.set(EventSet::OUT, self.writable);
        set
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
    /// The peer is gone or the descriptor is in error. It stays so: the callback removes its source, or sets [`Interest::NONE`].
    pub hangup: bool,
}

/// A registered descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(u64);

type SourceCallback = Arc<Mutex<dyn FnMut(Ready) + Send>>;
type Task = Box<dyn FnOnce() + Send>;

struct Source {
    fd: Arc<dyn AsRawFd + Send + Sync>,
    interest: Interest,
    callback: SourceCallback,
}

struct Shared {
    clock: Arc<dyn Clock>,
    epoll: Epoll,
    wake: EventFd,
    stopping: AtomicBool,
    next_source: AtomicU64,
    sources: Mutex<HashMap<u64, Source>>,
    tasks: Mutex<Vec<Task>>,
    timers: Timers,
}

/// epoll data of the wake-up descriptor.
const WAKE: u64 = 0;
/// epoll data of the timer descriptor.
const TIMER: u64 = 1;
/// First epoll data of a source.
const FIRST_SOURCE: u64 = 2;
/// Events taken from the kernel at a time.
const BATCH: usize = 32;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The loop and its thread; dropping it stops both.
pub struct EventLoop {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the loop's thread. Timers run on `clock`, which should go as fast as the host's.
    ///
    /// # Errors
    /// [`EventLoopError::Start`] when the host has no more descriptors or threads.
    pub fn start(clock: Arc<dyn Clock>) -> Result<Self, EventLoopError> {
        let start = |what| move |source| EventLoopError::Start { what, source };
        let epoll = Epoll::new().map_err(start("epoll"))?;
        let wake = EventFd::new(EFD_NONBLOCK).map_err(start("eventfd"))?;
        let timers = Timers::new().map_err(start("timerfd"))?;
        for (fd, data) in [(wake.as_raw_fd(), WAKE), (timers.fd(), TIMER)] {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data))
                .map_err(start("epoll registration"))?;
        }
        let shared = Arc::new(Shared {
            clock,
            epoll,
            wake,
            stopping: AtomicBool::new(false),
            next_source: AtomicU64::new(FIRST_SOURCE),
            sources: Mutex::default(),
            tasks: Mutex::default(),
            timers,
        });
        let handle = Handle(shared.clone());
        let thread = thread::Builder::new()
            .name("event-loop".to_owned())
            .spawn(move || shared.run())
            .map_err(start("thread"))?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle for registering things, from any thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Stops the loop and waits for its thread; callbacks that run finish first, and everything registered is dropped.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.handle.0.stopping.store(true, Ordering::SeqCst);
        self.handle.0.wake_up();
        // A callback may own the loop; its thread cannot wait for itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            error!("the event loop panicked");
        }
        // Callbacks may hold handles, which hold the loop: dropping them here breaks the circle. They are dropped outside the locks, since they may hold more.
        let sources = std::mem::take(&mut *lock(&self.handle.0.sources));
        let tasks = std::mem::take(&mut *lock(&self.handle.0.tasks));
        drop((sources, tasks, self.handle.0.timers.take_all()));
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Registers things with a running [`EventLoop`].
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Watches `fd`, level-triggered: `callback` is called as long as the descriptor is ready. The loop keeps `fd` open until the source is removed.
    ///
    /// # Errors
    /// [`EventLoopError::Watch`] when the host refuses, as it does for regular files and for a descriptor that is watched already.
    pub fn add_source(
        &self,
        fd: Arc<dyn AsRawFd + Send + Sync>,
        interest: Interest,
        callback: impl FnMut(Ready) + Send + 'static,
    ) -> Result<SourceId, EventLoopError> {
        let id = self.0.next_source.fetch_add(1, Ordering::Relaxed);
        let mut sources = lock(&self.0.sources);
        self.0.watch(id, fd.as_raw_fd(), Interest::NONE, interest)?;
        sources.insert(id, Source { fd, interest, callback: Arc::new(Mutex::new(callback)) });
        Ok(SourceId(id))
    }

    /// Changes what a source waits for.
    ///
    /// # Errors
    /// [`EventLoopError::NoSource`] after it was removed, [`EventLoopError::Watch`] when the host refuses.
    pub fn set_interest(&self, id: SourceId, interest: Interest) -> Result<(), EventLoopError> {
        let mut sources = lock(&self.0.sources);
        let source = sources.get_mut(&id.0).ok_or(EventLoopError::NoSource)?;
        self.0.watch(id.0, source.fd.as_raw_fd(), source.interest, interest)?;
        source.interest = interest;
        Ok(())
    }

    /// Stops watching. From another thread than the loop's, one call of the callback may still be under way.
    pub fn remove_source(&self, id: SourceId) {
        // The callback and the descriptor are dropped after the lock is released, since they may hold anything.
        let removed = lock(&self.0.sources).remove(&id.0);
        if let Some(source) = &removed
            && let Err(cause) = self.0.watch(id.0, source.fd.as_raw_fd(), source.interest, Interest::NONE)
        {
            error!("{cause}");
        }
    }

    /// Makes a timer. When it is due, `callback` is called with the time and returns the next deadline, if it wants one; that wins
    /// over a deadline that another thread armed meanwhile. It starts disarmed.
    pub fn add_timer(&self, callback: impl FnMut(u64) -> Option<u64> + Send + 'static) -> TimerHandle {
        TimerHandle { shared: self.0.clone(), id: self.0.timers.add(callback) }
    }

    /// Drives a device that does things as time passes: gives it its timer, and advances it whenever that is due.
    pub fn add_timed_device<D: TimedDevice + ?Sized + 'static>(&self, device: &Arc<Mutex<D>>) {
        let driven = device.clone();
        let own: Arc<OnceLock<TimerHandle>> = Arc::default();
        let timer = own.clone();
        let handle = self.add_timer(move |now_ns| {
            let mut device = lock(&driven);
            device.advance(now_ns);
            // Armed with the device's lock held: a register access right after it must not be overtaken by this older deadline.
            if let Some(timer) = timer.get() {
                timer.arm(device.next_deadline());
            }
            None
        });
        let handle = own.get_or_init(|| handle).clone();
        lock(device).attach_timer(Timer::new(Arc::new(handle)));
    }

    /// Runs `task` on the loop's thread, soon.
    pub fn run_soon(&self, task: impl FnOnce() + Send + 'static) {
        lock(&self.0.tasks).push(Box::new(task));
        self.0.wake_up();
    }
}

/// A timer of the loop.
///
/// DEVNOTE: arming for later than what the timerfd is set to makes no system call; the loop then wakes up once for nothing. Disarming never makes one.
#[derive(Clone)]
pub struct TimerHandle {
    shared: Arc<Shared>,
    id: usize,
}

impl TimerTarget for TimerHandle {
    fn arm(&self, deadline_ns: Option<u64>) {
        self.shared.timers.arm(self.id, deadline_ns, &*self.shared.clock);
    }
}

impl Shared {
    fn wake_up(&self) {
        // The counter cannot overflow: a full one means that the loop is about to wake up anyway.
        let _ = self.wake.write(1);
    }

    fn watch(&self, id: u64, fd: i32, was: Interest, is: Interest) -> Result<(), EventLoopError> {
        let operation = match (was == Interest::NONE, is == Interest::NONE) {
            (true, true) => return Ok(()),
            (true, false) => ControlOperation::Add,
            (false, false) => ControlOperation::Modify,
            (false, true) => ControlOperation::Delete,
        };
        self.epoll
            .ctl(operation, fd, EpollEvent::new(is.event_set(), id))
            .map_err(|source| EventLoopError::Watch { fd, source })
    }

    fn run(&self) {
        let mut events = [EpollEvent::default(); BATCH];
        while !self.stopping.load(Ordering::SeqCst) {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => continue,
                Err(cause) => return error!("the event loop cannot wait: {cause}"),
            };
            for event in events.iter().take(count) {
                if self.stopping.load(Ordering::SeqCst) {
                    return;
                }
                match event.data() {
                    WAKE => self.run_tasks(),
                    TIMER => self.timers.run_due(&*self.clock),
                    id => self.run_source(id, event.event_set()),
                }
            }
        }
    }

    fn run_tasks(&self) {
        let _ = self.wake.read();
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.into_iter().for_each(|task| task());
    }

    fn run_source(&self, id: u64, set: EventSet) {
        // A source that an earlier callback of this batch removed is no longer there.
        let Some(callback) = lock(&self.sources).get(&id).map(|source| source.callback.clone()) else { return };
        let hangup = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let ready = Ready { readable: set.contains(EventSet::IN), writable: set.contains(EventSet::OUT), hangup };
        (*lock(&callback))(ready);
    }
}
