//! One stream between a port of the guest and a port of the host: virtio 1.3 section 5.10.6.
//!
//! A connection is two bounded byte queues and the credit that both sides have given each other. What it wants to tell the guest next is worked out from its state
//! ([`Connection::next_op`]), never queued, so that nothing the guest does can make it longer.

use std::collections::VecDeque;

use crate::packet::{Header, op, shutdown};

/// Receive buffer that the guest is promised for each connection, in bytes: Linux's default.
pub const RECEIVE_BUFFER: usize = 256 << 10;

/// Most bytes of the host's that wait in a connection for the guest.
pub const SEND_BUFFER: usize = 256 << 10;

/// Largest payload that we send, in bytes: Linux's `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
const MAX_PAYLOAD: usize = 64 << 10;

/// The guest hears of room that it does not know of when there is as much as this, so that it need not stop.
const CREDIT_STEP: u32 = RECEIVE_BUFFER as u32 / 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The guest asked, the host has not answered.
    Requested,
    /// The host asks, the guest has not answered.
    Offered,
    Established,
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) state: State,
    /// From the host to the guest.
    outgoing: VecDeque<u8>,
    /// Bytes sent to the guest so far; wraps, as all counters of credit do.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// The guest was asked for credit since it last gave some.
    credit_asked: bool,
    /// From the guest to the host.
    incoming: VecDeque<u8>,
    /// Bytes that left `incoming` so far: our `fwd_cnt`.
    forwarded: u32,
    /// The `fwd_cnt` that the guest was last told.
    announced: u32,
    /// The REQUEST or RESPONSE is still to be sent.
    opening: bool,
    credit_wanted: bool,
    pub(crate) guest_shutdown: u32,
    host_shutdown: u32,
    host_shutdown_sent: u32,
    /// In the endpoint's list of connections with something to send.
    pub(crate) queued: bool,
}

impl Connection {
    fn new(state: State) -> Self {
        Self {
            state,
            outgoing: VecDeque::new(),
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            credit_asked: false,
            incoming: VecDeque::new(),
            forwarded: 0,
            announced: 0,
            opening: state == State::Offered,
            credit_wanted: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            host_shutdown_sent: 0,
            queued: false,
        }
    }

    /// One that the guest asked for.
    pub(crate) fn requested(request: &Header) -> Self {
        let mut this = Self::new(State::Requested);
        this.note_credit(request);
        this
    }

    /// One that the host asks for.
    pub(crate) fn offered() -> Self {
        Self::new(State::Offered)
    }

    /// The host accepted a requested connection.
    pub(crate) fn accept(&mut self) {
        self.state = State::Established;
        self.opening = true;
    }

    /// Every packet of the guest's says how much room it has.
    pub(crate) fn note_credit(&mut self, header: &Header) {
        if (header.buf_alloc, header.fwd_cnt) != (self.peer_buf_alloc, self.peer_fwd_cnt) {
            self.credit_asked = false;
        }
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
    }

    /// How many bytes the guest has room for. One that claims to have taken more than it was sent has none.
    fn credit(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    /// Takes data of the guest's; false when it is more than the guest had credit for. What nothing waits before is offered to `deliver`, which says how
    /// much of it the host has taken at once.
    pub(crate) fn push_incoming(&mut self, data: &[u8], deliver: impl FnOnce(&[u8]) -> usize) -> bool {
        if self.host_shutdown & shutdown::RECEIVE != 0 {
            // Nobody will read it, but the guest may have sent it before it heard of that.
            self.forwarded = self.forwarded.wrapping_add(data.len() as u32);
            return true;
        }
        if self.incoming.len() + data.len() > RECEIVE_BUFFER {
            return false;
        }
        let delivered = if self.incoming.is_empty() { deliver(data).min(data.len()) } else { 0 };
        self.forwarded = self.forwarded.wrapping_add(delivered as u32);
        self.incoming.extend(data.get(delivered..).unwrap_or_default());
        true
    }

    /// What the guest sent and nobody took yet.
    pub(crate) fn incoming(&self) -> (&[u8], &[u8]) {
        self.incoming.as_slices()
    }

    /// The same, for good.
    pub(crate) fn into_incoming(self) -> VecDeque<u8> {
        self.incoming
    }

    /// The host took `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.incoming.len());
        self.incoming.drain(..count);
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.incoming.is_empty() && self.incoming.capacity() > 2 * RECEIVE_BUFFER {
            self.incoming.shrink_to(RECEIVE_BUFFER);
        }
    }

    /// How many bytes the host may hand in.
    pub(crate) fn room(&self) -> usize {
        let open = self.state == State::Established
            && self.guest_shutdown & shutdown::RECEIVE == 0
            && self.host_shutdown & shutdown::SEND == 0;
        if open { SEND_BUFFER.saturating_sub(self.outgoing.len()) } else { 0 }
    }

    pub(crate) fn push_outgoing(&mut self, data: &[u8]) {
        self.outgoing.extend(data);
    }

    /// The guest will do no more of this; true when it will do nothing any more.
    pub(crate) fn guest_shuts_down(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown & shutdown::RECEIVE != 0 {
            self.outgoing.clear();
        }
        self.guest_shutdown == shutdown::BOTH
    }

    /// The host will do no more of this. What waits for the guest is still sent.
    pub(crate) fn host_shuts_down(&mut self, flags: u32) {
        self.host_shutdown |= flags & shutdown::BOTH;
        if self.host_shutdown & shutdown::RECEIVE != 0 {
            let waiting = self.incoming.len();
            self.consume(waiting);
        }
    }

    pub(crate) fn ask_for_credit_update(&mut self) {
        self.credit_wanted = true;
    }

    /// Whether the guest knows so little of the room that there is that it may soon stop for nothing.
    fn credit_is_due(&self) -> bool {
        self.credit_wanted || self.forwarded.wrapping_sub(self.announced) >= CREDIT_STEP
    }

    /// What may be said of the host's shutdown now: that it sends no more only once everything is sent.
    fn shutdown_due(&self) -> u32 {
        let sayable = if self.outgoing.is_empty() { shutdown::BOTH } else { shutdown::RECEIVE };
        self.host_shutdown & sayable & !self.host_shutdown_sent
    }

    /// The operation of the next packet to the guest, if there is anything to say.
    pub(crate) fn next_op(&self) -> Option<u16> {
        match self.state {
            State::Requested => None,
            State::Offered => self.opening.then_some(op::REQUEST),
            State::Established if self.opening => Some(op::RESPONSE),
            State::Established if !self.outgoing.is_empty() && self.credit() > 0 => Some(op::RW),
            State::Established if self.shutdown_due() != 0 => Some(op::SHUTDOWN),
            State::Established if self.credit_is_due() => Some(op::CREDIT_UPDATE),
            State::Established if !self.outgoing.is_empty() && !self.credit_asked => Some(op::CREDIT_REQUEST),
            State::Established => None,
        }
    }

    /// Completes `header` with operation `op` and appends the packet, of at most `room` bytes of payload, to `out`; returns the bytes of payload.
    pub(crate) fn emit(&mut self, op: u16, mut header: Header, room: usize, out: &mut Vec<u8>) -> usize {
        let mut payload = 0;
        match op {
            op::REQUEST | op::RESPONSE => self.opening = false,
            op::RW => payload = self.outgoing.len().min(self.credit()).min(room).min(MAX_PAYLOAD),
            op::SHUTDOWN => {
                self.host_shutdown_sent |= self.shutdown_due();
                header.flags = self.host_shutdown_sent;
            }
            op::CREDIT_REQUEST => self.credit_asked = true,
            _ => {}
        }
        self.credit_wanted = false;
        self.announced = self.forwarded;
        header.op = op;
        header.len = payload as u32;
        header.buf_alloc = RECEIVE_BUFFER as u32;
        header.fwd_cnt = self.forwarded;
        header.write_to(out);
        let (first, second) = self.outgoing.as_slices();
        let (first, rest) = (&first[..payload.min(first.len())], payload.saturating_sub(first.len()));
        out.extend_from_slice(first);
        out.extend_from_slice(&second[..rest.min(second.len())]);
        self.outgoing.drain(..payload);
        self.sent = self.sent.wrapping_add(payload as u32);
        payload
    }

    /// Moves the counter to where a long transfer would have brought it.
    #[cfg(test)]
    pub(crate) fn pretend_sent(&mut self, sent: u32) {
        self.sent = sent;
        self.peer_fwd_cnt = sent;
    }
}
