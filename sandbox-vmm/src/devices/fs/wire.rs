//! The configuration space of the file system device.

/// Length of the tag's field (virtio 1.2 §5.11.4).
const TAG_BYTES: usize = 36;

/// Length of the configuration space without the notification queue, which is not offered.
const CONFIG_BYTES: usize = TAG_BYTES + 4;

/// Queues for requests; the one for urgent requests (forgetting) comes before them and is not counted.
pub(super) const REQUEST_QUEUES: u32 = 1;

/// What the guest mounts the device by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag([u8; TAG_BYTES]);

/// Why a text cannot be a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a file system tag is 1 to 36 bytes without NUL")]
pub struct TagError;

impl Tag {
    /// Takes a text of 1 to 36 bytes.
    ///
    /// # Errors
    /// It is empty, too long, or has a NUL.
    pub fn new(text: &str) -> Result<Self, TagError> {
        let mut bytes = [0; TAG_BYTES];
        if text.is_empty() || text.contains('\0') {
            return Err(TagError);
        }
        bytes
            .get_mut(..text.len())
            .ok_or(TagError)?
            .copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

/// The configuration space: the tag, and the number of request queues.
pub(super) fn config(tag: Tag) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let fields = tag
        .0
        .iter()
        .chain(&REQUEST_QUEUES.to_le_bytes())
        .copied()
        .collect::<Vec<_>>();
    space.copy_from_slice(&fields);
    space
}
