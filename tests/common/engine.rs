//! An engine in memory that carries out requests when it is told to, fails when it is told to, and loses on a crash what
//! it had not carried out. It checks what the router owes the seam: appends come with dense seqs and a matching chain.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use waxwing::{
    core::{
        access::FormerKeys,
        chain,
        id::{DeviceKey, RoomId, Seq},
        log::{Append, LoadedLog, LogMeta, LogState, Producer, ProducerState, Record, Records, Stored},
    },
    engine::{Answer, Busy, Complete, Completion, Engine, Failure, Request, Token},
};

/// One stored log.
#[derive(Debug, Clone)]
pub struct Log {
    room: RoomId,
    pub meta: LogMeta,
    pub state: LogState,
    pub former: FormerKeys,
    pub producers: BTreeMap<Producer, ProducerState>,
    /// All that there ever were: what lies below the floor is only kept to compare with.
    pub records: Vec<Record>,
    /// The chain value after each record.
    pub chains: Vec<waxwing::core::id::Digest>,
    /// The (producer, number) of each record.
    pub origins: Vec<(Producer, u64)>,
    /// An append failed and the log was not loaded since.
    broken: bool,
}

#[derive(Default)]
struct State {
    logs: BTreeMap<RoomId, Log>,
    packages: BTreeMap<DeviceKey, Bytes>,
    queue: VecDeque<(Request, Token, Arc<dyn Complete>)>,
    fail_next: VecDeque<Failure>,
    /// Loads that will fail.
    fail_loads: u32,
    /// Reads of records that were asked for, by log.
    reads: BTreeMap<RoomId, u64>,
}

/// See the module.
pub struct ModelEngine {
    state: Mutex<State>,
    queue_max: usize,
}

impl Engine for ModelEngine {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        let mut state = self.state.lock().unwrap();
        if state.queue.len() >= self.queue_max {
            return Err(Busy);
        }
        if let Request::ReadAfter { room, .. } | Request::ReadBefore { room, .. } = &request {
            *state.reads.entry(*room).or_default() += 1;
        }
        state.queue.push_back((request, token, Arc::clone(to)));
        Ok(())
    }

    fn is_healthy(&self) -> bool {
        true
    }
}

impl ModelEngine {
    pub fn new(queue_max: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), queue_max })
    }

    /// Carries out at most `count` requests; how many it did.
    pub fn step(&self, count: usize) -> usize {
        let mut done = Vec::new();
        {
            let mut state = self.state.lock().unwrap();
            for _ in 0..count {
                let Some((request, token, to)) = state.queue.pop_front() else { break };
                let result = state.carry_out(request);
                // Reads have threads of their own: they are often told before the appends that they have seen.
                let late = matches!(result, Ok(Answer::Done) | Err(_));
                done.push((late, to, Completion { token, result }));
            }
        }
        done.sort_by_key(|(late, ..)| *late);
        let count = done.len();
        for (_, to, completion) in done {
            to.complete(vec![completion]);
        }
        count
    }

    /// The next append fails so.
    pub fn fail_next(&self, failure: Failure) {
        self.state.lock().unwrap().fail_next.push_back(failure);
    }

    /// So many loads fail.
    pub fn fail_loads(&self, count: u32) {
        self.state.lock().unwrap().fail_loads = count;
    }

    /// How many requests wait.
    pub fn queue_len(&self) -> usize {
        self.state.lock().unwrap().queue.len()
    }

    /// Forgets what it has not carried out.
    pub fn crash(&self) {
        let mut state = self.state.lock().unwrap();
        state.queue.clear();
        state.fail_next.clear();
        state.logs.values_mut().for_each(|log| log.broken = false);
    }

    /// Retention: all but the newest `keep` records go, behind the router's back.
    pub fn trim(&self, room: RoomId, keep: u64) {
        let mut state = self.state.lock().unwrap();
        let Some(log) = state.logs.get_mut(&room) else { return };
        let floor = (log.state.head + 1).saturating_sub(keep).max(log.state.floor);
        let gone = &log.records[usize::try_from(log.state.floor - 1).unwrap()..usize::try_from(floor - 1).unwrap()];
        log.state.bytes -= gone.iter().map(|record| record.envelope.len() as u64).sum::<u64>();
        log.state.floor_chain = log.chain_at(floor - 1);
        log.state.floor = floor;
    }

    /// How many reads of records were asked for since this was last called, by log.
    pub fn take_reads(&self) -> BTreeMap<RoomId, u64> {
        mem::take(&mut self.state.lock().unwrap().reads)
    }

    /// Which logs the requests that wait concern, in their order, where they are appends.
    pub fn queued_appends(&self) -> Vec<(RoomId, Seq)> {
        let append = |(request, ..): &(Request, Token, Arc<dyn Complete>)| match request {
            Request::Append(append) => Some((append.room, append.seq)),
            _ => None,
        };
        self.state.lock().unwrap().queue.iter().filter_map(append).collect()
    }

    pub fn log(&self, room: RoomId) -> Option<Log> {
        self.state.lock().unwrap().logs.get(&room).cloned()
    }
}

impl State {
    fn carry_out(&mut self, request: Request) -> Result<Answer, Failure> {
        match request {
            Request::Load { .. } if self.fail_loads > 0 => {
                self.fail_loads -= 1;
                Err(Failure::Read)
            }
            Request::Load { room } => Ok(Answer::Loaded(self.logs.get_mut(&room).map(|log| {
                log.broken = false;
                let producers = log.producers.iter().map(|(producer, state)| (*producer, state.clone())).collect();
                Box::new(LoadedLog { meta: log.meta.clone(), state: log.state, former: log.former.clone(), producers })
            }))),
            Request::Create { room, meta } => {
                if self.logs.contains_key(&room) {
                    return Err(Failure::Exists);
                }
                let state = LogState::empty(room);
                let (producers, records, chains, origins) = (BTreeMap::new(), Vec::new(), Vec::new(), Vec::new());
                self.logs.insert(
                    room,
                    Log { room, meta, state, former: FormerKeys::default(), producers, records, chains, origins, broken: false },
                );
                Ok(Answer::Done)
            }
            Request::Append(append) => {
                let failure = self.fail_next.pop_front();
                let log = self.logs.get_mut(&append.room).ok_or(Failure::NotFound)?;
                if let Some(failure) = failure {
                    log.broken = true;
                    // Nobody knows, says the failure: half of the time it is there.
                    if failure == Failure::OutcomeUnknown && append.seq % 2 == 0 && append.seq == log.state.head + 1 {
                        log.append(append);
                    }
                    return Err(failure);
                }
                if log.broken {
                    return Err(Failure::OutcomeUnknown);
                }
                log.append(append);
                Ok(Answer::Done)
            }
            Request::ReadAfter { room, after, bytes_max } => {
                let log = self.logs.get(&room).ok_or(Failure::NotFound)?;
                Ok(Answer::Records(log.read(after, bytes_max)))
            }
            Request::ReadBefore { room, before, count_max, bytes_max } => {
                let log = self.logs.get(&room).ok_or(Failure::NotFound)?;
                let lowest = usize::try_from(log.state.floor - 1).unwrap();
                let end = usize::try_from((before.max(1) - 1).min(log.state.head)).unwrap().max(lowest);
                let mut first = end;
                let mut bytes = 0;
                while first > lowest && end - first < count_max as usize {
                    bytes += log.records[first - 1].envelope.len();
                    if first < end && bytes > bytes_max as usize {
                        break;
                    }
                    first -= 1;
                }
                let records = log.records[first..end].to_vec();
                Ok(Answer::Records(Records { state: log.state, before: log.chain_at(first as u64), records }))
            }
            Request::ReadHandshake { room, seq } => {
                let log = self.logs.get(&room).ok_or(Failure::NotFound)?;
                let record = log.records.get(usize::try_from(seq - 1).unwrap()).filter(|_| seq == log.state.handshake);
                let before = log.chain_at(seq - 1);
                Ok(Answer::Records(Records { state: log.state, before, records: record.cloned().into_iter().collect() }))
            }
            Request::Seek { room, time_ms } => {
                let log = self.logs.get(&room).ok_or(Failure::NotFound)?;
                let kept = log.records.iter().filter(|record| record.seq >= log.state.floor);
                let seq =
                    kept.into_iter().find(|record| record.time_ms >= time_ms).map_or(log.state.head + 1, |record| record.seq);
                Ok(Answer::Sought(seq))
            }
            Request::LoadPackages { device } => Ok(Answer::Packages(self.packages.get(&device).cloned().unwrap_or_default())),
            Request::StorePackages { device, packages } => match self.fail_next.pop_front() {
                None => {
                    self.packages.insert(device, packages);
                    Ok(Answer::Done)
                }
                Some(failure) => {
                    // Nobody knows, says the failure: here it is there.
                    if failure == Failure::OutcomeUnknown {
                        self.packages.insert(device, packages);
                    }
                    Err(failure)
                }
            },
            Request::Delete { room } => self.logs.remove(&room).map(|_| Answer::Done).ok_or(Failure::NotFound),
        }
    }
}

impl Log {
    fn append(&mut self, append: Append) {
        let Append { room, seq, chain, time_ms, producer, client_seq, hash, envelope } = append;
        assert_eq!(seq, self.state.head + 1, "appends are dense");
        assert_eq!(chain, chain::next(room, self.state.chain, seq, &envelope), "the chain goes on");
        let state = self.producers.entry(producer).or_default();
        assert_eq!(client_seq, state.last + 1, "only the next of its producer");
        state.push(Stored { seq, hash }, time_ms);
        self.state.head = seq;
        self.state.chain = chain;
        self.state.bytes += envelope.len() as u64;
        if waxwing::core::envelope::is_handshake(&envelope) {
            self.state.handshake = seq;
        }
        if let Some(access) = waxwing::core::handshake::new_access(&envelope) {
            self.former.replace(&mut self.meta.access, seq, access);
        }
        self.origins.push((producer, client_seq));
        self.records.push(Record { seq, time_ms, envelope });
        self.chains.push(chain);
    }

    pub fn chain_at(&self, seq: Seq) -> waxwing::core::id::Digest {
        match usize::try_from(seq).unwrap().checked_sub(1) {
            None => chain::start(self.room),
            Some(index) => self.chains[index],
        }
    }

    fn read(&self, after: Seq, bytes_max: u32) -> Records {
        let after = after.clamp(self.state.floor - 1, self.state.head);
        let mut bytes = 0;
        let mut records = Vec::new();
        for record in self.records.iter().skip(usize::try_from(after).unwrap()) {
            bytes += record.envelope.len();
            if !records.is_empty() && bytes > bytes_max as usize {
                break;
            }
            records.push(record.clone());
        }
        Records { state: self.state, before: self.chain_at(after), records }
    }
}

/// Completions, until somebody takes them.
#[derive(Default)]
pub struct Collector(Mutex<Vec<Completion>>);

impl Collector {
    pub fn take(&self) -> Vec<Completion> {
        mem::take(&mut self.0.lock().unwrap())
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap().is_empty()
    }

    /// The first so many.
    pub fn take_some(&self, count: usize) -> Vec<Completion> {
        let mut waiting = self.0.lock().unwrap();
        let count = count.min(waiting.len());
        waiting.drain(..count).collect()
    }
}

impl Complete for Collector {
    fn complete(&self, batch: Vec<Completion>) {
        self.0.lock().unwrap().extend(batch);
    }
}
