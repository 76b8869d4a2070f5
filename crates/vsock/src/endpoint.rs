//! All connections of one guest, as a state machine: packets of the guest's go in, packets for it come out, and the host's side opens, feeds, drains and closes.
//!
//! No socket, no queue, no clock. What the guest can make this hold is bounded: [`MAX_CONNECTIONS`] with two buffers each, and [`MAX_REPLIES`] resets, after which
//! the guest's packets have to wait ([`Endpoint::can_receive`]).

use std::collections::{HashMap, VecDeque};

use crate::connection::{Connection, State};
use crate::packet::{Header, TYPE_STREAM, op};

/// The CID by which guests of other machines know their host.
pub const HOST_CID: u64 = 2;
/// The CID by which an enclave knows its parent instance.
pub const PARENT_CID: u64 = 3;

/// Most connections that a guest can have.
pub const MAX_CONNECTIONS: usize = 1024;

/// Most resets that wait for the guest to give buffers for them.
pub const MAX_REPLIES: usize = 256;

/// First port that the host's side uses for connections of its own: far from those that people choose, as in Firecracker.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// A connection's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// As whom the guest knows the host: [`HOST_CID`] or [`PARENT_CID`]; or another guest's CID.
    pub host_cid: u64,
    /// The port there.
    pub host_port: u32,
    /// The guest's port.
    pub guest_port: u32,
}

/// What a packet of the guest's means to the host's side.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest wants this connection: [`Endpoint::accept`] it or [`Endpoint::reset`] it.
    Requested(Key),
    /// The guest accepted a connection of ours.
    Established(Key),
    /// There may be data, more room, or an end of the guest's sending or receiving.
    Changed(Key),
    /// The guest ended the connection, which is forgotten; what it had sent is still to be delivered.
    Closed(Key, VecDeque<u8>),
}

/// What has been counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections that came about.
    pub connections: u64,
    /// Requests that were refused, of either side.
    pub refused: u64,
    /// Packets that broke the rules or belonged to no connection.
    pub bad_packets: u64,
    /// Resets that the guest was sent, refusals among them, but for those that only confirm the end of a connection.
    pub resets: u64,
    /// How often data had to wait because the guest had no room for it.
    pub stalls_to_guest: u64,
    /// How often data had to wait because the host's side did not take it at once.
    pub stalls_from_guest: u64,
    /// The most connections that there were at a time.
    pub most_connections: u64,
    /// Bytes of data that the guest sent.
    pub bytes_from_guest: u64,
    /// Bytes of data that the guest was sent.
    pub bytes_to_guest: u64,
}

/// The host's end of a guest's connections.
#[derive(Debug)]
pub struct Endpoint {
    guest_cid: u64,
    connections: HashMap<Key, Connection>,
    /// Resets of what has no connection any more, or never had one.
    replies: VecDeque<Header>,
    /// Connections with something to send, in turn.
    ready: VecDeque<Key>,
    next_port: u32,
    /// CIDs beyond the host's are other guests', not nobody's.
    peers: bool,
    statistics: Statistics,
}

impl Endpoint {
    /// Nothing connected, for the guest `guest_cid`.
    pub fn new(guest_cid: u64) -> Self {
        Self {
            guest_cid,
            connections: HashMap::new(),
            replies: VecDeque::new(),
            ready: VecDeque::new(),
            next_port: FIRST_HOST_PORT,
            peers: false,
            statistics: Statistics::default(),
        }
    }

    /// Lets the guest connect to CIDs of other guests, not only to the host's two.
    pub fn allow_peers(&mut self) {
        self.peers = true;
    }

    /// Whether this can be another guest's CID.
    pub fn is_peer(&self, cid: u64) -> bool {
        self.peers && cid > PARENT_CID && cid < u64::from(u32::MAX) && cid != self.guest_cid
    }

    /// The guest's CID.
    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// What has been counted so far.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Whether the guest's next packet can be taken; if not, it has to take some of ours first.
    pub fn can_receive(&self) -> bool {
        // Connections that come and go leave entries behind in the list of those with something to send.
        self.replies.len() < MAX_REPLIES && self.ready.len() < 2 * MAX_CONNECTIONS
    }

    /// Takes a packet of the guest's.
    pub fn receive(&mut self, header: &Header, payload: &[u8]) -> Option<Event> {
        self.receive_and_deliver(header, payload, |_, _| 0)
    }

    /// Takes a packet of the guest's. Data that no other waits before is offered to `deliver`, which says how much of it the host has taken at once: that
    /// needs no copy here.
    pub fn receive_and_deliver(
        &mut self,
        header: &Header,
        payload: &[u8],
        deliver: impl FnOnce(Key, &[u8]) -> usize,
    ) -> Option<Event> {
        if header.src_cid != self.guest_cid {
            // Nobody to answer: the sender it names is not there.
            self.statistics.bad_packets += 1;
            return None;
        }
        let known = matches!(header.dst_cid, HOST_CID | PARENT_CID) || self.is_peer(header.dst_cid);
        if !known || header.kind != TYPE_STREAM {
            self.refuse(header);
            return None;
        }
        let key = Key { host_cid: header.dst_cid, host_port: header.dst_port, guest_port: header.src_port };
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.receive_first(key, header);
        };
        connection.note_credit(header);
        let event = match (connection.state, header.op) {
            (_, op::RST) => {
                self.statistics.refused += u64::from(connection.state != State::Established);
                self.close(key)
            }
            (State::Offered, op::RESPONSE) => {
                connection.state = State::Established;
                self.statistics.connections += 1;
                Some(Event::Established(key))
            }
            (State::Established, op::RW) => {
                let data = usize::try_from(header.len).ok().and_then(|len| payload.get(..len));
                match data.filter(|data| connection.push_incoming(data, |data| deliver(key, data))) {
                    Some(data) => {
                        self.statistics.bytes_from_guest += data.len() as u64;
                        self.statistics.stalls_from_guest += u64::from(!connection.incoming().0.is_empty());
                        Some(Event::Changed(key))
                    }
                    None => self.break_off(key, header),
                }
            }
            (State::Established, op::SHUTDOWN) if connection.guest_shuts_down(header.flags) => {
                // Linux waits for this answer, or eight seconds; it need not wait until the host's client has read everything.
                self.reply(header);
                self.close(key)
            }
            (State::Established, op::SHUTDOWN | op::CREDIT_UPDATE) => Some(Event::Changed(key)),
            (State::Established, op::CREDIT_REQUEST) => {
                connection.ask_for_credit_update();
                Some(Event::Changed(key))
            }
            _ => self.break_off(key, header),
        };
        self.schedule(key);
        event
    }

    /// A packet that belongs to no connection.
    fn receive_first(&mut self, key: Key, header: &Header) -> Option<Event> {
        if header.op != op::REQUEST {
            self.refuse(header);
            return None;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            self.statistics.refused += 1;
            self.statistics.resets += 1;
            self.reply(header);
            return None;
        }
        self.insert(key, Connection::requested(header));
        Some(Event::Requested(key))
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        self.connections.insert(key, connection);
        self.statistics.most_connections = self.statistics.most_connections.max(self.connections.len() as u64);
    }

    /// Resets what there is no connection for.
    fn refuse(&mut self, header: &Header) {
        // Resets cross with ours all the time, and are never answered.
        if header.op != op::RST {
            self.statistics.bad_packets += 1;
            self.statistics.resets += 1;
            self.reply(header);
        }
    }

    /// Resets a connection that the guest broke the rules of.
    fn break_off(&mut self, key: Key, header: &Header) -> Option<Event> {
        self.refuse(header);
        self.close(key)
    }

    fn close(&mut self, key: Key) -> Option<Event> {
        self.connections.remove(&key).map(|connection| Event::Closed(key, connection.into_incoming()))
    }

    /// Queues a reset in answer to `header`.
    fn reply(&mut self, header: &Header) {
        self.replies.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    fn schedule(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.queued
            && connection.next_op().is_some()
        {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Whether [`Endpoint::transmit`] has something.
    pub fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.ready.is_empty()
    }

    /// Appends the next packet for the guest to `out`, with at most `room` bytes of payload, which must not be 0. Connections take turns.
    /// Returns the connection that it is of, which may have more room now, or `None` inside for a reset.
    pub fn transmit(&mut self, room: usize, out: &mut Vec<u8>) -> Option<Option<Key>> {
        if let Some(reply) = self.replies.pop_front() {
            reply.write_to(out);
            return Some(None);
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else { continue };
            connection.queued = false;
            let Some(op) = connection.next_op() else { continue };
            let header = Header {
                src_cid: key.host_cid,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                ..Header::default()
            };
            self.statistics.stalls_to_guest += u64::from(op == op::CREDIT_REQUEST);
            self.statistics.bytes_to_guest += connection.emit(op, header, room, out) as u64;
            self.schedule(key);
            return Some(Some(key));
        }
        None
    }

    /// Opens a connection to a port of the guest's as `host_cid`, from a free port. `None` when there are too many.
    pub fn connect(&mut self, host_cid: u64, guest_port: u32) -> Option<Key> {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.statistics.refused += 1;
            return None;
        }
        loop {
            let key = Key { host_cid, host_port: self.next_port, guest_port };
            // The upper half of the ports, again and again, without VMADDR_PORT_ANY.
            self.next_port = if self.next_port >= u32::MAX - 1 { FIRST_HOST_PORT } else { self.next_port + 1 };
            if self.connect_as(key) {
                return Some(key);
            }
        }
    }

    /// Opens a connection to the guest under a name that another guest has chosen; false when there are too many or it is taken.
    pub fn connect_as(&mut self, key: Key) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS || self.connections.contains_key(&key) {
            return false;
        }
        self.insert(key, Connection::offered());
        self.schedule(key);
        true
    }

    /// Accepts a connection that the guest asked for.
    pub fn accept(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key).filter(|c| c.state == State::Requested) {
            connection.accept();
            self.statistics.connections += 1;
            self.schedule(key);
        }
    }

    /// Refuses or breaks off a connection.
    pub fn reset(&mut self, key: Key) {
        if let Some(connection) = self.connections.remove(&key) {
            self.statistics.refused += u64::from(connection.state != State::Established);
            self.statistics.resets += 1;
            self.replies.push_back(Header {
                src_cid: key.host_cid,
                dst_cid: self.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// How many bytes [`Endpoint::send`] takes now.
    pub fn room(&self, key: Key) -> usize {
        self.connections.get(&key).map_or(0, Connection::room)
    }

    /// Queues data for the guest, at most [`Endpoint::room`] bytes of it; returns how many.
    pub fn send(&mut self, key: Key, data: &[u8]) -> usize {
        let Some(connection) = self.connections.get_mut(&key) else { return 0 };
        let data = data.get(..connection.room()).unwrap_or(data);
        connection.push_outgoing(data);
        self.schedule(key);
        data.len()
    }

    /// Data of the guest's that waits for [`Endpoint::consume`], in two parts.
    pub fn incoming(&self, key: Key) -> (&[u8], &[u8]) {
        self.connections.get(&key).map_or((&[], &[]), Connection::incoming)
    }

    /// Gives back the room of `count` bytes that were delivered.
    pub fn consume(&mut self, key: Key, count: usize) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.consume(count);
            self.schedule(key);
        }
    }

    /// The host will not do this any more ([`crate::packet::shutdown`]). Data that waits for the guest is sent first; data of the guest's is dropped if nobody receives it.
    pub fn shut_down(&mut self, key: Key, flags: u32) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.host_shuts_down(flags);
            self.schedule(key);
        }
    }

    /// What the guest will not do any more ([`crate::packet::shutdown`]).
    pub fn guest_shutdown(&self, key: Key) -> u32 {
        self.connections.get(&key).map_or(0, |connection| connection.guest_shutdown)
    }

    /// Forgets everything but the statistics, as after a reset of the guest's driver.
    pub fn clear(&mut self) {
        let Self { guest_cid: _, connections, replies, ready, next_port: _, peers: _, statistics: _ } = self;
        connections.clear();
        replies.clear();
        ready.clear();
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
