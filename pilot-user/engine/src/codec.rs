//! Reading and writing the fields of frames and parameters, always by checked length (`docs/wire.md` W1.6).

/// Largest varint (RFC 9000 §16).
pub const MAX_VARINT: u64 = (1 << 62) - 1;

/// Takes fields off the front of a byte slice. `None`: the bytes end too early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the front of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_be_bytes)
    }

    /// The next two bytes, big-endian.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next four bytes, big-endian.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A varint (RFC 9000 §16).
    pub fn varint(&mut self) -> Option<u64> {
        let (&first, rest) = self.0.split_first()?;
        // Most are of one byte.
        if first < 0x40 {
            self.0 = rest;
            return Some(first.into());
        }
        let value = match first >> 6 {
            1 => u64::from(self.u16()?) & 0x3fff,
            2 => u64::from(self.u32()?) & 0x3fff_ffff,
            _ => u64::from_be_bytes(self.array()?) & MAX_VARINT,
        };
        Some(value)
    }

    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    /// Bytes behind a varint length.
    pub fn counted(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        self.bytes(length)
    }

    /// What was taken from here until `later`, a copy of this one from which more was taken.
    pub(crate) fn before(&self, later: &Self) -> Self {
        Self(&self.0[..self.0.len().saturating_sub(later.0.len())])
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    /// What is left, without taking it.
    pub(crate) fn peek(&self) -> &'a [u8] {
        self.0
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Bytes that `value` takes as a varint.
pub(crate) const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Puts fields into a buffer. The caller checks [`Writer::room`] before; a write that does not fit is refused and leaves
/// the buffer as it was.
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// Lets `shorten` make what was written from `start` on shorter, by the number of bytes it returns.
    pub(crate) fn shorten_last(&mut self, start: usize, shorten: impl FnOnce(&mut [u8]) -> usize) {
        if let Some(last) = self.buffer.get_mut(start..self.len) {
            self.len -= shorten(last);
        }
    }

    /// The next `length` bytes, to be filled by the caller.
    pub(crate) fn take(&mut self, length: usize) -> Option<&mut [u8]> {
        let end = self.len.checked_add(length)?;
        let room = self.buffer.get_mut(self.len..end)?;
        self.len = end;
        Some(room)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Option<()> {
        self.take(bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    pub(crate) fn u8(&mut self, value: u8) -> Option<()> {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> Option<()> {
        self.bytes(&value.to_be_bytes())
    }

    /// Writes a varint; refuses a value above [`MAX_VARINT`].
    pub(crate) fn varint(&mut self, value: u64) -> Option<()> {
        match varint_len(value) {
            1 => self.u8(value as u8),
            2 => self.u16(1 << 14 | value as u16),
            4 => self.bytes(&(2 << 30 | value as u32).to_be_bytes()),
            _ => (value <= MAX_VARINT).then(|| self.bytes(&(3 << 62 | value).to_be_bytes()))?,
        }
    }

    pub(crate) fn counted(&mut self, bytes: &[u8]) -> Option<()> {
        if self.room() < varint_len(bytes.len() as u64) + bytes.len() {
            return None;
        }
        self.varint(bytes.len() as u64)?;
        self.bytes(bytes)
    }
}

/// Appends a varint; nothing when the value is above [`MAX_VARINT`].
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: u64) {
    // The usual: numbers of what there are few of.
    if value < 64 {
        return out.push(value as u8);
    }
    let mut buffer = [0; 8];
    let mut writer = Writer::new(&mut buffer);
    // A buffer of the largest varint's size has room.
    let _ = writer.varint(value);
    let length = writer.len();
    out.extend_from_slice(&buffer[..length]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 9000 A.1.
    #[test]
    fn varints_of_the_standard() {
        for (bytes, value) in [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c][..], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
            (&[0x40, 0x25], 37),
        ] {
            assert_eq!(Reader::new(bytes).varint(), Some(value));
            (0..bytes.len()).for_each(|cut| assert_eq!(Reader::new(&bytes[..cut]).varint(), None));
        }
        assert_eq!(Writer::new(&mut [0; 8]).varint(MAX_VARINT + 1), None);
    }

    proptest! {
        #[test]
        fn varints_round_trip(value in 0..=MAX_VARINT, shift in 0u32..62) {
            let value = value >> shift;
            let mut buffer = [0; 8];
            let mut writer = Writer::new(&mut buffer);
            writer.varint(value).unwrap();
            let written = writer.len();
            prop_assert_eq!(written, varint_len(value));
            prop_assert_eq!(Reader::new(&buffer[..written]).varint(), Some(value));
            let mut appended = vec![];
            put_varint(&mut appended, value);
            prop_assert_eq!(&appended, &buffer[..written]);
            prop_assert_eq!(Writer::new(&mut buffer[..written - 1]).varint(value), None);
        }
    }
}
