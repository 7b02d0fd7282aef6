//! Speaks to an engine as a router does, and remembers what a log must hold.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use waxwing::{
    core::{
        access::FormerKeys,
        chain,
        frame::LogKind,
        handshake::{self, TRAILER_LEN, Trailer},
        id::{AccessKey, DeviceKey, Digest, LogId, ProducerId, RoomId},
        log::{Append, LoadedLog, LogMeta, Producer, Records},
    },
    engine::{Answer, Busy, Complete, Completion, Engine, Failure, Request, Token},
};

struct Sink(SyncSender<Vec<Completion>>);

impl Complete for Sink {
    fn complete(&self, batch: Vec<Completion>) {
        let _ = self.0.send(batch);
    }
}

pub(crate) struct Driver {
    pub(crate) engine: Arc<dyn Engine>,
    sink: Arc<dyn Complete>,
    completions: Receiver<Vec<Completion>>,
    arrived: std::collections::VecDeque<Completion>,
    token: Token,
}

impl Driver {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        let (sender, completions) = sync_channel(8_192);
        Self { engine, sink: Arc::new(Sink(sender)), completions, arrived: Default::default(), token: 0 }
    }

    pub(crate) fn submit(&mut self, request: Request) -> Result<Token, Busy> {
        self.token += 1;
        self.engine.submit(request, self.token, &self.sink)?;
        Ok(self.token)
    }

    pub(crate) fn next(&mut self) -> Completion {
        while self.arrived.is_empty() {
            self.arrived
                .extend(self.completions.recv_timeout(Duration::from_secs(30)).expect("the engine answers every request"));
        }
        self.arrived.pop_front().unwrap()
    }

    /// One request and its answer.
    pub(crate) fn ask(&mut self, request: Request) -> Result<Answer, Failure> {
        let token = self.submit(request).unwrap();
        let completion = self.next();
        assert_eq!(completion.token, token);
        completion.result
    }

    pub(crate) fn done(&mut self, request: Request) -> Result<(), Failure> {
        match self.ask(request)? {
            Answer::Done => Ok(()),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn load(&mut self, room: RoomId) -> Option<LoadedLog> {
        match self.ask(Request::Load { room }) {
            Ok(Answer::Loaded(log)) => log.map(|log| *log),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn after(&mut self, room: RoomId, after: u64, bytes_max: u32) -> Result<Records, Failure> {
        match self.ask(Request::ReadAfter { room, after, bytes_max })? {
            Answer::Records(records) => Ok(records),
            other => panic!("unexpected {other:?}"),
        }
    }

    pub(crate) fn before(&mut self, room: RoomId, before: u64, count_max: u32, bytes_max: u32) -> Result<Records, Failure> {
        match self.ask(Request::ReadBefore { room, before, count_max, bytes_max })? {
            Answer::Records(records) => Ok(records),
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub(crate) fn room(number: u8) -> RoomId {
    RoomId([number; 16])
}

pub(crate) fn meta(log: u8) -> LogMeta {
    LogMeta {
        log: LogId([log; 16]),
        kind: LogKind::Room,
        access: AccessKey([3; 32]),
        creator: DeviceKey([4; 32]),
        created_ms: 1_000,
    }
}

/// Bytes to append; in one of eight they look as if they were a handshake record, and where there is space for one they may be
/// one, which brings an access key.
pub(crate) fn filled(byte: u8, len: usize) -> Vec<u8> {
    let mut envelope = vec![byte; len];
    if byte.is_multiple_of(8) {
        envelope.iter_mut().zip([1, 4, 1, 0]).for_each(|(to, from)| *to = from);
        if let Some(end) = envelope.last_chunk_mut::<TRAILER_LEN>().filter(|_| byte.is_multiple_of(16) && len > 200) {
            let access = Some(AccessKey([byte | 1; 32]));
            let trailer = Trailer { after: 0, access, welcome_len: 3, group_info_len: 20, beside_len: 4, is_outline: false };
            *end = trailer.to_bytes();
        }
    }
    envelope
}

pub(crate) fn producer(number: u8) -> Producer {
    Producer { device: DeviceKey([5; 32]), id: ProducerId([number; 16]) }
}

/// What a log must hold, by whoever appends to it.
pub(crate) struct Log {
    pub(crate) room: RoomId,
    pub(crate) chain: Digest,
    pub(crate) appends: Vec<Append>,
    /// The newest seq that was completed.
    pub(crate) acked: u64,
}

impl Log {
    pub(crate) fn new(room: RoomId) -> Self {
        Self { room, chain: chain::start(room), appends: Vec::new(), acked: 0 }
    }

    /// The next append, of one producer.
    pub(crate) fn next(&mut self, envelope: Vec<u8>) -> Append {
        let seq = self.appends.len() as u64 + 1;
        let digest = handshake::entry(&envelope);
        self.chain = chain::next_hashed(self.room, self.chain, seq, digest);
        let append = Append {
            room: self.room,
            seq,
            chain: self.chain,
            time_ms: 1_000 + seq,
            producer: producer(1),
            client_seq: seq,
            hash: digest.0[..8].try_into().unwrap(),
            envelope: Bytes::from(envelope),
        };
        self.appends.push(append.clone());
        append
    }

    /// Reads all of it in pages, and checks that it is a prefix of what was submitted, dense, chained, and not shorter
    /// than what was acked. Returns its head.
    pub(crate) fn check(&self, driver: &mut Driver) -> u64 {
        let loaded = driver.load(self.room).expect("an acked log is there");
        assert!(loaded.state.head >= self.acked, "acked {} but the head is {}", self.acked, loaded.state.head);
        let (mut chain, mut seq) = (chain::start(self.room), 0);
        loop {
            let page = driver.after(self.room, seq, 3_000).unwrap();
            assert_eq!(page.before, chain);
            assert_eq!(page.state, loaded.state);
            for record in &page.records {
                seq += 1;
                chain = chain::next(self.room, chain, seq, &record.envelope);
                let append = &self.appends[usize::try_from(seq).unwrap() - 1];
                assert_eq!((record.seq, chain, &record.envelope), (seq, append.chain, &append.envelope));
                assert_eq!(record.time_ms, append.time_ms);
            }
            if page.records.is_empty() {
                break;
            }
        }
        assert_eq!((seq, chain), (loaded.state.head, loaded.state.chain));
        let bytes = self.appends[..usize::try_from(seq).unwrap()].iter().map(|append| append.envelope.len() as u64).sum::<u64>();
        assert_eq!(bytes, loaded.state.bytes);
        let (mut access, mut former) = (meta(0).access, FormerKeys::default());
        for append in self.appends.iter().take(usize::try_from(seq).unwrap()) {
            if let Some(next) = append.new_access() {
                former.replace(&mut access, append.seq, next);
            }
        }
        assert_eq!((loaded.meta.access, loaded.former), (access, former));
        let changes = self.appends.iter().take(usize::try_from(seq).unwrap()).filter(|append| append.is_handshake());
        assert_eq!(changes.last().map_or(0, |append| append.seq), loaded.state.handshake);
        match loaded.producers.as_slice() {
            [] => assert_eq!(seq, 0),
            [(name, state)] => {
                assert_eq!((*name, state.last), (producer(1), seq));
                let last = self.appends[usize::try_from(seq).unwrap() - 1].hash;
                assert_eq!(state.find(seq).map(|stored| (stored.seq, stored.hash)), Some((seq, last)));
            }
            more => panic!("unexpected {more:?}"),
        }
        seq
    }
}
