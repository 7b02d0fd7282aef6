//! What the fuzz target `announcement` does with its bytes: what a server tells a poster, what a member shares, what an engine gives back.
//! Shared with `tests/corpus.rs`.

use waxwing::{
    core::{dropbox::DropBox, id::RoomId},
    seal::{
        Random as _,
        body::{Content, Message, SharedDropBox},
        dropbox::{Address, Announcement, PostBody, PostingKey, post},
        identity::Identity,
    },
};

use super::group::Rng;

/// Bytes from anybody. Whatever is taken for an announcement is spelled in one way.
pub(crate) fn announcement(data: &[u8]) {
    if let Ok(read) = Announcement::decode(data) {
        assert_eq!(read.encode(), data, "one spelling");
    }
    let _ = DropBox::decode(data);
    if let Some((seed, rest)) = data.split_first_chunk::<32>() {
        let _ = PostingKey::new(&SharedDropBox { announcement: rest.to_vec().into(), seed: *seed });
    }
    if let Ok(text) = core::str::from_utf8(data)
        && let Ok(address) = text.parse::<Address>()
    {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
}

/// An announcement, the same as it is shared, an address, a post.
pub(crate) fn samples() -> Option<[Vec<u8>; 4]> {
    let mut rng = Rng(11);
    let host = Identity::generate(&mut rng, 0);
    let seed: [u8; 32] = rng.bytes();
    let announced = Announcement::new((RoomId([1; 16]), 2, 1), &seed, &host, 1_000);
    let address = announced.address("http://localhost:8433", &host);
    let body = PostBody { name: "cron".into(), content: Content::new(&Message::Text("done".into())) };
    let (_, envelope) = post(&address, &announced, &body, &mut rng).ok()?;
    let bytes = announced.encode();
    Some([bytes.to_vec(), [&seed[..], &bytes].concat(), address.to_string().into_bytes(), envelope.to_vec()])
}
