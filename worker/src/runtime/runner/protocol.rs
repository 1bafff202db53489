//! What agent and runner say to each other: one JSON object a line, two enums, one a direction.

use serde::{Deserialize, Serialize};
use shared::domain::{
    id::CommandId,
    job::{Command, CommandState},
};

use crate::runtime::workspace::Ended;

/// The longest line, in bytes.
pub const MAX_LINE: usize = 64 * 1024;

/// From the agent to the runner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToRunner {
    /// Do this; once, however often the id comes.
    Command {
        /// The command's own id.
        id: CommandId,
        /// What.
        command: Command,
    },
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// From the runner to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromRunner {
    /// The journal's last seq. Several appends may be told as one.
    Appended {
        /// It.
        seq: u64,
    },
    /// The answer to a command: how far it is now. Later steps stand in the journal.
    Command {
        /// Which.
        id: CommandId,
        /// How far: received, or further if it came before; or refused.
        state: CommandState,
        /// Why, where it was refused.
        message: String,
    },
    /// The job is over; the runner is about to go.
    Ended(Ended),
    /// Something newer.
    #[serde(other)]
    Unknown,
}

/// One line, with its line feed.
pub fn encode<T: Serialize>(message: &T) -> String {
    let mut line = serde_json::to_string(message).expect("messages have string keys only");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use shared::domain::job::Outcome;

    use super::*;

    #[test]
    fn lines_look_like_this() {
        let command = ToRunner::Command { id: "c1".parse().unwrap(), command: Command::Stop };
        assert_eq!(encode(&command), "{\"type\":\"command\",\"id\":\"c1\",\"command\":\"stop\"}\n");
        let ended = FromRunner::Ended(Ended { outcome: Outcome::Stopped, message: "m".into(), last_seq: 3 });
        assert_eq!(encode(&ended), "{\"type\":\"ended\",\"outcome\":\"stopped\",\"message\":\"m\",\"last_seq\":3}\n");
        assert_eq!(serde_json::from_str::<FromRunner>(encode(&ended).trim()).unwrap(), ended);
        assert_eq!(serde_json::from_str::<ToRunner>("{\"type\":\"new\",\"x\":1}").unwrap(), ToRunner::Unknown);
    }
}
