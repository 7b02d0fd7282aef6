//! CRC-32C (RFC 3720 §12.1), with which a damaged record or chunk is recognised.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// The checksum of `bytes`.
pub(super) fn of(bytes: &[u8]) -> u32 {
    append(0, bytes)
}

/// The checksum of `bytes` after others whose checksum is `crc`.
pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    u32::try_from(digest.finalize()).expect("a checksum of 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn the_vectors_of_iscsi() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        for (bytes, crc) in
            [(&[0; 32][..], 0x8a91_36aa), (&[0xff; 32], 0x62a8_ab43), (&ascending, 0x46dd_794e), (&descending, 0x113f_db5c)]
        {
            assert_eq!(of(bytes), crc);
        }
    }

    #[test]
    fn pieces_make_the_whole() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
        for at in [0, 1, 7, 16, 255, 256, 4_096, 69_999] {
            let (head, tail) = bytes.split_at(at);
            assert_eq!(append(of(head), tail), of(&bytes));
        }
    }
}
