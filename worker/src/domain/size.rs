//! Sizes as people write them: `500000000`, `500 MB`, `1.5TB`, `64 GiB`.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        let unit: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1000,
            "m" | "mb" => 1000u64.pow(2),
            "g" | "gb" => 1000u64.pow(3),
            "t" | "tb" => 1000u64.pow(4),
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(wrong(text)),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Size).ok_or_else(|| wrong(text));
        }
        let value = number.parse::<f64>().map_err(|_| wrong(text))? * unit as f64;
        if value.is_finite() && value < u64::MAX as f64 { Ok(Size(value as u64)) } else { Err(wrong(text)) }
    }
}

fn wrong(text: &str) -> String {
    format!("'{text}' is no size: write bytes, or such as 500MB, 1.5TB, 64GiB")
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Bytes(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Bytes(bytes) => Ok(Size(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_a_number_with_its_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("123", 123),
            ("7 kB", 7000),
            ("500MB", 500_000_000),
            ("1.5 TB", 1_500_000_000_000),
            ("64GiB", 64 << 30),
            (" 2g ", 2_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GB", "-1", "1 GBit", "1.2.3MB", "99999999TB", "1e3", "NaN"] {
            assert!(text.parse::<Size>().unwrap_err().contains("no size"), "{text}");
        }
    }
}
