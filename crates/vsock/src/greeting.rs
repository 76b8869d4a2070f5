//! The line that opens a connection on a Unix socket: Firecracker's `CONNECT <port>`, and what members of a group add to it.

/// What such a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// `CONNECT <port>`: a client of the hybrid socket wants this port of the guest's.
    Client {
        /// The guest's port.
        port: u32,
    },
    /// `CONNECT <port> FROM <cid>:<port>`: another guest of the group does.
    Member {
        /// The guest's port.
        port: u32,
        /// The other guest.
        cid: u32,
        /// Its port.
        from: u32,
    },
    /// `OK <port>`: another guest of the group has accepted.
    Accepted,
}

impl Greeting {
    /// What `line` says, if it is one.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let words: Vec<&str> = std::str::from_utf8(line).ok()?.split_ascii_whitespace().collect();
        match *words.as_slice() {
            [connect, port] if connect.eq_ignore_ascii_case("connect") => {
                Some(Self::Client { port: port.parse().ok()? })
            }
            [connect, port, "FROM", other] if connect.eq_ignore_ascii_case("connect") => {
                let (cid, from) = other.split_once(':')?;
                Some(Self::Member { port: port.parse().ok()?, cid: cid.parse().ok()?, from: from.parse().ok()? })
            }
            ["OK", port] => port.parse::<u32>().ok().map(|_| Self::Accepted),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_connect_with_one_port_is_a_greeting() {
        assert_eq!(Greeting::parse(b"CONNECT 52\n"), Some(Greeting::Client { port: 52 }));
        assert_eq!(Greeting::parse(b"connect 4294967294\r\n"), Some(Greeting::Client { port: u32::MAX - 1 }));
        assert_eq!(Greeting::parse(b"CONNECT 52 FROM 16:7\n"), Some(Greeting::Member { port: 52, cid: 16, from: 7 }));
        for line in [
            &b"CONNECT\n"[..],
            b"CONNECT 1 2\n",
            b"CONNECT x\n",
            b"GET / HTTP/1.1\n",
            b"\xff 1\n",
            b"CONNECT -1\n",
            b"OK\n",
            b"CONNECT 5 FROM 7\n",
        ] {
            assert_eq!(Greeting::parse(line), None);
        }
    }
}
