//! The client's session: which links there are, which of them carries it, and when it moves.
//!
//! A person has one session and at most two links. WebSocket and WebTransport are opened together and the first that logs in
//! carries the session; one that is better takes over once a ping came back over it, and one that stopped answering is replaced
//! in the same way. Moving is a new login and cursors and outboxes taken up where they are, so nothing is carried across, and
//! any order of moves loses and doubles nothing. The old link is closed only when the new one has proved itself.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    ClientRandom, Output,
    link::{Caller, Choice, Health, Link, LinkId, TicketRecord, Transport},
    patience::{Backoff, Better, Patience},
    records::{TICKET_KEY, encode},
    view::{ConnectionState, Event},
};
use crate::core::{
    close::CloseCode,
    frame::ClientFrame,
    id::{Digest, Nonce, UnixMillis},
    limits::Limits,
};

/// How long WebTransport is tried alone, where it was good before.
const HEAD_START_MS: u64 = 400;
/// A change of network is told by every window: what comes so soon after it is the same one.
const SAME_CHANGE_MS: u64 = 1_000;
/// A clock that goes back further than this was set.
const CLOCK_STEP_MS: u64 = 1_000;
/// Of what the server takes before a login: for the framing of the transport, and for a challenge to be answered.
const FIRST_FLIGHT_RESERVE: usize = 256;
/// The length of a frame takes so many bytes at most.
const DELIMITER_MAX: usize = 5;

/// What every input comes with, and where what it leads to goes.
pub(super) struct Turn<'a> {
    pub(super) now_ms: u64,
    pub(super) rng: &'a mut ClientRandom,
    pub(super) outputs: &'a mut VecDeque<Output>,
    /// Who logs in, where somebody is there.
    pub(super) caller: Option<Caller<'a>>,
}

impl Turn<'_> {
    fn send(&mut self, link: LinkId, frame: Bytes) {
        self.outputs.push_back(Output::Send { link, frame });
    }
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

impl Change {
    /// One change after another: only where the session is in the end counts.
    pub(super) const fn then(self, next: Self) -> Self {
        if matches!(next, Self::None) { self } else { next }
    }
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
    better: Better,
    backoff: Backoff,
    patience: Patience,
    ticket: Option<TicketRecord>,
    /// Bytes that may still be sent before the welcome; then frames wait in `held`.
    budget: usize,
    held: VecDeque<Bytes>,
    told: Option<(ConnectionState, Option<Transport>)>,
    /// The latest time that was told.
    now_ms: u64,
    /// When the network changed last.
    network_ms: u64,
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

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.links.iter().find(|link| link.id == id)
    }

    fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    fn carrier(&self) -> Option<&Link> {
        self.carrier.and_then(|id| self.link(id))
    }

    fn open_carrier(&mut self) -> Option<&mut Link> {
        self.carrier.and_then(|id| self.link_mut(id)).filter(|link| link.is_open())
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
        self.carrier.and_then(|id| self.link_mut(id)).into_iter().for_each(|link| link.asks(now_ms));
    }

    /// Bytes came over a link, whatever they say.
    pub(super) fn heard(&mut self, id: LinkId, now_ms: u64) {
        self.link_mut(id).into_iter().for_each(|link| link.heard(now_ms));
    }

    /// Opens links, unless there are some.
    pub(super) fn connect(&mut self, turn: &mut Turn<'_>) {
        if !self.links.is_empty() {
            return;
        }
        self.phase = Phase::Up;
        match self.choice {
            Choice::Only(transport) => self.open(transport, turn),
            Choice::Auto => {
                let tries_better = self.better.is_due(turn.now_ms);
                if tries_better {
                    self.open(Transport::WebTransport, turn);
                }
                if tries_better && self.better.has_worked() {
                    self.head_start_ms = Some(turn.now_ms + HEAD_START_MS);
                } else {
                    self.open(Transport::WebSocket, turn);
                }
            }
        }
        self.tell(None, turn);
    }

    fn open(&mut self, transport: Transport, turn: &mut Turn<'_>) {
        let id = LinkId(self.next_link);
        self.next_link += 1;
        let mut link = Link::new(id, transport, turn.now_ms);
        let early = link.early(self.ticket.as_ref(), turn);
        self.links.push(link);
        turn.outputs.push_back(Output::Open { link: id, transport, early });
    }

    /// A link is connected: log in.
    pub(super) fn opened(&mut self, id: LinkId, exporter: Option<[u8; 32]>, turn: &mut Turn<'_>) -> Change {
        let link = self.links.iter_mut().find(|link| link.id == id && link.is_opening());
        let Some(first) = link.and_then(|link| link.opened(exporter, self.ticket.as_ref(), turn)) else {
            turn.outputs.push_back(Output::Close { link: id });
            return Change::None;
        };
        let said = first.len();
        turn.send(id, first);
        self.begin(id, said, turn)
    }

    /// A link is connected, and the resume that came with [`Output::Open`] was said.
    pub(super) fn opened_resuming(&mut self, id: LinkId, turn: &mut Turn<'_>) -> Change {
        let Some(said) = self.link_mut(id).and_then(|link| link.opened_resuming(turn.now_ms)) else {
            turn.outputs.push_back(Output::Close { link: id });
            return Change::None;
        };
        self.begin(id, said, turn)
    }

    /// The first frame, of so many bytes, was said over a link. If it was a resume, and nothing carries the session yet, the session
    /// begins at once.
    fn begin(&mut self, id: LinkId, said: usize, turn: &mut Turn<'_>) -> Change {
        let Some(link) = self.links.iter_mut().find(|link| link.id == id && link.is_resuming()) else { return Change::None };
        if self.carrier.is_some() {
            let ping = link.ping(turn.now_ms);
            turn.send(id, ping);
            return Change::None;
        }
        let max = self.ticket.as_ref().map_or(0, |ticket| ticket.first_flight_max as usize);
        self.budget = max.saturating_sub(FIRST_FLIGHT_RESERVE + said + DELIMITER_MAX);
        self.carrier = Some(id);
        Change::Attached
    }

    pub(super) fn challenged(&mut self, id: LinkId, nonce: Nonce, turn: &mut Turn<'_>) -> Change {
        let caller = turn.caller;
        let answer = self.link_mut(id).and_then(|link| link.challenged(nonce, caller?.identity));
        let Some(frame) = answer else { return self.give_up(id, "a challenge that nobody waited for", turn) };
        turn.send(id, frame);
        if self.carrier != Some(id) {
            return Change::None;
        }
        // The server has dropped what was sent behind the resume.
        self.detach()
    }

    fn detach(&mut self) -> Change {
        self.carrier = None;
        self.held.clear();
        Change::Detached
    }

    pub(super) fn welcomed(
        &mut self,
        id: LinkId,
        ticket: Bytes,
        limits: &Limits,
        server_ms: UnixMillis,
        turn: &mut Turn<'_>,
    ) -> Change {
        let Some(link) = self.link_mut(id) else { return Change::None };
        let resumed = link.is_resuming();
        if !link.welcomed(turn.now_ms) {
            return self.give_up(id, "a welcome that nobody waited for", turn);
        }
        if link.transport == Transport::WebSocket {
            self.better.websocket_works(turn.now_ms, turn.rng);
        }
        self.keep_ticket(ticket, limits, server_ms, turn);
        match self.carrier() {
            Some(carrier) if carrier.id == id => {
                core::mem::take(&mut self.held).into_iter().for_each(|frame| turn.send(id, frame));
                self.carried(turn);
                Change::None
            }
            Some(carrier) if carrier.is_open() => {
                // The ping that was sent behind a resume comes back if the resume was accepted.
                if let (false, Some(link)) = (resumed, self.link_mut(id)) {
                    let frame = link.ping(turn.now_ms);
                    turn.send(id, frame);
                }
                Change::None
            }
            _ => self.carry(id, turn),
        }
    }

    fn keep_ticket(&mut self, ticket: Bytes, limits: &Limits, server_ms: UnixMillis, turn: &mut Turn<'_>) {
        let had = self.ticket.is_some();
        let first_flight_max = limits.unauthenticated_bytes_max;
        self.ticket = (!ticket.is_empty()).then(|| TicketRecord::new(ticket, server_ms, turn.now_ms, first_flight_max));
        if had || self.ticket.is_some() {
            let value = self.ticket.as_ref().map(encode);
            turn.outputs.push_back(Output::Persist { key: TICKET_KEY.to_owned(), value });
        }
    }

    /// A ping came back. A link beside the carrier has proved itself, and takes over if it is better.
    pub(super) fn echoed(&mut self, id: LinkId, token: u64, turn: &mut Turn<'_>) -> Change {
        let Some(link) = self.link_mut(id) else { return Change::None };
        link.echoed(token);
        let (transport, has_echoed) = (link.transport, link.has_echoed());
        if !has_echoed || self.carrier == Some(id) {
            return Change::None;
        }
        let Some(carrier) = self.carrier().map(|link| link.transport) else { return Change::None };
        if self.is_suspect(turn.now_ms) {
            self.patience.ended();
            if carrier == Transport::WebTransport {
                self.better.failed(transport == Transport::WebSocket, turn.now_ms, turn.rng);
            }
        } else if transport <= carrier {
            // The carrier answered after all.
            self.close(id, turn);
            return Change::None;
        }
        self.carry(id, turn)
    }

    fn is_suspect(&self, now_ms: u64) -> bool {
        let health = |link: &Link| link.health(self.patience.doubled(), now_ms);
        self.carrier().is_some_and(|link| matches!(health(link), Health::Suspect | Health::Dead))
    }

    /// The session moves to this link.
    fn carry(&mut self, id: LinkId, turn: &mut Turn<'_>) -> Change {
        self.held.clear();
        if let Some(former) = self.carrier.replace(id) {
            self.close(former, turn);
        }
        self.carried(turn);
        Change::Attached
    }

    /// The carrier is open: what is not better than it is closed.
    fn carried(&mut self, turn: &mut Turn<'_>) {
        let Some((id, transport)) = self.carrier().map(|link| (link.id, link.transport)) else { return };
        let is_done = |link: &&Link| link.id != id && link.transport <= transport;
        let done: Vec<_> = self.links.iter().filter(is_done).map(|link| link.id).collect();
        done.into_iter().for_each(|id| self.close(id, turn));
        self.relieved = false;
        self.head_start_ms = None;
        self.backoff.let_in();
        if transport == Transport::WebTransport {
            self.better.works();
        }
        self.tell(None, turn);
    }

    fn close(&mut self, id: LinkId, turn: &mut Turn<'_>) {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return };
        if self.links.swap_remove(index).is_open() {
            turn.send(id, ClientFrame::Close.encode());
        }
        turn.outputs.push_back(Output::Close { link: id });
    }

    /// The server says why the link ends.
    pub(super) fn closing(&mut self, id: LinkId, code: CloseCode, retry_after_ms: u32, turn: &mut Turn<'_>) -> Change {
        let Some(link) = self.link(id) else { return Change::None };
        // A server that does not know what a ticket is, or takes this one for something else, is greeted the next time.
        if link.is_resuming() {
            self.ticket = None;
        }
        if matches!(code, CloseCode::Unauthenticated | CloseCode::Version) {
            self.backoff.be_slow();
            self.backoff.refused = code == CloseCode::Unauthenticated;
        }
        self.backoff.asked(retry_after_ms, turn.now_ms);
        let blamed = self.carrier != Some(id);
        turn.outputs.push_back(Output::Close { link: id });
        self.gone(id, &code.to_string(), blamed, turn)
    }

    /// Closes a link that is of no use any more.
    pub(super) fn give_up(&mut self, id: LinkId, reason: &str, turn: &mut Turn<'_>) -> Change {
        if self.link(id).is_some() {
            turn.outputs.push_back(Output::Close { link: id });
        }
        self.lost(id, reason, turn)
    }

    /// A link is gone, or could not be opened.
    pub(super) fn lost(&mut self, id: LinkId, reason: &str, turn: &mut Turn<'_>) -> Change {
        self.gone(id, reason, true, turn)
    }

    /// `blamed`: its transport may be why.
    fn gone(&mut self, id: LinkId, reason: &str, blamed: bool, turn: &mut Turn<'_>) -> Change {
        let Some(index) = self.links.iter().position(|link| link.id == id) else { return Change::None };
        let link = self.links.swap_remove(index);
        let mut change = Change::None;
        if self.carrier == Some(id) {
            let lasted_ms = link.open_since_ms().map_or(0, |since_ms| turn.now_ms.saturating_sub(since_ms));
            self.backoff.lasted(lasted_ms);
            if link.transport == Transport::WebTransport {
                self.better.lasted(lasted_ms);
            }
            self.relieved = false;
            change = self.detach();
        }
        match link.transport {
            Transport::WebTransport if blamed => {
                let works = self.links.iter().any(|link| link.transport == Transport::WebSocket && link.is_open());
                self.better.failed(works && !self.is_suspect(turn.now_ms), turn.now_ms, turn.rng);
            }
            Transport::WebSocket if !link.is_open() => self.better.websocket_failed(),
            _ => {}
        }
        // What failed during its head start needs none.
        if self.head_start_ms.take().is_some() && self.links.is_empty() {
            self.open(Transport::WebSocket, turn);
        }
        let other = self.links.iter().find(|link| link.is_open()).map(|link| link.id);
        if let (Change::Detached, Some(other)) = (change, other) {
            return self.carry(other, turn);
        }
        if self.links.is_empty() {
            self.phase = Phase::Waiting { until_ms: self.backoff.next(turn.now_ms, turn.rng) };
        }
        self.tell(Some(reason), turn);
        change
    }

    /// The person or the machine is back: look at the link at once, connect at once. `slept`: time has passed in which
    /// nothing could happen.
    pub(super) fn wake(&mut self, slept: bool, turn: &mut Turn<'_>) {
        if slept {
            self.start_over(turn.now_ms);
        }
        match self.phase {
            Phase::Waiting { .. } if self.backoff.may_hurry(turn.now_ms) => self.connect(turn),
            Phase::Waiting { .. } | Phase::Idle => {}
            Phase::Up => self.ping(turn),
        }
    }

    fn ping(&mut self, turn: &mut Turn<'_>) {
        if let Some(link) = self.open_carrier() {
            let (id, frame) = (link.id, link.ping(turn.now_ms));
            turn.send(id, frame);
        }
    }

    /// This device is on another network: what failed on the former one may work here, and what was begun there is begun anew.
    pub(super) fn network_changed(&mut self, turn: &mut Turn<'_>) -> Change {
        if turn.now_ms.abs_diff(self.network_ms) < SAME_CHANGE_MS {
            return Change::None;
        }
        self.network_ms = turn.now_ms;
        self.better.network_changed();
        self.patience.network_changed();
        self.head_start_ms = None;
        self.begin_anew(turn)
    }

    /// The device has another token: where the former one was refused, it is tried at once.
    pub(super) fn introduced(&mut self, turn: &mut Turn<'_>) -> Change {
        if core::mem::take(&mut self.backoff.refused) { self.begin_anew(turn) } else { Change::None }
    }

    /// Links that are being opened are opened anew, and what waits for its time is tried now.
    fn begin_anew(&mut self, turn: &mut Turn<'_>) -> Change {
        self.relieved = false;
        let begun: Vec<_> = self.links.iter().filter(|link| !link.is_open()).map(|link| link.id).collect();
        begun.iter().for_each(|id| self.close(*id, turn));
        let change = if self.carrier.is_some_and(|id| begun.contains(&id)) { self.detach() } else { Change::None };
        if !begun.is_empty() {
            self.connect(turn);
        }
        self.wake(false, turn);
        change
    }

    fn start_over(&mut self, now_ms: u64) {
        self.links.iter_mut().for_each(|link| link.start_over(now_ms));
        if let Phase::Waiting { until_ms } = &mut self.phase {
            *until_ms = now_ms.min(*until_ms);
        }
        self.backoff.clock_set(now_ms);
        self.better.clock_set(now_ms);
    }

    /// Looks at everything that has a time. `owed`: the server has begun to send a page that is not complete here.
    pub(super) fn tick(&mut self, owed: bool, turn: &mut Turn<'_>) -> Change {
        let now_ms = turn.now_ms;
        if now_ms.saturating_add(CLOCK_STEP_MS) < self.now_ms {
            self.start_over(now_ms);
            self.now_ms = now_ms;
        }
        self.now_ms = self.now_ms.max(now_ms);
        self.patience.owed = owed;
        if matches!(self.phase, Phase::Waiting { until_ms } if now_ms >= until_ms) {
            self.connect(turn);
        }
        let is_late = |link: &&Link| link.is_late(now_ms) && !self.carries(link.id);
        let late: Vec<_> = self.links.iter().filter(is_late).map(|link| link.id).collect();
        let mut change = Change::None;
        for id in late {
            change = change.then(self.give_up(id, "the server does not answer", turn));
        }
        change = change.then(self.look(turn));
        self.open_beside(turn);
        change
    }

    /// Whether the carrier lives.
    fn look(&mut self, turn: &mut Turn<'_>) -> Change {
        let doubled = self.patience.doubled();
        let Some(link) = self.open_carrier() else { return Change::None };
        let (id, health, since_ms) = (link.id, link.health(doubled, turn.now_ms), link.open_since_ms());
        match health {
            Health::Quiet => self.ping(turn),
            Health::Dead => {
                self.patience.ended();
                return self.give_up(id, "the connection was lost", turn);
            }
            Health::Fine => self.patience.lasted(since_ms.map_or(0, |since_ms| turn.now_ms.saturating_sub(since_ms))),
            Health::Suspect => {}
        }
        Change::None
    }

    /// Opens a link beside the one that there is, if that is slow to open, silent, or not the best.
    fn open_beside(&mut self, turn: &mut Turn<'_>) {
        if self.head_start_ms.is_some_and(|at_ms| turn.now_ms >= at_ms) {
            self.head_start_ms = None;
            return self.open(Transport::WebSocket, turn);
        }
        let [link] = &self.links[..] else { return };
        if !self.carries(link.id) {
            return;
        }
        if !self.is_suspect(turn.now_ms) {
            self.relieved = false;
            if self.is_second_best() && self.better.is_due(turn.now_ms) {
                self.open(Transport::WebTransport, turn);
            }
        } else if !core::mem::replace(&mut self.relieved, true) {
            let instead = match self.choice {
                Choice::Auto => Transport::WebSocket,
                Choice::Only(transport) => transport,
            };
            self.open(instead, turn);
        }
    }

    /// Whether there is something better than the carrier.
    fn is_second_best(&self) -> bool {
        self.choice == Choice::Auto && self.carrier().is_some_and(|link| link.transport == Transport::WebSocket)
    }

    /// When to call [`Wire::tick`] next.
    pub(super) fn timeout(&self, now_ms: u64) -> Option<u64> {
        if let Phase::Waiting { until_ms } = self.phase {
            return Some(until_ms);
        }
        let doubled = self.patience.doubled();
        let changes = |link: &Link| {
            if self.carries(link.id) { link.health_changes_ms(doubled, now_ms) } else { link.until_ms() }
        };
        let [link] = &self.links[..] else { return self.links.iter().map(changes).chain(self.head_start_ms).min() };
        let moves_up = self.carries(link.id) && self.is_second_best() && !self.is_suspect(now_ms);
        let up_ms = moves_up.then(|| self.better.due_ms().max(now_ms));
        [Some(changes(link)), self.head_start_ms, up_ms].into_iter().flatten().min()
    }

    fn tell(&mut self, detail: Option<&str>, turn: &mut Turn<'_>) {
        let open = self.carrier().filter(|link| link.is_open()).map(|link| link.transport);
        let state = match (open, self.links.is_empty()) {
            (Some(_), _) => ConnectionState::Online,
            _ if self.backoff.refused => ConnectionState::Refused,
            (None, false) => ConnectionState::Connecting,
            (None, true) => ConnectionState::Offline,
        };
        if self.told.replace((state, open)) != Some((state, open)) {
            turn.outputs.push_back(Output::Event(Event::Connection {
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
