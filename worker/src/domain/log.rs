//! A trainer's output as lines for people: carriage returns collapsed, escape sequences removed, lengths and rates bounded.
//!
//! Bytes go in as they are read from the log file ([`LineCutter`]); [`RateLimit`] decides which lines are told.

/// The longest line that is told, in bytes.
pub const MAX_LINE: usize = 4096;
/// How much of a line's raw bytes is looked at: escape sequences take room, too.
const MAX_RAW: usize = 4 * MAX_LINE;

/// Cuts a stream of bytes into lines. What a terminal would have overwritten after a `\r` (progress bars) is dropped.
#[derive(Debug, Clone, Default)]
pub struct LineCutter {
    raw: Vec<u8>,
    /// The last byte was a `\r`: whatever comes next, unless it is a `\n`, overwrites.
    returned: bool,
}

impl LineCutter {
    /// Takes bytes in; gives the lines that have become whole, without blank ones.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' => lines.extend(self.finish()),
                b'\r' => self.returned = true,
                _ => {
                    if std::mem::take(&mut self.returned) {
                        self.raw.clear();
                    }
                    if self.raw.len() < MAX_RAW {
                        self.raw.push(byte);
                    }
                }
            }
        }
        lines
    }

    /// Ends the line that is open, if it says anything: the output has ended without a line feed.
    pub fn finish(&mut self) -> Option<String> {
        self.returned = false;
        let line = plain(&String::from_utf8_lossy(&std::mem::take(&mut self.raw)));
        (!line.trim().is_empty()).then_some(line)
    }
}

/// Text without escape sequences, control characters and marks that turn the direction of writing; at most [`MAX_LINE`] bytes.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let c = match c {
            '\u{1b}' => {
                skip_escape(&mut chars);
                continue;
            }
            '\u{9b}' => {
                skip_until(&mut chars, |c| ('@'..='~').contains(&c));
                continue;
            }
            '\t' => ' ',
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => continue,
            c if c.is_control() => continue,
            c => c,
        };
        if out.len() + c.len_utf8() > MAX_LINE - '…'.len_utf8() {
            out.push('…');
            break;
        }
        out.push(c);
    }
    out.truncate(out.trim_end().len());
    out
}

/// What follows an ESC: `[ … final`, `] … BEL or ESC \`, `P`, `^`, `_` likewise, or one character.
fn skip_escape(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    match chars.next() {
        Some('[') => skip_until(chars, |c| ('@'..='~').contains(&c)),
        Some(']' | 'P' | '^' | '_' | 'X') => {
            while let Some(c) = chars.next() {
                if c == '\u{7}' || c == '\u{9c}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                    return;
                }
            }
        }
        Some(' '..='/') => skip_until(chars, |c| ('0'..='~').contains(&c)),
        _ => {}
    }
}

fn skip_until(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, last: impl Fn(char) -> bool) {
    for c in chars.by_ref() {
        if last(c) {
            return;
        }
    }
}

/// Lets through so many lines a second, more at first, and counts the others.
#[derive(Debug, Clone)]
pub struct RateLimit {
    tokens: f64,
    last_ms: u64,
    hidden: u64,
}

impl RateLimit {
    /// Lines a second in the long run.
    pub const PER_SECOND: f64 = 20.0;
    /// Lines at once.
    pub const BURST: f64 = 1000.0;

    /// A limit with its whole burst.
    pub fn new(now_ms: u64) -> Self {
        RateLimit { tokens: Self::BURST, last_ms: now_ms, hidden: 0 }
    }

    /// Whether a line may be told now. With it comes the sentence about those before it that were not.
    pub fn admit(&mut self, now_ms: u64) -> Admission {
        let elapsed = now_ms.saturating_sub(self.last_ms);
        self.last_ms = now_ms;
        self.tokens = (self.tokens + elapsed as f64 / 1000.0 * Self::PER_SECOND).min(Self::BURST);
        if self.tokens < 1.0 {
            self.hidden += 1;
            return Admission::Hidden;
        }
        self.tokens -= 1.0;
        match self.take_hidden() {
            Some(sentence) => Admission::ShownAfter(sentence),
            None => Admission::Shown,
        }
    }

    /// The sentence about the lines that were not told since the last one that was.
    pub fn take_hidden(&mut self) -> Option<String> {
        let hidden = std::mem::take(&mut self.hidden);
        (hidden > 0).then(|| format!("… {hidden} lines not shown, see trainer.log on the worker"))
    }
}

/// What becomes of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is told.
    Shown,
    /// This sentence is told, then the line.
    ShownAfter(String),
    /// It is counted only.
    Hidden,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(text: &str) -> Vec<String> {
        let mut cutter = LineCutter::default();
        let mut lines = cutter.push(text.as_bytes());
        lines.extend(cutter.finish());
        lines
    }

    #[test]
    fn progress_bars_collapse_to_their_last_state() {
        assert_eq!(cut("Epoch 0: 10%\rEpoch 0: 50%\rEpoch 0: 100%\nnext\r\n\n  \nopen"), ["Epoch 0: 100%", "next", "open"]);
        assert_eq!(cut("bar 1\rbar 2\r"), ["bar 2"]);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(
            cut("\u{1b}[31mred\u{1b}[0m \u{1b}]0;title\u{7}\u{1b}]8;;http://x\u{1b}\\link\u{1b}(B\u{9b}2J.\u{8}\u{202e}x"),
            ["red link.x"]
        );
        assert_eq!(cut("END_OF_FILE\nTRAIN_JOB_END::x"), ["END_OF_FILE", "TRAIN_JOB_END::x"]);
        assert_eq!(cut("\u{1b}"), [] as [&str; 0]);
    }

    #[test]
    fn long_lines_are_cut() {
        let lines = cut(&format!("{}\nshort\n", "é".repeat(100_000)));
        assert!(lines[0].len() <= MAX_LINE && lines[0].ends_with('…'), "{}", lines[0].len());
        assert_eq!(lines[1], "short");
    }

    #[test]
    fn a_flood_is_counted_and_a_pause_forgives() {
        let mut limit = RateLimit::new(0);
        let shown = (0..5000).filter(|_| limit.admit(0) != Admission::Hidden).count();
        assert_eq!(shown, 1000);
        let Admission::ShownAfter(sentence) = limit.admit(1000) else { panic!() };
        assert!(sentence.contains("4000 lines"), "{sentence}");
        assert_eq!(limit.admit(1000), Admission::Shown);
        assert_eq!(limit.take_hidden(), None);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_the_bytes_arrive(text in "(\\PC|[\r\n\u{1b}\\[m]){0,60}", at in 0usize..100) {
            let bytes = text.as_bytes();
            let at = at.min(bytes.len());
            let mut cutter = LineCutter::default();
            let mut lines = cutter.push(&bytes[..at]);
            lines.extend(cutter.push(&bytes[at..]));
            lines.extend(cutter.finish());
            prop_assert_eq!(&lines, &cut(&text));
            prop_assert!(lines.iter().all(|line| !line.chars().any(char::is_control) && line.len() <= MAX_LINE));
        }
    }
}
