//! One JSON object a line on stdout.

use std::{io::Write, mem};

use serde_json::json;
use shared::domain::error::Code;

use crate::domain::event::Event;

/// Writes events to stdout, each a line; what came together is flushed together.
#[derive(Default)]
pub(super) struct Json {
    buffer: Vec<u8>,
}

impl Json {
    /// Waits while stdout takes nothing: no event is left out.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) async fn write(&mut self, events: &[Event]) -> std::io::Result<()> {
        let mut buffer = mem::take(&mut self.buffer);
        buffer.clear();
        encode(events, &mut buffer)?;
        let written = tokio::task::spawn_blocking(move || {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(&buffer)?;
            stdout.flush().map(|()| buffer)
        });
        self.buffer = written.await.map_err(std::io::Error::other)??;
        Ok(())
    }
}

fn encode(events: &[Event], buffer: &mut Vec<u8>) -> std::io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut *buffer, event)?;
        buffer.push(b'\n');
    }
    Ok(())
}

/// The last line of a command that failed.
pub(super) fn print_failure(code: Code, message: &str) {
    // Nothing can be done for a closed stdout.
    let _ = writeln!(std::io::stdout(), "{}", json!({"type": "error", "code": code, "message": message}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::domain::{
        id::JobId,
        job::{JobEvent, JobState, JobStatus, JournalEntry, Metric, Outcome},
    };

    #[test]
    fn every_event_is_a_line_that_reads_back() {
        let job: JobId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let status = JobStatus {
            job: job.clone(),
            name: "a\nb".into(),
            state: JobState::Ended { outcome: Outcome::Stopped },
            last_seq: 9,
            submitted_at: 1,
            message: String::new(),
            results: None,
        };
        let metrics = [("loss".to_owned(), Metric(f64::NAN))].into();
        let event = JobEvent::BatchEnded { step: 0, epoch: Some(1), batch: 2, metrics };
        let events = [
            Event::Scanning { bytes: 1, total: u64::MAX },
            Event::JobState(status),
            Event::Journal { job, entry: JournalEntry { seq: 1, at_ms: 2, event } },
            Event::Notice { message: "x".into() },
        ];
        let mut buffer = Vec::new();
        encode(&events, &mut buffer).unwrap();
        let text = String::from_utf8(buffer).unwrap();
        let back: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(back, events);
        assert!(text.starts_with(r#"{"type":"scanning","bytes":1,"#), "{text}");
        assert!(text.contains(r#""loss":"NaN""#), "{text}");
    }
}
