//! tokio-tungstenite with what is easily had: one thread, small buffers, bounded channels, what has gathered flushed at once.

use std::{cell::RefCell, collections::HashMap, net::TcpListener, rc::Rc, sync::Arc};

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc::{Sender, channel},
    task::LocalSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::{Message, handshake::server::Request, protocol::WebSocketConfig};

/// Messages that wait for one member; what exceeds them is lost.
const QUEUE: usize = 256;

type Rooms = Rc<RefCell<HashMap<String, HashMap<u64, Sender<Message>>>>>;

pub fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (acceptor, rooms) = (tls.map(TlsAcceptor::from), Rooms::default());
        for id in 0_u64.. {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (acceptor, rooms) = (acceptor.clone(), Rc::clone(&rooms));
            tokio::task::spawn_local(async move {
                match acceptor {
                    None => handle(socket, id, rooms).await,
                    Some(acceptor) => match acceptor.accept(socket).await {
                        Ok(socket) => handle(socket, id, rooms).await,
                        Err(error) => Err(error.into()),
                    },
                }
            });
        }
        Ok(())
    })
}

async fn handle(socket: impl AsyncRead + AsyncWrite + Unpin, id: u64, rooms: Rooms) -> anyhow::Result<()> {
    let mut room = String::new();
    #[expect(clippy::result_large_err, reason = "the library's own type")]
    let look = |request: &Request, response| {
        room = request.uri().path().to_owned();
        Ok(response)
    };
    let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(16 << 10).max_write_buffer_size(1 << 20);
    let socket = tokio_tungstenite::accept_hdr_async_with_config(socket, look, Some(config)).await?;
    let (send, mut receive) = channel(QUEUE);
    rooms.borrow_mut().entry(room.clone()).or_default().insert(id, send);
    let (mut sink, mut stream) = socket.split();
    let incoming = async {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_binary()
                && let Some(members) = rooms.borrow().get(&room)
            {
                for member in members.values() {
                    drop(member.try_send(message.clone()));
                }
            }
        }
    };
    let outgoing = async {
        while let Some(message) = receive.recv().await {
            if sink.feed(message).await.is_err() {
                return;
            }
            while let Ok(message) = receive.try_recv() {
                if sink.feed(message).await.is_err() {
                    return;
                }
            }
            if sink.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = incoming => {}
        () = outgoing => {}
    }
    if let Some(members) = rooms.borrow_mut().get_mut(&room) {
        members.remove(&id);
    }
    Ok(())
}
