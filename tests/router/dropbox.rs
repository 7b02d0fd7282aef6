//! Drop-boxes: members open them, strangers post, and what is said of them is on disk.

use std::sync::Arc;

use bytes::Bytes;
use waxwing::{
    core::{
        chain,
        close::Refusal,
        dropbox::{ANNOUNCEMENT_LEN_MAX, post_message},
        envelope::{HEADER_LEN, Header, Kind, NOT_A_MEMBER, Suite, TAG_LEN},
        frame::{DropBoxOffer, LogKind, Operation, ServerFrame},
        id::{MessageId, RoomId},
        limits::Limits,
        session::Action,
    },
    engine::Failure,
    router::Conn,
};

use crate::{
    common::{access_of, device_of, key, sign},
    world::{ROOMS, World, limits, one_room, why},
};

const ROOM: RoomId = ROOMS[0];

fn offer(epoch: u64, announcement: &[u8]) -> DropBoxOffer {
    DropBoxOffer { epoch, poster: access_of(&key(7)), announcement: Bytes::copy_from_slice(announcement) }
}

fn put(world: &mut World, conn: &Arc<Conn>, offer: Option<DropBoxOffer>) -> Vec<ServerFrame> {
    world.ask(conn, ROOM, Action::PutDropBox { offer });
    world.read_all(conn)
}

/// What a stranger is told.
fn shown(world: &mut World) -> Option<Bytes> {
    let conn = world.connect(device_of(&key(9)));
    world.ask(&conn, ROOM, Action::ShowDropBox);
    let frames = world.read_all(&conn);
    let [ServerFrame::DropBox { room: ROOM, announcement }] = &frames[..] else { panic!("{frames:?}") };
    announcement.clone()
}

fn post(world: &mut World, number: u8, epoch: u64, signer: u64) -> Result<u64, Refusal> {
    let conn = world.connect(device_of(&key(9)));
    let (kind, suite, message) = (Kind::DropBox, Suite::XWing, MessageId([number; 16]));
    let mut envelope = Header { kind, suite, room: ROOM, epoch, leaf: NOT_A_MEMBER, message }.to_bytes().to_vec();
    envelope.resize(HEADER_LEN + 1120 + TAG_LEN, number);
    let proof = sign(&key(signer), &post_message(ROOM, chain::digest(&envelope)));
    world.ask(&conn, ROOM, Action::Post { proof, envelope: envelope.into() });
    let frames = world.read_all(&conn);
    match frames[..] {
        [ServerFrame::Ack { seq, .. }] => Ok(seq),
        [ServerFrame::Refused { why, .. }] => Err(why),
        _ => panic!("{frames:?}"),
    }
}

/// As small as in other tests, with room for a post.
fn roomy() -> Limits {
    Limits { outbox_bytes_max: 9_000, page_bytes_max: 4_000, ..limits() }
}

#[test]
fn members_open_it_strangers_post_and_it_outlives_a_crash() {
    let (mut world, member) = one_room(roomy());
    assert_eq!(shown(&mut world), None);
    assert_eq!(post(&mut world, 1, 3, 7), Err(Refusal::NoAccess));
    let stranger = world.connect(device_of(&key(2)));
    let refused = |why: Refusal| vec![(Some(Operation::DropBox), why)];
    assert_eq!(why(&put(&mut world, &stranger, Some(offer(3, b"mine")))), refused(Refusal::NoAccess));
    let large = put(&mut world, &member, Some(offer(3, &[0; ANNOUNCEMENT_LEN_MAX + 1])));
    assert!(matches!(why(&large)[..], [(Some(Operation::DropBox), Refusal::TooLarge { max: 4096 })]), "{large:?}");
    let hear = Some(Bytes::from_static(b"hear"));
    for _ in 0..2 {
        let frames = put(&mut world, &member, Some(offer(3, b"hear")));
        assert_eq!(frames, [ServerFrame::DropBox { room: ROOM, announcement: hear.clone() }]);
    }
    world.crash();
    assert_eq!(shown(&mut world), hear);
    assert_eq!(post(&mut world, 1, 3, 8), Err(Refusal::BadProof));
    assert_eq!(post(&mut world, 1, 3, 7), Ok(1));
    world.crash();
    assert_eq!((post(&mut world, 1, 3, 7), post(&mut world, 2, 3, 7)), (Ok(1), Ok(2)));
    assert_eq!(post(&mut world, 3, 4, 7), Err(Refusal::StaleEpoch { handshake: 0 }));
    assert_eq!(world.shard.rooms_len(), 0, "nobody is there");
    let member = world.connect(member.device);
    world.enter(&member, ROOM);
    world.read_all(&member);
    assert_eq!(put(&mut world, &member, None), [ServerFrame::DropBox { room: ROOM, announcement: None }]);
    assert_eq!((shown(&mut world), post(&mut world, 4, 3, 7)), (None, Err(Refusal::NoAccess)));
}

#[test]
fn what_cannot_be_stored_is_not_open() {
    let (mut world, member) = one_room(roomy());
    let failed = |frames: &[ServerFrame]| matches!(frames, [ServerFrame::Failed { what: Operation::DropBox, .. }]);
    world.engine.fail_next(Failure::DiskFull);
    assert!(failed(&put(&mut world, &member, Some(offer(3, b"hear")))));
    assert_eq!((shown(&mut world), post(&mut world, 1, 3, 7)), (None, Err(Refusal::NoAccess)));
    world.engine.fail_next(Failure::OutcomeUnknown);
    assert!(failed(&put(&mut world, &member, Some(offer(3, b"hear")))));
    assert_eq!(shown(&mut world).as_deref(), Some(&b"hear"[..]), "it is looked at: it was stored after all");
    world.engine.fail_next(Failure::DiskFull);
    assert_eq!(post(&mut world, 1, 3, 7), Err(Refusal::DiskFull));
    assert_eq!(post(&mut world, 1, 3, 7), Ok(1));
}

#[test]
fn it_goes_with_its_room() {
    let (mut world, member) = one_room(roomy());
    put(&mut world, &member, Some(offer(3, b"hear")));
    world.ask(&member, ROOM, Action::Delete);
    world.read_all(&member);
    world.create(&member, ROOM, LogKind::Room);
    world.read_all(&member);
    assert_eq!((shown(&mut world), post(&mut world, 1, 3, 7)), (None, Err(Refusal::NoAccess)));
}
