//! The only printer: people read stderr (bars on a terminal, lines elsewhere) and the summary on stdout; programs read one JSON object
//! a line on stdout.
//!
//! * [`Output::show`] drains the events at once, into the view and, with `--json`, to stdout
//! * the [`screen`]'s own thread draws what the view says, as fast as the terminal allows: a slow one delays nobody

mod json;
mod screen;

use std::{
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use console::{Style, style};
use shared::domain::error::Failure;
use tokio::sync::mpsc;

use self::{
    json::Json,
    screen::{Look, Screen},
};
use crate::domain::{
    event::Event,
    order::{End, UserCommand},
    text,
    view::{Line, Stage, Tone, View, ViewOptions},
};

/// How many events are taken at a time.
const BATCH: usize = 256;
/// How often what is going on is looked at while nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// What is shown of one command. Clones share it.
#[derive(Clone)]
pub struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    json: bool,
    started: Instant,
    view: Mutex<View>,
    screen: Screen,
}

impl Output {
    /// Starts showing: nothing is seen before the first event.
    pub fn start(json: bool, quiet: bool, verbosity: u8, options: ViewOptions) -> Self {
        let terminal = std::io::stderr().is_terminal();
        // With JSON, people look on only where it goes to a file or a program and they are left with the terminal.
        let watched = !json || (terminal && !std::io::stdout().is_terminal());
        let look = match (quiet, watched) {
            (true, _) | (_, false) => Look::Hidden,
            // Bars and log lines would draw over each other.
            _ if terminal && verbosity == 0 => Look::Bars,
            _ => Look::Lines,
        };
        let shared = Shared { json, started: Instant::now(), view: Mutex::new(View::new(options)), screen: Screen::start(look) };
        Output { shared: Arc::new(shared) }
    }

    /// Shows events until there are no more. When nobody reads stdout any more, the job is left alone.
    pub async fn show(self, mut events: mpsc::Receiver<Event>, commands: mpsc::Sender<UserCommand>) {
        let mut json = self.shared.json.then(Json::default);
        let mut batch = Vec::with_capacity(BATCH);
        let mut tick = tokio::time::interval(TICK);
        loop {
            let received = tokio::select! {
                biased;
                received = events.recv_many(&mut batch, BATCH) => received,
                // A transfer that stalls says so by its rate.
                _ = tick.tick() => {
                    self.take(&[]);
                    continue;
                }
            };
            if received == 0 {
                return;
            }
            self.take(&batch);
            if let Some(writer) = &mut json
                && writer.write(&batch).await.is_err()
            {
                json = None;
                // A full queue means that it was said before.
                let _ = commands.try_send(UserCommand::Detach);
            }
            batch.clear();
        }
    }

    /// What leaving now would mean.
    pub fn stage(&self) -> Stage {
        self.view().stage()
    }

    /// Shows a line of our own.
    pub fn line(&self, line: Line) {
        self.shared.screen.push(vec![line], None);
    }

    /// Ends the display in good order and prints the summary.
    pub async fn close(&self, end: Option<&End>, interrupted: bool) {
        self.conclude(end, interrupted);
        let screen = self.clone();
        // A terminal that takes nothing would hold the thread; the caller can leave by Ctrl-C.
        let _ = tokio::task::spawn_blocking(move || screen.shared.screen.finish()).await;
        if self.shared.json {
            return;
        }
        let lines = self.view().summary();
        let _ = tokio::task::spawn_blocking(move || print_summary(&lines)).await;
    }

    /// Takes the live lines away, without waiting for a terminal that takes nothing.
    pub fn abandon(&self) {
        self.shared.screen.abandon();
    }

    fn take(&self, batch: &[Event]) {
        let now = self.shared.started.elapsed();
        let mut view = self.view();
        let lines = batch.iter().flat_map(|event| view.handle(now, event)).collect();
        let live = view.live(now);
        drop(view);
        self.shared.screen.push(lines, Some(live));
    }

    /// What the end means for the summary, in case that its event has not come.
    fn conclude(&self, end: Option<&End>, interrupted: bool) {
        let mut view = self.view();
        match end {
            Some(End::Finished { job, outcome, message }) => view.set_finished(job, *outcome, message, None),
            Some(End::Detached { job }) => view.set_detached(job),
            Some(End::Done) if interrupted => view.set_left(),
            // The job is not lost with the connection.
            None if view.stage() == Stage::Following => view.set_left(),
            Some(End::Done) | None => {}
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.shared.view.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Prints a command line's error or help; gives the exit code.
pub fn usage(error: &clap::Error) -> u8 {
    if error.use_stderr() {
        // What was typed is quoted in it, and may be an invite in the wrong place.
        eprint_block(&text::block(&error.render().to_string()));
        2
    } else {
        // Help and version are our own text, styled by clap. Nothing can be done for a closed stdout.
        let _ = error.print();
        0
    }
}

/// Prints why the program ends; with `json` also on stdout.
pub fn failure(failure: &Failure, json: bool) {
    let message = text::line(&failure.message);
    if json {
        json::print_failure(failure.code, &message);
    }
    eprint_line("error:", &message, Style::new().red().bold());
}

/// Prints a warning before anything else is shown.
pub fn caution(message: &str) {
    eprint_line("warning:", &text::line(message), Style::new().yellow());
}

/// Prints what the program waits for.
pub fn hint(message: &str) {
    eprint_block(&format!("{}\n", text::line(message)));
}

/// Prints lines on stdout.
pub fn sheet(lines: &[Line]) {
    print_summary(lines);
}

/// Prints one JSON object on stdout.
pub fn object(object: &serde_json::Value) {
    // Nothing can be done for a closed stdout.
    let _ = writeln!(std::io::stdout().lock(), "{object}");
}

/// Prints that something is broken.
pub fn alarm(message: &str) {
    eprint_line("error:", &text::line(message), Style::new().red().bold());
}

fn eprint_line(word: &str, message: &str, look: Style) {
    eprint_block(&format!("{} {message}\n", look.for_stderr().apply_to(word)));
}

fn eprint_block(text: &str) {
    // Nothing can be done for a closed stderr.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn print_summary(lines: &[Line]) {
    let mut stdout = std::io::stdout().lock();
    for line in lines {
        let text = match line.tone {
            Tone::Good => style(line.text()).green().to_string(),
            Tone::Warning => style(line.text()).yellow().to_string(),
            Tone::Bad => style(line.text()).red().to_string(),
            Tone::Plain | Tone::Quiet => line.text().to_owned(),
        };
        // Nothing can be done for a closed stdout.
        let _ = writeln!(stdout, "{text}");
    }
    let _ = stdout.flush();
}
