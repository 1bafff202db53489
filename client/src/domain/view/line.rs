//! What may be printed: text that is escaped the moment it becomes a line.

use crate::domain::text;

/// How a line is meant; the printer gives it a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// The course of things.
    Plain,
    /// Something ended well.
    Good,
    /// Something to look at.
    Warning,
    /// Something is broken.
    Bad,
    /// Detail.
    Quiet,
}

/// One line that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How it is meant.
    pub tone: Tone,
    text: String,
}

impl Line {
    /// A line of this text, escaped.
    pub fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Line { tone, text: text::line(text.as_ref()) }
    }

    /// The course of things.
    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::new(Tone::Plain, text)
    }

    /// Something ended well.
    pub fn good(text: impl AsRef<str>) -> Self {
        Self::new(Tone::Good, text)
    }

    /// Something to look at.
    pub fn warning(text: impl AsRef<str>) -> Self {
        Self::new(Tone::Warning, text)
    }

    /// The text: it holds nothing that a terminal would act on.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// What is happening now: replaced by the next one, not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    text: String,
    /// How much is done, of how much, where that is known.
    pub progress: Option<(u64, u64)>,
}

impl Live {
    /// Something under way of which nobody knows the end.
    pub fn open(text: impl AsRef<str>) -> Self {
        Live { text: text::line(text.as_ref()), progress: None }
    }

    /// Something of which `done` of `total` is done.
    pub fn measured(text: impl AsRef<str>, done: u64, total: u64) -> Self {
        Live { text: text::line(text.as_ref()), progress: Some((done, total)) }
    }

    /// The text: it holds nothing that a terminal would act on.
    pub fn text(&self) -> &str {
        &self.text
    }
}
