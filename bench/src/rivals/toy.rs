//! WebTransport as the library's examples have it: one thread, a task for each connection's reading and one for its writing, one
//! stream. It speaks as much of Waxwing's protocol as a client needs in order to come in, checks nothing, and passes every
//! message on to everybody in its room.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
};

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use tokio::{sync::Notify, task::LocalSet};
use waxwing::{
    core::{
        frame::{ClientFrame, Position, ServerFrame, put_delimited, take_delimited},
        id::{Digest, LogId, Nonce, RoomId},
        limits::Limits,
    },
    transport::tls,
};
use wtransport::{Endpoint, SendStream, ServerConfig, endpoint::IncomingSession};

/// A client's frame has at most so many bytes.
const FRAME_MAX: u32 = 1 << 16;
/// Bytes that one read may bring.
const READ: usize = 16 << 10;

/// What is to be sent to one connection.
#[derive(Default)]
struct Member {
    unsent: RefCell<Vec<u8>>,
    filled: Notify,
}

type Rooms = Rc<RefCell<HashMap<RoomId, Vec<Rc<Member>>>>>;

pub fn serve(certs: &Path) -> anyhow::Result<()> {
    let tls = tls::server_config(tls::provider(), super::identity(certs)?, &[b"h3"])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::server(ServerConfig::builder().with_bind_address(address).with_custom_tls(tls).build())?;
        super::announce(endpoint.local_addr()?)?;
        let rooms = Rooms::default();
        loop {
            let incoming = endpoint.accept().await;
            let rooms = Rc::clone(&rooms);
            tokio::task::spawn_local(async move {
                let member = Rc::default();
                // Whoever leaves ends with an error.
                drop(drive(incoming, &member, &rooms).await);
                rooms.borrow_mut().values_mut().for_each(|members| members.retain(|other| !Rc::ptr_eq(other, &member)));
            });
        }
    })
}

async fn drive(incoming: IncomingSession, member: &Rc<Member>, rooms: &Rooms) -> anyhow::Result<()> {
    let connection = incoming.await?.accept().await?;
    let (send, mut receive) = connection.accept_bi().await?;
    let writing = tokio::task::spawn_local(write(send, Rc::clone(member)));
    let mut bytes = BytesMut::new();
    let mut scratch = vec![0; READ];
    let read = async {
        while let Some(len) = receive.read(&mut scratch).await? {
            bytes.extend_from_slice(&scratch[..len]);
            let mut whole = bytes.split().freeze();
            while let Some(frame) = take_delimited(&mut whole, FRAME_MAX)? {
                take(ClientFrame::decode(&frame)?, member, rooms);
            }
            bytes.extend_from_slice(&whole);
        }
        anyhow::Ok(())
    };
    let ended = read.await;
    writing.abort();
    ended
}

/// Everything that has gathered, at once.
async fn write(mut send: SendStream, member: Rc<Member>) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    loop {
        member.filled.notified().await;
        std::mem::swap(&mut *member.unsent.borrow_mut(), &mut bytes);
        send.write_all(&bytes).await.context("it is gone")?;
        bytes.clear();
    }
}

fn take(frame: ClientFrame, member: &Rc<Member>, rooms: &Rooms) {
    let position = Position { log: LogId([0; 16]), head: 0, floor: 1 };
    let tell = |member: &Member, frame: &ServerFrame| {
        put_delimited(&mut member.unsent.borrow_mut(), &frame.encode());
        member.filled.notify_one();
    };
    match frame {
        ClientFrame::Hello(_) => tell(member, &ServerFrame::Challenge { nonce: Nonce([0; 32]) }),
        ClientFrame::Authenticate { .. } => {
            let (agent, limits, ticket) = ("toy".into(), Limits::default(), Bytes::new());
            tell(member, &ServerFrame::Welcome { agent, limits, time_ms: 0, ticket });
        }
        ClientFrame::Create { room, .. } => tell(member, &ServerFrame::Created { room, log: position.log }),
        ClientFrame::Enter { room, .. } => tell(member, &ServerFrame::Entered { room, position, handshake: 0 }),
        ClientFrame::Subscribe { room, .. } => {
            rooms.borrow_mut().entry(room).or_default().push(Rc::clone(member));
            tell(member, &ServerFrame::Subscribed { room, after: 0, chain: Digest([0; 32]), position });
        }
        ClientFrame::Publish(publish) => {
            let frame = ServerFrame::Ephemeral { envelope: publish.envelope };
            rooms.borrow().get(&publish.room).into_iter().flatten().for_each(|member| tell(member, &frame));
        }
        _ => {}
    }
}
