//! The header of every packet (virtio 1.2 §5.10.6).

/// The host's address.
pub(super) const HOST_CID: u64 = 2;
pub(super) const HEADER_BYTES: usize = 44;
pub(super) const TYPE_STREAM: u16 = 1;

pub(super) const OP_REQUEST: u16 = 1;
pub(super) const OP_RESPONSE: u16 = 2;
pub(super) const OP_RESET: u16 = 3;
pub(super) const OP_SHUTDOWN: u16 = 4;
pub(super) const OP_DATA: u16 = 5;
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// `OP_SHUTDOWN`: the sender will receive nothing more.
pub(super) const NO_RECEIVE: u32 = 1;
/// `OP_SHUTDOWN`: the sender will send nothing more.
pub(super) const NO_SEND: u32 = 2;

/// A packet's header, in the machine's own byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut at = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(at.take()),
            dst_cid: u64::from_le_bytes(at.take()),
            src_port: u32::from_le_bytes(at.take()),
            dst_port: u32::from_le_bytes(at.take()),
            len: u32::from_le_bytes(at.take()),
            kind: u16::from_le_bytes(at.take()),
            op: u16::from_le_bytes(at.take()),
            flags: u32::from_le_bytes(at.take()),
            buf_alloc: u32::from_le_bytes(at.take()),
            fwd_cnt: u32::from_le_bytes(at.take()),
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        bytes.extend(self.src_port.to_le_bytes());
        bytes.extend(self.dst_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field; the sizes of all fields add up to the header's.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST_CID,
            src_port: 0x0102_0304,
            dst_port: 1024,
            len: 9,
            kind: TYPE_STREAM,
            op: OP_DATA,
            flags: 1,
            buf_alloc: 0x1122_3344,
            fwd_cnt: u32::MAX,
        };
        let bytes: [u8; HEADER_BYTES] = header.to_bytes().try_into().unwrap();
        assert_eq!(Header::parse(&bytes), header);
    }
}
