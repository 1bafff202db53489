//! What doctor asks a signaling server: whether it is one, whether WebSockets get through, what time it is there.

use std::time::SystemTime;

use reqwest::header::DATE;
use serde_json::Value;
use tokio_tungstenite::tungstenite;

use super::{Api, root_cause};
use crate::domain::network::Host;

/// The name by which a server of ours introduces itself.
const SERVICE: &str = "signaling-server";

/// What a healthy server says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Its clock, to the second.
    pub date: Option<SystemTime>,
}

impl Api {
    /// Where the server is: its host, its port, and whether it speaks TLS.
    pub fn place(&self) -> Option<(Host, u16, bool)> {
        let url = reqwest::Url::parse(&self.server).ok()?;
        let host = url.host_str()?.parse().ok()?;
        Some((host, url.port_or_known_default()?, url.scheme() == "https"))
    }

    /// Asks how it is.
    ///
    /// # Errors
    /// Why that is not the answer of a server of ours, in a few words.
    pub async fn health(&self) -> Result<Health, String> {
        let response = self.http.get(format!("{}/health", self.server)).send().await.map_err(|error| root_cause(&error))?;
        let date = response.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let status = response.status();
        if !status.is_success() && status.as_u16() != 503 {
            return Err(format!("HTTP {}", status.as_u16()));
        }
        let body: Value = response.json().await.map_err(|_| "what it says is not JSON".to_owned())?;
        match (body["service"].as_str(), body["status"].as_str()) {
            (Some(SERVICE), Some("unhealthy")) => Err("it says that it is unhealthy; look in its log".into()),
            (Some(SERVICE), _) => Ok(Health { date }),
            _ => Err("another program answers".into()),
        }
    }

    /// Opens a WebSocket and closes it again.
    ///
    /// # Errors
    /// Why it does not open, in a few words.
    pub async fn greet(&self) -> Result<(), String> {
        // Boxed: the handshake's future has 20 kB.
        let opening = tokio_tungstenite::connect_async_tls_with_config(self.websocket_url(), None, false, Some(self.connector.clone()));
        match Box::pin(opening).await {
            Ok((mut socket, _)) => {
                // It works; how it ends does not matter.
                let _ = socket.close(None).await;
                Ok(())
            }
            Err(tungstenite::Error::Http(response)) => Err(format!("HTTP {} instead of the upgrade", response.status().as_u16())),
            Err(error) => Err(root_cause(&error)),
        }
    }
}
