//! Drop-boxes over HTTP: `GET /post/ROOM` gives the announcement, `POST /post/ROOM` takes a post. Who posts has no session; the proof
//! is in the body, and a repetition stores nothing, so that nothing depends on who asks, or from which page.
//!
//! A request goes the way that any client's goes: to the room's shard, as a connection that lives for this one question, and back
//! through a link of this thread.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        HeaderName, HeaderValue, Method, Response, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
            ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER,
        },
    },
    routing::any,
};
use bytes::Bytes;
use tokio::{sync::oneshot, time::timeout};

use super::{Shared, admission::network, clock, home::Home, http::client_address, link::Link, service::Service, tcp::Peer};
use crate::{
    core::{
        close::Refusal,
        dropbox,
        frame::ServerFrame,
        id::{Digest, RoomId, Signature},
        limits::{Rate, TokenBucket},
        session::{Action, RoomRequest},
    },
    router::{
        Conn, Usage,
        outbox::{Outbox, Permit},
        shard::Message,
    },
    transport::memory,
};

/// How long a post may take to be stored. Then nobody knows what became of it, and the same bytes may be sent again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of the largest answer of a shard: an announcement, and what is around it.
const ANSWER_MAX: u32 = 8 << 10;
/// Addresses, and rooms, whose rates are remembered.
const RATES_MAX: usize = 16 << 10;
/// Those that have asked nothing for long are looked for at most so often.
const SWEEP_EVERY_MS: u64 = 1_000;

/// What drop-boxes are served with.
struct Door {
    shared: Arc<Shared>,
    service: Arc<Service>,
    /// Requests of addresses.
    asked: Mutex<Rates<IpAddr>>,
    /// Posts of rooms. Not with the rooms, which are forgotten as soon as nobody is there.
    posted: Mutex<Rates<RoomId>>,
}

/// What was done lately, by whom or where.
struct Rates<K> {
    rate: Rate,
    buckets: HashMap<K, TokenBucket>,
    swept_ms: u64,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), swept_ms: 0 }
    }

    /// Whether one more could be counted.
    fn look(&self, key: K, now_ms: u64) -> Result<(), Refusal> {
        let taken = self.buckets.get(&key).map_or(Ok(()), |bucket| bucket.clone().take(self.rate, now_ms));
        taken.map_err(|retry_after_ms| Refusal::RateLimited { retry_after_ms })
    }

    /// Counts one more.
    fn take(&mut self, key: K, now_ms: u64) -> Result<(), Refusal> {
        if self.buckets.len() >= RATES_MAX && !self.buckets.contains_key(&key) {
            if now_ms >= self.swept_ms + SWEEP_EVERY_MS {
                self.swept_ms = now_ms;
                self.buckets.retain(|_, bucket| !bucket.is_full(self.rate, now_ms));
            }
            if self.buckets.len() >= RATES_MAX {
                return Err(Refusal::Overloaded);
            }
        }
        let bucket = self.buckets.entry(key).or_default();
        bucket.take(self.rate, now_ms).map_err(|retry_after_ms| Refusal::RateLimited { retry_after_ms })
    }
}

/// The routes of drop-boxes.
pub(super) fn router(shared: &Arc<Shared>, service: &Arc<Service>) -> Router {
    let limits = &shared.config.limits;
    let asked = Mutex::new(Rates::new(Rate::per_minute(limits.post_requests_per_minute_max)));
    let posted = Mutex::new(Rates::new(Rate::per_minute(limits.posts_per_minute_max)));
    let door = Door { shared: Arc::clone(shared), service: Arc::clone(service), asked, posted };
    Router::new().route("/post/{room}", any(knock)).with_state(Arc::new(door))
}

async fn knock(State(door): State<Arc<Door>>, Extension(peer): Extension<Peer>, request: Request) -> Response<Body> {
    let method = request.method().clone();
    let answer = match method {
        Method::OPTIONS => Ok(answer(StatusCode::NO_CONTENT, "text/plain", Body::empty())),
        Method::GET | Method::POST => door.serve(&peer, request).await,
        _ => {
            let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Body::from("GET or POST\n"));
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
            Ok(refused)
        }
    };
    let mut answer = answer.unwrap_or_else(|why| {
        door.shared.metrics.refused(&why);
        refusal(why)
    });
    // There is nothing here that a page could not ask for from anywhere else: the secret is in the body.
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
        (ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        answer.headers_mut().insert::<HeaderName>(name, HeaderValue::from_static(value));
    }
    answer
}

impl Door {
    async fn serve(self: &Arc<Self>, peer: &Peer, request: Request) -> Result<Response<Body>, Refusal> {
        let limits = &self.shared.config.limits;
        if self.shared.stopping.is_cancelled() {
            return Err(Refusal::Overloaded);
        }
        let address = network(client_address(&self.shared, peer, request.headers()).ip());
        held(&self.asked).take(address, clock::unix_millis())?;
        let room = request.uri().path().strip_prefix(dropbox::PATH).and_then(|room| room.parse::<RoomId>().ok());
        let room = room.ok_or(Refusal::NoAccess)?;
        if request.method() == Method::GET {
            return match self.ask(room, Action::ShowDropBox).await? {
                ServerFrame::DropBox { announcement: Some(announcement), .. } => {
                    Ok(answer(StatusCode::OK, "application/octet-stream", Body::from(announcement)))
                }
                ServerFrame::DropBox { announcement: None, .. } => Err(Refusal::NoAccess),
                other => Err(why(&other)),
            };
        }
        let max = limits.envelope_bytes_max;
        let body = to_bytes(request.into_body(), max as usize + Signature::LEN);
        let body = timeout(self.shared.handshake_timeout(), body).await.map_err(|_| Refusal::BadEnvelope)?;
        let body = body.map_err(|_| Refusal::TooLarge { max })?;
        let proof = body.first_chunk::<{ Signature::LEN }>().ok_or(Refusal::BadEnvelope)?;
        let (proof, envelope) = (Signature::from(*proof), body.slice(Signature::LEN..));
        held(&self.posted).look(room, clock::unix_millis())?;
        match self.ask(room, Action::Post { proof, envelope }).await? {
            ServerFrame::Ack { seq, .. } => {
                // Only what was proved to come from who has the address counts against the room.
                let _ = held(&self.posted).take(room, clock::unix_millis());
                self.shared.metrics.posts.inc();
                Ok(answer(StatusCode::OK, "application/json", Body::from(format!("{{\"seq\":{seq}}}\n"))))
            }
            other => Err(why(&other)),
        }
    }

    /// Asks the room's shard.
    async fn ask(self: &Arc<Self>, room: RoomId, action: Action) -> Result<ServerFrame, Refusal> {
        let (tell, told) = oneshot::channel();
        let door = Arc::clone(self);
        self.shared.spawn_here(Box::pin(async move {
            // Whoever asked may have gone.
            let _ = tell.send(door.question(room, action).await);
        }));
        told.await.unwrap_or(Err(Refusal::OutcomeUnknown))
    }

    async fn question(&self, room: RoomId, action: Action) -> Result<ServerFrame, Refusal> {
        let Self { shared, service, .. } = self;
        let home = Home::here().ok_or(Refusal::Internal)?;
        let (mut here, there) = memory::pair(ANSWER_MAX as usize, ANSWER_MAX);
        let weight = if let Action::Post { envelope, .. } = &action { envelope.len() } else { 0 };
        let (id, device) = (service.router.next_conn(), dropbox::kept_under(room));
        let conn =
            Conn::new(id, device, Digest([0; 32]), Outbox::new(ANSWER_MAX), Arc::new(Usage::default())).at_home(home.index);
        let conn = Arc::new(conn);
        let permit = Permit::new(&conn, weight);
        let link = Link::new(Arc::clone(&conn), Box::new(there.writer));
        home.links.insert(&link);
        let message = Message::Request { conn: Arc::clone(&conn), request: RoomRequest { room, action }, permit };
        let asked = async {
            service.router.send(service.router.shard_of(room), message).await.map_err(|_| Refusal::Overloaded)?;
            let frame = here.reader.recv().await.ok().flatten().ok_or(Refusal::OutcomeUnknown)?;
            ServerFrame::decode(&frame).map_err(|_| Refusal::Internal)
        };
        let answer = tokio::select! {
            answer = timeout(PATIENCE, asked) => answer.unwrap_or(Err(Refusal::OutcomeUnknown)),
            () = shared.abort.cancelled() => Err(Refusal::OutcomeUnknown),
        };
        conn.outbox.close();
        home.links.remove(id);
        answer
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The refusal in a shard's answer.
const fn why(frame: &ServerFrame) -> Refusal {
    match frame {
        ServerFrame::Refused { why, .. } | ServerFrame::Failed { why, .. } => *why,
        _ => Refusal::Internal,
    }
}

fn answer(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

const fn status(why: Refusal) -> StatusCode {
    match why {
        Refusal::NoAccess => StatusCode::NOT_FOUND,
        Refusal::BadProof => StatusCode::FORBIDDEN,
        Refusal::StaleEpoch { .. } => StatusCode::CONFLICT,
        Refusal::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
        Refusal::RoomFull | Refusal::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
        Refusal::Overloaded | Refusal::OutcomeUnknown | Refusal::TooManyProducers => StatusCode::SERVICE_UNAVAILABLE,
        Refusal::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// What is said of it to who posts, instead of what is said to members.
fn words(why: Refusal) -> String {
    match why {
        Refusal::NoAccess => "there is no open drop-box here".to_owned(),
        Refusal::BadProof => "the proof does not verify: the address is not, or not any more, the drop-box's".to_owned(),
        Refusal::StaleEpoch { .. } => {
            "the drop-box has, or is about to have, another key: fetch the announcement and seal anew".to_owned()
        }
        other => other.to_string(),
    }
}

fn refusal(why: Refusal) -> Response<Body> {
    let body = format!("{{\"error\":\"{}\",\"message\":\"{}\"}}\n", why.name(), words(why));
    let mut refused = answer(status(why), "application/json", Body::from(Bytes::from(body)));
    let seconds = match why {
        Refusal::RateLimited { retry_after_ms } => Some(retry_after_ms.div_ceil(1000).max(1)),
        Refusal::StaleEpoch { .. } | Refusal::Overloaded | Refusal::OutcomeUnknown | Refusal::TooManyProducers => Some(5),
        Refusal::RoomFull | Refusal::DiskFull => Some(60),
        _ => None,
    };
    if let Some(seconds) = seconds {
        refused.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_limited_each_by_itself_and_in_number() {
        let mut rates = Rates::new(Rate::per_minute(2));
        let address = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(number));
        assert!((0..2).all(|_| rates.take(address(0), 0).is_ok()));
        assert_eq!(rates.take(address(0), 0), Err(Refusal::RateLimited { retry_after_ms: 30_000 }));
        assert_eq!(rates.look(address(0), 0), Err(Refusal::RateLimited { retry_after_ms: 30_000 }));
        assert_eq!((rates.look(address(1), 0), rates.take(address(1), 0)), (Ok(()), Ok(())));
        for number in 2..u32::try_from(RATES_MAX).unwrap() {
            assert_eq!(rates.take(address(number), 0), Ok(()));
        }
        assert_eq!(rates.take(address(u32::MAX), 0), Err(Refusal::Overloaded));
        assert_eq!(rates.take(address(1), 0), Ok(()), "who is known goes on");
        assert_eq!(rates.take(address(u32::MAX), 60_000), Ok(()), "who has asked nothing for long makes way");
        assert_eq!(rates.buckets.len(), 1);
    }
}
