//! tokio-tungstenite as its own example of a chat server has it: a task for each connection, an unbounded channel to each, a
//! mutex around the map of rooms.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{UnboundedSender, unbounded_channel},
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{Message, handshake::server::Request};

type Peers = Arc<Mutex<HashMap<String, HashMap<SocketAddr, UnboundedSender<Message>>>>>;

pub fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (acceptor, peers) = (tls.map(TlsAcceptor::from), Peers::default());
        loop {
            let (socket, address) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (acceptor, peers) = (acceptor.clone(), Arc::clone(&peers));
            tokio::spawn(async move {
                match acceptor {
                    None => handle(socket, address, peers).await,
                    Some(acceptor) => match acceptor.accept(socket).await {
                        Ok(socket) => handle(socket, address, peers).await,
                        Err(error) => Err(error.into()),
                    },
                }
            });
        }
    })
}

async fn handle(socket: impl AsyncRead + AsyncWrite + Unpin + Send, address: SocketAddr, peers: Peers) -> anyhow::Result<()> {
    let mut room = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let look = |request: &Request, response| {
        room = request.uri().path().to_owned();
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(socket, look).await?;
    let (send, mut receive) = unbounded_channel();
    let lock = || peers.lock().unwrap_or_else(PoisonError::into_inner);
    lock().entry(room.clone()).or_default().insert(address, send);
    let (mut sink, mut stream) = socket.split();
    let incoming = async {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_binary()
                && let Some(members) = lock().get(&room)
            {
                for member in members.values() {
                    drop(member.send(message.clone()));
                }
            }
        }
    };
    let outgoing = async {
        while let Some(message) = receive.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = incoming => {}
        () = outgoing => {}
    }
    if let Some(members) = lock().get_mut(&room) {
        members.remove(&address);
    }
    Ok(())
}
