//! Processes that die between two things that they do.

use super::world::{Rng, WS, World};
use crate::{
    client::{
        Choice, Client, Output,
        view::{Check, Command, MessageKind, MessageState},
    },
    core::frame::ClientFrame,
};

#[test]
fn a_message_that_a_crash_left_in_the_outbox_is_shown_as_the_log_has_it() {
    let mut world = World::only_websocket(43);
    world.rooms = Some(std::collections::BTreeMap::new());
    world.client.command(Command::CreateRoom { title: "Harbour".into() }, world.now_ms);
    world.settle();
    let room = *world.rooms.as_ref().unwrap().keys().next().unwrap();
    world.client.command(Command::Send { room: room.to_string(), text: "once".into() }, world.now_ms);
    let mut sent = None;
    while let Some(output) = world.client.poll() {
        if let Output::Send { frame, .. } = &output
            && matches!(ClientFrame::decode(frame), Ok(ClientFrame::Publish(_)))
        {
            sent = Some(world.stored.clone());
        }
        world.perform(output);
    }
    let left: Vec<_> = sent.unwrap().into_iter().filter(|(key, _)| key.starts_with("out")).collect();
    assert!(left.iter().any(|(key, _)| key.starts_with("out/") && !world.stored.contains_key(key)), "it was forgotten since");
    world.stored.extend(left);
    let mut again = Client::new("http://localhost:8433", bytes::Bytes::new(), Box::new(Rng(44)));
    again.choose(Choice::Only(WS));
    for (key, value) in &world.stored {
        again.load(key, value).unwrap();
    }
    let entries = |world: &World| world.rooms.as_ref().unwrap()[&room].len();
    let before = entries(&world);
    world.messages.clear();
    world.client = again;
    world.client.start(world.now_ms);
    world.settle();
    assert!(world.stored.keys().all(|key| !key.starts_with("out/")), "it was sent again, and acked");
    assert_eq!(entries(&world), before, "the same bytes, which the log has");
    let texts: Vec<_> = world.messages.iter().filter(|message| message.kind == MessageKind::Text).collect();
    assert!(texts.len() > 1, "when the client begins, and when it is acked");
    for message in texts {
        assert_eq!((message.state, message.check), (MessageState::Sent, Check::Matches), "{message:?}");
    }
}
