//! The client's session: which links there are, which of them carries it, and when it moves.
//!
//! A person has one session and at most two links. WebSocket and WebTransport are opened together and the first that logs in
//! carries the session; one that is better takes over once a ping came back over it, and one that stopped answering is replaced
//! in the same way. Moving is a new login and cursors and outboxes taken up where they are, so nothing is carried across, and
//! any order of moves loses and doubles nothing. The old link is closed only when the new one has proved itself.

use std::collections::VecDeque;

use bytes::Bytes;
use rand_core::Rng as _;

use super::{
    ClientRandom, Output,
    link::{Caller, Health, Link, LinkId, TicketRecord, Transport},
    records::{TICKET_KEY, encode},
    view::{ConnectionState, Event},
};
use crate::{
    core::{
        close::CloseCode,
        frame::ClientFrame,
        id::{Digest, Nonce, UnixMillis},
        limits::Limits,
    },
    seal::identity::Identity,
};

/// First and longest wait before connecting again; the wait is random between zero and the bound, which doubles.
const BACKOFF_MS: (u64, u64) = (500, 10_000);
/// The longest wait that a server can ask for.
const RETRY_AFTER_MAX_MS: u64 = 600_000;
/// A session that lasted this long was a good one: the next wait is short again.
const GOOD_AFTER_MS: u64 = 10_000;
/// How long WebTransport is tried alone, where it was good before.
const HEAD_START_MS: u64 = 400;
/// First and longest time for which WebTransport is not tried again where it failed and WebSocket did not.
const SHUN_MS: (u64, u64) = (20_000, 600_000);
/// WebTransport that carried the session for so long is not what failed.
const PROVEN_AFTER_MS: u64 = 60_000;
/// A clock that goes back further than this was set.
const CLOCK_STEP_MS: u64 = 1_000;
/// Patience is doubled this often at most.
const SLOW_MAX: u32 = 4;
/// Of what the server takes before a login: for the framing of the transport, and for a challenge to be answered.
const FIRST_FLIGHT_RESERVE: usize = 256;
/// The length of a frame takes so many bytes at most.
const DELIMITER_MAX: usize = 5;

/// Which transports a client uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// WebSocket, and WebTransport where it gets through.
    #[default]
    Auto,
    /// This one.
    Only(Transport),
}

/// What became of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Change {
    None,
    /// No link carries it; what was under way counts no more.
    Detached,
    /// Another link carries it than before: everything begins there.
    Attached,
}

#[derive(Debug, Default)]
enum Phase {
    /// Nobody is there to log in.
    #[default]
    Idle,
    /// No link, until then.
    Waiting { until_ms: u64 },
    /// There are links.
    Up,
}

/// WebTransport on this network.
#[derive(Debug, Default)]
struct Shunned {
    failures: u32,
    until_ms: u64,
    /// It failed, and WebSocket has not shown yet that this is not the server's or the network's failure.
    failed: bool,
    /// It carried the session when it was last tried.
    worked: bool,
}

/// The session's links.
#[derive(Debug, Default)]
pub(super) struct Wire {
    choice: Choice,
    phase: Phase,
    links: Vec<Link>,
    carrier: Option<LinkId>,
    next_link: u32,
    /// When WebSocket is opened beside WebTransport that has not answered.
    head_start_ms: Option<u64>,
    /// Another link was opened because the carrier did not answer.
    relieved: bool,
    shunned: Shunned,
    attempts: u32,
    /// How often patience is doubled.
    slow: u32,
    /// The server has begun to send a page that is not complete here.
    owed: bool,
    /// The server does not want to be asked before.
    not_before_ms: u64,
    ticket: Option<TicketRecord>,
    /// Bytes that may still be sent before the welcome; then frames wait in `held`.
    budget: usize,
    held: VecDeque<Bytes>,
    told: Option<(ConnectionState, Option<Transport>)>,
    /// The latest time that was told.
    now_ms: u64,
}

impl Wire {
    pub(super) const fn choose(&mut self, choice: Choice) {
        self.choice = choice;
    }

    pub(super) fn load_ticket(&mut self, ticket: TicketRecord) {
        self.ticket = Some(ticket);
    }

    /// Whether frames can be sent: there is a link that carries the session, or will if its resume is accepted.
    pub(super) const fn is_attached(&self) -> bool {
        self.carrier.is_some()
    }

    fn carrier(&self) -> Option<&Link> {
        self.carrier.and_then(|id| self.link(id))
    }

    fn carrier_mut(&mut self) -> Option<&mut Link> {
        let id = self.carrier?;
        self.links.iter_mut().find(|link| link.id == id)
    }

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id == id)
    }

    /// Whether this link carries the session, and the server has said so.
    pub(super) fn carries(&self, id: LinkId) -> bool {
        self.carrier == Some(id) && self.link(id).is_some_and(Link::is_open)
    }

    /// Names the login in access proofs.
    pub(super) fn binding(&self) -> Option<Digest> {
        self.carrier().and_then(Link::binding)
    }

    /// Sends a frame of the session. Before the server has accepted a resume only so much is sent as it takes from strangers;
    /// the rest follows the welcome.
    pub(super) fn send(&mut self, frame: Bytes, outputs: &mut VecDeque<Output>) {
        let Some(link) = self.carrier() else { return };
        let (id, len) = (link.id, frame.len() + DELIMITER_MAX);
        if !link.is_open() {
            if !self.held.is_empty() || len > self.budget {
                self.held.push_back(frame);
                return;
            }
            self.budget -= len;
        }
        outputs.push_back(Output::Send { link: id, frame });
    }

    /// Something is sent that calls for an answer.
    pub(super) fn asks(&mut self, now_ms: u64) {
        if let Some(link) = self.carrier_mut() {
            link.asks(now_ms);
        }
    }

    /// Bytes came over a link, whatever they say.
    pub(super) fn heard(&mut self, id: LinkId, now_ms: u64) {
        if let Some(link) = self.links.iter_mut().find(|link| link.id == id) {
            link.heard(now_ms);
        }
    }

    /// Opens links, unless there are some.
    pub(super) fn connect(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) {
        if !self.links.is_empty() {
            return;
        }
        self.phase = Phase::Up;
        match self.choice {
            Choice::Only(transport) => self.open(transport, now_ms, outputs),
            Choice::Auto => {
                let tries_better = now_ms >= self.shunned.until_ms;
                if tries_better {
                    self.open(Transport::WebTransport, now_ms, outputs);
                }
                if tries_better && self.shunned.worked {
                    self.head_start_ms = Some(now_ms + HEAD_START_MS);
                } else {
                    self.open(Transport::WebSocket, now_ms, outputs);
                }
            }
        }
        self.tell(None, outputs);
    }

    fn open(&mut self, transport: Transport, now_ms: u64, outputs: &mut VecDeque<Output>) {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        self.links.push(Link::new(id, transport, now_ms));
        outputs.push_back(Output::Open { link: id, transport });
    }

    /// A link is connected: log in. Where nothing carries the session yet and there is a ticket, the session begins at once.
    pub(super) fn opened(
        &mut self,
        id: LinkId,
        exporter: Option<[u8; 32]>,
        caller: Caller<'_>,
        now_ms: u64,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id && link.is_opening()) else {
            outputs.push_back(Output::Close { link: id });
            return Change::None;
        };
        link.heard(now_ms);
        let first = link.opened(exporter, self.ticket.as_ref(), caller, now_ms);
        let resuming = link.is_resuming();
        let spent = first.len() + DELIMITER_MAX;
        outputs.push_back(Output::Send { link: id, frame: first });
        if !resuming {
            return Change::None;
        }
        if self.carrier.is_some() {
            let ping = link.ping(now_ms);
            outputs.push_back(Output::Send { link: id, frame: ping });
            return Change::None;
        }
        let max = self.ticket.as_ref().map_or(0, |ticket| ticket.first_flight_max as usize);
        self.budget = max.saturating_sub(FIRST_FLIGHT_RESERVE + spent);
        self.held.clear();
        self.carrier = Some(id);
        Change::Attached
    }

    pub(super) fn challenged(
        &mut self,
        id: LinkId,
        nonce: Nonce,
        identity: &Identity,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let answer = self.links.iter_mut().find(|link| link.id == id).and_then(|link| link.challenged(nonce, identity));
        let Some(frame) = answer else { return self.give_up(id, "a challenge that nobody waited for", now_ms, rng, outputs) };
        outputs.push_back(Output::Send { link: id, frame });
        if self.carrier != Some(id) {
            return Change::None;
        }
        // The server has dropped what was sent behind the resume.
        self.carrier = None;
        self.held.clear();
        Change::Detached
    }

    #[expect(clippy::too_many_arguments, reason = "what a welcome says, and what every input has")]
    pub(super) fn welcomed(
        &mut self,
        id: LinkId,
        ticket: Bytes,
        limits: &Limits,
        server_ms: UnixMillis,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return Change::None };
        let resumed = link.is_resuming();
        if !link.welcomed(now_ms) {
            return self.give_up(id, "a welcome that nobody waited for", now_ms, rng, outputs);
        }
        if link.transport == Transport::WebSocket && core::mem::take(&mut self.shunned.failed) {
            self.shun(now_ms, rng);
        }
        self.keep_ticket(ticket, limits, server_ms, now_ms, outputs);
        match self.carrier() {
            Some(carrier) if carrier.id == id => {
                let held = core::mem::take(&mut self.held);
                outputs.extend(held.into_iter().map(|frame| Output::Send { link: id, frame }));
                self.carried(outputs);
                Change::None
            }
            Some(carrier) if carrier.is_open() => {
                if let (false, Some(link)) = (resumed, self.links.iter_mut().find(|link| link.id == id)) {
                    let frame = link.ping(now_ms);
                    outputs.push_back(Output::Send { link: id, frame });
                }
                Change::None
            }
            _ => self.carry(id, outputs),
        }
    }

    fn keep_ticket(
        &mut self,
        ticket: Bytes,
        limits: &Limits,
        server_ms: UnixMillis,
        now_ms: u64,
        outputs: &mut VecDeque<Output>,
    ) {
        let had = self.ticket.is_some();
        self.ticket =
            (!ticket.is_empty()).then(|| TicketRecord::new(ticket, server_ms, now_ms, limits.unauthenticated_bytes_max));
        if had || self.ticket.is_some() {
            let value = self.ticket.as_ref().map(encode);
            outputs.push_back(Output::Persist { key: TICKET_KEY.to_owned(), value });
        }
    }

    /// A ping came back. A link beside the carrier has proved itself, and takes over if it is better.
    pub(super) fn echoed(
        &mut self,
        id: LinkId,
        token: u64,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id) else { return Change::None };
        link.echoed(token);
        if !link.has_echoed() || self.carrier == Some(id) {
            return Change::None;
        }
        let transport = link.transport;
        let Some(carrier) = self.carrier().map(|link| link.transport) else { return Change::None };
        if self.is_suspect(now_ms) {
            self.silenced();
            if carrier == Transport::WebTransport {
                self.better_failed(now_ms, rng);
            }
        } else if transport <= carrier {
            // The carrier answered after all.
            self.close(id, outputs);
            return Change::None;
        }
        self.carry(id, outputs)
    }

    fn is_suspect(&self, now_ms: u64) -> bool {
        let health = |link: &Link| link.health(self.slow, now_ms);
        self.carrier().is_some_and(|link| matches!(health(link), Health::Suspect | Health::Dead))
    }

    /// The carrier is given up because it does not answer. Where it owed a page, it may only have been slow: the next one gets
    /// more time, so that a page that takes long is not begun for ever.
    const fn silenced(&mut self) {
        self.slow = if !self.owed {
            0
        } else if self.slow < SLOW_MAX {
            self.slow + 1
        } else {
            SLOW_MAX
        };
    }

    /// The session moves to this link. What is not better than it is closed, and so is what had a part in the session.
    fn carry(&mut self, id: LinkId, outputs: &mut VecDeque<Output>) -> Change {
        let former = self.carrier.replace(id);
        self.held.clear();
        let Some(transport) = self.link(id).map(|link| link.transport) else { return Change::None };
        let gone: Vec<_> = self
            .links
            .iter()
            .filter(|link| link.id != id && (Some(link.id) == former || link.transport <= transport))
            .map(|link| link.id)
            .collect();
        for id in gone {
            self.close(id, outputs);
        }
        self.carried(outputs);
        Change::Attached
    }

    /// The carrier is open.
    fn carried(&mut self, outputs: &mut VecDeque<Output>) {
        self.relieved = false;
        self.head_start_ms = None;
        self.not_before_ms = 0;
        let transport = self.carrier().map(|link| link.transport);
        if self.choice == Choice::Auto {
            self.shunned.worked = transport == Some(Transport::WebTransport);
            if self.shunned.worked {
                self.shunned.failed = false;
                self.shunned.until_ms = 0;
            }
        }
        self.tell(None, outputs);
    }

    fn close(&mut self, id: LinkId, outputs: &mut VecDeque<Output>) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return };
        let link = self.links.swap_remove(index);
        if link.is_open() {
            outputs.push_back(Output::Send { link: id, frame: ClientFrame::Close.encode() });
        }
        outputs.push_back(Output::Close { link: id });
    }

    /// The server says why the link ends.
    pub(super) fn closing(
        &mut self,
        id: LinkId,
        code: CloseCode,
        retry_after_ms: u32,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let Some(link) = self.link(id) else { return Change::None };
        // A server that does not know what a ticket is, or takes this one for something else, is greeted the next time.
        if link.is_resuming() {
            self.ticket = None;
        }
        // Trying again soon helps against neither.
        if matches!(code, CloseCode::Unauthenticated | CloseCode::Version) {
            self.attempts = self.attempts.max(5);
        }
        let retry_after_ms = u64::from(retry_after_ms).min(RETRY_AFTER_MAX_MS);
        self.not_before_ms = self.not_before_ms.max(now_ms + retry_after_ms);
        let blamed = self.carrier != Some(id);
        outputs.push_back(Output::Close { link: id });
        self.gone(id, &code.to_string(), blamed, now_ms, rng, outputs)
    }

    /// Closes a link that is of no use any more.
    pub(super) fn give_up(
        &mut self,
        id: LinkId,
        reason: &str,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        if self.link(id).is_some() {
            outputs.push_back(Output::Close { link: id });
        }
        self.lost(id, reason, now_ms, rng, outputs)
    }

    /// A link is gone, or could not be opened.
    pub(super) fn lost(
        &mut self,
        id: LinkId,
        reason: &str,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        self.gone(id, reason, true, now_ms, rng, outputs)
    }

    /// `blamed`: its transport may be why.
    fn gone(
        &mut self,
        id: LinkId,
        reason: &str,
        blamed: bool,
        now_ms: u64,
        rng: &mut ClientRandom,
        outputs: &mut VecDeque<Output>,
    ) -> Change {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return Change::None };
        let link = self.links.swap_remove(index);
        let carried = self.carrier == Some(id);
        let lasted_ms = link.open_since_ms().filter(|_| carried).map(|since_ms| now_ms.saturating_sub(since_ms));
        if lasted_ms.is_some_and(|lasted_ms| lasted_ms >= GOOD_AFTER_MS) {
            self.attempts = 0;
        }
        if link.transport == Transport::WebTransport && self.choice == Choice::Auto {
            if lasted_ms.is_some_and(|lasted_ms| lasted_ms >= PROVEN_AFTER_MS) {
                self.shunned.failures = 0;
            }
            if blamed {
                self.better_failed(now_ms, rng);
            }
        } else if !link.is_open() {
            // Then it was everything that failed, and not WebTransport.
            self.shunned.failed = false;
        }
        if carried {
            self.carrier = None;
            self.held.clear();
            self.relieved = false;
        }
        // What failed during its head start needs none.
        if self.head_start_ms.take().is_some() && self.links.is_empty() {
            self.open(Transport::WebSocket, now_ms, outputs);
        }
        let other = self.links.iter().find(|link| link.is_open()).map(|link| link.id);
        if let (true, Some(other)) = (carried, other) {
            return self.carry(other, outputs);
        }
        if self.links.is_empty() {
            self.wait(now_ms, rng);
        }
        self.tell(Some(reason), outputs);
        if carried { Change::Detached } else { Change::None }
    }

    fn wait(&mut self, now_ms: u64, rng: &mut ClientRandom) {
        let asked_ms = self.not_before_ms.saturating_sub(now_ms);
        // Those whom a server sent away at one moment do not come back at one moment.
        let bound = BACKOFF_MS.0.saturating_mul(1 << self.attempts.min(10)).min(BACKOFF_MS.1).max(asked_ms);
        self.attempts += 1;
        self.phase = Phase::Waiting { until_ms: now_ms + asked_ms + rng.next_u64() % bound };
    }

    /// WebTransport failed. That counts against it once WebSocket shows that it is not everything that failed.
    fn better_failed(&mut self, now_ms: u64, rng: &mut ClientRandom) {
        self.shunned.worked = false;
        let works = self.links.iter().any(|link| link.transport == Transport::WebSocket && link.is_open());
        if works && !(self.carrier().is_some_and(|link| link.transport == Transport::WebSocket) && self.is_suspect(now_ms)) {
            self.shun(now_ms, rng);
        } else {
            self.shunned.failed = true;
        }
    }

    fn shun(&mut self, now_ms: u64, rng: &mut ClientRandom) {
        let bound = SHUN_MS.0.saturating_mul(1 << self.shunned.failures.min(10)).min(SHUN_MS.1);
        self.shunned.failures += 1;
        self.shunned.until_ms = now_ms + bound / 2 + rng.next_u64() % (bound / 2);
    }

    /// The person or the machine is back: look at the link at once, connect at once. `slept`: time has passed in which
    /// nothing could happen.
    pub(super) fn wake(&mut self, slept: bool, now_ms: u64, outputs: &mut VecDeque<Output>) {
        if slept {
            self.start_over(now_ms);
        }
        match self.phase {
            Phase::Idle => {}
            Phase::Waiting { .. } if now_ms < self.not_before_ms => {}
            Phase::Waiting { .. } => {
                self.attempts = 0;
                self.connect(now_ms, outputs);
            }
            Phase::Up => {
                let id = self.carrier;
                if let Some(link) = self.carrier_mut().filter(|link| link.is_open()) {
                    let frame = link.ping(now_ms);
                    outputs.extend(id.map(|link| Output::Send { link, frame }));
                }
            }
        }
    }

    /// This device is on another network: what failed on the former one may work here, and what was begun there is begun anew.
    pub(super) fn network_changed(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) -> Change {
        self.shunned = Shunned { worked: self.shunned.worked, ..Shunned::default() };
        self.slow = 0;
        let begun: Vec<_> = self.links.iter().filter(|link| !link.is_open()).map(|link| link.id).collect();
        for id in &begun {
            self.close(*id, outputs);
        }
        let detached = self.carrier.is_some_and(|id| begun.contains(&id));
        if detached {
            self.carrier = None;
            self.held.clear();
        }
        self.head_start_ms = None;
        if !begun.is_empty() {
            self.connect(now_ms, outputs);
        }
        self.relieved = false;
        self.wake(false, now_ms, outputs);
        if detached { Change::Detached } else { Change::None }
    }

    fn start_over(&mut self, now_ms: u64) {
        for link in &mut self.links {
            link.start_over(now_ms);
        }
        if let Phase::Waiting { until_ms } = &mut self.phase {
            *until_ms = now_ms.min(*until_ms);
        }
        self.not_before_ms = self.not_before_ms.min(now_ms + RETRY_AFTER_MAX_MS);
        self.shunned.until_ms = self.shunned.until_ms.min(now_ms + SHUN_MS.1);
    }

    /// Looks at everything that has a time. `owed`: the server has begun to send a page that is not complete here.
    pub(super) fn tick(&mut self, owed: bool, now_ms: u64, rng: &mut ClientRandom, outputs: &mut VecDeque<Output>) -> Change {
        if now_ms.saturating_add(CLOCK_STEP_MS) < self.now_ms {
            self.start_over(now_ms);
            self.now_ms = now_ms;
        }
        self.now_ms = self.now_ms.max(now_ms);
        if let Phase::Waiting { until_ms } = self.phase
            && now_ms >= until_ms
        {
            self.connect(now_ms, outputs);
        }
        let mut change = Change::None;
        let late: Vec<_> =
            self.links.iter().filter(|link| link.is_late(now_ms) && !self.carries(link.id)).map(|link| link.id).collect();
        for id in late {
            change = change.then(self.give_up(id, "the server does not answer", now_ms, rng, outputs));
        }
        self.owed = owed;
        change = change.then(self.look(now_ms, rng, outputs));
        self.open_beside(now_ms, outputs);
        change
    }

    /// Whether the carrier lives.
    fn look(&mut self, now_ms: u64, rng: &mut ClientRandom, outputs: &mut VecDeque<Output>) -> Change {
        let slow = self.slow;
        let Some(link) = self.carrier_mut().filter(|link| link.is_open()) else { return Change::None };
        let (id, health) = (link.id, link.health(slow, now_ms));
        match health {
            Health::Quiet => {
                let frame = link.ping(now_ms);
                outputs.push_back(Output::Send { link: id, frame });
                Change::None
            }
            Health::Dead => {
                self.silenced();
                self.give_up(id, "the connection was lost", now_ms, rng, outputs)
            }
            Health::Fine => {
                let lasted = link.open_since_ms().is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= PROVEN_AFTER_MS);
                if lasted && !self.owed {
                    self.slow = 0;
                }
                Change::None
            }
            Health::Suspect => Change::None,
        }
    }

    /// Opens a link beside the one that there is, if that is slow to open, silent, or not the best.
    fn open_beside(&mut self, now_ms: u64, outputs: &mut VecDeque<Output>) {
        if self.head_start_ms.is_some_and(|at_ms| now_ms >= at_ms) {
            self.head_start_ms = None;
            return self.open(Transport::WebSocket, now_ms, outputs);
        }
        let [link] = &self.links[..] else { return };
        if self.carrier != Some(link.id) || !link.is_open() {
            return;
        }
        let (transport, suspect) = (link.transport, self.is_suspect(now_ms));
        let instead = match self.choice {
            Choice::Auto => Transport::WebSocket,
            Choice::Only(transport) => transport,
        };
        if suspect && !core::mem::replace(&mut self.relieved, true) {
            self.open(instead, now_ms, outputs);
        } else if !suspect {
            self.relieved = false;
            if self.is_second_best(transport) && now_ms >= self.shunned.until_ms {
                self.open(Transport::WebTransport, now_ms, outputs);
            }
        }
    }

    fn is_second_best(&self, transport: Transport) -> bool {
        self.choice == Choice::Auto && transport == Transport::WebSocket
    }

    /// When to call [`Wire::tick`] next.
    pub(super) fn timeout(&self, now_ms: u64) -> Option<u64> {
        if let Phase::Waiting { until_ms } = self.phase {
            return Some(until_ms);
        }
        let links = self
            .links
            .iter()
            .map(|link| if self.carries(link.id) { link.health_changes_ms(self.slow, now_ms) } else { link.until_ms() });
        let alone = self.carrier().filter(|link| {
            self.links.len() == 1 && link.is_open() && self.is_second_best(link.transport) && !self.is_suspect(now_ms)
        });
        links.chain(self.head_start_ms).chain(alone.map(|_| self.shunned.until_ms.max(now_ms))).min()
    }

    fn tell(&mut self, detail: Option<&str>, outputs: &mut VecDeque<Output>) {
        let open = self.carrier().filter(|link| link.is_open()).map(|link| link.transport);
        let state = match (open, self.links.is_empty()) {
            (Some(_), _) => ConnectionState::Online,
            (None, false) => ConnectionState::Connecting,
            (None, true) => ConnectionState::Offline,
        };
        if self.told.replace((state, open)) != Some((state, open)) {
            outputs.push_back(Output::Event(Event::Connection {
                state,
                transport: open.map(|transport| transport.name().to_owned()),
                detail: detail.map(str::to_owned),
            }));
        }
    }
}

#[cfg(test)]
impl Wire {
    /// The link of this transport that is being opened.
    pub(super) fn opening(&self, transport: Transport) -> LinkId {
        let opening = |link: &&Link| link.transport == transport && link.is_opening();
        self.links.iter().find(opening).expect("there is one").id
    }
}

impl Change {
    /// One change after another: only where the session is in the end counts.
    pub(super) const fn then(self, next: Self) -> Self {
        if matches!(next, Self::None) { self } else { next }
    }
}
