//! Logins and resumes of one device, at a server whose sessions are checked against the rules of docs/protocol.md, "Resuming".

use std::{cell::RefCell, collections::HashSet, sync::OnceLock};

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use waxwing::core::{
    close::CloseCode,
    frame::{ClientFrame, Hello, PROTOCOL_VERSION, Resume, ServerFrame},
    id::{DeviceKey, Digest, Nonce, Signature},
    limits::Limits,
    login::{self, RESUME_SKEW_MS, TICKET_LEN_MAX, Transcript},
    session::{Admission, Session, Setup, Step},
};

/// What every challenge says.
const CHALLENGE: Nonce = Nonce([2; 32]);
/// The server's clock when everything begins.
const BEGIN_MS: u64 = 1_000_000_000;

/// A server that lets everybody in, and takes each resume once.
#[derive(Default)]
struct Edge(RefCell<HashSet<Digest>>);

impl Admission for Edge {
    fn admit(&self, _: &Hello, _: u64) -> Result<(), CloseCode> {
        Ok(())
    }

    fn ticket(&self, device: &DeviceKey, _: u64) -> Bytes {
        Bytes::copy_from_slice(&device.0)
    }

    fn recognises(&self, resume: &Resume, now_ms: u64) -> bool {
        resume.ticket[..] == resume.hello.device.0 && now_ms.abs_diff(resume.time_ms) < RESUME_SKEW_MS
    }

    fn is_first(&self, binding: Digest, _: u64) -> bool {
        self.0.borrow_mut().insert(binding)
    }
}

/// One device's logins.
pub(super) struct Logins {
    key: SigningKey,
    edge: Edge,
    /// Nonces used.
    count: u8,
    /// What was signed in resumes that were accepted.
    accepted: Vec<(Nonce, u64)>,
}

impl Logins {
    pub(super) fn new() -> Self {
        Self { key: SigningKey::from_bytes(&[3; 32]), edge: Edge::default(), count: 0, accepted: Vec::new() }
    }

    pub(super) fn device(&self) -> DeviceKey {
        DeviceKey(self.key.verifying_key().to_bytes())
    }

    /// A frame reaches a session, `now_ms` after the beginning.
    pub(super) fn handle(&self, session: &mut Session, frame: ClientFrame, now_ms: u64) -> Result<Step, CloseCode> {
        session.handle(frame, now_ms, BEGIN_MS + now_ms, &self.edge)
    }

    /// A session that is open. The login is always the same.
    pub(super) fn log_in(&self) -> Session {
        static SIGNATURE: OnceLock<Signature> = OnceLock::new();
        let hello = self.hello(Nonce([4; 32]), false);
        let mut session = connect();
        let step = self.handle(&mut session, ClientFrame::Hello(hello.clone()), 0);
        assert!(matches!(step, Ok(Step::Send(ServerFrame::Challenge { .. }))));
        let sign = || self.sign(&Transcript { hello: &hello, challenge: CHALLENGE, exporter: None }.message());
        let step = self.handle(&mut session, ClientFrame::Authenticate { signature: *SIGNATURE.get_or_init(sign) }, 0);
        assert!(matches!(step, Ok(Step::Open { welcome: ServerFrame::Welcome { .. }, .. })));
        session
    }

    /// The device comes back with a resume that may be wrong in several ways, each a bit of `how`. The session that is open then; none
    /// if the server does not let it in.
    pub(super) fn resume(&mut self, how: u8, now_ms: u64) -> Option<Session> {
        let is = |bit: u8| how & 1 << bit != 0;
        let (told_again, forged, others, late, long, exporter) = (is(0), is(1), is(2), is(3), is(4), is(5));
        self.count = self.count.wrapping_add(1);
        let fresh = (Nonce([self.count; 32]), BEGIN_MS + now_ms);
        let (nonce, time_ms) = self.accepted.last().copied().filter(|_| told_again).unwrap_or(fresh);
        let time_ms = if late { time_ms.saturating_sub(RESUME_SKEW_MS) } else { time_ms };
        let mut ticket = self.device().0.to_vec();
        ticket.resize(if long { TICKET_LEN_MAX + 1 } else { ticket.len() }, 0);
        ticket.iter_mut().take(usize::from(others)).for_each(|byte| *byte ^= 1);
        let hello = self.hello(nonce, exporter);
        let ticket = Bytes::from(ticket);
        let message = login::resume_message(&hello, time_ms, &ticket, None);
        let signature = if forged { [7; 64].into() } else { self.sign(&message) };

        let mut session = connect();
        let resume = Resume { hello: hello.clone(), time_ms, ticket, signature };
        let step = self.handle(&mut session, ClientFrame::Resume(resume), now_ms);
        let is_old = self.accepted.contains(&(nonce, time_ms));
        let is_near = (BEGIN_MS + now_ms).abs_diff(time_ms) < RESUME_SKEW_MS;
        match step {
            Err(CloseCode::Unauthenticated) if exporter => None,
            Err(CloseCode::Protocol) if !exporter && long => None,
            _ if exporter || long => panic!("{step:?} to what nobody may say"),
            Ok(Step::Send(ServerFrame::Challenge { .. })) if others || !is_near || (is_old && !forged) => {
                self.answer(&mut session, &hello, now_ms);
                Some(session)
            }
            Err(CloseCode::Unauthenticated) if forged && !others && is_near => None,
            Ok(Step::Open { device, binding, welcome: ServerFrame::Welcome { .. } })
                if !forged && !others && is_near && !is_old =>
            {
                assert_eq!((device, binding), (self.device(), login::binding(&message)));
                self.accepted.push((nonce, time_ms));
                Some(session)
            }
            step => panic!("{step:?} to {how:#b}"),
        }
    }

    /// What was said behind a resume that was not accepted goes nowhere; then the challenge is answered.
    fn answer(&self, session: &mut Session, hello: &Hello, now_ms: u64) {
        let behind = self.handle(session, ClientFrame::Ping { token: 1 }, now_ms);
        assert_eq!(behind, Ok(Step::Nothing));
        let transcript = Transcript { hello, challenge: CHALLENGE, exporter: None };
        let signature = self.sign(&transcript.message());
        let step = self.handle(session, ClientFrame::Authenticate { signature }, now_ms);
        let Ok(Step::Open { device, binding, welcome: ServerFrame::Welcome { .. } }) = step else {
            panic!("{step:?} to a login")
        };
        assert_eq!((device, binding), (self.device(), transcript.binding()));
    }

    fn hello(&self, nonce: Nonce, exporter: bool) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            nonce,
            device: self.device(),
            authority: "localhost".to_owned(),
            exporter,
            token: Bytes::new(),
            agent: String::new(),
        }
    }

    fn sign(&self, message: &[u8]) -> Signature {
        self.key.sign(message).to_bytes().into()
    }
}

/// A connection on which nothing was said. There is no exporter.
fn connect() -> Session {
    Session::new(Setup { limits: Limits::default(), nonce: CHALLENGE, exporter: None, agent: String::new() }, 0)
}
