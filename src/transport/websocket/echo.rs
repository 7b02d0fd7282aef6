//! Sends back what comes, for the conformance tests: the codec as the server has it, with text allowed. Text is what most of the
//! rules of RFC 6455 that are tested anywhere speak of.

use std::{mem, time::Duration};

use bytes::BytesMut;
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;

use super::codec::{Reader, Writer};
use crate::{
    core::close::CloseCode,
    transport::{CLOSE_TIMEOUT_MS, Connection, Error, Fill, FrameReader, FrameWriter, Sink, Source},
};

/// Bytes of a message that are held until it is complete.
const MESSAGE_MAX: usize = 16 << 20;
/// Text that is not UTF-8 (RFC 6455 §7.4.1).
const NOT_TEXT: u16 = 1007;

/// Sends every message of a WebSocket back, as what it came: text or binary. Any other connection is dropped.
pub async fn echo(connection: Connection) {
    let Connection {
        reader: FrameReader { source: Source::WebSocket(mut reader), .. },
        writer: FrameWriter { sink: Sink::WebSocket(writer), .. },
        ..
    } = connection
    else {
        return;
    };
    reader.take_text();
    let code = match messages(&mut reader, &writer).await {
        Ok(()) => CloseCode::Normal,
        Err(error) => error.close_code(),
    };
    let linger = tokio::time::timeout(Duration::from_millis(CLOSE_TIMEOUT_MS), reader.discard());
    let _ = tokio::join!(writer.close(code), linger);
}

async fn messages(reader: &mut Reader, writer: &Writer) -> Result<(), Error> {
    let (mut message, mut utf8) = (BytesMut::new(), Utf8::default());
    loop {
        let before = message.len();
        match reader.fill(&mut message).await? {
            Fill::Bytes if message.len() > MESSAGE_MAX => return Err(Error::WebSocket("too much to send back")),
            Fill::Bytes => {
                let new = message.get(before..).unwrap_or_default();
                if reader.is_text() && !utf8.goes_on(new) {
                    return Err(reader.refuse(NOT_TEXT, "text that is not UTF-8"));
                }
            }
            Fill::Boundary if reader.is_text() => {
                if !utf8.is_complete() {
                    return Err(reader.refuse(NOT_TEXT, "text that ends within a character"));
                }
                writer.message(Data::Text, &message).await?;
                message.clear();
            }
            Fill::Boundary => {
                writer.message(Data::Binary, &message).await?;
                message.clear();
            }
            Fill::End => return Ok(()),
        }
    }
}

/// Checks text as it comes, so that it is refused at the first byte that is wrong. A character may come in parts.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character.
    begun: Vec<u8>,
}

impl Utf8 {
    fn goes_on(&mut self, bytes: &[u8]) -> bool {
        let mut text = mem::take(&mut self.begun);
        text.extend_from_slice(bytes);
        match std::str::from_utf8(&text) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                self.begun = text.split_off(error.valid_up_to());
                true
            }
            Err(_) => false,
        }
    }

    const fn is_complete(&self) -> bool {
        self.begun.is_empty()
    }
}
