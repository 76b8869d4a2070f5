//! The packet header that both directions share: virtio 1.3 section 5.10.6, 44 bytes, little-endian.
//!
//! DEVNOTE: rust-vmm's `virtio-vsock` parses packets too, but out of descriptor chains of `virtio-queue`, which the devices here never see unchecked;
//! wrapping our chains for it would be longer than the ten fields below.

/// Length of a header in bytes.
pub const HEADER_LEN: usize = 44;

/// `type` of a stream's packets, the only one here.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for (section 5.10.6, `enum virtio_vsock_op`).
pub mod op {
    /// Opens a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts one.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends one.
    pub const RST: u16 = 3;
    /// Says what the sender will not do any more; see [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Says how much room the sender has.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a [`CREDIT_UPDATE`].
    pub const CREDIT_REQUEST: u16 = 7;
}

/// `flags` of [`op::SHUTDOWN`] (section 5.10.6.6).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet's header, as it is written: nothing in it has been checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// To whom.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data that follow.
    pub len: u32,
    /// Stream, or what we do not know.
    pub kind: u16,
    /// One of [`op`], or what we do not know.
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// The sender's receive buffer for this connection in bytes.
    pub buf_alloc: u32,
    /// How many bytes the sender has taken out of that buffer so far; wraps.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        fn field<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (field, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(*field)
        }
        let bytes = &mut &*bytes;
        Some(Self {
            src_cid: u64::from_le_bytes(field(bytes)?),
            dst_cid: u64::from_le_bytes(field(bytes)?),
            src_port: u32::from_le_bytes(field(bytes)?),
            dst_port: u32::from_le_bytes(field(bytes)?),
            len: u32::from_le_bytes(field(bytes)?),
            kind: u16::from_le_bytes(field(bytes)?),
            op: u16::from_le_bytes(field(bytes)?),
            flags: u32::from_le_bytes(field(bytes)?),
            buf_alloc: u32::from_le_bytes(field(bytes)?),
            fwd_cnt: u32::from_le_bytes(field(bytes)?),
        })
    }

    /// Appends the header's bytes to `out`.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let Self { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt } = self;
        out.extend(src_cid.to_le_bytes());
        out.extend(dst_cid.to_le_bytes());
        out.extend(src_port.to_le_bytes());
        out.extend(dst_port.to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(op.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(buf_alloc.to_le_bytes());
        out.extend(fwd_cnt.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes: Vec<u8> = (1..=HEADER_LEN as u8).collect();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!((header.src_cid, header.kind, header.op), (0x0807_0605_0403_0201, 0x1e1d, 0x201f));
        let mut written = Vec::new();
        header.write_to(&mut written);
        assert_eq!(written, bytes);
    }

    #[test]
    fn a_short_header_is_none() {
        assert_eq!(Header::parse(&[0; HEADER_LEN - 1]), None);
    }
}
