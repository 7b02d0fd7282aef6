//! What the fuzz target `handed` does with its bytes: what people hand to each other as text, and what members and strangers say in sealed
//! traffic, once it is open. Shared with `tests/corpus.rs`.

use std::{
    fmt::{Debug, Display},
    str::FromStr,
};

use serde::{Serialize, de::DeserializeOwned};
use waxwing::{
    client::records::Handed,
    core::{
        id::{DeviceKey, Digest, RoomId},
        packages::Packages,
    },
    seal::{
        body::{Complaint, Content, Message, SharedLink},
        card::Card,
        dropbox::{Address, PostingKey},
        epoch::EpochSecrets,
        identity::Identity,
        link::Link,
        linking::{DeviceCode, Grant},
        returning::{Answer, Ask, EpochKeys, Given, Wants, Way},
    },
};

use super::group::Rng;

/// Bytes from anybody; the first one says what they are taken for.
pub(crate) fn handed(data: &[u8]) {
    let Some((sort, rest)) = data.split_first() else { return };
    match sort {
        0 => {
            let Ok(text) = core::str::from_utf8(rest) else { return };
            is_text::<Link>(text);
            is_text::<Card>(text);
            is_text::<DeviceCode>(text);
            is_text::<Address>(text);
        }
        1 => {
            let Some((kind, data)) = rest.split_first() else { return };
            let content = Content { kind: u16::from(*kind), fallback: "of another form".into(), data: data.to_vec().into() };
            let message = content.message();
            assert_eq!(Content::new(&message).message(), message);
            match message {
                Message::Device(certificate) => drop(certificate.verify()),
                Message::Devices(list) => drop((list.is_signed(), list.hash())),
                Message::DropBox(shared) => drop(PostingKey::new(&shared)),
                _ => {}
            }
        }
        2 => is_record::<Handed>(rest),
        3 => is_record::<Grant>(rest),
        4 => is_record::<Ask>(rest),
        5 => is_record::<Answer>(rest),
        _ => {
            if let Some(packages) = Packages::decode(rest) {
                assert_eq!(Packages::decode(&packages.encode()), Some(packages));
            }
        }
    }
}

/// What is read is written and read again as the same.
fn is_text<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(read) = text.parse::<T>() {
        assert_eq!(read.to_string().parse().ok(), Some(read));
    }
}

fn is_record<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok((read, _)) = postcard::take_from_bytes::<T>(bytes) {
        let again = postcard::to_allocvec(&read).expect("a record encodes into memory");
        assert_eq!(postcard::from_bytes::<T>(&again).ok(), Some(read));
    }
}

/// One input of each sort, by name.
pub(crate) fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let rng = &mut Rng(4);
    let identity = Identity::generate(rng, 0);
    let (user, origin) = (identity.user(), String::from("https://chat.example.com"));
    let inbox = identity.inbox_public().clone();
    let code = DeviceCode { device: DeviceKey([5; 32]), inbox, secret: [6; 16], expires_ms: 600_000 };
    let link = Link { origin: origin.clone(), room: RoomId([1; 16]), seed: [2; 32], access: [3; 32], host: user };
    let card = Card { origin: origin.clone(), user, devices: vec![identity.device()] };
    let address = Address { origin, room: RoomId([1; 16]), host: user, secret: [7; 32] };
    let text = |text: String| [&[0], text.as_bytes()].concat();
    let said = |message: Message| {
        let content = Content::new(&message);
        [&[1, u8::try_from(content.kind).expect("kinds are small")], &content.data[..]].concat()
    };
    let complaint = Complaint { seq: 9, record: Digest([8; 32]) };
    let grant = Grant::new(&code, &identity, &[identity.certificate().clone()], 0);
    let ask = Ask::new(RoomId([1; 16]), [9; 32], Wants::Keys { after: 300 }, &identity);
    let answer = |given| Answer { format: 2, room: RoomId([1; 16]), by: identity.certificate().clone(), given };
    let place = Given::Place { access: [3; 32], way: Way::Link { seed: [2; 32], host: user } };
    let secrets = EpochSecrets { x25519: [4; 32], xwing: [5; 32], psk: [6; 32] };
    let epoch = EpochKeys { epoch: 301, record: Digest([8; 32]), authenticator: Digest([7; 32]), secrets };
    let keys = Given::Keys(vec![epoch]);
    let record = |sort: u8, bytes: Vec<u8>| [vec![sort], bytes].concat();
    vec![
        ("link", text(link.to_string())),
        ("card", text(card.to_string())),
        ("device-code", text(code.to_string())),
        ("address", text(address.to_string())),
        ("text", said(Message::Text("hello".into()))),
        ("device", said(Message::Device(Box::new(identity.certificate().clone())))),
        ("shared-link", said(Message::Link(SharedLink { seed: [2; 32] }))),
        ("complaint", said(Message::Complaint(complaint))),
        ("handed-device", record(2, postcard::to_allocvec(&Handed::Device).expect("it encodes"))),
        ("grant", record(3, postcard::to_allocvec(&grant).expect("it encodes"))),
        ("ask", record(4, postcard::to_allocvec(&ask).expect("it encodes"))),
        ("answer-place", record(5, postcard::to_allocvec(&answer(place)).expect("it encodes"))),
        ("answer-keys", record(5, postcard::to_allocvec(&answer(keys)).expect("it encodes"))),
    ]
}
