//! What the redb files of both formats have in common: their errors, and the rows of producers.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, TableError, WriteTransaction};

use crate::core::{
    access::FormerKeys,
    id::{ClientSeq, DeviceKey, LogId, ProducerId, Seq, UnixMillis},
    log::{Append, EnvelopeHash, Producer, ProducerState, Stored},
};

/// An outbox that was idle for so long may be forgotten.
const PRODUCER_IDLE_MS: u64 = 30 * 24 * 60 * 60 * 1000;

/// A key of [`PRODUCERS`].
pub(super) type ProducerKey = [u8; 64];

/// By name: what the file is.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// By log, device and producer: what the log remembers of an outbox.
pub(super) const PRODUCERS: TableDefinition<'_, &'static ProducerKey, &[u8]> = TableDefinition::new("producers");
/// The logs that have ended and whose rows are being removed.
pub(super) const DELETING: TableDefinition<'_, &[u8; 16], ()> = TableDefinition::new("deleting");
/// By device: its key packages, as their owner spells them. Made when it is first written to: older stores do not have it.
pub(super) const PACKAGES: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("packages");
/// The row of [`META`] with the format.
pub(super) const FORMAT_ROW: &str = "format";

/// What follows a log's row, whose encoding is `row`, where there is a handshake record: the seq of the newest one, and the former
/// access keys, in postcard. So the rows of logs without any are as they were before there were handshake records.
pub(super) fn put_group(mut row: Vec<u8>, handshake: Seq, former: &FormerKeys) -> Vec<u8> {
    if handshake != 0 {
        row.extend(postcard::to_allocvec(&(handshake, former)).expect("a bounded list encodes into memory"));
    }
    row
}

/// Reads what [`put_group`] wrote; `None` if it is something else, or cannot be of a log with that head.
pub(super) fn take_group(rest: &[u8], head: Seq) -> Option<(Seq, FormerKeys)> {
    if rest.is_empty() {
        return Some((0, FormerKeys::default()));
    }
    let ((handshake, former), rest) = postcard::take_from_bytes::<(Seq, FormerKeys)>(rest).ok()?;
    (rest.is_empty() && (1..=head).contains(&handshake) && former.is_plausible(handshake)).then_some((handshake, former))
}

/// A row that this build did not write, or storage that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] redb::Error),
    /// A row does not decode.
    #[error("a row of table {0} does not decode")]
    Row(&'static str),
    /// The rows of a log are not what they must be.
    #[error("log {log}: {why}")]
    Log {
        /// The log.
        log: LogId,
        /// What was found.
        why: String,
    },
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for Error {
            fn from(error: redb::$error) -> Self {
                Self::Storage(error.into())
            }
        })*
    };
}
from_redb!(StorageError, TableError, TransactionError, CommitError);

/// How the row of a producer is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// That of the first format: postcard (last number, time, [(seq, hash of 16 bytes)]). Of the hash eight bytes count.
    First,
    /// That of format 2: postcard (last number, time, [(seq less the one before, for the first: less 0; hash of 8 bytes)]).
    /// The seqs ascend, so that mostly a byte is enough.
    Second,
}

/// A row: the last number, its time, and what can still be recognised, oldest first.
type Row<const HASH: usize> = (ClientSeq, UnixMillis, Vec<(Seq, [u8; HASH])>);
const HASH_LEN: usize = size_of::<EnvelopeHash>();
const FIRST_HASH_LEN: usize = 16;

/// A producer's row, in the spelling of format 2.
pub(super) fn encode_producer(state: &ProducerState) -> Vec<u8> {
    Spelling::Second.encode(state)
}

impl Spelling {
    fn decode(self, bytes: &[u8]) -> Result<ProducerState, Error> {
        let broken = || Error::Row("producers");
        Ok(match self {
            Self::First => {
                let (last, time_ms, ring): Row<FIRST_HASH_LEN> = postcard::from_bytes(bytes).map_err(|_| broken())?;
                let stored = |(seq, hash): (Seq, [u8; FIRST_HASH_LEN])| Stored { seq, hash: first_bytes(&hash) };
                ProducerState { last, time_ms, ring: ring.into_iter().map(stored).collect() }
            }
            Self::Second => {
                let (last, time_ms, ring): Row<HASH_LEN> = postcard::from_bytes(bytes).map_err(|_| broken())?;
                let mut before: Seq = 0;
                let mut stored = |(delta, hash)| {
                    before = before.checked_add(delta)?;
                    Some(Stored { seq: before, hash })
                };
                let ring = ring.into_iter().map(|row| stored(row).ok_or_else(broken)).collect::<Result<_, _>>()?;
                ProducerState { last, time_ms, ring }
            }
        })
    }

    fn encode(self, state: &ProducerState) -> Vec<u8> {
        let ring = state.ring.iter();
        let encoded = match self {
            Self::First => {
                let row: Row<FIRST_HASH_LEN> =
                    (state.last, state.time_ms, ring.map(|stored| (stored.seq, first_bytes(&stored.hash))).collect());
                postcard::to_allocvec(&row)
            }
            Self::Second => {
                let before = std::iter::once(0).chain(ring.clone().map(|stored| stored.seq));
                let deltas = ring.zip(before).map(|(stored, before)| (stored.seq.saturating_sub(before), stored.hash));
                let row: Row<HASH_LEN> = (state.last, state.time_ms, deltas.collect());
                postcard::to_allocvec(&row)
            }
        };
        encoded.expect("a ring of known length encodes into memory")
    }
}

/// The first bytes of `bytes`; what is missing is zero.
fn first_bytes<const LEN: usize>(bytes: &[u8]) -> [u8; LEN] {
    let mut first = [0; LEN];
    first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    first
}

/// The key of `producer` in `log`.
pub(super) fn producer_key(log: LogId, producer: &Producer) -> ProducerKey {
    let mut key = [0; 64];
    key[..16].copy_from_slice(&log.0);
    key[16..48].copy_from_slice(&producer.device.0);
    key[48..].copy_from_slice(&producer.id.0);
    key
}

/// The first and last possible key of `log`, or of one of its devices.
pub(super) fn producer_range(log: LogId, device: Option<DeviceKey>) -> (ProducerKey, ProducerKey) {
    let low = producer_key(log, &Producer { device: device.unwrap_or(DeviceKey([0; 32])), id: ProducerId([0; 16]) });
    let high = producer_key(log, &Producer { device: device.unwrap_or(DeviceKey([0xff; 32])), id: ProducerId([0xff; 16]) });
    (low, high)
}

/// Which producer a key names.
pub(super) fn producer_of(key: &ProducerKey) -> Producer {
    let mut producer = Producer { device: DeviceKey([0; 32]), id: ProducerId([0; 16]) };
    producer.device.0.copy_from_slice(&key[16..48]);
    producer.id.0.copy_from_slice(&key[48..]);
    producer
}

/// Every producer of `log`.
pub(super) fn producers(
    table: &impl ReadableTable<&'static ProducerKey, &'static [u8]>,
    spelling: Spelling,
    log: LogId,
) -> Result<Vec<(Producer, ProducerState)>, Error> {
    let (low, high) = producer_range(log, None);
    let mut producers = Vec::new();
    for entry in table.range::<&ProducerKey>(&low..=&high)? {
        let (key, state) = entry?;
        producers.push((producer_of(key.value()), spelling.decode(state.value())?));
    }
    Ok(producers)
}

/// What a producer's state is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publish {
    pub(super) producer: Producer,
    pub(super) client_seq: ClientSeq,
    pub(super) time_ms: UnixMillis,
    pub(super) stored: Stored,
}

impl From<&Append> for Publish {
    fn from(append: &Append) -> Self {
        let Append { producer, client_seq, time_ms, seq, hash, .. } = append;
        Self { producer: *producer, client_seq: *client_seq, time_ms: *time_ms, stored: Stored { seq: *seq, hash: *hash } }
    }
}

/// Notes the publish. Its number decides: where the outbox was forgotten in between, what came before cannot be recognised
/// any more.
pub(super) fn note(state: &mut ProducerState, publish: &Publish) {
    if state.last + 1 != publish.client_seq {
        state.ring.clear();
        state.last = publish.client_seq.saturating_sub(1);
    }
    state.push(publish.stored, publish.time_ms);
}

/// The producers that a transaction changes: each is read once and written once.
pub(super) struct Producers<'t> {
    table: Table<'t, &'static ProducerKey, &'static [u8]>,
    spelling: Spelling,
    states: BTreeMap<(LogId, Producer), ProducerState>,
}

impl<'t> Producers<'t> {
    /// Those of format 2.
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, Error> {
        Self::open_as(txn, Spelling::Second)
    }

    /// Those whose rows are spelled so.
    pub(super) fn open_as(txn: &'t WriteTransaction, spelling: Spelling) -> Result<Self, Error> {
        Ok(Self { table: txn.open_table(PRODUCERS)?, spelling, states: BTreeMap::new() })
    }

    /// Reads what [`Self::note`] will change, so that a broken row is found before anything is. `time_ms` is when the
    /// producer publishes.
    pub(super) fn load(&mut self, log: LogId, producer: &Producer, time_ms: UnixMillis) -> Result<(), Error> {
        if self.states.contains_key(&(log, *producer)) {
            return Ok(());
        }
        let stored = self.table.get(&producer_key(log, producer))?.map(|row| self.spelling.decode(row.value())).transpose()?;
        if stored.is_none() {
            self.forget_idle(log, producer.device, time_ms)?;
        }
        self.states.insert((log, *producer), stored.unwrap_or_default());
        Ok(())
    }

    /// Forgets the device's outboxes that were idle for [`PRODUCER_IDLE_MS`]: done when it begins another one, so that
    /// their number stays bounded.
    fn forget_idle(&mut self, log: LogId, device: DeviceKey, now: UnixMillis) -> Result<(), Error> {
        let (low, high) = producer_range(log, Some(device));
        let mut idle = Vec::new();
        for entry in self.table.range::<&ProducerKey>(&low..=&high)? {
            let (key, state) = entry?;
            if self.spelling.decode(state.value())?.time_ms.saturating_add(PRODUCER_IDLE_MS) < now {
                idle.push(*key.value());
            }
        }
        for key in idle {
            self.table.remove(&key)?;
        }
        Ok(())
    }

    /// Notes the publishes, whose producers were loaded.
    pub(super) fn note(&mut self, log: LogId, publishes: impl IntoIterator<Item = Publish>) {
        let mut publishes = publishes.into_iter().peekable();
        while let Some(first) = publishes.next() {
            let Some(state) = self.states.get_mut(&(log, first.producer)) else { continue };
            note(state, &first);
            // Who publishes once mostly publishes again.
            while let Some(next) = publishes.next_if(|next| next.producer == first.producer) {
                note(state, &next);
            }
        }
    }

    /// Drops what was loaded and noted of `log`.
    pub(super) fn drop_log(&mut self, log: LogId) {
        self.states.retain(|(other, _), _| *other != log);
    }

    /// Drops all that was loaded and noted since the last [`Self::write`].
    pub(super) fn drop_all(&mut self) {
        self.states.clear();
    }

    /// Writes what was noted.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        for ((log, producer), state) in std::mem::take(&mut self.states) {
            self.table.insert(&producer_key(log, &producer), self.spelling.encode(&state).as_slice())?;
        }
        Ok(())
    }

    /// Removes up to `rows_max` producers of `log`; how many there were to remove.
    pub(super) fn sweep(&mut self, log: LogId, rows_max: usize) -> Result<usize, Error> {
        let (low, high) = producer_range(log, None);
        let mut swept = 0;
        for entry in self.table.extract_from_if::<&ProducerKey, _>(&low..=&high, |_, _| true)?.take(rows_max) {
            entry?;
            swept += 1;
        }
        Ok(swept)
    }
}

/// The key packages of `device`; no bytes where there are none.
pub(super) fn packages(txn: &ReadTransaction, device: DeviceKey) -> Result<Bytes, Error> {
    let table = match txn.open_table(PACKAGES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Bytes::new()),
        table => table?,
    };
    Ok(table.get(&device.0)?.map_or_else(Bytes::new, |row| Bytes::copy_from_slice(row.value())))
}

/// Calls `each` for those of all devices, until it says false.
pub(super) fn each_packages(txn: &ReadTransaction, mut each: impl FnMut(DeviceKey, &[u8]) -> bool) -> Result<(), Error> {
    let table = match txn.open_table(PACKAGES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    for entry in table.iter()? {
        let (device, row) = entry?;
        if !each(DeviceKey(*device.value()), row.value()) {
            break;
        }
    }
    Ok(())
}

/// Puts these in the place of the key packages of `device`.
pub(super) fn put_packages(txn: &WriteTransaction, device: DeviceKey, packages: &[u8]) -> Result<(), Error> {
    let mut table = txn.open_table(PACKAGES)?;
    match packages {
        [] => drop(table.remove(&device.0)?),
        _ => drop(table.insert(&device.0, packages)?),
    }
    Ok(())
}

/// What a redb file says that it is.
pub(super) enum Contents {
    /// Nothing is in it yet.
    Empty,
    /// A store of this format.
    Store(u32),
    /// Something else.
    Foreign,
}

/// Tells an empty file, a store and its format, and something else apart.
pub(super) fn contents(txn: &ReadTransaction) -> Result<Contents, Error> {
    let meta = match txn.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let empty = txn.list_tables()?.next().is_none();
            return Ok(if empty { Contents::Empty } else { Contents::Foreign });
        }
        Err(TableError::Storage(error)) => return Err(error.into()),
        Err(_) => return Ok(Contents::Foreign),
    };
    let row = meta.get(FORMAT_ROW)?;
    let format = row.and_then(|row| Some(u32::from_le_bytes(row.value().try_into().ok()?)));
    Ok(format.map_or(Contents::Foreign, Contents::Store))
}
