//! Posts through a drop-box, sealed by the other implementation.

use waxwing::{
    core::{chain, dropbox::post_message, id::Signature},
    seal::{
        body::{Content, Message, SharedDropBox},
        dropbox::{Address, Announcement, PostBody, PostingKey},
    },
};

use super::{array, hex, installed, root, unhex};

#[test]
fn another_implementation_posts_what_members_read() {
    let file = root().join("vectors/dropbox.json");
    let vector: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    let address: Address = text("address").parse().unwrap();
    let announcement = unhex(&text("announcement"));
    let read = Announcement::verify(&announcement, &address, 0, vector["now_ms"].as_u64().unwrap()).unwrap();
    assert_eq!(hex(&read.hash().0), text("announcement_hash"));
    let key = PostingKey::new(&SharedDropBox { announcement: announcement.into(), seed: array(&text("xwing_seed")) }).unwrap();
    let opened = |post: &str| {
        let post = unhex(post);
        let (proof, envelope) = post.split_first_chunk::<64>().unwrap();
        let message = post_message(address.room, chain::digest(envelope));
        assert!(Signature::from(*proof).verifies(&read.poster.0, &message));
        key.open(envelope).unwrap().1
    };
    let body = |name: &str, text: &str| PostBody { name: name.into(), content: Content::new(&Message::Text(text.into())) };
    assert_eq!(opened(&text("post")), body(&text("name"), &text("text")));
    let output = installed("post.mjs").arg("seal").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(opened(&String::from_utf8(output.stdout).unwrap()), body("node", "from node: üüü"));
}
