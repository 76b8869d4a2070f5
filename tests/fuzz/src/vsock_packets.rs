//! A guest's vsock packets in any order with any contents, and a host's side that accepts, talks and closes at any time.
//!
//! The input is a program of steps, each an operation byte with its operands: 0 is a packet as bytes, 1 a packet that is mostly right, others are the host's.

use vsock::packet::{HEADER_LEN, Header, TYPE_STREAM};
use vsock::{Endpoint, Event, Key, MAX_CONNECTIONS, PARENT_CID, RECEIVE_BUFFER};

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "vsock-packets", seeds, run, longest: 2048 };

const GUEST: u64 = 16;
/// The most steps of one program, so that none takes long.
const MOST_STEPS: usize = 256;
/// What packets that are mostly right carry.
static PAYLOAD: [u8; 70_000] = [7; 70_000];

fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = input.split_first_chunk()?;
    *input = rest;
    Some(*bytes)
}

fn step(endpoint: &mut Endpoint, last: &mut Key, input: &mut &[u8]) -> Option<()> {
    let [operation] = take(input)?;
    let event = match operation % 8 {
        0 => {
            let header = Header::parse(&take::<HEADER_LEN>(input)?)?;
            endpoint.receive(&header, &PAYLOAD)
        }
        1 => {
            let [op, port, flags, credit, low, high] = take(input)?;
            let header = Header {
                src_cid: GUEST,
                dst_cid: u64::from(port >> 6),
                src_port: u32::from(port & 7),
                dst_port: if port & 8 == 0 { 9000 } else { (1 << 30) + u32::from(port >> 4 & 3) },
                len: u32::from(u16::from_le_bytes([low, high])),
                kind: TYPE_STREAM,
                op: op.into(),
                flags: flags.into(),
                buf_alloc: u32::from(credit) << 12,
                fwd_cnt: 0,
            };
            endpoint.receive(&header, &PAYLOAD)
        }
        2 => {
            *last = endpoint.connect(PARENT_CID, take::<1>(input)?[0].into()).unwrap_or(*last);
            None
        }
        3 => {
            let count = usize::from(u16::from_le_bytes(take(input)?));
            assert!(endpoint.send(*last, &PAYLOAD[..count]) <= count);
            None
        }
        4 => {
            endpoint.consume(*last, usize::from(u16::from_le_bytes(take(input)?)));
            None
        }
        5 => {
            endpoint.shut_down(*last, take::<1>(input)?[0].into());
            None
        }
        6 => {
            endpoint.reset(*last);
            None
        }
        _ => {
            transmit(endpoint, 1 + usize::from(u16::from_le_bytes(take(input)?)));
            None
        }
    };
    match event {
        Some(Event::Requested(key)) => {
            *last = key;
            endpoint.accept(key);
        }
        Some(Event::Established(key) | Event::Changed(key)) => *last = key,
        Some(Event::Closed(_, rest)) => assert!(rest.len() <= RECEIVE_BUFFER),
        None => {}
    }
    Some(())
}

/// Takes a packet for the guest, which must be one that the guest can use.
fn transmit(endpoint: &mut Endpoint, room: usize) {
    let mut packet = Vec::new();
    if endpoint.transmit(room, &mut packet).is_some() {
        let header = Header::parse(&packet).expect("a whole header");
        assert_eq!(packet.len(), HEADER_LEN + header.len as usize);
        assert!(header.len as usize <= room);
        assert!((1..=7).contains(&header.op), "{header:?}");
    }
}

fn run(mut input: &[u8]) {
    let mut endpoint = Endpoint::new(GUEST);
    endpoint.allow_peers();
    let mut last = Key { host_cid: PARENT_CID, host_port: 9000, guest_port: 1 };
    for _ in 0..MOST_STEPS {
        if step(&mut endpoint, &mut last, &mut input).is_none() {
            break;
        }
        while !endpoint.can_receive() {
            transmit(&mut endpoint, 4096);
        }
        assert!(endpoint.connections() <= MAX_CONNECTIONS);
        assert!(endpoint.incoming(last).0.len() <= RECEIVE_BUFFER);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut whole = vec![0];
    let request =
        Header { src_cid: GUEST, dst_cid: PARENT_CID, dst_port: 9000, kind: TYPE_STREAM, op: 1, ..Header::default() };
    request.write_to(&mut whole);
    // Request, data, shutdown of the guest's; then a connection of the host's that is accepted, sent to, and closed.
    let guests = vec![
        1, 1, 0xc1, 0, 16, 0, 0, 7, 255, 0, 1, 5, 0xc1, 0, 16, 100, 0, 4, 50, 0, 1, 4, 0xc1, 3, 16, 0, 0, 7, 255, 0,
    ];
    let hosts = vec![2, 1, 7, 255, 0, 1, 2, 0xc9, 0, 16, 0, 0, 3, 100, 0, 7, 255, 0, 5, 2, 7, 255, 0, 6, 7, 255, 0];
    vec![whole, guests, hosts]
}
