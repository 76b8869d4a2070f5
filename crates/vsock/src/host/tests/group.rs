//! Guests that reach each other by CID through a directory of sockets.

use super::*;

/// Two members with guests played by tests, of CIDs 16 and 17, in one directory.
fn pair() -> (TempDir, (Bench, Guest), (Bench, Guest)) {
    let directory = tempfile::tempdir().unwrap();
    let group = directory.path().to_owned();
    let member = |cid| {
        Bench::new(|options, _| {
            options.guest_cid = cid;
            options.group = Some(group.clone());
        })
    };
    let (first, second) = (member(16), member(17));
    (directory, first, second)
}

fn from(cid: u64, header: Header) -> Header {
    Header { src_cid: cid, ..header }
}

#[test]
fn a_guest_talks_to_another_by_its_cid() {
    let (_directory, (_first, a), (_second, b)) = pair();
    let at_a = Key { host_cid: 17, host_port: 5000, guest_port: 777 };
    let at_b = Key { host_cid: 16, host_port: 777, guest_port: 5000 };
    a.send(Guest::packet(at_a, op::REQUEST), &[]);
    let (request, _) = b.expect(op::REQUEST);
    assert_eq!((request.src_cid, request.src_port, request.dst_cid, request.dst_port), (16, 777, 17, 5000));
    b.send(from(17, Guest::packet(at_b, op::RESPONSE)), &[]);
    a.expect(op::RESPONSE);
    a.send(Guest::packet(at_a, op::RW), b"hello");
    assert_eq!(b.expect(op::RW).1, b"hello");
    b.send(from(17, Guest::packet(at_b, op::RW)), b"good day");
    assert_eq!(a.expect(op::RW).1, b"good day");
    b.send(from(17, Header { flags: shutdown::BOTH, ..Guest::packet(at_b, op::SHUTDOWN) }), &[]);
    assert_eq!(a.expect(op::SHUTDOWN).0.flags & shutdown::SEND, shutdown::SEND);
}

#[test]
fn a_guest_that_refuses_and_one_that_is_not_there_reset_the_connection() {
    let (_directory, (_first, a), (second, b)) = pair();
    let key = Key { host_cid: 17, host_port: 5000, guest_port: 777 };
    a.send(Guest::packet(key, op::REQUEST), &[]);
    let request = b.expect(op::REQUEST).0;
    let back = Key { host_cid: 16, host_port: request.src_port, guest_port: request.dst_port };
    b.send(from(17, Guest::packet(back, op::RST)), &[]);
    a.expect(op::RST);
    drop((b, second));
    for cid in [17, 99, 16, u64::from(u32::MAX), 1 << 40] {
        a.send(Guest::packet(Key { host_cid: cid, ..key }, op::REQUEST), &[]);
        assert_eq!(a.expect(op::RST).0.src_cid, cid);
    }
}

#[test]
fn a_member_that_claims_a_cid_that_is_no_other_guests_is_turned_away() {
    let (directory, (_first, a), (_second, _b)) = pair();
    for line in ["CONNECT 5000\n", "CONNECT 5000 FROM 2:1\n", "CONNECT 5000 FROM 3:1\n", "CONNECT 5000 FROM 16:1\n"] {
        let mut liar = UnixStream::connect(directory.path().join("16.sock")).unwrap();
        liar.set_read_timeout(Some(PATIENCE)).unwrap();
        liar.write_all(line.as_bytes()).unwrap();
        assert_eq!(liar.read(&mut [0; 1]).unwrap(), 0, "{line}");
    }
    assert!(a.try_receive().is_none());
}

#[test]
fn a_client_of_the_hybrid_socket_cannot_speak_for_another_guest() {
    let (_directory, (first, a), (_second, _b)) = pair();
    let mut liar = first.client();
    liar.write_all(b"CONNECT 5000 FROM 17:9\n").unwrap();
    assert_eq!(liar.read(&mut [0; 1]).unwrap(), 0);
    assert!(a.try_receive().is_none());
}

#[test]
fn without_a_group_another_guests_cid_is_refused() {
    let (_bench, guest) = Bench::new(|_, _| {});
    let key = Key { host_cid: 17, host_port: 5000, guest_port: 777 };
    guest.send(Guest::packet(key, op::REQUEST), &[]);
    guest.expect(op::RST);
}
