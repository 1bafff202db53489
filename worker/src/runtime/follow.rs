//! A job's journal on its way to a client: all of it to a viewer, one command's steps to whoever gave the command.

use std::path::PathBuf;

use shared::{
    domain::{
        error::Failure,
        id::{CommandId, JobId},
        job::{CommandState, JobEvent},
        message::{CaughtUp, ControlState, ToClient},
    },
    runtime::peer::ChannelSender,
};
use tokio::sync::{mpsc, watch};

use super::journal::JournalReader;

/// Journal entries that are read at once.
const READ_AHEAD: usize = 256;

/// Sends a journal from a seq on, to its end.
pub(super) async fn follow(
    path: PathBuf,
    mut appended: watch::Receiver<u64>,
    job: JobId,
    from: u64,
    progress: ChannelSender,
    out: mpsc::Sender<ToClient>,
) -> Result<(), Failure> {
    let mut reader = JournalReader::from_seq(&path, from)?;
    let mut caught_up = false;
    loop {
        if !caught_up && reader.next_seq() > *appended.borrow() {
            caught_up = true;
            let seq = reader.next_seq() - 1;
            let _ = out.send(ToClient::CaughtUp(CaughtUp { job: job.clone(), seq })).await;
        }
        let entries = reader.wait(&mut appended, READ_AHEAD).await?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            let last = matches!(entry.event, JobEvent::JobEnded { .. });
            progress.send_text(&ToClient::journal(job.clone(), entry).encode()).await?;
            if last {
                return Ok(());
            }
        }
    }
}

/// Tells the client how far one command is, from the journal, to its end.
pub(super) async fn report_command(
    path: PathBuf,
    mut appended: watch::Receiver<u64>,
    job: JobId,
    wanted: CommandId,
    out: mpsc::Sender<ToClient>,
) -> Result<(), Failure> {
    let mut reader = JournalReader::from_seq(&path, 1)?;
    loop {
        let entries = reader.wait(&mut appended, READ_AHEAD).await?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            match entry.event {
                JobEvent::CommandAdvanced { id, state, message, .. } if id == wanted => {
                    let told = out.send(ToClient::ControlState(ControlState { job: job.clone(), id, state, message })).await;
                    if told.is_err() || matches!(state, CommandState::Observed | CommandState::Refused) {
                        return Ok(());
                    }
                }
                JobEvent::JobEnded { .. } => return Ok(()),
                _ => {}
            }
        }
    }
}
