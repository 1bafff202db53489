//! Relative paths that cannot leave their directory, whatever the peer that sent them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{Code, Failure};

/// A path of one or more plain names, joined by `/`.
///
/// Refused: absolute paths, `.` and `..`, empty names, back-slashes, control characters, names that Windows reserves or
/// cannot hold (`CON`, `a:b`, a trailing dot or space), names over 255 bytes, paths over 1024 bytes or 32 levels.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(String);

impl RelPath {
    /// The path as text, with `/` between names.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its names, outermost first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The last name.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().expect("split yields at least one item")
    }

    /// Everything before the last name; `None` at the top.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }
}

impl FromStr for RelPath {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let refused = |why: &str| Err(Failure::new(Code::InvalidRequest, format!("the path {text:?} is not acceptable: {why}")));
        if text.is_empty() || text.len() > 1024 {
            return refused("it must have 1 to 1024 bytes");
        }
        let mut levels = 0;
        for name in text.split('/') {
            levels += 1;
            if let Some(why) = name_problem(name) {
                return refused(why);
            }
        }
        if levels > 32 {
            return refused("it is more than 32 levels deep");
        }
        Ok(RelPath(text.to_owned()))
    }
}

fn name_problem(name: &str) -> Option<&'static str> {
    const RESERVED: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];
    if name.is_empty() {
        return Some("it is absolute or has an empty name in it");
    }
    if name == "." || name == ".." {
        return Some("it leaves its directory");
    }
    if name.len() > 255 {
        return Some("a name in it is longer than 255 bytes");
    }
    if name.chars().any(|c| {
        c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    }) {
        return Some("it has a character that not every system can keep in a name");
    }
    if name.ends_with('.') || name.ends_with(' ') || name.starts_with(' ') {
        return Some("a name in it begins or ends with a space, or ends with a dot");
    }
    let stem = name.split('.').next().unwrap_or(name).to_ascii_uppercase();
    let numbered = stem.len() == 4 && (stem.starts_with("COM") || stem.starts_with("LPT")) && stem.as_bytes()[3].is_ascii_digit();
    if RESERVED.contains(&stem.as_str()) || numbered {
        return Some("Windows reserves a name in it");
    }
    None
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_paths_pass() {
        for good in ["a", "centroid.yaml", "models/261120_090000.centroid.n=1/best.ckpt", "données/été.slp", ".hidden", "a b.slp"] {
            assert_eq!(good.parse::<RelPath>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn what_could_leave_or_confuse_is_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a/",
            "a\\b",
            "C:x",
            "a\0b",
            "a\nb",
            "CON",
            "con.txt",
            "Lpt1.slp",
            "x.",
            "x ",
            " x",
            "a\u{202e}b",
            &"d/".repeat(40),
            &"n".repeat(256),
        ] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_path_stays_below_its_root(text in "[a./\\\\~:\\PC]{0,40}") {
            if let Ok(path) = text.parse::<RelPath>() {
                let joined = std::path::Path::new("/root").join(path.as_str());
                prop_assert!(joined.starts_with("/root") && joined.components().all(|c| c != std::path::Component::ParentDir));
            }
        }
    }
}
