//! Times as people write them: `90` (seconds), `90s`, `30m`, `2h`, `1d`.

use core::{str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer};

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit: u64 = match text[end..].trim() {
            "" | "s" => 1,
            "m" | "min" => 60,
            "h" => 3600,
            "d" => 24 * 3600,
            _ => return Err(wrong(text)),
        };
        let seconds = text[..end].parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds <= MAX);
        seconds.map(|seconds| Span(Duration::from_secs(seconds))).ok_or_else(|| wrong(text))
    }
}

/// Ten years: more is a mistake, and less than what a clock can count.
const MAX: u64 = 10 * 366 * 24 * 3600;

fn wrong(text: &str) -> String {
    format!("'{text}' is no length of time: write seconds, or such as 90s, 30m, 2h, 1d")
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Seconds(u64),
            Text(String),
        }
        let text = match Either::deserialize(deserializer)? {
            Either::Seconds(seconds) => seconds.to_string(),
            Either::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit_and_nothing_else_is() {
        for (text, seconds) in [("90", 90), ("0", 0), ("90s", 90), (" 30 min ", 1800), ("30m", 1800), ("2h", 7200), ("1d", 86400)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_secs(), seconds, "{text}");
        }
        for text in ["", "s", "1.5h", "-1", "5 weeks", "1h30m", "99999999999999999999", "99999d"] {
            assert!(text.parse::<Span>().unwrap_err().contains("30m"), "{text}");
        }
        #[derive(Deserialize)]
        struct File {
            a: Span,
            b: Span,
        }
        let file: File = serde_json::from_str(r#"{"a": 60, "b": "1m"}"#).unwrap();
        assert_eq!(file.a, file.b);
    }
}
