//! What is said when there is no peer, or a wrong one.

use std::os::unix::net::UnixListener;
use std::thread;

use bus::MonotonicClock;
use event_loop::EventLoop;

use super::*;

fn events() -> EventLoop {
    EventLoop::start(Arc::new(MonotonicClock::start())).unwrap()
}

#[test]
fn without_a_peer_the_socket_is_named() {
    let events = events();
    let error = VhostUserVsock::connect(Path::new("no/such.sock"), 4, events.handle()).err().unwrap();
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
    let error = VhostUserVsock::connect(&path, 4, events().handle()).err().unwrap();
    assert!(matches!(error, VhostUserError::Handshake { what: "tell its features", .. }), "{error}");
    hangs_up.join().unwrap();
}
