//! Requests of a block driver (virtio 1.2 §5.2.6).

pub(super) const F_SEG_MAX: u64 = 1 << 2;
pub(super) const F_READ_ONLY: u64 = 1 << 5;
pub(super) const F_FLUSH: u64 = 1 << 9;

pub(super) const STATUS_OK: u8 = 0;
pub(super) const STATUS_IO_ERROR: u8 = 1;
pub(super) const STATUS_UNSUPPORTED: u8 = 2;

/// Unit of positions on the wire, whatever the file system on it uses.
pub(super) const SECTOR_BYTES: u64 = 512;
pub(super) const HEADER_BYTES: usize = 16;
pub(super) const ID_BYTES: usize = 20;

/// A request's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Device to guest, from this sector on.
    Read(u64),
    /// Guest to device.
    Write(u64),
    /// Make everything written so far durable.
    Flush,
    /// The device's name.
    GetId,
    /// Any other.
    Unknown,
}

impl Request {
    pub(super) fn parse(header: [u8; HEADER_BYTES]) -> Self {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            0 => Self::Read(sector),
            1 => Self::Write(sector),
            4 => Self::Flush,
            8 => Self::GetId,
            _ => Self::Unknown,
        }
    }
}

/// The configuration space: capacity in sectors, then (after `size_max`, which is not offered) `seg_max`.
pub(super) fn config(sectors: u64, seg_max: u32) -> [u8; 16] {
    let mut space = [0; 16];
    for (byte, value) in space.iter_mut().zip(
        sectors
            .to_le_bytes()
            .into_iter()
            .chain([0; 4])
            .chain(seg_max.to_le_bytes()),
    ) {
        *byte = value;
    }
    space
}
