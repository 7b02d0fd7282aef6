//! The server's side of one session, without IO: hello, challenge, login, resume, limits, and the translation of frames into
//! requests to rooms. One state machine for every transport.

use super::{
    close::{CloseCode, Refusal},
    envelope::{Header, Kind},
    frame::{ClientFrame, DropBoxOffer, Hello, KeyPackage, LogKind, Operation, PROTOCOL_VERSION, Publish, Resume, ServerFrame},
    id::{AccessKey, DeviceKey, Digest, Nonce, RoomId, Seq, Signature, UnixMillis},
    limits::{Limits, Rate, TokenBucket},
    login::{self, AGENT_LEN_MAX, AUTHORITY_LEN_MAX, TICKET_LEN_MAX, TOKEN_LEN_MAX, Transcript},
    packages::Suite,
};

/// Requests other than publishes that a session may make per second for long, and at once: a client that comes back enters, subscribes
/// and fetches in each of its rooms.
const REQUESTS: Rate = Rate::per_second(100, 4096);

/// What the session asks of the room's owner. The device is the authenticated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomRequest {
    /// The room.
    pub room: RoomId,
    /// What is to be done.
    pub action: Action,
}

/// What is to be done in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it.
    Create {
        /// What opens it.
        access: AccessKey,
        /// Room or inbox.
        kind: LogKind,
    },
    /// Check the proof against the room's access key, and let the session in.
    Enter {
        /// The newest handshake record that the client has processed.
        handshake: Seq,
        /// Over [`super::login::access_message`].
        proof: Signature,
    },
    /// Let the session out.
    Leave,
    /// Begin delivery.
    Subscribe {
        /// The cursor.
        after: Seq,
    },
    /// End delivery.
    Unsubscribe,
    /// Read a page.
    Fetch {
        /// Echoed.
        request: u32,
        /// Only smaller seqs.
        before: Seq,
        /// Records at most.
        count_max: u32,
    },
    /// Store.
    Publish(Publish),
    /// Pass on.
    Ephemeral {
        /// The sealed bytes; the header is checked and names this room.
        envelope: bytes::Bytes,
    },
    /// Delete it.
    Delete,
    /// Find the first seq at or after a time.
    Seek {
        /// Echoed.
        request: u32,
        /// The server's clock.
        time_ms: UnixMillis,
    },
    /// Read a handshake record.
    Handshake {
        /// Echoed.
        request: u32,
        /// Beyond the newest for that one; else one more than its seq.
        before: Seq,
        /// All of it, and not its outline.
        whole: bool,
    },
    /// Open the drop-box, or close it.
    PutDropBox {
        /// With what; nothing closes it.
        offer: Option<DropBoxOffer>,
    },
    /// Say what posters are told. Of nobody's session: the drop-box is open to strangers.
    ShowDropBox,
    /// Store a post. Of nobody's session, too.
    Post {
        /// Over [`super::dropbox::post_message`].
        proof: Signature,
        /// The sealed bytes.
        envelope: bytes::Bytes,
    },
}

/// What the session asks of who keeps key packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagesRequest {
    /// Whose packages.
    pub device: DeviceKey,
    /// For groups of which suite.
    pub suite: Suite,
    /// Echoed.
    pub request: u32,
    /// What is to be done.
    pub action: PackagesAction,
}

/// What is to be done with a device's key packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackagesAction {
    /// Add to them; the session is the device's.
    Publish {
        /// In the order in which they are handed out.
        packages: Vec<KeyPackage>,
        /// Whether those that are there go.
        replace: bool,
    },
    /// Hand one out.
    Take,
}

impl PackagesRequest {
    /// The answer that refuses it.
    #[must_use]
    pub const fn refused(&self, why: Refusal) -> ServerFrame {
        let request = self.request;
        match self.action {
            PackagesAction::Publish { .. } => ServerFrame::KeyPackages { request, result: Err(why) },
            PackagesAction::Take => ServerFrame::KeyPackage { request, result: Err(why) },
        }
    }
}

/// What a frame leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Answer with this.
    Send(ServerFrame),
    /// The device is who it says. Open its session, answer with the welcome, and allow larger frames.
    Open {
        /// Who it is.
        device: DeviceKey,
        /// Its login, which access proofs sign.
        binding: Digest,
        /// The answer.
        welcome: ServerFrame,
    },
    /// Ask the room's owner.
    Route(RoomRequest),
    /// Ask who keeps the device's key packages.
    Packages(PackagesRequest),
    /// Nothing to do.
    Nothing,
    /// The client said goodbye.
    Goodbye,
}

/// What a login is checked against beyond its signature: the dialled name, the token, and what this server knows of earlier
/// logins. Without the latter nobody resumes, and everybody logs in.
pub trait Admission {
    /// Whether this device may log in, having dialled this name, with this token.
    ///
    /// # Errors
    /// The close code that answers it.
    fn admit(&self, hello: &Hello, now_ms: u64) -> Result<(), CloseCode>;

    /// A ticket for the device's next login, of at most [`TICKET_LEN_MAX`] bytes; empty where there are none.
    fn ticket(&self, _device: &DeviceKey, _now_ms: u64) -> bytes::Bytes {
        bytes::Bytes::new()
    }

    /// Whether the ticket was made here, for this device, and both it and the time stated with it are fresh.
    fn recognises(&self, _resume: &Resume, _now_ms: u64) -> bool {
        false
    }

    /// Whether a resume of this binding was never accepted before; from now on it was.
    fn is_first(&self, _binding: Digest, _now_ms: u64) -> bool {
        false
    }
}

/// What a session starts from.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What it may do.
    pub limits: Limits,
    /// 32 fresh random bytes.
    pub nonce: Nonce,
    /// The TLS exporter of its connection, where there is one.
    pub exporter: Option<[u8; 32]>,
    /// Name and version of the server, for people.
    pub agent: String,
}

#[derive(Debug)]
enum State {
    Hello,
    Challenged {
        hello: Box<Hello>,
        /// It was a resume: what the client sent behind it was meant for a session that there is not.
        dropping: bool,
    },
    Open(Box<Open>),
}

#[derive(Debug)]
struct Open {
    device: DeviceKey,
    requests: TokenBucket,
    publishes: TokenBucket,
    publishes_per_second: u32,
    publish_burst: u32,
    ephemerals: TokenBucket,
    ephemerals_per_second: u32,
}

/// One session.
#[derive(Debug)]
pub struct Session {
    /// Until somebody is logged in: a session that waits holds little.
    setup: Option<Box<Setup>>,
    idle_timeout_ms: u32,
    state: State,
    /// When the login must be done, or the next byte must have come.
    deadline_ms: u64,
}

impl Session {
    /// A session on a connection that was just accepted. `now_ms` is any clock that does not go back.
    #[must_use]
    pub fn new(setup: Setup, now_ms: u64) -> Self {
        let deadline_ms = now_ms.saturating_add(setup.limits.handshake_timeout_ms.into());
        let idle_timeout_ms = setup.limits.idle_timeout_ms;
        Self { setup: Some(Box::new(setup)), idle_timeout_ms, state: State::Hello, deadline_ms }
    }

    /// Who is logged in is not logged in again.
    fn setup(&self) -> Result<&Setup, CloseCode> {
        self.setup.as_deref().ok_or(CloseCode::Protocol)
    }

    /// When to call [`Session::handle_timeout`], in the clock of the other calls. Changes with every frame.
    #[must_use]
    pub const fn poll_timeout(&self) -> u64 {
        self.deadline_ms
    }

    /// The deadline may have passed.
    ///
    /// # Errors
    /// The code to close with, if it has.
    pub const fn handle_timeout(&self, now_ms: u64) -> Result<(), CloseCode> {
        if now_ms < self.deadline_ms {
            return Ok(());
        }
        Err(if matches!(self.state, State::Open(_)) { CloseCode::Idle } else { CloseCode::Handshake })
    }

    /// A frame came. `wall_ms` is the wall clock, for the token's expiry and the welcome.
    ///
    /// # Errors
    /// The code to close with.
    pub fn handle(
        &mut self,
        frame: ClientFrame,
        now_ms: u64,
        wall_ms: u64,
        admission: &dyn Admission,
    ) -> Result<Step, CloseCode> {
        match (&mut self.state, frame) {
            (State::Hello, ClientFrame::Hello(hello)) => {
                self.check(&hello, wall_ms, admission)?;
                self.challenge(hello, false)
            }
            (State::Hello, ClientFrame::Resume(resume)) => self.resume(resume, now_ms, wall_ms, admission),
            (State::Challenged { hello, .. }, ClientFrame::Authenticate { signature }) => {
                let setup = self.setup.as_ref().ok_or(CloseCode::Protocol)?;
                let transcript =
                    Transcript { hello, challenge: setup.nonce, exporter: setup.exporter.as_ref().filter(|_| hello.exporter) };
                if !signature.verifies(&hello.device.0, &transcript.message()) {
                    return Err(CloseCode::Unauthenticated);
                }
                let (device, binding) = (hello.device, transcript.binding());
                self.open(device, binding, now_ms, wall_ms, admission)
            }
            (State::Open(open), frame) => {
                let step = open.handle(frame, now_ms)?;
                self.heard(now_ms);
                Ok(step)
            }
            (_, ClientFrame::Close) => Ok(Step::Goodbye),
            (State::Challenged { dropping: true, .. }, frame)
                if !matches!(frame, ClientFrame::Hello(_) | ClientFrame::Resume(_)) =>
            {
                Ok(Step::Nothing)
            }
            _ => Err(CloseCode::Protocol),
        }
    }

    fn open(
        &mut self,
        device: DeviceKey,
        binding: Digest,
        now_ms: u64,
        wall_ms: u64,
        admission: &dyn Admission,
    ) -> Result<Step, CloseCode> {
        let Setup { limits, agent, .. } = *self.setup.take().ok_or(CloseCode::Protocol)?;
        self.state = State::Open(Box::new(Open::new(&limits, device)));
        self.heard(now_ms);
        let welcome = ServerFrame::Welcome { agent, limits, time_ms: wall_ms, ticket: admission.ticket(&device, wall_ms) };
        Ok(Step::Open { device, binding, welcome })
    }

    fn challenge(&mut self, hello: Hello, dropping: bool) -> Result<Step, CloseCode> {
        let nonce = self.setup()?.nonce;
        self.state = State::Challenged { hello: Box::new(hello), dropping };
        Ok(Step::Send(ServerFrame::Challenge { nonce }))
    }

    /// A ticket that is not accepted, for whatever reason, costs the client a round trip and nothing else. The signature is
    /// looked at only behind a good ticket, and remembered only if it is good.
    fn resume(&mut self, resume: Resume, now_ms: u64, wall_ms: u64, admission: &dyn Admission) -> Result<Step, CloseCode> {
        self.check(&resume.hello, wall_ms, admission)?;
        if resume.ticket.len() > TICKET_LEN_MAX {
            return Err(CloseCode::Protocol);
        }
        if !admission.recognises(&resume, wall_ms) {
            return self.challenge(resume.hello, true);
        }
        let exporter = self.setup()?.exporter.as_ref().filter(|_| resume.hello.exporter);
        let message = login::resume_message(&resume.hello, resume.time_ms, &resume.ticket, exporter);
        let device = resume.hello.device;
        if !resume.signature.verifies(&device.0, &message) {
            return Err(CloseCode::Unauthenticated);
        }
        let binding = login::binding(&message);
        if !admission.is_first(binding, wall_ms) {
            return self.challenge(resume.hello, true);
        }
        self.open(device, binding, now_ms, wall_ms, admission)
    }

    fn check(&self, hello: &Hello, wall_ms: u64, admission: &dyn Admission) -> Result<(), CloseCode> {
        if hello.version != PROTOCOL_VERSION {
            return Err(CloseCode::Version);
        }
        if hello.authority.len() > AUTHORITY_LEN_MAX || hello.agent.len() > AGENT_LEN_MAX || hello.token.len() > TOKEN_LEN_MAX {
            return Err(CloseCode::Protocol);
        }
        if hello.exporter && self.setup()?.exporter.is_none() {
            return Err(CloseCode::Unauthenticated);
        }
        admission.admit(hello, wall_ms)
    }

    /// Bytes of a frame came that is not complete: the client is slow, not gone.
    pub fn bytes_heard(&mut self, now_ms: u64) {
        if matches!(self.state, State::Open(_)) {
            self.heard(now_ms);
        }
    }

    fn heard(&mut self, now_ms: u64) {
        self.deadline_ms = now_ms.saturating_add(self.idle_timeout_ms.into());
    }
}

impl Open {
    fn new(limits: &Limits, device: DeviceKey) -> Self {
        Self {
            device,
            requests: TokenBucket::default(),
            publishes: TokenBucket::default(),
            publishes_per_second: limits.publishes_per_second_max,
            publish_burst: limits.publish_burst_max,
            ephemerals: TokenBucket::default(),
            ephemerals_per_second: limits.ephemerals_per_second_max,
        }
    }

    fn handle(&mut self, frame: ClientFrame, now_ms: u64) -> Result<Step, CloseCode> {
        match frame {
            ClientFrame::Hello(_) | ClientFrame::Resume(_) | ClientFrame::Authenticate { .. } => {
                return Err(CloseCode::Protocol);
            }
            ClientFrame::Publish(publish) => return Ok(self.publish(publish, now_ms)),
            ClientFrame::Ephemeral { envelope } => return Ok(self.ephemeral(envelope, now_ms)),
            ClientFrame::PublishKeyPackages { request, suite, packages, replace } => {
                let (device, action) = (self.device, PackagesAction::Publish { packages, replace });
                return Ok(self.packages(PackagesRequest { device, suite, request, action }, now_ms));
            }
            ClientFrame::TakeKeyPackage { request, device, suite } => {
                return Ok(self.packages(PackagesRequest { device, suite, request, action: PackagesAction::Take }, now_ms));
            }
            ClientFrame::Ping { token } => return Ok(Step::Send(ServerFrame::Pong { token })),
            ClientFrame::Close => return Ok(Step::Goodbye),
            _ => {}
        }
        let (room, action) = request(frame).ok_or(CloseCode::Protocol)?;
        if let (Err(retry_after_ms), Some(what)) = (self.requests.take(REQUESTS, now_ms), operation(&action)) {
            return Ok(Step::Send(ServerFrame::Failed { room, what, why: Refusal::RateLimited { retry_after_ms } }));
        }
        Ok(Step::Route(RoomRequest { room, action }))
    }

    fn publish(&mut self, publish: Publish, now_ms: u64) -> Step {
        let rate = Rate::per_second(self.publishes_per_second, self.publish_burst);
        match self.publishes.take(rate, now_ms) {
            Ok(()) => Step::Route(RoomRequest { room: publish.room, action: Action::Publish(publish) }),
            Err(retry_after_ms) => Step::Send(ServerFrame::Refused {
                room: publish.room,
                producer: publish.producer,
                client_seq: publish.client_seq,
                why: Refusal::RateLimited { retry_after_ms },
            }),
        }
    }

    fn packages(&mut self, request: PackagesRequest, now_ms: u64) -> Step {
        match self.requests.take(REQUESTS, now_ms) {
            Ok(()) => Step::Packages(request),
            Err(retry_after_ms) => Step::Send(request.refused(Refusal::RateLimited { retry_after_ms })),
        }
    }

    fn ephemeral(&mut self, envelope: bytes::Bytes, now_ms: u64) -> Step {
        let failed = |room, why| Step::Send(ServerFrame::Failed { room, what: Operation::Ephemeral, why });
        let rate = Rate::per_second(self.ephemerals_per_second, self.ephemerals_per_second);
        match Header::parse(&envelope) {
            Ok(Header { kind: Kind::Ephemeral, room, .. }) => match self.ephemerals.take(rate, now_ms) {
                Ok(()) => Step::Route(RoomRequest { room, action: Action::Ephemeral { envelope } }),
                Err(retry_after_ms) => failed(room, Refusal::RateLimited { retry_after_ms }),
            },
            Ok(Header { room, .. }) => failed(room, Refusal::BadEnvelope),
            Err(_) => failed(RoomId([0; 16]), Refusal::BadEnvelope),
        }
    }
}

/// A frame that asks for something in a room, as that.
fn request(frame: ClientFrame) -> Option<(RoomId, Action)> {
    Some(match frame {
        ClientFrame::Create { room, access, kind } => (room, Action::Create { access, kind }),
        ClientFrame::Enter { room, handshake, proof } => (room, Action::Enter { handshake, proof }),
        ClientFrame::Leave { room } => (room, Action::Leave),
        ClientFrame::Subscribe { room, after } => (room, Action::Subscribe { after }),
        ClientFrame::Unsubscribe { room } => (room, Action::Unsubscribe),
        ClientFrame::Fetch { request, room, before, count_max } => (room, Action::Fetch { request, before, count_max }),
        ClientFrame::Delete { room } => (room, Action::Delete),
        ClientFrame::Seek { request, room, time_ms } => (room, Action::Seek { request, time_ms }),
        ClientFrame::Handshake { request, room, before, whole } => (room, Action::Handshake { request, before, whole }),
        ClientFrame::PutDropBox { room, offer } => (room, Action::PutDropBox { offer }),
        _ => return None,
    })
}

/// What a refusal of the action names; `None` for what is never refused.
const fn operation(action: &Action) -> Option<Operation> {
    match action {
        Action::Create { .. } => Some(Operation::Create),
        Action::Enter { .. } => Some(Operation::Enter),
        Action::Subscribe { .. } => Some(Operation::Subscribe),
        Action::Fetch { .. } => Some(Operation::Fetch),
        Action::Ephemeral { .. } => Some(Operation::Ephemeral),
        Action::Delete => Some(Operation::Delete),
        Action::Seek { .. } => Some(Operation::Seek),
        Action::Handshake { .. } => Some(Operation::Handshake),
        Action::PutDropBox { .. } | Action::ShowDropBox => Some(Operation::DropBox),
        Action::Leave | Action::Unsubscribe | Action::Publish(_) | Action::Post { .. } => None,
    }
}
