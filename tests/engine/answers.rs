//! What a publisher is told when nobody knows, and what the same bytes decide afterwards: the pure log over the real engine.

use bytes::Bytes;
use waxwing::{
    core::{
        close::Refusal,
        envelope::{HEADER_LEN, Header, Kind, Suite, TAG_LEN},
        frame::Publish,
        id::{DeviceKey, MessageId, ProducerId},
        limits::Limits,
        room::{RoomLog, Verdict},
    },
    engine::{Failure, Request},
};

use crate::{
    disk::Rng,
    driver::{Driver, meta, room},
    embedded::open,
    faults::SEEDS,
    machine::{Fault, Machine},
    seeds::seeded,
};

const DEVICE: DeviceKey = DeviceKey([5; 32]);

fn publish(client_seq: u64, fill: u8) -> Publish {
    let room = room(1);
    let header = Header { kind: Kind::Room, suite: Suite::X25519Psk, room, epoch: 1, leaf: 1, message: MessageId([fill; 16]) };
    let mut envelope = header.to_bytes().to_vec();
    envelope.resize(HEADER_LEN + Suite::X25519Psk.enc_len() + TAG_LEN + 10 * usize::from(fill), fill);
    Publish { room, producer: ProducerId([7; 16]), client_seq, handshake: 0, envelope: Bytes::from(envelope) }
}

fn load(driver: &mut Driver) -> RoomLog {
    RoomLog::new(room(1), driver.load(room(1)).unwrap())
}

/// What is said to a publish, carried out to the end.
fn say(driver: &mut Driver, log: &mut RoomLog, publish: Publish) -> Result<u64, Refusal> {
    match log.publish(DEVICE, publish, 1_000, &Limits::default()) {
        Verdict::Append(append) => {
            let seq = append.seq;
            match driver.done(Request::Append(append)) {
                Ok(()) => {
                    log.persisted(0);
                    Ok(seq)
                }
                Err(Failure::OutcomeUnknown) => Err(Refusal::OutcomeUnknown),
                Err(Failure::DiskFull) => Err(Refusal::DiskFull),
                Err(other) => panic!("{other}"),
            }
        }
        Verdict::Stored(seq) => Ok(seq),
        Verdict::Refused(why) => Err(why),
        other @ Verdict::Pending(_) => panic!("{other:?}"),
    }
}

fn unknown(seed: u64) {
    let mut rng = Rng(seed);
    let machine = Machine::default();
    let mut driver = open(&machine);
    driver.done(Request::Create { room: room(1), meta: meta(1) }).unwrap();
    let mut log = load(&mut driver);
    machine.fail(if rng.below(2) == 0 { Fault::Sync } else { Fault::Write }, rng.below(40));
    let fill = |n: u64| u8::try_from(n % 200).unwrap();
    let mut said = (1..60).map(|n| (n, say(&mut driver, &mut log, publish(n, fill(n)))));
    let Some((n, why)) = said.find_map(|(n, answer)| Some((n, answer.err()?))) else { return };
    drop(said);
    assert!(matches!(why, Refusal::OutcomeUnknown | Refusal::DiskFull), "{why}");
    let machine = match rng.below(3) {
        0 => machine.stopped(),
        1 => machine.crashed(None),
        _ => machine.crashed(Some(&mut rng)),
    };
    drop(driver);
    let mut driver = open(&machine);
    let mut log = load(&mut driver);
    if why == Refusal::DiskFull {
        assert_eq!(log.durable().head, n - 1, "a full disk stored nothing");
    }
    assert_eq!(say(&mut driver, &mut log, publish(n, fill(n))), Ok(n), "stored, or stored now: the same answer");
    assert_eq!(say(&mut driver, &mut log, publish(n, fill(n))), Ok(n));
    assert_eq!(say(&mut driver, &mut log, publish(n, 201)), Err(Refusal::Conflict));
    assert_eq!(say(&mut driver, &mut log, publish(n + 2, 202)), Err(Refusal::OutOfOrder { expected: n + 1 }));
    let stored = driver.after(room(1), 0, u32::MAX).unwrap();
    let expected = (1..=n).map(|n| publish(n, fill(n)).envelope);
    assert!(stored.records.into_iter().map(|record| record.envelope).eq(expected), "each once, in order");
}

#[test]
fn an_unknown_outcome_is_decided_by_the_same_bytes_after_a_restart() {
    seeded(SEEDS, 100, unknown);
}
