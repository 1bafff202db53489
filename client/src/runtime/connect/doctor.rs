//! What doctor needs of a connector: being let into the room, and one connection for its own sake.

use shared::{
    domain::{
        error::{Code, Failure},
        probe::Report,
    },
    runtime::{
        link::{self, try_out},
        signal::Api,
    },
};

use super::Connector;

impl Connector {
    /// The signaling server.
    pub(in crate::runtime) fn api(&self) -> &Api {
        &self.api
    }

    /// Registers in the room; then the options have the servers that are handed out. What it gives is why there is no worker to talk to.
    ///
    /// # Errors
    /// Why the room does not take us in.
    pub(in crate::runtime) async fn be_admitted(&mut self) -> Result<Result<(), Failure>, Failure> {
        let (signal, peers) = self.register().await?;
        self.signal = Some(signal);
        Ok(self.choose(&peers))
    }

    /// What the worker says of its end.
    ///
    /// # Errors
    /// Why it says nothing.
    pub(in crate::runtime) async fn report(&mut self) -> Result<Report, Failure> {
        let away = || Failure::new(Code::Unavailable, "the connection to the signaling server has ended");
        let signal = self.signal.as_mut().ok_or_else(away)?;
        link::ask(&self.invite, &self.me, &signal.sender, &mut signal.events).await
    }

    /// What the worker says of its end, and whether a connection comes about.
    pub(in crate::runtime) async fn try_out(&mut self) -> (Result<Report, Failure>, link::Trial) {
        let signal = self.signal.as_mut().expect("it is asked after being admitted");
        try_out(&self.invite, &self.me, &self.identity, &self.options, &signal.sender, &mut signal.events).await
    }
}
