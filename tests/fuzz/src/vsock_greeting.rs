//! The line that opens a connection on a vsock's Unix sockets.

use vsock::Greeting;

use crate::Target;

pub(crate) const TARGET: Target = Target { name: "vsock-greeting", seeds, run, longest: 64 };

fn run(input: &[u8]) {
    // What is understood can be said, and is then understood alike.
    let Some(greeting) = Greeting::parse(input) else { return };
    let said = match greeting {
        Greeting::Client { port } => format!("CONNECT {port}\n"),
        Greeting::Member { port, cid, from } => format!("CONNECT {port} FROM {cid}:{from}\n"),
        Greeting::Accepted => "OK 1\n".to_owned(),
    };
    assert_eq!(Greeting::parse(said.as_bytes()), Some(greeting));
}

fn seeds() -> Vec<Vec<u8>> {
    ["CONNECT 5000\n", "connect 4294967295\r\n", "CONNECT 5000 FROM 16:1024\n", "OK 1073741824\n"]
        .map(|line| line.as_bytes().to_vec())
        .into()
}
