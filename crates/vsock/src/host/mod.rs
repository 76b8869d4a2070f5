//! The host's side at work: sockets, listeners and the heartbeat around an [`Endpoint`], on the event loop.
//!
//! Everything happens under one lock, on the event loop's thread but for a reset of the guest's. A socket is only watched for what there is room for, so a client that stops reading, or a
//! guest that does, holds up its own connection and no other. When the guest has packets to fetch, the device's pump is called with the lock released.
//!
//! Lock order: the device's queues, then this.

mod link;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bus::{Clock, PowerControl, PowerRequest, TimerTarget};
use event_loop::{Interest, Ready, SourceId, TimerHandle};
use tracing::{debug, error, info, warn};

use crate::packet::{Header, shutdown};
use crate::{
    Endpoint, Event, Forward, Greeting, HEARTBEAT_PORT, Heartbeat, Key, MAX_CONNECTIONS, Options, PARENT_CID,
    Statistics, VsockError,
};
use link::{Link, Look, Stage};
use socket::{Listener, Socket, Target};

/// What an enclave's init sends, and wants back.
const HEARTBEAT: u8 = 0xb7;

/// Most sockets, those included that still deliver what a connection that has ended left behind.
const MAX_LINKS: usize = 2 * MAX_CONNECTIONS;

/// Connections taken from a listener before others get their turn.
const ACCEPTS_A_TURN: usize = 64;

/// How long a guest may take to accept a connection: long for a guest, but its processor may be slow.
const OFFER_TIMEOUT_NS: u64 = 10_000_000_000;

/// How long nothing is accepted after the host ran out of descriptors.
const PAUSE_NS: u64 = 1_000_000_000;

/// Bytes read from a socket at a time.
const READ_SIZE: usize = 64 << 10;

/// What the host's side works with.
#[derive(Clone)]
pub struct Surroundings {
    /// Where it runs.
    pub events: event_loop::Handle,
    /// The time that the event loop's timers go by.
    pub clock: Arc<dyn Clock>,
    /// Ends the run when the heartbeat fails to come.
    pub power: PowerControl,
}

/// Fetches packets for the guest.
type Pump = Arc<dyn Fn() + Send + Sync>;

/// The host's side of one guest's vsock. When the last clone is dropped, its sockets are closed and removed.
#[derive(Clone)]
pub struct Host(Arc<Mutex<Inner>>);

/// Where a listener's connections go.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    /// To the port that the client names.
    Hybrid,
    /// To the port that another guest names.
    Group,
    /// To this port.
    Port(u32),
}

struct Listening {
    listener: Arc<Listener>,
    source: SourceId,
    purpose: Purpose,
}

struct Inner {
    me: Weak<Mutex<Inner>>,
    surroundings: Surroundings,
    endpoint: Endpoint,
    host_cid: u64,
    uds_path: Option<PathBuf>,
    /// By the host's port.
    forwards: HashMap<u32, Target>,
    /// Where other guests listen.
    group: Option<PathBuf>,
    greeting_timeout_ns: u64,
    /// Those who have yet to say what they want, and until when.
    greetings: VecDeque<(u64, u64)>,
    heartbeat: Option<Heartbeat>,
    heartbeat_deadline: Option<u64>,
    /// Connections that we answer ourselves.
    heartbeats: HashSet<Key>,
    listening: Vec<Listening>,
    /// When the listeners are watched again.
    paused_until: Option<u64>,
    links: HashMap<u64, Link>,
    by_key: HashMap<Key, u64>,
    next_link: u64,
    /// Links to look after at the next [`Inner::flush`].
    dirty: Vec<u64>,
    /// Offers and when they end, in order.
    offers: VecDeque<(u64, Key)>,
    timer: Option<TimerHandle>,
    /// A driver is there.
    online: bool,
    pump: Option<Pump>,
    /// When the device wants to be called even if there is no packet for the guest.
    pump_at: Option<u64>,
    /// That time has come.
    pump_due: bool,
    scratch: Vec<u8>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work` on what is behind `me`, then lets the device fetch what there is for the guest.
fn enter<R>(me: &Weak<Mutex<Inner>>, work: impl FnOnce(&mut Inner) -> R) -> Option<R> {
    let inner = me.upgrade()?;
    let mut guard = lock(&inner);
    let result = work(&mut guard);
    guard.flush();
    let pump = guard.pump.clone().filter(|_| guard.endpoint.has_packets() || guard.pump_due);
    drop(guard);
    if let Some(pump) = pump {
        pump();
    }
    Some(result)
}

impl Host {
    /// Listens where `options` says.
    ///
    /// # Errors
    /// [`VsockError`] when a socket cannot be had.
    pub fn start(options: &Options, surroundings: Surroundings) -> Result<Self, VsockError> {
        let mut forwards = HashMap::new();
        let mut listen = Vec::new();
        for forward in &options.forwards {
            match forward {
                Forward::FromGuest { port, to } => {
                    forwards.insert(*port, Target::resolve(to)?);
                }
                Forward::ToGuest { from, port } => listen.push((Target::resolve(from)?, Purpose::Port(*port))),
            }
        }
        if let Some(path) = &options.uds_path {
            listen.push((Target::Unix(path.clone()), Purpose::Hybrid));
        }
        let mut endpoint = Endpoint::new(options.guest_cid.into());
        if let Some(group) = &options.group {
            listen.push((Target::Unix(member(group, options.guest_cid.into())), Purpose::Group));
            endpoint.allow_peers();
        }
        let host = Self(Arc::new_cyclic(|me| {
            Mutex::new(Inner {
                me: me.clone(),
                surroundings,
                endpoint,
                host_cid: options.host_cid,
                uds_path: options.uds_path.clone(),
                forwards,
                group: options.group.clone(),
                greeting_timeout_ns: nanoseconds(options.greeting_timeout),
                greetings: VecDeque::new(),
                heartbeat: options.heartbeat,
                heartbeat_deadline: None,
                heartbeats: HashSet::new(),
                listening: Vec::new(),
                paused_until: None,
                links: HashMap::new(),
                by_key: HashMap::new(),
                next_link: 0,
                dirty: Vec::new(),
                offers: VecDeque::new(),
                timer: None,
                online: false,
                pump: None,
                pump_at: None,
                pump_due: false,
                scratch: vec![0; READ_SIZE],
            })
        }));
        let mut inner = lock(&host.0);
        let me = inner.me.clone();
        let timer = inner.surroundings.events.add_timer(move |now| enter(&me, |inner| inner.tick(now)).flatten());
        inner.timer = Some(timer);
        for (target, purpose) in &listen {
            inner.listen(target, *purpose)?;
        }
        inner.expect_heartbeat();
        drop(inner);
        Ok(host)
    }

    /// Calls `pump`, on the event loop's thread and with nothing locked, when there are packets for the guest.
    pub fn on_packets(&self, pump: impl Fn() + Send + Sync + 'static) {
        lock(&self.0).pump = Some(Arc::new(pump));
    }

    /// The device's end, for as long as it is held.
    pub fn lock(&self) -> HostGuard<'_> {
        HostGuard(lock(&self.0))
    }
}

/// What the virtio device does with the host's side.
pub struct HostGuard<'a>(MutexGuard<'a, Inner>);

impl HostGuard<'_> {
    /// The driver is ready.
    pub fn go_online(&mut self) {
        self.0.online = true;
    }

    /// The driver was reset: every connection ends.
    pub fn go_offline(&mut self) {
        self.0.go_offline();
    }

    /// The machine was reset: the heartbeat is awaited anew.
    pub fn power_cycle(&mut self) {
        self.0.go_offline();
        self.0.expect_heartbeat();
    }

    /// As [`Endpoint::can_receive`].
    pub fn can_receive(&self) -> bool {
        self.0.endpoint.can_receive()
    }

    /// Takes a packet of the guest's. What it brings reaches the sockets at the next [`HostGuard::flush`].
    pub fn receive(&mut self, header: &Header, payload: &[u8]) {
        self.0.receive(header, payload);
    }

    /// Moves what packets brought and made room for.
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// As [`Endpoint::has_packets`].
    pub fn has_packets(&self) -> bool {
        self.0.endpoint.has_packets()
    }

    /// Appends a packet for the guest to `out`, with at most `room` bytes of payload, which must not be 0; false when there is none.
    pub fn transmit(&mut self, room: usize, out: &mut Vec<u8>) -> bool {
        match self.0.endpoint.transmit(room, out) {
            Some(Some(key)) => {
                self.0.touch(key);
                true
            }
            Some(None) => true,
            None => false,
        }
    }

    /// Has the pump called within so many nanoseconds, packets or not; [`HostGuard::take_due`] then says so.
    pub fn pump_within(&mut self, nanoseconds: u64) {
        if self.0.pump_at.is_none() {
            self.0.pump_at = Some(self.0.surroundings.clock.now_ns().saturating_add(nanoseconds));
            self.0.arm();
        }
    }

    /// Whether the time of [`HostGuard::pump_within`] has come since this was last asked.
    pub fn take_due(&mut self) -> bool {
        std::mem::take(&mut self.0.pump_due)
    }

    /// What has been counted.
    pub fn statistics(&self) -> Statistics {
        self.0.endpoint.statistics()
    }
}

impl Inner {
    fn listen(&mut self, target: &Target, purpose: Purpose) -> Result<(), VsockError> {
        let listener = Arc::new(Listener::open(target)?);
        let (me, index) = (self.me.clone(), self.listening.len());
        let callback = move |_: Ready| enter(&me, |inner| inner.accept(index)).unwrap_or_default();
        let source = self.surroundings.events.add_source(listener.clone(), Interest::READ, callback)?;
        info!(?target, "vsock listens");
        self.listening.push(Listening { listener, source, purpose });
        Ok(())
    }

    /// Takes the connections that wait at a listener.
    fn accept(&mut self, index: usize) {
        for _ in 0..ACCEPTS_A_TURN {
            let Some(Listening { listener, source, purpose }) = self.listening.get(index) else { return };
            let (source, purpose) = (*source, *purpose);
            match listener.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => self.accepted(socket, purpose),
                Err(error) => {
                    // The connection stays in the backlog, so watching on would only say the same again.
                    warn!("vsock accepts no connections for a while: {error}");
                    self.watch(source, Interest::NONE);
                    self.paused_until = Some(self.surroundings.clock.now_ns() + PAUSE_NS);
                    return self.arm();
                }
            }
        }
    }

    fn accepted(&mut self, socket: Socket, purpose: Purpose) {
        if !self.online || self.links.len() >= MAX_LINKS {
            debug!(online = self.online, "vsock turned a client away");
            return;
        }
        match purpose {
            Purpose::Hybrid => self.greet(socket, false),
            Purpose::Group => self.greet(socket, true),
            Purpose::Port(port) => {
                let Some(key) = self.endpoint.connect(self.host_cid, port) else { return };
                match self.add_link(socket, Stage::Offered { greeted: false }) {
                    Some(id) => self.offered(id, key),
                    None => self.endpoint.reset(key),
                }
            }
        }
    }

    /// Waits for a client's first line, or another member's.
    fn greet(&mut self, socket: Socket, member: bool) {
        if let Some(id) = self.add_link(socket, Stage::Greeting { member, said: Vec::new() }) {
            let deadline = self.surroundings.clock.now_ns().saturating_add(self.greeting_timeout_ns);
            self.greetings.push_back((deadline, id));
            self.arm();
        }
    }

    /// Registers a socket; `None`, with the socket closed, when the host has no room for it.
    fn add_link(&mut self, socket: Socket, stage: Stage) -> Option<u64> {
        let (id, me) = (self.next_link, self.me.clone());
        self.next_link += 1;
        let socket = Arc::new(socket);
        let callback = move |ready: Ready| enter(&me, |inner| inner.ready(id, ready)).unwrap_or_default();
        match self.surroundings.events.add_source(socket.clone(), Interest::NONE, callback) {
            Ok(source) => {
                self.links.insert(id, Link::new(socket, source, Interest::NONE, stage));
                self.dirty.push(id);
                Some(id)
            }
            Err(error) => {
                warn!("vsock lost a connection: {error}");
                None
            }
        }
    }

    fn offered(&mut self, id: u64, key: Key) {
        self.by_key.insert(key, id);
        self.offers.push_back((self.surroundings.clock.now_ns() + OFFER_TIMEOUT_NS, key));
        self.arm();
    }

    fn remove_link(&mut self, id: u64) {
        if let Some(link) = self.links.remove(&id) {
            self.surroundings.events.remove_source(link.source);
        }
    }

    /// Takes a packet of the guest's. Data goes straight to a socket that has room.
    fn receive(&mut self, header: &Header, payload: &[u8]) {
        let Self { endpoint, links, by_key, .. } = self;
        let deliver = |key, data: &[u8]| {
            let link = by_key.get(&key).and_then(|id| links.get(id));
            link.map_or(0, |link| link.write_at_once(data))
        };
        if let Some(event) = endpoint.receive_and_deliver(header, payload, deliver) {
            self.handle(event);
        }
    }

    /// The guest did something.
    fn handle(&mut self, event: Event) {
        match event {
            Event::Requested(key) => self.open(key),
            Event::Established(key) => self.established(key),
            Event::Changed(key) if self.heartbeats.contains(&key) => self.beat(key),
            Event::Changed(key) => self.touch(key),
            Event::Closed(key, rest) => {
                self.heartbeats.remove(&key);
                let Some(id) = self.by_key.remove(&key) else { return };
                match self.links.get_mut(&id) {
                    Some(link) if matches!(link.stage, Stage::Open(_)) => {
                        link.stage = Stage::Draining(rest);
                        self.dirty.push(id);
                    }
                    _ => self.remove_link(id),
                }
            }
        }
    }

    /// Finds what the guest wants to reach.
    fn open(&mut self, key: Key) {
        let port = key.host_port;
        if self.links.len() >= MAX_LINKS {
            warn!("vsock refused a connection to port {port}: there are too many");
            return self.endpoint.reset(key);
        }
        if key.host_cid > PARENT_CID {
            return self.reach_member(key);
        }
        let hybrid = || self.uds_path.as_ref().map(|path| Target::Unix(with_port(path, port)));
        let outcome = self.forwards.get(&port).cloned().or_else(hybrid).map(|target| Socket::connect(&target));
        match outcome {
            Some(Ok((socket, connected))) => {
                let stage = if connected { Stage::Open(key) } else { Stage::Connecting(key) };
                match self.add_link(socket, stage) {
                    Some(id) => {
                        self.by_key.insert(key, id);
                        if connected {
                            self.take_up(key);
                        }
                    }
                    None => self.endpoint.reset(key),
                }
            }
            _ if port == HEARTBEAT_PORT && self.heartbeat.is_some() => {
                self.heartbeats.insert(key);
                self.endpoint.accept(key);
            }
            outcome => {
                let why =
                    outcome.and_then(Result::err).map_or("nothing is there".to_owned(), |error| error.to_string());
                info!("vsock refused the guest's connection to port {port}: {why}");
                self.endpoint.reset(key);
            }
        }
    }

    /// Asks another guest of the group for a connection.
    fn reach_member(&mut self, key: Key) {
        let Some(group) = &self.group else { return self.endpoint.reset(key) };
        let introduced = || {
            let (socket, _) = Socket::connect(&Target::Unix(member(group, key.host_cid)))?;
            let line = format!("CONNECT {} FROM {}:{}\n", key.host_port, self.endpoint.guest_cid(), key.guest_port);
            // A socket that was never written to has room for a line.
            socket.write(line.as_bytes()).map(|_| socket)
        };
        let link = match introduced() {
            Ok(socket) => self.add_link(socket, Stage::Introduced(key, Vec::new())),
            Err(error) => {
                info!("vsock refused the guest's connection to CID {}: {error}", key.host_cid);
                None
            }
        };
        match link {
            // The other guest's host gives it as long, and then closes.
            Some(id) => self.offered(id, key),
            None => self.endpoint.reset(key),
        }
    }

    /// Accepts a connection of the guest's that has a socket.
    fn take_up(&mut self, key: Key) {
        self.endpoint.accept(key);
        if key.host_port == HEARTBEAT_PORT {
            // The user's own program answers the heartbeat.
            self.heartbeat_deadline = None;
        }
    }

    fn established(&mut self, key: Key) {
        let Some((id, link)) = self.by_key.get(&key).and_then(|id| Some((*id, self.links.get_mut(id)?))) else {
            return;
        };
        if matches!(link.stage, Stage::Offered { greeted: true }) {
            // A socket that was never written to has room for a line; a client that is gone is found later.
            let _ = link.socket.write(format!("OK {}\n", key.host_port).as_bytes());
        }
        link.stage = Stage::Open(key);
        self.dirty.push(id);
    }

    /// Answers an enclave's init.
    fn beat(&mut self, key: Key) {
        let (first, second) = self.endpoint.incoming(key);
        let count = first.len() + second.len();
        if first.iter().chain(second).any(|byte| *byte != HEARTBEAT) {
            warn!("what came to port {HEARTBEAT_PORT} is no heartbeat");
            self.heartbeats.remove(&key);
            return self.endpoint.reset(key);
        }
        if count > 0 {
            if self.heartbeat_deadline.take().is_some() {
                info!("the enclave's heartbeat has come");
            }
            // An init that sends more than it reads is one that nobody need wait for.
            self.endpoint.send(key, &vec![HEARTBEAT; count.min(self.endpoint.room(key))]);
            self.endpoint.consume(key, count);
        }
        if self.endpoint.guest_shutdown(key) & shutdown::SEND != 0 {
            self.endpoint.shut_down(key, shutdown::SEND);
        }
    }

    fn touch(&mut self, key: Key) {
        if let Some(id) = self.by_key.get(&key)
            && self.dirty.last() != Some(id)
        {
            self.dirty.push(*id);
        }
    }

    /// Looks after the links that something has happened to.
    fn flush(&mut self) {
        while let Some(id) = self.dirty.pop() {
            self.serve(id, Look::default());
        }
    }

    /// The event loop says that a socket is ready.
    fn ready(&mut self, id: u64, ready: Ready) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match link.stage {
            Stage::Greeting { member, .. } => match link.greeting() {
                Ok(None) => {}
                Ok(Some(greeting)) => match self.welcome(member, greeting) {
                    Some(key) => {
                        if let Some(link) = self.links.get_mut(&id) {
                            link.stage = Stage::Offered { greeted: true };
                        }
                        self.offered(id, key);
                        self.dirty.push(id);
                    }
                    None => self.remove_link(id),
                },
                Err(error) => {
                    debug!("vsock turned a client away that did not say CONNECT <port>: {error}");
                    self.remove_link(id);
                }
            },
            Stage::Introduced(key, _) => match link.greeting() {
                Ok(None) => {}
                Ok(Some(Greeting::Accepted)) => {
                    link.stage = Stage::Open(key);
                    self.dirty.push(id);
                    self.take_up(key);
                }
                Ok(Some(_)) | Err(_) => self.refuse(id, key, "it was not accepted"),
            },
            Stage::Connecting(key) => match link.socket.connected() {
                Ok(()) => {
                    link.stage = Stage::Open(key);
                    self.dirty.push(id);
                    self.take_up(key);
                }
                Err(error) => self.refuse(id, key, error),
            },
            _ => self.serve(id, Look { readable: ready.readable || ready.hangup, hangup: ready.hangup }),
        }
    }

    /// Offers the guest a connection as somebody asks who has just said so.
    fn welcome(&mut self, member: bool, greeting: Greeting) -> Option<Key> {
        match greeting {
            Greeting::Client { port } if !member => self.endpoint.connect(self.host_cid, port),
            Greeting::Member { port, cid, from } if member => {
                let key = Key { host_cid: cid.into(), host_port: from, guest_port: port };
                (self.endpoint.is_peer(cid.into()) && self.endpoint.connect_as(key)).then_some(key)
            }
            _ => None,
        }
    }

    /// Refuses a connection of the guest's whose socket came to nothing.
    fn refuse(&mut self, id: u64, key: Key, why: impl std::fmt::Display) {
        info!("vsock refused the guest's connection to port {} of CID {}: {why}", key.host_port, key.host_cid);
        self.by_key.remove(&key);
        self.remove_link(id);
        self.endpoint.reset(key);
    }

    /// Moves a link's data and watches it for what it waits for.
    fn serve(&mut self, id: u64, look: Look) {
        let Self { endpoint, links, scratch, surroundings, .. } = self;
        let Some(link) = links.get_mut(&id) else { return };
        let done = match link.stage {
            Stage::Open(key) => {
                link.exchange(key, endpoint, scratch, look);
                false
            }
            Stage::Draining(_) => link.drain(),
            Stage::Greeting { .. } | Stage::Introduced(..) | Stage::Connecting(_) | Stage::Offered { .. } => false,
        };
        if done {
            return self.remove_link(id);
        }
        let wanted = link.wanted(endpoint);
        if wanted != link.interest {
            link.interest = wanted;
            if let Err(error) = surroundings.events.set_interest(link.source, wanted) {
                error!("{error}");
            }
        }
    }

    fn watch(&self, source: SourceId, interest: Interest) {
        if let Err(error) = self.surroundings.events.set_interest(source, interest) {
            error!("{error}");
        }
    }

    fn go_offline(&mut self) {
        self.online = false;
        self.endpoint.clear();
        self.heartbeats.clear();
        self.by_key.clear();
        self.dirty.clear();
        self.offers.clear();
        self.greetings.clear();
        (self.pump_at, self.pump_due) = (None, false);
        let ids: Vec<_> = self.links.keys().copied().collect();
        ids.into_iter().for_each(|id| self.remove_link(id));
    }

    fn expect_heartbeat(&mut self) {
        let now = self.surroundings.clock.now_ns();
        let timeout = self.heartbeat.and_then(|heartbeat| heartbeat.timeout);
        self.heartbeat_deadline = timeout.map(|timeout| now.saturating_add(nanoseconds(timeout)));
        self.arm();
    }

    fn next_deadline(&self) -> Option<u64> {
        let offer = self.offers.front().map(|(deadline, _)| *deadline);
        let greeting = self.greetings.front().map(|(deadline, _)| *deadline);
        [offer, greeting, self.heartbeat_deadline, self.paused_until, self.pump_at].into_iter().flatten().min()
    }

    fn arm(&self) {
        if let Some(timer) = &self.timer {
            timer.arm(self.next_deadline());
        }
    }

    /// Does what is due, and says when to come again.
    fn tick(&mut self, now: u64) -> Option<u64> {
        while let Some((_, key)) = self.offers.pop_front_if(|(deadline, _)| *deadline <= now) {
            let id = self.by_key.get(&key).copied();
            let waiting = |link: &Link| matches!(link.stage, Stage::Offered { .. } | Stage::Introduced(..));
            if let Some(id) = id.filter(|id| self.links.get(id).is_some_and(waiting)) {
                self.refuse(id, key, "nobody answered");
            }
        }
        while let Some((_, id)) = self.greetings.pop_front_if(|(deadline, _)| *deadline <= now) {
            if self.links.get(&id).is_some_and(|link| matches!(link.stage, Stage::Greeting { .. })) {
                debug!("vsock turned a client away that did not say CONNECT <port> in time");
                self.remove_link(id);
            }
        }
        self.pump_due |= self.pump_at.take_if(|at| *at <= now).is_some();
        if self.paused_until.take_if(|until| *until <= now).is_some() {
            self.listening.iter().for_each(|listening| self.watch(listening.source, Interest::READ));
        }
        if self.heartbeat_deadline.take_if(|deadline| *deadline <= now).is_some() {
            let seconds = self.heartbeat.and_then(|heartbeat| heartbeat.timeout).unwrap_or_default().as_secs_f64();
            error!("the enclave gave no heartbeat on vsock port {HEARTBEAT_PORT} within {seconds} s");
            self.surroundings.power.request(PowerRequest::HeartbeatTimeout);
        }
        self.next_deadline()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let statistics = self.endpoint.statistics();
        info!(?statistics, "vsock ends");
        self.go_offline();
        for Listening { source, .. } in std::mem::take(&mut self.listening) {
            self.surroundings.events.remove_source(source);
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where the guest with this CID listens for others of its group.
fn member(group: &Path, cid: u64) -> PathBuf {
    group.join(format!("{cid}.sock"))
}

/// `PATH_<port>`, where the guest's connections to the host's port go.
fn with_port(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}
