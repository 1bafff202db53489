//! One peer's way to the server: a TCP connection from an address of its own, REST on it, then the WebSocket on the same one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

pub(crate) type Socket = WebSocketStream<TcpStream>;

const READ_BUFFER: usize = 8192;
const MAX_ANSWER: usize = 256 * 1024;

/// Who stands for which part of 127.0.0.0/8, so that the server sees each peer at an address of its own.
#[derive(Clone, Copy)]
pub(crate) enum Block {
    Crowd = 10,
    Joins = 20,
    Silent = 30,
    HalfOpen = 40,
    Malformed = 50,
    Flood = 60,
    Guesses = 70,
}

impl Block {
    /// The n-th address of the block, beginning anew after 62,500.
    pub(crate) fn address(self, number: usize) -> Ipv4Addr {
        Ipv4Addr::new(127, self as u8, (number / 250 % 250) as u8, (1 + number % 250) as u8)
    }
}

/// A TCP connection from that address.
pub(crate) async fn connect(server: SocketAddr, from: Ipv4Addr, receive_buffer: Option<u32>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.bind((IpAddr::V4(from), 0).into())?;
    let stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A request over HTTP/1.1 that keeps the connection; anything but 200 is an error.
async fn rest(stream: &mut TcpStream, path: &str, token: Option<&str>) -> anyhow::Result<Value> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("POST {path} HTTP/1.1\r\nHost: load\r\n{authorization}Content-Length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0 && answer.len() < MAX_ANSWER, "{path}: the server hung up");
        let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end])?.to_ascii_lowercase();
        let length: usize = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).context("no length")?.parse()?;
        if answer.len() < end + 4 + length {
            continue;
        }
        let body = std::str::from_utf8(&answer[end + 4..])?;
        ensure!(head.starts_with("http/1.1 200"), "{path}: {body}");
        return Ok(serde_json::from_str(body)?);
    }
}

fn text(answer: &Value, field: &str) -> anyhow::Result<String> {
    Ok(answer[field].as_str().with_context(|| format!("no {field} in the answer"))?.to_owned())
}

pub(crate) async fn sign_in(stream: &mut TcpStream) -> anyhow::Result<String> {
    text(&rest(stream, "/anonymous-signin", None).await?, "id_token")
}

/// A room and how to get in.
#[derive(Clone)]
pub(crate) struct Room {
    pub(crate) id: String,
    pub(crate) token: String,
}

pub(crate) async fn create_room(stream: &mut TcpStream, id_token: &str) -> anyhow::Result<Room> {
    let answer = rest(stream, "/create-room", Some(id_token)).await?;
    Ok(Room { id: text(&answer, "room_id")?, token: text(&answer, "token")? })
}

/// What a peer registers with, again and again.
#[derive(Clone)]
pub(crate) struct Pass {
    pub(crate) from: Ipv4Addr,
    pub(crate) peer: &'static str,
    pub(crate) room: Room,
    pub(crate) id_token: String,
}

impl Pass {
    /// A new user's. Without a room it makes one.
    pub(crate) async fn new(
        server: SocketAddr,
        from: Ipv4Addr,
        peer: &'static str,
        room: Option<Room>,
    ) -> anyhow::Result<(Pass, TcpStream)> {
        let mut stream = connect(server, from, None).await?;
        let id_token = sign_in(&mut stream).await?;
        let room = match room {
            Some(room) => room,
            None => create_room(&mut stream, &id_token).await?,
        };
        Ok((Pass { from, peer, room, id_token }, stream))
    }

    pub(crate) fn registration(&self) -> String {
        let role = if self.peer == "w" { "worker" } else { "client" };
        let Room { id, token } = &self.room;
        json!({"type": "register", "peer_id": self.peer, "room_id": id, "token": token, "id_token": self.id_token, "role": role})
            .to_string()
    }

    /// Upgrades the connection and registers.
    pub(crate) async fn enter(&self, stream: TcpStream) -> anyhow::Result<Socket> {
        let mut socket = upgrade(stream).await?;
        let answer = ask(&mut socket, self.registration()).await?;
        ensure!(answer.contains("registered_auth"), "not admitted: {answer}");
        Ok(socket)
    }

    /// Connects anew, upgrades and registers.
    pub(crate) async fn join(&self, server: SocketAddr) -> anyhow::Result<Socket> {
        self.enter(connect(server, self.from, None).await?).await
    }
}

pub(crate) async fn upgrade(stream: TcpStream) -> anyhow::Result<Socket> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER).write_buffer_size(READ_BUFFER);
    Ok(client_async_with_config("ws://load/", stream, Some(config)).await?.0)
}

/// Sends, and waits for the next text.
pub(crate) async fn ask(socket: &mut Socket, message: String) -> anyhow::Result<String> {
    socket.send(Message::text(message)).await?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => bail!("expected an answer, got {other:?}"),
        }
    }
}
