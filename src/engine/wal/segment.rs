//! The header of a segment. Its layout is in the documentation of [`super`].

use super::{Lsn, record::Key};
use crate::engine::crc;

/// Bytes before the first record.
pub(super) const HEADER_LEN: usize = 4096;
/// Where the copies of the header begin: each in a sector of its own, so that no torn write and no single damaged sector
/// takes both.
const COPIES: [usize; 2] = [0, 512];
/// Bytes of one copy.
const COPY_LEN: usize = 48;
const MAGIC: [u8; 8] = *b"waxwal\r\n";
/// The format that this build writes.
pub(super) const FORMAT: u32 = 1;

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// One more than that of the segment before.
    pub(super) generation: u64,
    /// The number of its first entry.
    pub(super) base: Lsn,
    /// Random.
    pub(super) salt: u64,
}

/// What lies where a header should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// A header.
    Valid(Header),
    /// Zeros, in one copy at least: the file was never used.
    Blank,
    /// A header of a format that this build does not know.
    Newer(u32),
    /// Something else.
    Damaged,
}

impl Header {
    /// What the checksums of the segment's records start from.
    pub(super) fn key(&self) -> Key {
        Key::new(self.salt, self.generation)
    }

    /// Writes both copies to the beginning of `block`.
    pub(super) fn put(&self, block: &mut [u8]) {
        let mut copy = [0; COPY_LEN];
        let fields = [
            &MAGIC[..],
            &FORMAT.to_le_bytes(),
            &[0; 4],
            &self.generation.to_le_bytes(),
            &self.base.to_le_bytes(),
            &self.salt.to_le_bytes(),
        ]
        .concat();
        let crc = crc::of(&fields).to_le_bytes();
        for (to, from) in copy.iter_mut().zip(fields.iter().chain(&crc)) {
            *to = *from;
        }
        for at in COPIES {
            if let Some(to) = block.get_mut(at..at + COPY_LEN) {
                to.copy_from_slice(&copy);
            }
        }
    }

    /// Reads the header from the beginning of a file. A write of a header that was torn leaves a copy of the one before:
    /// the newer one counts.
    pub(super) fn read(block: &[u8]) -> State {
        let copies = COPIES.map(|at| block.get(at..at + COPY_LEN).map_or(State::Blank, read_copy));
        let newest = |a: State, b: State| match (a, b) {
            (State::Valid(one), State::Valid(two)) => State::Valid(if one.generation >= two.generation { one } else { two }),
            (State::Newer(version), _) | (_, State::Newer(version)) => State::Newer(version),
            (State::Valid(header), _) | (_, State::Valid(header)) => State::Valid(header),
            // The first write of a header failed part of the way; nothing after it can have been durable.
            (State::Blank, _) | (_, State::Blank) => State::Blank,
            (State::Damaged, State::Damaged) => State::Damaged,
        };
        let [first, second] = copies;
        newest(first, second)
    }
}

fn read_copy(bytes: &[u8]) -> State {
    if bytes.iter().all(|byte| *byte == 0) {
        return State::Blank;
    }
    let parsed = || {
        let (fields, rest) = bytes.split_first_chunk::<40>()?;
        let crc = u32::from_le_bytes(*rest.first_chunk()?);
        let (magic, rest) = fields.split_first_chunk::<8>()?;
        if *magic != MAGIC || crc != crc::of(fields) {
            return None;
        }
        let (format, rest) = rest.split_first_chunk::<8>()?;
        let format = u32::from_le_bytes(*format.first_chunk()?);
        let (words, _) = rest.as_chunks::<8>();
        let [generation, base, salt] = words else { return None };
        let header = Header {
            generation: u64::from_le_bytes(*generation),
            base: u64::from_le_bytes(*base),
            salt: u64::from_le_bytes(*salt),
        };
        Some(if format == FORMAT { State::Valid(header) } else { State::Newer(format) })
    };
    parsed().unwrap_or(State::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_damaged_copy_of_a_header_does_no_harm_and_two_show() {
        let header = Header { generation: 7, base: 100, salt: 9 };
        let mut block = vec![0; HEADER_LEN];
        assert_eq!(Header::read(&block), State::Blank);
        assert_eq!(Header::read(&[]), State::Blank);
        header.put(&mut block);
        assert_eq!(Header::read(&block), State::Valid(header));
        for at in [0, 9, 17, 25, 33, 41] {
            let mut damaged = block.clone();
            damaged[at] ^= 4;
            assert_eq!(Header::read(&damaged), State::Valid(header), "{at}");
            damaged[512 + at] ^= 4;
            assert_eq!(Header::read(&damaged), State::Damaged, "{at}");
        }
        let mut torn = block.clone();
        Header { generation: 8, base: 200, salt: 1 }.put(&mut torn);
        torn[..512].copy_from_slice(&block[..512]);
        assert!(matches!(Header::read(&torn), State::Valid(Header { generation: 8, .. })));
    }

    #[test]
    fn a_newer_format_is_told_apart() {
        let mut block = vec![0; HEADER_LEN];
        Header { generation: 7, base: 100, salt: 9 }.put(&mut block);
        block[8] = 2;
        let crc = crc::of(&block[..40]).to_le_bytes();
        block[40..44].copy_from_slice(&crc);
        assert_eq!(Header::read(&block), State::Newer(2));
    }
}
