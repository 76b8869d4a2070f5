//! A guest in the tests' hands: packets in, packets out.

use super::*;
use crate::packet::{HEADER_LEN, shutdown};
use crate::{RECEIVE_BUFFER, SEND_BUFFER};

const GUEST: u64 = 16;
const KEY: Key = Key { host_cid: PARENT_CID, host_port: 9000, guest_port: 1234 };
/// What the tests' guest says its buffer holds.
const BUFFER: u32 = 1000;

fn packet(op: u16) -> Header {
    Header {
        src_cid: GUEST,
        dst_cid: KEY.host_cid,
        src_port: KEY.guest_port,
        dst_port: KEY.host_port,
        kind: TYPE_STREAM,
        op,
        buf_alloc: BUFFER,
        ..Header::default()
    }
}

fn data(payload: &[u8]) -> Header {
    Header { len: payload.len() as u32, ..packet(op::RW) }
}

/// The next packet for the guest.
fn next(endpoint: &mut Endpoint) -> Option<(Header, Vec<u8>)> {
    let mut bytes = Vec::new();
    endpoint.transmit(4096, &mut bytes)?;
    let header = Header::parse(&bytes).unwrap();
    let payload = bytes.split_off(HEADER_LEN);
    assert_eq!(payload.len(), header.len as usize);
    Some((header, payload))
}

fn ops(endpoint: &mut Endpoint) -> Vec<u16> {
    std::iter::from_fn(|| next(endpoint)).map(|(header, _)| header.op).collect()
}

/// An endpoint with one connection that the guest opened.
fn connected() -> Endpoint {
    let mut endpoint = Endpoint::new(GUEST);
    assert_eq!(endpoint.receive(&packet(op::REQUEST), &[]), Some(Event::Requested(KEY)));
    endpoint.accept(KEY);
    assert_eq!(ops(&mut endpoint), [op::RESPONSE]);
    endpoint
}

#[test]
fn a_request_is_answered_from_the_address_it_went_to() {
    for host_cid in [HOST_CID, PARENT_CID] {
        let mut endpoint = Endpoint::new(GUEST);
        let key = Key { host_cid, ..KEY };
        let request = Header { dst_cid: host_cid, ..packet(op::REQUEST) };
        assert_eq!(endpoint.receive(&request, &[]), Some(Event::Requested(key)));
        assert!(!endpoint.has_packets(), "nothing is said before the host knows");
        endpoint.accept(key);
        let (header, _) = next(&mut endpoint).unwrap();
        assert_eq!((header.op, header.src_cid, header.dst_cid), (op::RESPONSE, host_cid, GUEST));
        assert_eq!((header.src_port, header.dst_port, header.kind), (9000, 1234, TYPE_STREAM));
        assert_eq!((header.buf_alloc as usize, header.fwd_cnt), (RECEIVE_BUFFER, 0));
    }
}

#[test]
fn a_request_that_the_host_refuses_is_reset() {
    let mut endpoint = Endpoint::new(GUEST);
    endpoint.receive(&packet(op::REQUEST), &[]);
    endpoint.reset(KEY);
    assert_eq!(ops(&mut endpoint), [op::RST]);
    assert_eq!((endpoint.connections(), endpoint.statistics().refused), (0, 1));
}

#[test]
fn a_connection_of_the_hosts_is_offered_and_established_by_the_guest() {
    let mut endpoint = Endpoint::new(GUEST);
    let key = endpoint.connect(PARENT_CID, 5000).unwrap();
    assert_eq!((key.guest_port, endpoint.room(key)), (5000, 0));
    assert_eq!(ops(&mut endpoint), [op::REQUEST]);
    let response = Header { src_port: 5000, dst_port: key.host_port, ..packet(op::RESPONSE) };
    assert_eq!(endpoint.receive(&response, &[]), Some(Event::Established(key)));
    assert_eq!(endpoint.room(key), SEND_BUFFER);
    assert_ne!(endpoint.connect(PARENT_CID, 5000), Some(key), "each has a port of its own");
}

#[test]
fn a_guest_that_refuses_closes_the_offer() {
    let mut endpoint = Endpoint::new(GUEST);
    let key = endpoint.connect(PARENT_CID, 5000).unwrap();
    ops(&mut endpoint);
    let reset = Header { src_port: 5000, dst_port: key.host_port, ..packet(op::RST) };
    assert_eq!(endpoint.receive(&reset, &[]), Some(Event::Closed(key, VecDeque::new())));
    assert_eq!(ops(&mut endpoint), [] as [u16; 0], "a reset is never answered");
}

#[test]
fn data_to_the_guest_stops_at_its_credit_and_asks_once_for_more() {
    let mut endpoint = connected();
    assert_eq!(endpoint.send(KEY, &[7; 1500]), 1500);
    let (header, payload) = next(&mut endpoint).unwrap();
    assert_eq!((header.op, payload.len()), (op::RW, BUFFER as usize));
    assert_eq!(ops(&mut endpoint), [op::CREDIT_REQUEST]);
    assert!(!endpoint.has_packets());
    endpoint.receive(&Header { fwd_cnt: 400, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(next(&mut endpoint).unwrap().1.len(), 400);
    endpoint.receive(&Header { fwd_cnt: 1400, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(next(&mut endpoint).unwrap().1.len(), 100);
}

#[test]
fn credit_counts_wrap() {
    let mut endpoint = connected();
    let sent = u32::MAX - 10;
    endpoint.connections.get_mut(&KEY).unwrap().pretend_sent(sent);
    endpoint.receive(&Header { fwd_cnt: sent, ..packet(op::CREDIT_UPDATE) }, &[]);
    endpoint.send(KEY, &[1; 100]);
    assert_eq!(next(&mut endpoint).unwrap().1.len(), 100);
    endpoint.receive(&Header { buf_alloc: 100, fwd_cnt: sent.wrapping_add(60), ..packet(op::CREDIT_UPDATE) }, &[]);
    endpoint.send(KEY, &[1; 100]);
    assert_eq!(next(&mut endpoint).unwrap().1.len(), 60);
}

#[test]
fn a_guest_that_lies_about_its_credit_gets_nothing_more() {
    let mut endpoint = connected();
    endpoint.receive(&Header { fwd_cnt: 5, ..packet(op::CREDIT_UPDATE) }, &[]);
    endpoint.send(KEY, b"data");
    assert_eq!(ops(&mut endpoint), [op::CREDIT_REQUEST], "it took five bytes that were never sent");
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut endpoint = connected();
    let piece = vec![1; 64 << 10];
    for _ in 0..RECEIVE_BUFFER / piece.len() {
        assert_eq!(endpoint.receive(&data(&piece), &piece), Some(Event::Changed(KEY)));
    }
    let Some(Event::Closed(KEY, rest)) = endpoint.receive(&data(b"x"), b"x") else { panic!("closed") };
    assert_eq!(rest.len(), RECEIVE_BUFFER, "what it sent before is still delivered");
    assert_eq!(ops(&mut endpoint), [op::RST]);
}

#[test]
fn room_that_the_host_made_is_announced_in_time() {
    let mut endpoint = connected();
    let piece = vec![1; RECEIVE_BUFFER];
    endpoint.receive(&data(&piece), &piece);
    endpoint.consume(KEY, RECEIVE_BUFFER / 2 - 1);
    assert!(!endpoint.has_packets(), "not for little");
    endpoint.consume(KEY, 1);
    let (header, _) = next(&mut endpoint).unwrap();
    assert_eq!((header.op, header.fwd_cnt as usize), (op::CREDIT_UPDATE, RECEIVE_BUFFER / 2));
    assert!(!endpoint.has_packets());
    endpoint.receive(&packet(op::CREDIT_REQUEST), &[]);
    assert_eq!(ops(&mut endpoint), [op::CREDIT_UPDATE]);
}

#[test]
fn a_guest_that_is_done_sending_still_receives() {
    let mut endpoint = connected();
    endpoint.receive(&data(b"question"), b"question");
    let done = Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN) };
    assert_eq!(endpoint.receive(&done, &[]), Some(Event::Changed(KEY)));
    assert_eq!((endpoint.guest_shutdown(KEY), endpoint.incoming(KEY).0), (shutdown::SEND, &b"question"[..]));
    endpoint.send(KEY, b"answer");
    assert_eq!(next(&mut endpoint).unwrap().1, b"answer");
}

#[test]
fn the_end_of_the_hosts_data_follows_the_data() {
    let mut endpoint = connected();
    endpoint.send(KEY, &[1; 1500]);
    endpoint.shut_down(KEY, shutdown::SEND);
    assert_eq!((endpoint.room(KEY), ops(&mut endpoint)), (0, vec![op::RW, op::CREDIT_REQUEST]));
    endpoint.receive(&Header { fwd_cnt: 1000, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(next(&mut endpoint).unwrap().1.len(), 500);
    let (header, _) = next(&mut endpoint).unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, shutdown::SEND));
    endpoint.receive(&data(b"late"), b"late");
    assert_eq!(endpoint.incoming(KEY).0, b"late", "the guest may go on");
    assert!(!endpoint.has_packets());
}

#[test]
fn a_host_that_is_gone_says_so_at_once_and_drops_what_comes() {
    let mut endpoint = connected();
    endpoint.send(KEY, &[1; 1500]);
    endpoint.shut_down(KEY, shutdown::RECEIVE);
    let flags = |(header, _): (Header, Vec<u8>)| (header.op, header.flags);
    assert_eq!(next(&mut endpoint).map(flags), Some((op::RW, 0)));
    assert_eq!(next(&mut endpoint).map(flags), Some((op::SHUTDOWN, shutdown::RECEIVE)));
    endpoint.receive(&data(&[2; 100]), &[2; 100]);
    assert_eq!(endpoint.incoming(KEY).0, b"");
    endpoint.shut_down(KEY, shutdown::SEND);
    endpoint.receive(&Header { fwd_cnt: 1000, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(next(&mut endpoint).map(flags), Some((op::RW, 0)));
    assert_eq!(next(&mut endpoint).map(flags), Some((op::SHUTDOWN, shutdown::BOTH)));
    assert_eq!(endpoint.receive(&packet(op::RST), &[]), Some(Event::Closed(KEY, VecDeque::new())));
}

#[test]
fn a_guest_that_closes_is_answered_at_once_and_its_last_words_are_kept() {
    let mut endpoint = connected();
    endpoint.receive(&data(b"bye"), b"bye");
    endpoint.send(KEY, b"lost");
    let close = Header { flags: shutdown::BOTH, ..packet(op::SHUTDOWN) };
    assert_eq!(endpoint.receive(&close, &[]), Some(Event::Closed(KEY, VecDeque::from(*b"bye"))));
    assert_eq!(ops(&mut endpoint), [op::RST]);
}

#[test]
fn two_halves_of_a_shutdown_are_a_whole_one() {
    let mut endpoint = connected();
    endpoint.receive(&Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN) }, &[]);
    let second = endpoint.receive(&Header { flags: shutdown::RECEIVE, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(second, Some(Event::Closed(KEY, VecDeque::new())));
}

#[test]
fn what_belongs_to_no_connection_is_reset_unless_it_is_a_reset() {
    let mut endpoint = Endpoint::new(GUEST);
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 77] {
        assert_eq!(endpoint.receive(&packet(op), &[]), None);
        assert_eq!(ops(&mut endpoint), [op::RST], "operation {op}");
    }
    assert_eq!(endpoint.receive(&packet(op::RST), &[]), None);
    assert!(!endpoint.has_packets());
}

#[test]
fn foreign_addresses_and_types_are_reset_and_forged_senders_are_dropped() {
    let mut endpoint = Endpoint::new(GUEST);
    for dst_cid in [0, 1, 4, GUEST, u32::MAX.into(), u64::MAX, PARENT_CID | 1 << 32] {
        assert_eq!(endpoint.receive(&Header { dst_cid, ..packet(op::REQUEST) }, &[]), None);
        let (header, _) = next(&mut endpoint).unwrap();
        assert_eq!((header.op, header.src_cid, header.dst_cid), (op::RST, dst_cid, GUEST));
    }
    assert_eq!(endpoint.receive(&Header { kind: 2, ..packet(op::REQUEST) }, &[]), None);
    let (header, _) = next(&mut endpoint).unwrap();
    assert_eq!((header.op, header.kind), (op::RST, 2), "a reset of the same type");
    assert_eq!(endpoint.receive(&Header { src_cid: 17, ..packet(op::REQUEST) }, &[]), None);
    assert!(!endpoint.has_packets());
    assert_eq!(endpoint.connections(), 0);
}

#[test]
fn a_length_beyond_the_packet_and_an_operation_out_of_turn_reset_the_connection() {
    let breaks: [fn() -> Header; 4] =
        [|| Header { len: 5, ..packet(op::RW) }, || packet(op::REQUEST), || packet(op::RESPONSE), || packet(99)];
    for header in breaks {
        let mut endpoint = connected();
        assert_eq!(endpoint.receive(&header(), b"four"), Some(Event::Closed(KEY, VecDeque::new())));
        assert_eq!(ops(&mut endpoint), [op::RST]);
    }
    let mut endpoint = Endpoint::new(GUEST);
    endpoint.receive(&packet(op::REQUEST), &[]);
    let early = endpoint.receive(&data(b"x"), b"x");
    assert_eq!(early, Some(Event::Closed(KEY, VecDeque::new())), "data before the answer");
}

#[test]
fn connections_take_turns() {
    let mut endpoint = Endpoint::new(GUEST);
    let keys: Vec<_> = (1..=3).map(|guest_port| Key { guest_port, ..KEY }).collect();
    for key in &keys {
        endpoint.receive(&Header { src_port: key.guest_port, buf_alloc: 1 << 20, ..packet(op::REQUEST) }, &[]);
        endpoint.accept(*key);
        endpoint.send(*key, &[0; 10_000]);
    }
    let order: Vec<_> = std::iter::from_fn(|| next(&mut endpoint)).map(|(header, _)| header.dst_port).collect();
    assert_eq!(order[..9], [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[test]
fn what_a_guest_can_make_us_hold_is_bounded() {
    let mut endpoint = Endpoint::new(GUEST);
    for src_port in 0..3 * MAX_CONNECTIONS as u32 {
        if endpoint.can_receive() {
            endpoint.receive(&Header { src_port, ..packet(op::REQUEST) }, &[]);
        }
    }
    assert_eq!((endpoint.connections(), endpoint.can_receive()), (MAX_CONNECTIONS, false));
    assert_eq!(ops(&mut endpoint).len(), MAX_REPLIES);
    assert!(endpoint.can_receive());
    assert_eq!(endpoint.connect(PARENT_CID, 1), None);
    // Opened, accepted and dropped again and again without ever fetching a packet.
    let mut endpoint = Endpoint::new(GUEST);
    let mut rounds = 0;
    while endpoint.can_receive() {
        endpoint.receive(&packet(op::REQUEST), &[]);
        endpoint.accept(KEY);
        endpoint.receive(&packet(op::RST), &[]);
        rounds += 1;
        assert!(rounds < 100_000);
    }
}

#[test]
fn a_reset_driver_finds_nothing_of_its_last_life() {
    let mut endpoint = connected();
    endpoint.send(KEY, b"data");
    endpoint.clear();
    assert_eq!((endpoint.connections(), endpoint.has_packets()), (0, false));
    assert_eq!(endpoint.receive(&packet(op::RW), &[]), None);
}

#[test]
fn arbitrary_packets_never_panic_and_never_pile_up() {
    // A linear congruential generator (Knuth's MMIX), so that a failure repeats.
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut endpoint = Endpoint::new(GUEST);
    let payload = vec![5; 70_000];
    for _ in 0..200_000 {
        let pick = |value: u64, lie: u64| if value < 15 { None } else { Some(lie) };
        let header = Header {
            src_cid: pick(random(16), random(u64::MAX)).unwrap_or(GUEST),
            dst_cid: pick(random(16), random(6)).unwrap_or(PARENT_CID),
            src_port: random(8) as u32,
            dst_port: (if random(2) == 0 { 9000 } else { FIRST_HOST_PORT as u64 + random(40) }) as u32,
            len: pick(random(16), random(1 << 32)).unwrap_or_else(|| random(60_000)) as u32,
            kind: pick(random(16), random(4)).unwrap_or(TYPE_STREAM.into()) as u16,
            op: random(9) as u16,
            flags: random(5) as u32,
            buf_alloc: pick(random(8), random(1 << 32)).unwrap_or(100_000) as u32,
            fwd_cnt: pick(random(8), random(1 << 32)).unwrap_or_else(|| random(100_000)) as u32,
        };
        match endpoint.receive(&header, &payload[..random(payload.len() as u64) as usize]) {
            Some(Event::Requested(key)) if random(4) == 0 => endpoint.reset(key),
            Some(Event::Requested(key)) => endpoint.accept(key),
            Some(Event::Established(key) | Event::Changed(key)) => {
                endpoint.send(key, &payload[..random(20_000) as usize]);
                endpoint.consume(key, random(100_000) as usize);
                if random(20) == 0 {
                    endpoint.shut_down(key, random(4) as u32);
                }
            }
            Some(Event::Closed(..)) | None => {}
        }
        if random(10) == 0 {
            endpoint.connect(PARENT_CID, random(8) as u32);
        }
        while !endpoint.can_receive() || random(3) == 0 {
            let mut out = Vec::new();
            if endpoint.transmit(1 + random(5000) as usize, &mut out).is_none() {
                break;
            }
            let header = Header::parse(&out).unwrap();
            assert_eq!(out.len(), HEADER_LEN + header.len as usize);
        }
        assert!(endpoint.connections() <= MAX_CONNECTIONS);
    }
}
