//! Rooms in one DynamoDB table, for several servers, or for one that keeps nothing. The only folder that names `aws_sdk_dynamodb`.
//!
//! * The rules stay [`Room::apply`]'s: read consistently, apply, and write on the condition that nobody has written since
//!   ([`item`] has the format). A lost race brings what the winner wrote, so that the next try reads nothing.
//! * AWS may execute a call and its answer be lost; the SDK then calls again. Each write carries a random `write_id`: a condition that fails
//!   because of our own write has succeeded. Changes are such that applying one twice is applying it once.
//! * Within this process changes of one room wait for each other ([`turns`]), so that a hundred peers who come back at once cost a
//!   hundred writes and not their square.
//! * What was read last is the first guess of the next change: a peer registers with two calls, one read and one write.
//! * Whatever has expired by our rules is gone by them, though AWS deletes it days later: [`Store::sweep`] has nothing to do here.
//! * The table takes part in no transactions, so that nobody is refused for one (`TransactionConflictException`, which the SDK does
//!   not repeat).

mod item;
mod table;
mod turns;

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::{Client, Error, types::ReturnValuesOnConditionCheckFailure::AllOld};
use shared::domain::{
    error::{Code, Failure},
    id::RoomId,
};
use tokio::time::{Instant, timeout_at};

pub use self::table::{Made, make_table};
use self::{
    item::{ADMITS_UNTIL, Item, KEY, Stored, WRITE_ID},
    turns::{Slot, Turns},
};
use super::{Answer, Store, StoreError};
use crate::{
    domain::grant::{Change, Identity, Refusal, Room},
    runtime::{aws::causes, guard::Guard, proof::random_name},
};

/// Calls to DynamoDB at once; each takes a connection.
const AT_ONCE: usize = 256;
/// How long one change waits for others of its room, in this process and others.
const CONTENTION: Duration = Duration::from_secs(4);
/// The longest pauses after the first lost race and after many.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

/// A DynamoDB table.
pub struct DynamoStore {
    client: Client,
    table: String,
    guard: Guard,
    turns: Turns,
}

impl DynamoStore {
    /// Makes sure that the table is there and as `webrtc-server init` makes it.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`] when it is not, [`Code::Unavailable`] when DynamoDB does not say.
    pub async fn open(config: &SdkConfig, table: &str) -> Result<Self, Failure> {
        let client = Client::new(config);
        table::check(&client, table).await?;
        Ok(DynamoStore { client, table: table.to_owned(), guard: Guard::new("DynamoDB", AT_ONCE), turns: Turns::default() })
    }

    /// Sends one request, if the guard lets it; the inner error is a condition that failed, and the item that made it fail.
    async fn call<T, E>(&self, sending: impl Future<Output = Result<T, E>>) -> Result<Result<T, Option<Item>>, StoreError>
    where
        Error: From<E>,
    {
        let work = async { sending.await.map_err(|error| Box::new(Error::from(error))) };
        let answer = self.guard.run(work, |error| !matches!(**error, Error::ConditionalCheckFailedException(_))).await;
        match answer.map_err(StoreError::Away)? {
            Ok(output) => Ok(Ok(output)),
            Err(error) => match *error {
                Error::ConditionalCheckFailedException(failed) => Ok(Err(failed.item)),
                error => Err(StoreError::Broken(format!("DynamoDB: {}", causes(&error)))),
            },
        }
    }

    /// What is stored now, expired or not.
    async fn read(&self, id: &RoomId) -> Result<Option<Stored>, StoreError> {
        let get = self.client.get_item().table_name(&self.table).key(KEY, item::text(id.as_str())).consistent_read(true);
        match self.call(Box::pin(get.send())).await? {
            Ok(output) => output.item.as_ref().map(Stored::from_item).transpose(),
            Err(_) => Err(StoreError::Broken("DynamoDB: a condition failed that was not asked for".to_owned())),
        }
    }

    async fn create_room(&self, now: u64, room: Room) -> Result<(), StoreError> {
        let id = room.id.clone();
        let stored = Stored::first(room, random_name().map_err(StoreError::Away)?);
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(stored.to_item()?))
            .condition_expression(format!("attribute_not_exists({KEY}) OR {ADMITS_UNTIL} <= :now"))
            .expression_attribute_values(":now", item::number(now))
            .return_values_on_condition_check_failure(AllOld);
        match self.call(Box::pin(put.send())).await? {
            // Only the answer to this very call was lost.
            Err(Some(there)) if item::write_id(&there) == Some(&stored.write_id) => {}
            Err(_) => return Err(StoreError::Exists),
            Ok(_) => {}
        }
        self.turns.slot(&id).set(Some(stored));
        Ok(())
    }

    async fn get_room(&self, now: u64, id: &RoomId) -> Result<Option<Room>, StoreError> {
        let Some(stored) = self.read(id).await? else { return Ok(None) };
        let room = stored.room.clone();
        self.turns.slot(id).offer(stored);
        Ok(Some(room).filter(|room| !room.is_expired(now)))
    }

    async fn change_room(&self, now: u64, id: &RoomId, caller: &Identity, change: &Change) -> Result<Room, StoreError> {
        let slot = self.turns.slot(id);
        let mut race = Race::new();
        let _turn = race.wait(slot.turn.lock()).await?;
        let releases = matches!(change, Change::Release { .. });
        // A release is judged by what is there: applied twice it is refused, so that it matters whether the peer was there before.
        let (mut seen, mut certain) = match slot.guess().filter(|_| !releases) {
            Some(guess) => (guess, false),
            None => (self.read(id).await?.ok_or(Refusal::NoRoom)?, true),
        };
        let mut was_tried = false;
        loop {
            let mut room = seen.room.clone();
            match room.apply(now, caller, change) {
                Ok(()) => {}
                Err(_) if !certain => {
                    (seen, certain) = (self.read(id).await?.ok_or(Refusal::NoRoom)?, true);
                    continue;
                }
                // It was there when this call began: whoever released it, the answer to our own write may have been lost.
                Err(Refusal::NoPeer) if releases && was_tried => return Ok(room),
                Err(refusal) => {
                    slot.set(Some(seen));
                    return Err(refusal.into());
                }
            }
            was_tried = true;
            let next = seen.next(room, random_name().map_err(StoreError::Away)?);
            match self.replace(&slot, &seen, next).await? {
                Ok(room) => return Ok(room),
                Err(other) => (seen, certain) = (other.ok_or(Refusal::NoRoom)?, true),
            }
            race.lost().await?;
        }
    }

    /// Writes `next` if nobody has written since `seen`; the inner error is what is there instead.
    async fn replace(&self, slot: &Slot, seen: &Stored, next: Stored) -> Result<Result<Room, Option<Stored>>, StoreError> {
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(next.to_item()?))
            .condition_expression(format!("{WRITE_ID} = :seen"))
            .expression_attribute_values(":seen", item::text(&seen.write_id))
            .return_values_on_condition_check_failure(AllOld);
        // Whether it was written is not known until the answer is there.
        slot.set(None);
        let there = match self.call(Box::pin(put.send())).await? {
            Ok(_) => None,
            Err(there) if there.as_ref().and_then(item::write_id) == Some(&next.write_id) => None,
            Err(there) => Some(there),
        };
        Ok(match there {
            None => {
                let room = next.room.clone();
                slot.set(Some(next));
                Ok(room)
            }
            Some(there) => Err(there.as_ref().map(Stored::from_item).transpose()?),
        })
    }

    async fn delete_room(&self, now: u64, id: &RoomId, caller: &Identity) -> Result<Room, StoreError> {
        let slot = self.turns.slot(id);
        let mut race = Race::new();
        let _turn = race.wait(slot.turn.lock()).await?;
        let mut seen = self.read(id).await?.ok_or(Refusal::NoRoom)?;
        loop {
            seen.room.check_owner(now, caller)?;
            slot.set(None);
            let delete = self
                .client
                .delete_item()
                .table_name(&self.table)
                .key(KEY, item::text(id.as_str()))
                .condition_expression(format!("{WRITE_ID} = :seen"))
                .expression_attribute_values(":seen", item::text(&seen.write_id))
                .return_values_on_condition_check_failure(AllOld);
            match self.call(Box::pin(delete.send())).await? {
                // It was there a moment ago and its owner's to delete: gone is what was asked for, and the answer may have been lost.
                Ok(_) | Err(None) => return Ok(seen.room),
                Err(Some(there)) => seen = Stored::from_item(&there)?,
            }
            race.lost().await?;
        }
    }
}

/// How long a change has been waiting for others.
struct Race {
    deadline: Instant,
    pause: Duration,
}

impl Race {
    fn new() -> Self {
        Race { deadline: Instant::now() + CONTENTION, pause: PAUSE }
    }

    async fn wait<T>(&self, turn: impl Future<Output = T>) -> Result<T, StoreError> {
        timeout_at(self.deadline, turn).await.map_err(|_| crowded())
    }

    /// Another server was faster: waits for a random while, longer each time.
    async fn lost(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.deadline {
            return Err(crowded());
        }
        let mut random = [0; 2];
        // Without randomness the longest pause is as good.
        let share = getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX));
        tokio::time::sleep(self.pause.mul_f64(share)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

fn crowded() -> StoreError {
    StoreError::Away(Failure::new(Code::Unavailable, "too many want to change this room at once; try again in a few seconds"))
}

impl Store for DynamoStore {
    fn create(&self, now: u64, room: Room) -> Answer<'_, ()> {
        Box::pin(self.create_room(now, room))
    }

    fn get(&self, now: u64, id: &RoomId) -> Answer<'_, Option<Room>> {
        let id = id.clone();
        Box::pin(async move { self.get_room(now, &id).await })
    }

    fn change(&self, now: u64, id: &RoomId, caller: &Identity, change: Change) -> Answer<'_, Room> {
        let (id, caller) = (id.clone(), caller.clone());
        Box::pin(async move { self.change_room(now, &id, &caller, &change).await })
    }

    fn delete(&self, now: u64, id: &RoomId, caller: &Identity) -> Answer<'_, Room> {
        let (id, caller) = (id.clone(), caller.clone());
        Box::pin(async move { self.delete_room(now, &id, &caller).await })
    }

    /// AWS removes them, by the table's TTL.
    fn sweep(&self, _: u64) -> Answer<'_, Vec<Room>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }
}
