//! What each fuzz target does with its bytes. The fuzz crate and `tests/corpus.rs` share this file, so that the committed
//! corpus runs with the ordinary tests, on stable.

mod logins;
pub(crate) mod wal;

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use waxwing::core::{
    access::FormerKeys,
    chain,
    close::Refusal,
    envelope::{self, HEADER_LEN, Header, Kind, Suite, TAG_LEN},
    frame::{self, ClientFrame, LogKind, Publish, ServerFrame},
    handshake::{self, Trailer},
    id::{AccessKey, DeviceKey, Digest, LogId, MessageId, ProducerId, RoomId, Seq},
    limits::Limits,
    log::{Append, LoadedLog, LogMeta, LogState, PRODUCER_RING, Producer, ProducerState, Stored},
    merge::{Merge, Origin, WAITING_BYTES_MAX},
    room::{RoomLog, Verdict},
    session::{Action, RoomRequest, Session, Step},
};
use waxwing::engine::embedded::chunk::{self, Chunk};

use self::logins::Logins;

/// A fuzz target's name and body.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target.
pub(crate) const TARGETS: [Target; 7] = [
    ("client_frame", client_frame),
    ("server_frame", server_frame),
    ("envelope", envelope),
    ("session_ops", session_ops),
    ("chunk", chunk),
    ("wal", wal::wal),
    ("merge", merge),
];

/// Bytes from a client: they decode to a frame that encodes and decodes to itself, or to nothing; and a stream of them
/// splits in the same way however it is cut.
pub(crate) fn client_frame(data: &[u8]) {
    if let Ok(frame) = ClientFrame::decode(data) {
        let again = frame.encode();
        assert!(again.len() <= data.len(), "the encoder writes the shortest form");
        assert_eq!(ClientFrame::decode(&again), Ok(frame));
    }
    delimited(data);
}

/// Bytes from a server, as [`client_frame`].
pub(crate) fn server_frame(data: &[u8]) {
    if let Ok(frame) = ServerFrame::decode(data) {
        let again = frame.encode();
        assert!(again.len() <= data.len(), "the encoder writes the shortest form");
        assert_eq!(ServerFrame::decode(&again), Ok(frame));
    }
    delimited(data);
}

/// Bytes on the lanes of a connection: pieces of a lane (0 control, 1 a datagram, 2 the end of a stream, else a stream) and a
/// length. What waits stays within its limit, and the pages of a room follow each other.
pub(crate) fn merge(mut data: &[u8]) {
    const FRAME_MAX: u32 = 1 << 16;
    let mut merge = Merge::new(FRAME_MAX);
    let mut next = HashMap::new();
    while let [lane, len, rest @ ..] = data {
        let (piece, rest) = rest.split_at(rest.len().min((*len).into()));
        data = rest;
        let taken = match lane {
            0 => merge.take(Origin::Control, piece),
            1 => merge.take(Origin::Datagram, piece),
            2 => merge.end((len % 4 + 3).into()),
            number => merge.take(Origin::Stream((number % 4 + 3).into()), piece),
        };
        if taken.is_err() {
            return;
        }
        assert!(merge.waiting_bytes() <= WAITING_BYTES_MAX + FRAME_MAX as usize);
        while let Some(frame) = merge.poll() {
            match ServerFrame::decode(&frame) {
                Ok(ServerFrame::Subscribed { room, after, .. }) => drop(next.insert(room, after.saturating_add(1))),
                Ok(ServerFrame::Deleted { room }) => drop(next.remove(&room)),
                Ok(ServerFrame::Deliver(page)) => {
                    let next = next.get_mut(&page.room).expect("its room is subscribed");
                    assert_eq!(page.first, *next);
                    *next = next.saturating_add(page.items.len() as u64);
                }
                // A client gives up who sends this.
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// Takes all frames from `buffer`, and says what ended that.
fn take_all(mut buffer: Bytes) -> (Vec<Bytes>, Option<frame::DecodeError>, usize) {
    let mut frames = Vec::new();
    loop {
        match frame::take_delimited(&mut buffer, 1_000) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None, buffer.len()),
            Err(error) => return (frames, Some(error), buffer.len()),
        }
    }
}

fn delimited(data: &[u8]) {
    // Quadratic in the length, and longer inputs show nothing more.
    let data = data.get(..512).unwrap_or(data);
    let whole = take_all(Bytes::copy_from_slice(data));
    // Byte by byte, as a slow stream brings it.
    let (mut frames, mut error, mut rest) = (Vec::new(), None, Vec::new());
    for byte in data {
        rest.push(*byte);
        let (more, ended, left) = take_all(Bytes::copy_from_slice(&rest));
        frames.extend(more);
        rest.drain(..rest.len() - left);
        if ended.is_some() {
            error = ended;
            break;
        }
    }
    assert_eq!((&frames, &error), (&whole.0, &whole.1));
    let mut again = Vec::new();
    for frame in &frames {
        frame::put_delimited(&mut again, frame);
    }
    assert_eq!(take_all(again.into()), (frames, None, 0));
}

/// An envelope's header: what parses is spelled in one way only.
pub(crate) fn envelope(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        assert_eq!(header.to_bytes()[..], data[..HEADER_LEN]);
        assert!(data.len() >= HEADER_LEN + header.suite.enc_len() + TAG_LEN);
    }
}

/// A chunk of a log's history, as it is on disk, with the first seq before it. Its checksum is made to match first, or no
/// input would come further.
pub(crate) fn chunk(data: &[u8]) {
    let Some((first, row)) = data.split_first_chunk::<8>() else { return };
    let (log, first) = (LogId([1; 16]), u64::from_le_bytes(*first));
    let _ = Chunk::decode(log, first, row);
    let mut row = row.to_vec();
    chunk::seal(log, first, &mut row);
    let Ok(chunk) = Chunk::decode(log, first, &row) else { return };
    for seq in [first - 1, first, first + 3, chunk.last(), chunk.last().saturating_add(1)] {
        let _ = (chunk.chain_at(ROOM, seq), chunk.envelope_len(seq));
    }
    let (mut records, _) = (Vec::new(), (chunk.latest_ms(), chunk.since(first)));
    chunk.copy(first, chunk.last(), &mut records);
    let items: Vec<_> = chunk.items().collect();
    assert_eq!((records.len(), records.last().map(|record| record.seq)), (items.len(), Some(chunk.last())));
    let mut again = vec![0; chunk::encoded_len(first, &items)];
    chunk::encode(log, first, chunk.before(), &items, &mut again);
    assert_eq!(again, row, "it is spelled in one way only");
}

const ROOM: RoomId = RoomId([1; 16]);
const EPOCH: u64 = 1;

/// A well-formed envelope whose content is `fill`.
fn room_envelope(epoch: u64, fill: u8) -> Bytes {
    let header = Header { kind: Kind::Room, suite: Suite::X25519Psk, room: ROOM, epoch, leaf: 1, message: MessageId([fill; 16]) };
    let mut bytes = header.to_bytes().to_vec();
    bytes.resize(HEADER_LEN + 32 + TAG_LEN + usize::from(fill), fill);
    bytes.into()
}

/// A well-formed handshake record that follows the one at `after`.
fn change(after: Seq, fill: u8) -> Bytes {
    let mut bytes = room_envelope(EPOCH, fill).to_vec();
    bytes[1] = Kind::Handshake as u8;
    bytes.extend_from_slice(&[fill; 6]);
    let trailer = Trailer { after, access: None, welcome_len: 2, group_info_len: 3, beside_len: 1, is_outline: false };
    bytes.extend_from_slice(&trailer.to_bytes());
    bytes.into()
}

/// A log as a list, and what contract points 2 and 3 say about it.
struct Model {
    /// (producer, number, envelope), by seq; the first `durable` are on disk.
    records: Vec<(Producer, u64, Bytes)>,
    durable: usize,
    /// How many of a producer's latest publishes the log can recognise.
    ring: HashMap<Producer, usize>,
    chains: Vec<Digest>,
}

impl Model {
    fn last(&self, producer: &Producer) -> u64 {
        self.records.iter().filter(|record| record.0 == *producer).count() as u64
    }

    /// The newest handshake record of the first `count`.
    fn handshake(&self, count: usize) -> Seq {
        let newest = self.records.iter().take(count).rposition(|record| envelope::is_handshake(&record.2));
        newest.map_or(0, |at| at as u64 + 1)
    }

    fn expected(&self, producer: &Producer, publish: &Publish) -> Result<u64, Option<Refusal>> {
        let (number, envelope) = (publish.client_seq, &publish.envelope);
        let last = self.last(producer);
        if number == 0 || number > last + 1 {
            return Err(Some(Refusal::OutOfOrder { expected: last + 1 }));
        }
        if number == last + 1 {
            let handshake = self.handshake(self.records.len());
            return Err((publish.handshake != handshake).then_some(Refusal::StaleEpoch { handshake }));
        }
        if last - number >= self.ring.get(producer).copied().unwrap_or_default() as u64 {
            return Err(Some(Refusal::Expired));
        }
        let at = self.records.iter().position(|record| record.0 == *producer && record.1 == number);
        match at.and_then(|at| Some((at, self.records.get(at)?))) {
            Some((at, record)) if record.2 == *envelope => Ok(at as u64 + 1),
            _ => Err(Some(Refusal::Conflict)),
        }
    }

    fn push(&mut self, producer: Producer, number: u64, envelope: &Bytes) -> Digest {
        let before = self.chains.last().copied().unwrap_or_else(|| chain::start(ROOM));
        self.records.push((producer, number, envelope.clone()));
        let value = chain::next(ROOM, before, self.records.len() as u64, envelope);
        self.chains.push(value);
        let ring = self.ring.entry(producer).or_default();
        *ring = (*ring + 1).min(PRODUCER_RING);
        value
    }

    fn pop(&mut self) {
        self.chains.pop();
        if let Some((producer, ..)) = self.records.pop() {
            // What was pushed out of the ring by what is taken back does not come back.
            let ring = self.ring.entry(producer).or_default();
            *ring = ring.saturating_sub(1);
        }
    }

    /// What the engine would load.
    fn reload(&mut self) -> RoomLog {
        self.records.truncate(self.durable);
        self.chains.truncate(self.durable);
        let mut producers: HashMap<Producer, ProducerState> = HashMap::new();
        for (at, (producer, _, envelope)) in self.records.iter().enumerate() {
            // A change of the group is known by its outline.
            let hash = handshake::entry(envelope).0.first_chunk().copied().unwrap_or_default();
            producers.entry(*producer).or_default().push(Stored { seq: at as u64 + 1, hash }, 1);
        }
        self.ring = producers.iter().map(|(producer, state)| (*producer, state.ring.len())).collect();
        let meta = LogMeta {
            log: LogId([1; 16]),
            kind: LogKind::Room,
            access: AccessKey([1; 32]),
            creator: DeviceKey([1; 32]),
            created_ms: 0,
        };
        let mut state = LogState::empty(ROOM);
        state.head = self.durable as u64;
        state.chain = self.chains.last().copied().unwrap_or(state.chain);
        state.handshake = self.handshake(self.durable);
        state.bytes = self.records.iter().map(|record| record.2.len() as u64).sum();
        RoomLog::new(ROOM, LoadedLog { meta, state, former: FormerKeys::default(), producers: producers.into_iter().collect() })
    }
}

/// Operations from here on are resumes.
const RESUMES: u8 = 250;

/// Operations on an open session and its room, checked against [`Model`]: publishes in and out of order, retries, other
/// bytes under an old number, handshake records and whoever knows others, durable and failed appends, arbitrary frames, and sessions that are resumed.
pub(crate) fn session_ops(data: &[u8]) {
    let mut logins = Logins::new();
    let mut session = logins.log_in();
    let mut model = Model { records: Vec::new(), durable: 0, ring: HashMap::new(), chains: Vec::new() };
    let mut room = model.reload();
    let mut pending: VecDeque<Append> = VecDeque::new();
    let mut now_ms = 0;
    let mut input = data.iter().copied();
    while let Some(op) = input.next() {
        now_ms += 10;
        let mut byte = || input.next().unwrap_or_default();
        match op % 10 {
            _ if op >= RESUMES => {
                // Who is not let in comes on another connection; the former session goes on.
                if let Some(resumed) = logins.resume(byte(), now_ms) {
                    session = resumed;
                }
            }
            0..=4 => {
                let producer = Producer { device: logins.device(), id: ProducerId([byte() % 3; 16]) };
                let (last, back) = (model.last(&producer), u64::from(byte() % 80));
                let earlier = last.saturating_sub(back);
                let old = model.records.iter().find(|record| record.0 == producer && record.1 == earlier);
                let known = model.handshake(model.records.len());
                let (client_seq, handshake, envelope) = match op % 10 {
                    1 => (earlier, known, old.map_or_else(|| room_envelope(EPOCH, 0), |record| record.2.clone())),
                    2 => (earlier, known, room_envelope(EPOCH, byte())),
                    3 => (last + back, known, room_envelope(EPOCH, byte())),
                    4 if back % 4 == 0 => (last + 1, known, change(known, byte())),
                    4 if back % 4 == 1 => (last + 1, known + back, change(known + back, byte())),
                    4 => (last + 1, back, room_envelope(EPOCH + 1, byte())),
                    _ => (last + 1, known, room_envelope(EPOCH, byte())),
                };
                let publish = Publish { room: ROOM, producer: producer.id, client_seq, handshake, envelope };
                if let Some(append) = publish_one(&logins, &mut session, &mut room, &mut model, &publish, now_ms) {
                    pending.push_back(append);
                }
            }
            5 | 6 => {
                assert_eq!(room.persisted(1_000), pending.pop_front());
                model.durable = (model.durable + 1).min(model.records.len());
            }
            7 => {
                assert_eq!(room.unpublish_last(), pending.pop_back());
                if model.records.len() > model.durable {
                    model.pop();
                }
            }
            8 => {
                // The engine failed; some of what was pending may be on disk all the same.
                model.durable += pending.len().min(usize::from(byte()));
                while let Some(append) = room.failed() {
                    assert_eq!(Some(append), pending.pop_front());
                }
                assert!(pending.is_empty() && room.is_quiet() && room.has_failed());
                room = model.reload();
            }
            _ => {
                let bytes: Vec<u8> = input.by_ref().take(usize::from(op)).collect();
                if let Ok(frame) = ClientFrame::decode(&bytes)
                    && logins.handle(&mut session, frame, now_ms).is_err()
                {
                    return;
                }
            }
        }
        check(&room, &model);
    }
}

fn publish_one(
    logins: &Logins,
    session: &mut Session,
    room: &mut RoomLog,
    model: &mut Model,
    publish: &Publish,
    now_ms: u64,
) -> Option<Append> {
    let device = logins.device();
    let frame = ClientFrame::Publish(publish.clone());
    match logins.handle(session, frame, now_ms) {
        Ok(Step::Route(RoomRequest { room: ROOM, action: Action::Publish(routed) })) => assert_eq!(routed, *publish),
        other => panic!("unexpected {other:?}"),
    }
    let producer = Producer { device, id: publish.producer };
    let expected = model.expected(&producer, publish);
    let verdict = room.publish(device, publish.clone(), now_ms, &Limits::default());
    match (expected, verdict) {
        (Err(None), Verdict::Append(append)) => {
            let chain = model.push(producer, publish.client_seq, &publish.envelope);
            assert_eq!((append.seq, append.chain), (model.records.len() as u64, chain));
            assert_eq!((append.producer, append.client_seq, &append.envelope), (producer, publish.client_seq, &publish.envelope));
            return Some(append);
        }
        (Ok(seq), Verdict::Stored(stored)) => assert!(seq == stored && seq <= model.durable as u64),
        (Ok(seq), Verdict::Pending(pending)) => assert!(seq == pending && seq > model.durable as u64),
        (Err(Some(refusal)), Verdict::Refused(refused)) => assert_eq!(refusal, refused),
        (expected, verdict) => panic!("expected {expected:?}, but {verdict:?}"),
    }
    None
}

/// What the room shows is what is durable.
fn check(room: &RoomLog, model: &Model) {
    let durable = model.records.get(..model.durable).unwrap_or_default();
    assert_eq!(room.durable().head, durable.len() as u64);
    assert_eq!(room.durable().handshake, model.handshake(model.durable));
    assert_eq!(room.durable().bytes, durable.iter().map(|record| record.2.len() as u64).sum::<u64>());
    assert_eq!(room.is_quiet(), model.records.len() == model.durable);
    // The ends, and where the recent tail is likely to begin.
    let end = durable.len();
    for after in [0, end / 2, end.saturating_sub(3), end.saturating_sub(1), end] {
        let Some(page) = room.recent_after(after as u64, 500) else { continue };
        let before = after.checked_sub(1).and_then(|at| model.chains.get(at).copied());
        assert_eq!((page.first, page.chain), (after as u64 + 1, before.unwrap_or_else(|| chain::start(ROOM))));
        assert!(after == durable.len() || !page.items.is_empty());
        for (item, record) in page.items.iter().zip(durable.get(after..).unwrap_or_default()) {
            assert_eq!(item.envelope, handshake::outline(&record.2));
        }
        assert!(page.items.len() <= durable.len() - after);
    }
}
