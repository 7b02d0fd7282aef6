//! WebSocket by hand (RFC 6455): just enough of both ends, so that what is measured is the server and not a library here.

use std::io;

/// Opcodes.
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Where a whole frame lies.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    /// Where its payload begins.
    pub start: usize,
    /// Where it ends, and the next frame begins.
    pub end: usize,
}

/// The first frame of `bytes`; `None` while it is not all there.
pub fn peek(bytes: &[u8]) -> Option<Frame> {
    let [first, second, rest @ ..] = bytes else { return None };
    let (len, at) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?, 10),
        len => (usize::from(len), 2),
    };
    let mask = if second & 0x80 == 0 { None } else { Some(*bytes.get(at..)?.first_chunk()?) };
    let start = at + if mask.is_some() { 4 } else { 0 };
    let end = start.checked_add(len)?;
    (end <= bytes.len()).then_some(Frame { opcode: first & 0x0f, mask, start, end })
}

/// Appends one unfragmented frame; a client masks.
pub fn put(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    out.push(0x80 | opcode);
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(len), _) if len < 126 => out.push(bit | len),
        (_, Ok(len)) => {
            out.push(bit | 126);
            out.extend_from_slice(&len.to_be_bytes());
        }
        _ => {
            out.push(bit | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[][..], |mask| mask));
    let start = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        unmask(&mut out[start..], mask);
    }
}

/// Applies a mask, or takes it off.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// A client's opening request.
pub fn request(host: &str, path: &str, subprotocol: Option<&str>) -> String {
    let subprotocol = subprotocol.map_or_else(String::new, |name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{subprotocol}\r\n"
    )
}

/// Where a request's or a response's head ends, if it has.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Whether a response's head accepts the upgrade.
///
/// # Errors
/// With the status line, when it does not.
pub fn accepted(head: &[u8]) -> io::Result<()> {
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    if line.contains(" 101 ") { Ok(()) } else { Err(io::Error::other(format!("no WebSocket: {line}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_found_again() {
        for len in (0..300).chain([65_535, 65_536, 70_001]) {
            let payload: Vec<u8> = (0..len).map(|index: u32| index.to_le_bytes()[0]).collect();
            let mask = [1, 0x80, 7, 0xff];
            let mut bytes = Vec::new();
            put(&mut bytes, BINARY, &payload, Some(mask));
            let frame = peek(&bytes).expect("it is whole");
            assert!((0..bytes.len()).all(|end| peek(&bytes[..end]).is_none()) || len > 300, "a part is no frame");
            assert_eq!((frame.opcode, frame.mask, frame.end), (BINARY, Some(mask), bytes.len()));
            // RFC 6455, section 5.3: byte i is masked with byte i mod 4.
            let masked: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
            assert_eq!(bytes[frame.start..], masked);
        }
    }
}
