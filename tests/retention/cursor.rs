//! A subscription as a client without keys holds it: what follows what, and what the server no longer has.

use std::collections::BTreeMap;

use bytes::Bytes;
use waxwing::core::{
    chain,
    frame::{Page, Position, ServerFrame},
    id::{Digest, RoomId, Seq},
};

use crate::common::{self, client::Client};

/// Everything that comes is held to what came before.
#[derive(Debug)]
pub(crate) struct Cursor {
    room: RoomId,
    pub(crate) after: Seq,
    pub(crate) chain: Digest,
    pub(crate) floor: Seq,
    pub(crate) payloads: BTreeMap<Seq, Bytes>,
    /// Records that went before they were read.
    pub(crate) skipped: u64,
}

impl Cursor {
    pub(crate) fn new(room: RoomId) -> Self {
        Self { room, after: 0, chain: chain::start(room), floor: 1, payloads: BTreeMap::new(), skipped: 0 }
    }

    fn at(&mut self, position: &Position) {
        assert!(position.floor >= self.floor, "a floor only rises");
        self.floor = position.floor;
    }

    fn announced(&mut self, after: Seq, chain: Digest, position: &Position) {
        self.at(position);
        if after == self.after {
            assert_eq!(chain, self.chain, "the same log");
        } else {
            assert!(after > self.after && after + 1 == position.floor, "only what is below the floor is left out");
            self.skipped += after - self.after;
            (self.after, self.chain) = (after, chain);
        }
    }

    fn page(&mut self, page: &Page) {
        self.at(&page.position);
        assert_eq!((page.first, page.chain), (self.after + 1, self.chain), "no gap and no repetition");
        for item in &page.items {
            self.after += 1;
            self.chain = chain::next(self.room, self.chain, self.after, &item.envelope);
            self.payloads.insert(self.after, common::payload(&item.envelope));
        }
    }

    /// Takes the next frame of the subscription.
    pub(crate) async fn take_next(&mut self, client: &mut Client) {
        match client.recv().await {
            ServerFrame::Subscribed { after, chain, position, .. } => self.announced(after, chain, &position),
            ServerFrame::Deliver(page) => self.page(&page),
            ServerFrame::Presence { .. } => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    /// Reads until the log is known up to `head`.
    pub(crate) async fn read(&mut self, client: &mut Client, head: Seq) {
        while self.after < head {
            self.take_next(client).await;
        }
    }
}
