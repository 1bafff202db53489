//! How a room looks in the table.
//!
//! | attribute | type | |
//! |---|---|---|
//! | `room_id` | S | the key |
//! | `format` | N | 1; a server that does not know an item's format refuses to touch it |
//! | `room` | S | the whole room as JSON, as in the embedded store |
//! | `admits_until` | N | Unix seconds; from then on the room has expired and its id is free |
//! | `expires_at` | N | Unix seconds; the table's TTL attribute. [`GRACE`] after `admits_until`, since until then the owner may renew |
//! | `write_id` | S | random, of the write that made the item as it is: what the next write's condition names |
//! | `revision` | N | counts the writes, so that of two reads the newer is known |

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;

use super::StoreError;
use crate::domain::grant::{GRACE, Room};

pub(super) const KEY: &str = "room_id";
pub(super) const TTL: &str = "expires_at";
pub(super) const ADMITS_UNTIL: &str = "admits_until";
pub(super) const WRITE_ID: &str = "write_id";
const FORMAT: &str = "format";
const ROOM: &str = "room";
const REVISION: &str = "revision";
/// The format that this server writes, and the only one that it reads.
const VERSION: u64 = 1;

/// As the SDK has it.
pub(super) type Item = HashMap<String, AttributeValue>;

/// A room, and which write made it so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) room: Room,
    pub(super) write_id: String,
    pub(super) revision: u64,
}

impl Stored {
    /// A new room.
    pub(super) fn first(room: Room, write_id: String) -> Self {
        Stored { room, write_id, revision: 1 }
    }

    /// What follows on this.
    pub(super) fn next(&self, room: Room, write_id: String) -> Self {
        Stored { room, write_id, revision: self.revision.saturating_add(1) }
    }

    pub(super) fn to_item(&self) -> Result<Item, StoreError> {
        let room = serde_json::to_string(&self.room).map_err(|error| StoreError::Broken(format!("a room cannot be written: {error}")))?;
        let attributes = [
            (KEY, text(self.room.id.as_str())),
            (FORMAT, number(VERSION)),
            (ROOM, text(&room)),
            (ADMITS_UNTIL, number(self.room.expires_at)),
            (TTL, number(self.room.expires_at.saturating_add(GRACE))),
            (WRITE_ID, text(&self.write_id)),
            (REVISION, number(self.revision)),
        ];
        Ok(attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    pub(super) fn from_item(item: &Item) -> Result<Self, StoreError> {
        let id = item.get(KEY).and_then(|value| value.as_s().ok()).map_or("?", String::as_str);
        let broken = |what: String| StoreError::Broken(format!("the item of room {id} {what}"));
        let count = |name: &str| item.get(name).and_then(|value| value.as_n().ok()).and_then(|number| number.parse::<u64>().ok());
        match count(FORMAT) {
            Some(VERSION) => {}
            Some(newer) => return Err(broken(format!("has format {newer}, and this server knows {VERSION}; update this server"))),
            None => return Err(broken("has no format; is this another program's table?".to_owned())),
        }
        let json = item.get(ROOM).and_then(|value| value.as_s().ok()).ok_or_else(|| broken(format!("has no {ROOM}")))?;
        let room = serde_json::from_str(json).map_err(|error| broken(format!("cannot be read: {error}")))?;
        let write_id = write_id(item).ok_or_else(|| broken(format!("has no {WRITE_ID}")))?;
        let revision = count(REVISION).ok_or_else(|| broken(format!("has no {REVISION}")))?;
        Ok(Stored { room, write_id: write_id.clone(), revision })
    }
}

/// Who wrote an item; also of formats that are not known here.
pub(super) fn write_id(item: &Item) -> Option<&String> {
    item.get(WRITE_ID).and_then(|value| value.as_s().ok())
}

pub(super) fn text(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

pub(super) fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::{Change, Identity, TokenHash};

    fn stored() -> Stored {
        let owner = Identity { subject: "owner".into(), key: None };
        let mut room = Room::new("r".parse().unwrap(), owner.clone(), TokenHash::of("t"), 1000, 100);
        room.apply(1000, &owner, &Change::Claim { peer: "w".parse().unwrap() }).unwrap();
        Stored::first(room, "write".to_owned())
    }

    #[test]
    fn an_item_is_as_documented_and_reads_as_it_was_written() {
        let item = stored().to_item().unwrap();
        for (name, value) in [("format", 1), ("admits_until", 1100), ("expires_at", 1100 + GRACE), ("revision", 1)] {
            assert_eq!(item[name], number(value), "{name}");
        }
        assert_eq!((&item["room_id"], &item["write_id"]), (&text("r"), &text("write")));
        assert_eq!(item.len(), 7);
        assert_eq!(Stored::from_item(&item).unwrap(), stored());
    }

    #[test]
    fn what_is_not_ours_or_newer_is_refused_by_name() {
        for (name, value, says) in [
            ("format", Some(number(2)), "room r has format 2, and this server knows 1; update this server"),
            ("format", None, "room r has no format"),
            ("room", Some(text("{")), "room r cannot be read"),
            ("room", Some(number(1)), "room r has no room"),
            ("write_id", None, "room r has no write_id"),
            ("revision", Some(text("1")), "room r has no revision"),
        ] {
            let mut item = stored().to_item().unwrap();
            match value {
                Some(value) => item.insert(name.to_owned(), value),
                None => item.remove(name),
            };
            let error = Stored::from_item(&item).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
