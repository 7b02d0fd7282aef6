//! SQLite in WAL mode with `synchronous = FULL`: one transaction, and so one sync of its log, for all that queued.

use std::{path::Path, sync::Arc, time::Instant};

use rusqlite::{Connection, params};
use waxwing::engine::{Busy, Complete, Engine, Observer, Request, Token};

use super::queue::{Job, Worker};

/// SQLite behind the seam, as far as appending goes.
pub struct Sqlite(Worker);

impl Sqlite {
    pub fn open(dir: &Path, observer: Arc<dyn Observer>) -> anyhow::Result<Self> {
        let mut db = Connection::open(dir.join("rooms.sqlite"))?;
        // The cache is as large as redb's.
        db.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -65536;
             CREATE TABLE IF NOT EXISTS records (
                 room BLOB NOT NULL, seq INTEGER NOT NULL, chain BLOB NOT NULL, time INTEGER NOT NULL, device BLOB NOT NULL,
                 producer BLOB NOT NULL, client_seq INTEGER NOT NULL, hash BLOB NOT NULL, envelope BLOB NOT NULL,
                 PRIMARY KEY (room, seq)) WITHOUT ROWID;",
        )?;
        Ok(Self(Worker::start(move |batch, _| {
            let begin = Instant::now();
            store(&mut db, batch)?;
            observer.committed(batch.len(), 0, begin.elapsed());
            Ok(())
        })))
    }
}

fn store(db: &mut Connection, batch: &[Job]) -> anyhow::Result<()> {
    let transaction = db.transaction()?;
    {
        let mut insert = transaction.prepare_cached("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?;
        for Job { append, .. } in batch {
            insert.execute(params![
                append.room.0,
                append.seq.cast_signed(),
                append.chain.0,
                append.time_ms.cast_signed(),
                append.producer.device.0,
                append.producer.id.0,
                append.client_seq.cast_signed(),
                append.hash,
                &append.envelope[..],
            ])?;
        }
    }
    transaction.commit()?;
    Ok(())
}

impl Engine for Sqlite {
    fn submit(&self, request: Request, token: Token, to: &Arc<dyn Complete>) -> Result<(), Busy> {
        self.0.queue.submit(request, token, to)
    }

    fn is_healthy(&self) -> bool {
        true
    }
}
