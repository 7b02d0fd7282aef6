//! A server as small as can be.

use std::collections::BTreeMap;

use bytes::Bytes;
use waxwing::core::{
    chain,
    close::Refusal,
    envelope::{Header, Kind},
    frame::{ClientFrame, Item, KeyPackage, Operation, Page, Position, Publish, ServerFrame},
    handshake::{new_access, outline},
    id::{AccessKey, DeviceKey, Digest, LogId, Nonce, RoomId},
    limits::Limits,
    login::{Transcript, access_message},
    packages::Suite,
};

/// A server as small as can be: logs of envelopes, and what a test makes of them.
#[derive(Default, Clone)]
pub struct Server {
    pub logs: BTreeMap<RoomId, Vec<Bytes>>,
    pub life: u8,
    /// What the log of a room looks like to who subscribes now; the log itself where there is none.
    pub shown: BTreeMap<RoomId, Vec<Bytes>>,
    /// A chain value to lie about.
    pub wrong_chain: bool,
    /// Begins delivery this much later than asked for.
    pub skips: u64,
    /// Tells whoever enters that this is the newest change, and whoever publishes that there is a newer one.
    pub lies_about_changes: Option<u64>,
    /// Gives this change to who asks for the newest one, and takes what follows it.
    pub stale_change: Option<u64>,
    /// Who names a change to enter by, as who knows a former key does, is not let into these rooms.
    pub forgotten: Vec<RoomId>,
    /// What opens a room; whatever a client says where there is none. And what logins are named by.
    pub opens: BTreeMap<RoomId, AccessKey>,
    pub bindings: BTreeMap<DeviceKey, Digest>,
    /// Key packages of devices, and what it gives instead of any.
    pub packages: BTreeMap<DeviceKey, Vec<(Suite, KeyPackage)>>,
    pub gives: Option<Option<Bytes>>,
    /// What it makes of tickets.
    pub tickets: Tickets,
    /// It waits for a challenge to be answered that followed a resume.
    pub challenged: bool,
    /// The next subscription is refused: what would have let its client in was.
    pub forgets_subscription: bool,
    /// Frames that it dropped meanwhile.
    pub dropped: usize,
    /// How often somebody asked for one change of a group.
    pub changes_asked: usize,
}

/// What a server makes of tickets.
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub enum Tickets {
    /// It gives none.
    #[default]
    None,
    /// It takes them.
    Taken,
    /// It has forgotten them, and drops what comes behind until a challenge is answered.
    Forgotten,
}

impl Server {
    pub fn log(&self, room: RoomId) -> Vec<Bytes> {
        self.shown.get(&room).or_else(|| self.logs.get(&room)).cloned().unwrap_or_default()
    }

    pub fn position(&self, room: RoomId) -> Position {
        Position { log: LogId([self.life + 1; 16]), head: self.log(room).len() as u64, floor: 1 }
    }

    pub fn chain(&self, room: RoomId, upto: u64) -> Digest {
        let chain = self
            .log(room)
            .iter()
            .zip(1..=upto)
            .fold(chain::start(room), |chain, (envelope, seq)| chain::next(room, chain, seq, envelope));
        if self.wrong_chain { chain::digest(&chain.0) } else { chain }
    }

    /// What follows in the log, up to the next change that brings another access key: there whoever reads has to enter anew.
    pub fn page(&self, room: RoomId, after: u64) -> Page {
        let mut ended = false;
        let items = self
            .log(room)
            .into_iter()
            .skip(usize::try_from(after).unwrap())
            .take_while(|envelope| !core::mem::replace(&mut ended, new_access(envelope).is_some()))
            .map(|envelope| Item { time_ms: 5, envelope: outline(&envelope) })
            .collect();
        Page { room, position: self.position(room), first: after + 1, chain: self.chain(room, after), items }
    }

    /// The seq of the newest change of the group, as the room is shown.
    pub fn newest_change(&self, room: RoomId) -> u64 {
        let is_change = |envelope: &Bytes| Header::parse(envelope).is_ok_and(|header| header.kind == Kind::Handshake);
        (1..).zip(self.log(room)).filter(|(_, envelope)| is_change(envelope)).last().map_or(0, |(seq, _)| seq)
    }

    pub fn change_before(&self, request: u32, room: RoomId, before: u64, whole: bool) -> ServerFrame {
        let seq = self.stale_change.unwrap_or_else(|| self.newest_change(room)).min(before - 1);
        let envelope = seq.checked_sub(1).and_then(|at| self.log(room).get(usize::try_from(at).unwrap()).cloned());
        let shown = |envelope: Bytes| if whole { envelope } else { outline(&envelope) };
        let items = envelope.into_iter().map(|envelope| Item { time_ms: 5, envelope: shown(envelope) }).collect();
        ServerFrame::Fetched { request, page: Page { items, first: seq, ..self.page(room, seq) } }
    }

    /// As [`Server::answer`], to a device of which it knows which it is.
    pub fn answer_to(
        &mut self,
        device: Option<DeviceKey>,
        frame: ClientFrame,
        cursors: &mut BTreeMap<RoomId, u64>,
    ) -> Vec<ServerFrame> {
        match (device, frame) {
            (Some(device), ClientFrame::PublishKeyPackages { request, suite, packages, .. }) => {
                let shelf = self.packages.entry(device).or_default();
                shelf.extend(packages.into_iter().map(|package| (suite, package)));
                let left = shelf.iter().filter(|(of, package)| *of == suite && !package.last_resort).count();
                vec![ServerFrame::KeyPackages { request, result: Ok(u32::try_from(left).unwrap()) }]
            }
            (_, ClientFrame::TakeKeyPackage { request, device, suite }) => {
                let honest = || {
                    let shelf = self.packages.get_mut(&device)?;
                    let at = shelf.iter().position(|(of, _)| *of == suite)?;
                    Some(shelf.remove(at).1.bytes)
                };
                let result = Ok(self.gives.clone().unwrap_or_else(honest));
                vec![ServerFrame::KeyPackage { request, result }]
            }
            (Some(device), ClientFrame::Enter { room, proof, .. })
                if self
                    .opens
                    .get(&room)
                    .is_some_and(|key| !proof.verifies(&key.0, &access_message(self.bindings[&device], room))) =>
            {
                self.forgets_subscription = true;
                vec![ServerFrame::Failed { room, what: Operation::Enter, why: Refusal::BadProof }]
            }
            (_, frame) => self.answer(frame, cursors),
        }
    }

    pub fn answer(&mut self, frame: ClientFrame, cursors: &mut BTreeMap<RoomId, u64>) -> Vec<ServerFrame> {
        let ticket = if self.tickets == Tickets::None { Bytes::new() } else { Bytes::from_static(b"ticket") };
        let welcome = ServerFrame::Welcome { agent: "test".into(), limits: Limits::default(), time_ms: 5, ticket };
        if core::mem::take(&mut self.challenged) && !matches!(frame, ClientFrame::Authenticate { .. }) {
            self.challenged = true;
            self.dropped += 1;
            return vec![];
        }
        match frame {
            ClientFrame::Hello(hello) => {
                let challenge = Nonce([1; 32]);
                let binding = Transcript { hello: &hello, challenge, exporter: None }.binding();
                self.bindings.insert(hello.device, binding);
                vec![ServerFrame::Challenge { nonce: challenge }]
            }
            ClientFrame::Resume(_) if self.tickets == Tickets::Taken => vec![welcome],
            ClientFrame::Resume(_) => {
                self.challenged = true;
                vec![ServerFrame::Challenge { nonce: Nonce([1; 32]) }]
            }
            ClientFrame::Authenticate { .. } => vec![welcome],
            ClientFrame::Create { room, .. } => {
                self.logs.entry(room).or_default();
                vec![ServerFrame::Created { room, log: self.position(room).log }]
            }
            ClientFrame::Enter { room, handshake, .. } if self.forgotten.contains(&room) && handshake != u64::MAX => {
                let failed = |what, why| ServerFrame::Failed { room, what, why };
                // What is subscribed behind it is refused as well.
                self.forgets_subscription = true;
                vec![failed(Operation::Enter, Refusal::BadProof)]
            }
            ClientFrame::Subscribe { room, .. } if core::mem::take(&mut self.forgets_subscription) => {
                vec![ServerFrame::Failed { room, what: Operation::Subscribe, why: Refusal::NoAccess }]
            }
            ClientFrame::Enter { room, .. } => {
                vec![ServerFrame::Entered {
                    room,
                    position: self.position(room),
                    handshake: self.lies_about_changes.unwrap_or_else(|| self.newest_change(room)),
                }]
            }
            ClientFrame::Fetch { request, room, before, count_max } => {
                let last = before.min(self.position(room).head + 1);
                let first = last.saturating_sub(u64::from(count_max)).max(1);
                let mut page = self.page(room, first - 1);
                let log = self.log(room).into_iter().skip(usize::try_from(first - 1).unwrap());
                let log = log.take(usize::try_from(last - first).unwrap());
                let items = log.map(|envelope| Item { time_ms: 5, envelope: outline(&envelope) });
                page.items = items.collect();
                vec![ServerFrame::Fetched { request, page }]
            }
            ClientFrame::Handshake { request, room, before, whole } => {
                self.changes_asked += 1;
                vec![self.change_before(request, room, before, whole)]
            }
            ClientFrame::Subscribe { room, after } => {
                let position = self.position(room);
                if after > position.head {
                    let why = Refusal::CursorAhead { head: position.head };
                    return vec![ServerFrame::Failed { room, what: Operation::Subscribe, why }];
                }
                let after = after + self.skips;
                cursors.insert(room, after);
                vec![ServerFrame::Subscribed { room, after, chain: self.chain(room, after), position }]
            }
            ClientFrame::Publish(Publish { room, producer, client_seq, handshake, .. }) if self.lies_about_changes.is_some() => {
                let why = Refusal::StaleEpoch { handshake: handshake + 1 };
                vec![ServerFrame::Refused { room, producer, client_seq, why }]
            }
            ClientFrame::Publish(publish)
                if publish.handshake != self.newest_change(publish.room) && self.stale_change != Some(publish.handshake) =>
            {
                let why = Refusal::StaleEpoch { handshake: self.newest_change(publish.room) };
                let Publish { room, producer, client_seq, .. } = publish;
                vec![ServerFrame::Refused { room, producer, client_seq, why }]
            }
            ClientFrame::Publish(publish) => {
                let log = self.logs.entry(publish.room).or_default();
                log.push(publish.envelope);
                let seq = log.len() as u64;
                vec![ServerFrame::Ack { room: publish.room, producer: publish.producer, client_seq: publish.client_seq, seq }]
            }
            _ => vec![],
        }
    }
}
