//! One WebSocket on the server's side: the upgrade, and how it is read and written so that thousands of them stay small.
//!
//! The library keeps what it has once needed to read or write a message, for as long as the socket lives. Here a socket holds the last message
//! that it received and nothing of those that it sent.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use shared::domain::signal::MAX_MESSAGE;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        handshake::derive_accept_key,
        protocol::{
            CloseFrame, Role, WebSocketConfig,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

use crate::domain::rooms::Closing;

/// How much is read at a time. With the library's 128 KiB a thousand idle sockets take 137 MB; with much less than this an offer takes many
/// system calls.
const READ_BUFFER: usize = 768;
/// The most bytes of pongs and close frames that wait to be written.
const WRITE_BUFFER: usize = 4096;

/// Whether a request asks for a WebSocket (RFC 6455 §4.2.1): then what to answer, and what becomes the socket once that is sent.
pub fn upgrade(request: &mut Request) -> Option<(Response, OnUpgrade)> {
    let has = |name: HeaderName, word: &str| {
        let values = request.headers().get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(word))
    };
    let asked = request.method() == Method::GET
        && has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13")
        && request.extensions().get::<OnUpgrade>().is_some();
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).filter(|_| asked)?;
    let answer = [
        (header::CONNECTION, "upgrade".to_owned()),
        (header::UPGRADE, "websocket".to_owned()),
        (header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes())),
    ];
    let response = (StatusCode::SWITCHING_PROTOCOLS, answer, Body::empty()).into_response();
    Some((response, hyper::upgrade::on(request)))
}

/// An open WebSocket.
pub struct Socket {
    stream: WebSocketStream<TokioIo<Upgraded>>,
    /// The last text. The library cuts messages out of its buffer; while one is still held, it takes a new buffer of the right size for the next
    /// and does not double the old one.
    last: Option<Utf8Bytes>,
    /// Whether a frame was begun and not finished: nothing more can be said then.
    in_a_frame: bool,
}

impl Socket {
    /// On an upgraded connection.
    pub async fn new(upgraded: Upgraded) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let stream = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
        Socket { stream, last: None, in_a_frame: false }
    }

    /// The next message.
    ///
    /// # Errors
    /// Why the socket is to be closed.
    pub async fn receive(&mut self) -> Result<Message, Closing> {
        let message = self.stream.next().await.ok_or(Closing::Gone)?.map_err(|error| closing_for(&error))?;
        if let Message::Text(text) = &message {
            self.last = Some(text.clone());
        }
        Ok(message)
    }

    /// Sends a text. When it is dropped before its end, nothing can be sent any more.
    ///
    /// # Errors
    /// [`Closing::Gone`].
    pub async fn send(&mut self, text: String) -> Result<(), Closing> {
        // What the library has to say itself goes first, and whole.
        self.flush().await?;
        let frame = Frame::message(text.into_bytes(), OpCode::Data(Data::Text), true);
        let mut bytes = Vec::with_capacity(frame.len());
        frame.format(&mut bytes).map_err(|_| Closing::Gone)?;
        self.in_a_frame = true;
        self.stream.get_mut().write_all(&bytes).await.map_err(|_| Closing::Gone)?;
        self.in_a_frame = false;
        Ok(())
    }

    /// Asks the peer whether it is there.
    ///
    /// # Errors
    /// [`Closing::Gone`].
    pub async fn ping(&mut self) -> Result<(), Closing> {
        self.stream.send(Message::Ping(Default::default())).await.map_err(|_| Closing::Gone)
    }

    async fn flush(&mut self) -> Result<(), Closing> {
        self.stream.flush().await.map_err(|_| Closing::Gone)
    }

    /// Says why, and reads on until the peer has closed, too: a TCP reset for unread bytes would overtake the close frame.
    pub async fn close(&mut self, why: Closing) {
        if self.in_a_frame {
            return;
        }
        if why != Closing::Gone {
            let frame = CloseFrame { code: why.code().into(), reason: why.reason().into() };
            if self.stream.send(Message::Close(Some(frame))).await.is_err() {
                return;
            }
        }
        while let Some(Ok(_)) = self.stream.next().await {}
    }
}

/// What to tell a peer about what the library found wrong.
fn closing_for(error: &Error) -> Closing {
    match error {
        Error::Capacity(_) => Closing::TooLarge,
        Error::Utf8(_) => Closing::NotText,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Closing::Gone,
        Error::Protocol(_) => Closing::Protocol,
        _ => Closing::Gone,
    }
}
