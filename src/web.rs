//! Browser bindings: the pure client as a JavaScript class. `web/worker.js` is its shell.

use std::collections::BTreeMap;

use bytes::Bytes;
use js_sys::{Array, Object, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::{
    client::{Choice, Client, LinkId, Output, Transport, qr},
    core::{
        frame::put_delimited,
        id::ParseIdError,
        lane::{Lane, Outgoing},
        merge::{Merge, Origin},
    },
};

/// The largest frame taken from the edge, in bytes: far above its limit for one, and what a broken one can make this tab hold.
const FRAME_BYTES_MAX: u32 = 4 << 20;
/// Frames that leave together are joined up to this many bytes.
const JOINED_BYTES_MAX: usize = 32 << 10;

/// One device's client, and what puts together what arrives over each link.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Core {
    client: Client,
    arriving: BTreeMap<u32, Merge>,
}

fn error(error: &impl ToString) -> JsError {
    JsError::new(&error.to_string())
}

/// The browser's clock is a float of milliseconds; before 1970 there is nothing to be early for.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float's conversion to an integer saturates")]
const fn millis(now_ms: f64) -> u64 {
    now_ms as u64
}

/// The text of a code in a camera's picture: red, green, blue and opacity in four bytes, row by row, `width` pixels in each.
#[wasm_bindgen]
#[must_use]
pub fn read_code(rgba: &[u8], width: usize) -> Option<String> {
    // Green carries most of what an eye calls brightness, and codes are black and white.
    let shades: Vec<u8> = rgba.iter().skip(1).step_by(4).copied().collect();
    qr::read(&shades, width)
}

#[wasm_bindgen]
impl Core {
    /// A client of the edge at `origin` (scheme and authority of the page). `transport` is `ws` or `wt` where only that one is to
    /// be used, and empty where both may be.
    #[wasm_bindgen(constructor)]
    #[must_use]
    pub fn new(origin: &str, transport: &str) -> Self {
        // A panic ends the worker with its message instead of a bare "unreachable".
        std::panic::set_hook(Box::new(|panic| wasm_bindgen::throw_str(&panic.to_string())));
        let random = Box::new(rand_core::UnwrapErr(getrandom::SysRng));
        let mut client = Client::new(origin, Bytes::new(), random);
        client.choose(match transport {
            "ws" => Choice::Only(Transport::WebSocket),
            "wt" => Choice::Only(Transport::WebTransport),
            _ => Choice::Auto,
        });
        Self { client, arriving: BTreeMap::new() }
    }

    /// Gives back a stored entry; all of them before `start`.
    ///
    /// # Errors
    /// Throws when this version cannot read the entry.
    pub fn load(&mut self, key: &str, value: &[u8]) -> Result<(), JsError> {
        self.client.load(key, value).map_err(|why| error(&why))
    }

    /// Begins.
    pub fn start(&mut self, now_ms: f64) {
        self.client.start(millis(now_ms));
    }

    /// Carries out a command of `client::view`, as JSON. What is wrong with it for a person is told as a notice.
    ///
    /// # Errors
    /// Throws when the JSON is no command.
    pub fn command(&mut self, json: &str, now_ms: f64) -> Result<(), JsError> {
        let command = serde_json::from_str(json).map_err(|why| error(&why))?;
        self.client.command(command, millis(now_ms));
        Ok(())
    }

    /// A link is open. Browsers give no TLS exporter.
    pub fn opened(&mut self, link: u32, now_ms: f64) {
        self.arriving.insert(link, Merge::new(FRAME_BYTES_MAX));
        self.client.opened(LinkId(link), None, millis(now_ms));
    }

    /// Bytes have arrived over a link, on its control stream or the only one it has, cut anywhere.
    ///
    /// # Errors
    /// Throws when they are not frames; the shell closes the link and says that it is lost.
    pub fn received(&mut self, link: u32, bytes: &[u8], now_ms: f64) -> Result<(), JsError> {
        self.take(link, Origin::Control, bytes, now_ms)
    }

    /// Bytes have arrived on a unidirectional stream of the edge, which the shell has given this number.
    ///
    /// # Errors
    /// As `received`.
    pub fn received_on(&mut self, link: u32, stream: u32, bytes: &[u8], now_ms: f64) -> Result<(), JsError> {
        self.take(link, Origin::Stream(stream.into()), bytes, now_ms)
    }

    /// That stream has ended.
    ///
    /// # Errors
    /// Throws when it ended within a frame; the shell closes the link and says that it is lost.
    pub fn ended(&mut self, link: u32, stream: u32) -> Result<(), JsError> {
        let Some(merge) = self.arriving.get_mut(&link) else { return Ok(()) };
        merge.end(stream.into()).map_err(|why| error(&why))
    }

    /// A datagram has arrived.
    ///
    /// # Errors
    /// As `received`.
    pub fn received_datagram(&mut self, link: u32, bytes: &[u8], now_ms: f64) -> Result<(), JsError> {
        self.take(link, Origin::Datagram, bytes, now_ms)
    }

    /// A link is gone, or could not be opened.
    pub fn lost(&mut self, link: u32, reason: &str, now_ms: f64) {
        self.arriving.remove(&link);
        self.client.lost(LinkId(link), reason, millis(now_ms));
    }

    /// The person is back.
    pub fn wake(&mut self, now_ms: f64) {
        self.client.wake(millis(now_ms));
    }

    /// The network is back, or another one.
    pub fn network_changed(&mut self, now_ms: f64) {
        self.client.network_changed(millis(now_ms));
    }

    /// The time that a `timer` output named has come.
    pub fn tick(&mut self, now_ms: f64) {
        self.client.tick(millis(now_ms));
    }

    /// All that is to be carried out, in order: `{type: "persist", key, value}`, `{type: "open", link, transport}`, `{type: "send",
    /// link, bytes, droppable}`, `{type: "close", link}`, `{type: "event", json}`, `{type: "timer", at_ms}`.
    pub fn poll(&mut self) -> Array {
        let outputs = Array::new();
        let mut joined = Joined { link: LinkId(0), bytes: Vec::new() };
        while let Some(output) = self.client.poll() {
            if let Output::Send { link, frame } = output {
                if link != joined.link {
                    joined.push(&outputs, false);
                    joined.link = link;
                }
                let droppable = Outgoing::request(frame.clone()).lane == Lane::Ephemeral;
                if droppable {
                    joined.push(&outputs, false);
                }
                put_delimited(&mut joined.bytes, &frame);
                if !droppable && joined.bytes.len() < JOINED_BYTES_MAX {
                    continue;
                }
                joined.push(&outputs, droppable);
            } else {
                joined.push(&outputs, false);
                if let Output::Close { link } = output {
                    self.arriving.remove(&link.0);
                }
                outputs.push(&to_js(output));
            }
        }
        joined.push(&outputs, false);
        outputs
    }

    /// The identity and the rooms' keys, encrypted under a passphrase.
    ///
    /// # Errors
    /// Throws when there is no identity.
    pub fn export_identity(&mut self, passphrase: &str) -> Result<Vec<u8>, JsError> {
        self.client.export_identity(passphrase).map_err(|why| error(&why))
    }

    /// What this device can show others of a room, as a file.
    ///
    /// # Errors
    /// Throws when there is no such room, or nothing of it yet.
    pub fn evidence(&self, room: &str, now_ms: f64) -> Result<Vec<u8>, JsError> {
        let room = room.parse().map_err(|why: ParseIdError| error(&why))?;
        self.client.evidence(room, millis(now_ms)).ok_or_else(|| JsError::new("there is nothing of this room on this device yet"))
    }

    /// The words of another device's code, to be compared before it is made this person's.
    ///
    /// # Errors
    /// Throws when the text is no such code.
    pub fn device_words(&self, code: &str) -> Result<String, JsError> {
        crate::client::device_words(code).map(|words| words.join(" ")).map_err(|why| error(&why))
    }

    /// A text as a code for cameras: an SVG path in a box of `size` a side, as `size:path`.
    ///
    /// # Errors
    /// Throws when the text is too long for a code.
    pub fn code(&self, text: &str) -> Result<String, JsError> {
        let code = qr::encode(text).ok_or_else(|| JsError::new("the text is too long for a code"))?;
        Ok(format!("{}:{}", code.size(), code.path()))
    }

    /// Becomes who an exported file says, as a new device of theirs.
    ///
    /// # Errors
    /// Throws when the file or the passphrase is wrong, or there is an identity already.
    pub fn import_identity(&mut self, file: &[u8], passphrase: &str, now_ms: f64) -> Result<(), JsError> {
        self.client.import_identity(file, passphrase, millis(now_ms)).map_err(|why| error(&why))
    }
}

impl Core {
    fn take(&mut self, link: u32, origin: Origin, bytes: &[u8], now_ms: f64) -> Result<(), JsError> {
        let Some(merge) = self.arriving.get_mut(&link) else { return Ok(()) };
        self.client.heard(LinkId(link), millis(now_ms));
        merge.take(origin, bytes).map_err(|why| error(&why))?;
        while let Some(frame) = self.arriving.get_mut(&link).and_then(Merge::poll) {
            self.client.received_frame(LinkId(link), &frame, millis(now_ms));
        }
        Ok(())
    }
}

/// Frames of one link that leave together.
struct Joined {
    link: LinkId,
    bytes: Vec<u8>,
}

impl Joined {
    /// What is droppable goes as a datagram where there are some.
    fn push(&mut self, outputs: &Array, droppable: bool) {
        if !self.bytes.is_empty() {
            let bytes = Uint8Array::from(&self.bytes[..]);
            outputs
                .push(&object("send", &[("link", self.link.0.into()), ("bytes", bytes.into()), ("droppable", droppable.into())]));
            self.bytes.clear();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit a float exactly")]
fn to_js(output: Output) -> JsValue {
    match output {
        Output::Persist { key, value } => {
            let value = value.map_or(JsValue::NULL, |value| Uint8Array::from(&value[..]).into());
            object("persist", &[("key", key.into()), ("value", value)])
        }
        // Browsers have no early data.
        Output::Open { link, transport, .. } => {
            object("open", &[("link", link.0.into()), ("transport", transport.name().into())])
        }
        Output::Send { link, frame } => {
            object("send", &[("link", link.0.into()), ("bytes", Uint8Array::from(&frame[..]).into())])
        }
        Output::Close { link } => object("close", &[("link", link.0.into())]),
        Output::Event(event) => {
            let json = serde_json::to_string(&event).expect("an event is plain data");
            object("event", &[("json", json.into())])
        }
        Output::Timer { at_ms } => object("timer", &[("at_ms", (at_ms as f64).into())]),
    }
}

fn object(kind: &str, fields: &[(&str, JsValue)]) -> JsValue {
    let object = Object::new();
    let set =
        |name: &str, value: &JsValue| Reflect::set(&object, &name.into(), value).expect("a plain object takes any property");
    set("type", &kind.into());
    for (name, value) in fields {
        set(name, value);
    }
    object.into()
}
