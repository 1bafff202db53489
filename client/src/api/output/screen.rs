//! stderr as people see it: drawn by a thread of its own, ten times a second on a terminal.
//!
//! What is to be drawn waits in a bounded queue. When a terminal is slower than the training, the oldest lines are left out, and that
//! is said; nobody waits for a terminal.

use std::{
    collections::VecDeque,
    io::Write,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use console::style;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::domain::view::{Line, Live, Tone};

/// Lines that wait for the terminal, at most.
const MAX_WAITING: usize = 2000;
/// Between two pictures.
const FRAME: Duration = Duration::from_millis(100);
/// How long a program that leaves at once waits for its last picture.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two lines about the same thing where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How things are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Lines, with live bars below them.
    Bars,
    /// Lines, and now and then what is going on.
    Lines,
    /// Nothing.
    Hidden,
}

/// stderr.
pub(super) struct Screen {
    board: Arc<Board>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is to be drawn, between those who know it and the thread that draws.
struct Board {
    content: Mutex<Content>,
    changed: Condvar,
}

#[derive(Default)]
struct Content {
    lines: VecDeque<Line>,
    left_out: u64,
    live: Vec<Live>,
    closing: bool,
    closed: bool,
}

impl Screen {
    pub(super) fn start(look: Look) -> Self {
        let board = Arc::new(Board { content: Mutex::default(), changed: Condvar::new() });
        let drawn = board.clone();
        let thread = match look {
            Look::Hidden => None,
            Look::Bars => Some(std::thread::spawn(move || draw(&drawn, Bars::new()))),
            Look::Lines => Some(std::thread::spawn(move || draw(&drawn, Lines::new(std::io::stderr())))),
        };
        Screen { board, thread: Mutex::new(thread) }
    }

    /// Adds lines, and replaces what is live unless it is `None`. Never waits for the terminal.
    pub(super) fn push(&self, lines: Vec<Line>, live: Option<Vec<Live>>) {
        let mut content = self.board.content();
        content.add(lines);
        if let Some(live) = live {
            content.live = live;
        }
        self.board.changed.notify_all();
    }

    /// Draws what is left, takes the live lines away, and waits for that.
    pub(super) fn finish(&self) {
        self.begin_to_close();
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // It panicked or it ended; either way it draws no more.
            let _ = thread.join();
        }
    }

    /// As [`finish`](Self::finish), but a terminal that takes nothing is not waited for.
    pub(super) fn abandon(&self) {
        self.begin_to_close();
        if self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some() {
            let content = self.board.content();
            // Closed or out of patience: the program ends now.
            let _ = self.board.changed.wait_timeout_while(content, PATIENCE, |content| !content.closed);
        }
    }

    fn begin_to_close(&self) {
        let mut content = self.board.content();
        content.closing = true;
        content.live.clear();
        self.board.changed.notify_all();
    }
}

impl Board {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Content {
    fn add(&mut self, lines: Vec<Line>) {
        self.lines.extend(lines);
        let surplus = self.lines.len().saturating_sub(MAX_WAITING);
        self.lines.drain(..surplus);
        self.left_out += surplus as u64;
    }

    fn take_lines(&mut self) -> Vec<Line> {
        let mut lines = Vec::with_capacity(self.lines.len() + 1);
        let left_out = mem::take(&mut self.left_out);
        if left_out > 0 {
            lines.push(Line::warning(format!("({left_out} lines left out: this terminal is slower than the training)")));
        }
        lines.extend(self.lines.drain(..));
        lines
    }
}

/// Something that can be drawn on.
trait Canvas {
    fn draw(&mut self, lines: &[Line], live: &[Live]);
    fn close(&mut self);
}

fn draw(board: &Board, mut canvas: impl Canvas) {
    loop {
        let mut content = board.content();
        if content.lines.is_empty() && !content.closing {
            content = board.changed.wait_timeout(content, FRAME).unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        let (lines, live, closing) = (content.take_lines(), content.live.clone(), content.closing);
        drop(content);
        canvas.draw(&lines, &live);
        if closing {
            canvas.close();
            board.content().closed = true;
            board.changed.notify_all();
            return;
        }
        // Events that come faster than pictures are seen in the next one.
        std::thread::sleep(FRAME / 4);
    }
}

/// A terminal.
struct Bars {
    all: MultiProgress,
    bars: Vec<(ProgressBar, Option<bool>)>,
}

impl Bars {
    fn new() -> Self {
        Bars { all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)), bars: Vec::new() }
    }
}

impl Canvas for Bars {
    fn draw(&mut self, lines: &[Line], live: &[Live]) {
        for line in lines {
            // A terminal that is gone shows nothing; the job is not its business.
            let _ = self.all.println(coloured(line));
        }
        while self.bars.len() > live.len() {
            if let Some((bar, _)) = self.bars.pop() {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
        }
        while self.bars.len() < live.len() {
            self.bars.push((self.all.add(ProgressBar::no_length()), None));
        }
        for ((bar, measured), live) in self.bars.iter_mut().zip(live) {
            if *measured != Some(live.progress.is_some()) {
                bar.set_style(bar_style(live.progress.is_some()));
                *measured = Some(live.progress.is_some());
            }
            if let Some((done, total)) = live.progress {
                bar.set_length(total);
                bar.set_position(done);
            }
            bar.set_message(live.text().to_owned());
            bar.tick();
        }
    }

    fn close(&mut self) {
        self.draw(&[], &[]);
        let _ = self.all.clear();
    }
}

fn bar_style(measured: bool) -> ProgressStyle {
    let template = if measured { "{spinner} [{bar:24}] {wide_msg}" } else { "{spinner} {wide_msg}" };
    ProgressStyle::with_template(template).expect("a constant template that a test has parsed").progress_chars("=> ")
}

fn coloured(line: &Line) -> String {
    let text = style(line.text()).for_stderr();
    match line.tone {
        Tone::Plain => text,
        Tone::Good => text.green(),
        Tone::Warning => text.yellow(),
        Tone::Bad => text.red(),
        Tone::Quiet => text.dim(),
    }
    .to_string()
}

/// A file, a pipe, or a terminal with the log in it.
struct Lines<W> {
    out: W,
    last: Option<(Instant, Vec<Live>)>,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Lines { out, last: None }
    }

    fn is_due(&self, now: Instant, live: &[Live]) -> bool {
        match &self.last {
            None => true,
            Some((at, shown)) => now.saturating_duration_since(*at) >= LINE_EVERY && shown != live,
        }
    }
}

impl<W: Write> Canvas for Lines<W> {
    fn draw(&mut self, lines: &[Line], live: &[Live]) {
        let now = Instant::now();
        for line in lines {
            // A reader that is gone sees nothing; the job is not its business.
            let _ = writeln!(self.out, "{}", coloured(line));
        }
        if !lines.is_empty() {
            // A line that stays has just said where things are.
            self.last = Some((now, live.to_vec()));
        } else if !live.is_empty() && self.is_due(now, live) {
            for live in live {
                let _ = writeln!(self.out, "{}", live.text());
            }
            self.last = Some((now, live.to_vec()));
        }
    }

    fn close(&mut self) {
        let _ = self.out.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: usize) -> Line {
        Line::plain(format!("line {n}"))
    }

    #[test]
    fn a_terminal_that_takes_nothing_costs_a_bounded_queue() {
        let screen = Screen { board: Arc::new(Board { content: Mutex::default(), changed: Condvar::new() }), thread: Mutex::new(None) };
        for n in 0..MAX_WAITING + 500 {
            screen.push(vec![line(n)], Some(vec![Live::open("now")]));
        }
        let lines = screen.board.content().take_lines();
        assert_eq!(lines.len(), MAX_WAITING + 1);
        assert!(lines[0].text().contains("500 lines left out"), "{:?}", lines[0]);
        assert_eq!(lines[1], line(500));
        assert_eq!(screen.board.content().take_lines(), []);
    }

    #[test]
    fn what_is_going_on_is_said_now_and_then() {
        let mut lines = Lines::new(Vec::new());
        lines.draw(&[], &[Live::open("one")]);
        lines.draw(&[], &[Live::open("two")]);
        lines.draw(&[line(1)], &[Live::open("three")]);
        assert_eq!(String::from_utf8(lines.out.clone()).unwrap(), "one\nline 1\n");
        let long_ago = Instant::now().checked_sub(LINE_EVERY).expect("the machine has been up for ten seconds");
        lines.last = Some((long_ago, vec![Live::open("three")]));
        lines.draw(&[], &[Live::open("three")]);
        lines.draw(&[], &[Live::open("four")]);
        assert_eq!(String::from_utf8(lines.out).unwrap(), "one\nline 1\nfour\n");
    }

    #[test]
    fn the_last_lines_are_drawn_before_the_end() {
        let board = Arc::new(Board { content: Mutex::default(), changed: Condvar::new() });
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (drawn, out) = (board.clone(), Shared(seen.clone()));
        let screen = Screen { board, thread: Mutex::new(Some(std::thread::spawn(move || draw(&drawn, Lines::new(out))))) };
        for n in 0..50 {
            screen.push(vec![line(n)], None);
        }
        screen.finish();
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), (0..50).map(|n| format!("line {n}")).collect::<Vec<_>>());
    }

    #[test]
    fn leaving_at_once_waits_for_no_terminal() {
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl Canvas for Stuck {
            fn draw(&mut self, _: &[Line], _: &[Live]) {
                // Until the test is over and the sender is dropped.
                let _ = self.0.recv();
            }
            fn close(&mut self) {}
        }
        let (release, held) = std::sync::mpsc::channel();
        let board = Arc::new(Board { content: Mutex::default(), changed: Condvar::new() });
        let drawn = board.clone();
        let screen = Screen { board, thread: Mutex::new(Some(std::thread::spawn(move || draw(&drawn, Stuck(held))))) };
        let started = Instant::now();
        screen.push(vec![line(1)], None);
        screen.abandon();
        assert!(started.elapsed() < PATIENCE * 10);
        assert!(!screen.board.content().closed);
        drop(release);
        screen.finish();
        assert!(screen.board.content().closed);
    }

    #[test]
    fn the_templates_parse() {
        bar_style(true);
        bar_style(false);
    }
}
