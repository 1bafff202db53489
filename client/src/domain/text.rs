//! Text that may be shown: what a worker, a file name or a person's typing could hide in it made visible, and invites taken out.
//!
//! Everything printed passes through here, so a worker cannot move the cursor, rename the window or reverse the reading order
//! of somebody's terminal (CVE-2021-42574, "Trojan Source", for the last).

/// The longest text shown, in characters.
const MAX_CHARS: usize = 4096;
/// What an invite begins with, ours and the ancestor's.
const INVITES: [&str; 2] = ["webrtc-connect:", "sleap-session:"];
/// The shortest continuation that can be an invite's body and not a word of a sentence.
const MIN_INVITE_BODY: usize = 16;

/// One line: control characters (newlines, too), bidirectional and invisible ones as `\u{…}`, invites as `[redacted]`,
/// at most 4096 characters.
pub fn line(text: &str) -> String {
    clean(text, false)
}

/// Several lines: as [`line()`], newlines kept.
pub fn block(text: &str) -> String {
    clean(text, true)
}

/// At most so many characters, the last one of a longer text `…`.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn clean(text: &str, newlines: bool) -> String {
    let mut shown = String::with_capacity(text.len().min(MAX_CHARS));
    for (index, c) in redact(text).chars().enumerate() {
        if index == MAX_CHARS {
            shown.push('…');
            break;
        }
        match c {
            '\n' if newlines => shown.push(c),
            c if is_hidden(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Whether a terminal would act on the character or show nothing for it.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text without the bodies of invites in it.
fn redact(text: &str) -> String {
    let mut rest = text;
    let mut shown = String::with_capacity(text.len());
    while let Some((at, prefix)) = INVITES.iter().filter_map(|prefix| Some((rest.find(prefix)?, *prefix))).min() {
        let (before, after) = rest.split_at(at + prefix.len());
        let body = after.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+' | b'/' | b'=')).count();
        shown.push_str(before);
        if body >= MIN_INVITE_BODY {
            shown.push_str("[redacted]");
        } else {
            shown.push_str(&after[..body]);
        }
        rest = &after[body..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(line("a\x1b[31mred\x07"), "a\\u{1b}[31mred\\u{7}");
        assert_eq!(line("one\r\ntwo\t3"), "one\\r\\ntwo\\t3");
        assert_eq!(line("fly\u{202e}gpj.slp"), "fly\\u{202e}gpj.slp");
        assert_eq!(line("\u{9b}2J\u{200b}x"), "\\u{9b}2J\\u{200b}x");
        assert_eq!(block("one\ntwo\x1b"), "one\ntwo\\u{1b}");
        assert_eq!(line("données été 日本 µ"), "données été 日本 µ");
    }

    #[test]
    fn an_invite_is_never_shown() {
        let body = "eyJyIjoiMDEyMzQ1Njc4OSJ9";
        assert_eq!(line(&format!("no file 'webrtc-connect:{body}' here")), "no file 'webrtc-connect:[redacted]' here");
        assert_eq!(line(&format!("sleap-session:{body},webrtc-connect:{body}")), "sleap-session:[redacted],webrtc-connect:[redacted]");
        assert_eq!(line("it must begin with 'webrtc-connect:'"), "it must begin with 'webrtc-connect:'");
    }

    #[test]
    fn endless_text_ends() {
        assert_eq!(line(&"x".repeat(10_000)).chars().count(), MAX_CHARS + 1);
    }

    proptest! {
        #[test]
        fn no_text_leaves_a_hidden_character(text in any::<String>()) {
            let shown = line(&text);
            prop_assert!(!shown.chars().any(is_hidden), "{shown:?}");
            prop_assert_eq!(line(&shown), shown);
        }
    }
}
