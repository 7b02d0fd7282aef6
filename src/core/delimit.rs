//! Where one frame ends and the next begins: each is preceded by its length, a varint.

use bytes::Bytes;

use super::frame::DecodeError;

/// Appends a varint to `out`.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Appends the length of a frame of `len` bytes to `out`.
pub fn put_length(out: &mut Vec<u8>, len: usize) {
    put_varint(out, u32::try_from(len).expect("frames are limited far below 4 GiB").into());
}

/// Appends `frame`, preceded by its length, to `out`.
pub fn put_delimited(out: &mut Vec<u8>, frame: &[u8]) {
    put_length(out, frame.len());
    out.extend_from_slice(frame);
}

/// The varint that `buffer` begins with, and how many bytes it takes; `None` while it is incomplete.
///
/// # Errors
/// [`DecodeError::Prefix`] when it does not fit 64 bits.
pub fn peek_varint(buffer: &[u8]) -> Result<Option<(u64, usize)>, DecodeError> {
    let mut value: u64 = 0;
    for (index, byte) in buffer.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return Err(DecodeError::Prefix);
        }
        value |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if buffer.len() >= 10 { Err(DecodeError::Prefix) } else { Ok(None) }
}

/// Where the first frame of `buffer` lies, as (start, end) after its length; `end` may be beyond what has arrived.
///
/// Returns `None` while the length itself is incomplete.
///
/// # Errors
/// [`DecodeError::TooLarge`] or [`DecodeError::Prefix`] as soon as the length shows it.
pub fn peek_delimited(buffer: &[u8], max: u32) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut len: u32 = 0;
    for (index, byte) in buffer.iter().take(5).enumerate() {
        let bits = u32::from(byte & 0x7f);
        if index == 4 && bits > 0x0f {
            return Err(DecodeError::Prefix);
        }
        len |= bits << (7 * index);
        if byte & 0x80 == 0 {
            if len > max {
                return Err(DecodeError::TooLarge { len, max });
            }
            let start = index + 1;
            return Ok(Some((start, start + len as usize)));
        }
    }
    if buffer.len() >= 5 { Err(DecodeError::Prefix) } else { Ok(None) }
}

/// Takes the first complete frame from `buffer`.
///
/// Returns `None` when more bytes are needed.
///
/// # Errors
/// [`DecodeError::TooLarge`] or [`DecodeError::Prefix`] as soon as the length shows it.
pub fn take_delimited(buffer: &mut Bytes, max: u32) -> Result<Option<Bytes>, DecodeError> {
    match peek_delimited(buffer, max)? {
        Some((start, end)) if end <= buffer.len() => {
            let frame = buffer.split_to(end).slice(start..);
            Ok(Some(frame))
        }
        _ => Ok(None),
    }
}
