//! `status`: which way the connection takes, and why not a better one.

use shared::{domain::route::RouteKind, runtime::probe};

use super::Drive;
use crate::{
    domain::{doctor::path, event::Event},
    runtime::conversation::Conversation,
};

impl Drive {
    /// Tells the way in use; where it is relayed, both sides are examined for the reason.
    pub(super) async fn tell_path(&mut self, talk: &Conversation) {
        let route = talk.route().await.or_else(|| self.known.route.clone());
        let why = match &route {
            Some(route) if route.kind == RouteKind::Relayed => {
                let options = self.connector.options().clone();
                let (own, worker) = tokio::join!(Box::pin(probe::examine(&options, None)), Box::pin(self.connector.report()));
                let worker = worker.inspect_err(|failure| tracing::info!(%failure, "the worker sent no report")).ok();
                path::why_not_better(route, Some(&own), worker.as_ref())
            }
            _ => None,
        };
        let speed = self.connector.known_speed();
        self.tell(Event::Path { route, speed, why }).await;
    }
}
