//! The table itself: whether it is there and as it should be, and making it so.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::{
    Client, Error,
    types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription, TableStatus,
        TimeToLiveDescription, TimeToLiveSpecification, TimeToLiveStatus,
    },
};
use shared::domain::error::{Code, Failure};
use tokio::time::{Instant, sleep};

use super::item::{KEY, TTL};
use crate::runtime::aws::causes;

/// How long a new table may take.
const CREATION: Duration = Duration::from_secs(120);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(250);

/// What [`make_table`] did; false: it was so before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The table was made.
    pub table: bool,
    /// Its TTL was switched on.
    pub ttl: bool,
}

/// Makes the table, waits until it is there, and switches its TTL on; what is there already stays as it is.
///
/// # Errors
/// [`Code::InvalidRequest`] when there is another program's table with this name or we may not do it, [`Code::Unavailable`].
pub async fn make_table(config: &SdkConfig, table: &str) -> Result<Made, Failure> {
    let client = Client::new(config);
    let made = describe(&client, table).await?.is_none();
    if made {
        create(&client, table).await?;
    }
    let described = until_active(&client, table).await?;
    check_key(table, &described)?;
    let ttl = match ttl(&client, table).await? {
        Ttl::Ours => false,
        Ttl::Off => {
            switch_ttl_on(&client, table).await?;
            true
        }
        Ttl::Other(attribute) => {
            return Err(wrong(format!(
                "the TTL of the DynamoDB table {table} goes by {attribute} and not by {TTL}; switch it off (aws dynamodb \
                 update-time-to-live), wait an hour as AWS demands, and run this again; or choose another table"
            )));
        }
    };
    Ok(Made { table: made, ttl })
}

/// Refuses a table that is missing or another program's; warns when nothing will ever be deleted from it.
pub(super) async fn check(client: &Client, table: &str) -> Result<(), Failure> {
    let Some(described) = describe(client, table).await? else {
        return Err(wrong(format!(
            "there is no DynamoDB table {table} in this region and account; make it: webrtc-server init --dynamodb-table {table}"
        )));
    };
    check_key(table, &described)?;
    match ttl(client, table).await {
        Ok(Ttl::Ours) => {}
        Ok(Ttl::Off | Ttl::Other(_)) => {
            tracing::warn!(table, "the table's TTL does not go by {TTL}: rooms stay there for ever, unused; run webrtc-server init");
        }
        Err(failure) => tracing::warn!(table, %failure, "it is not known whether the table's TTL is on"),
    }
    Ok(())
}

async fn describe(client: &Client, table: &str) -> Result<Option<TableDescription>, Failure> {
    match client.describe_table().table_name(table).send().await.map_err(Error::from) {
        Ok(output) => Ok(output.table),
        Err(Error::ResourceNotFoundException(_)) => Ok(None),
        Err(error) => Err(refused("dynamodb:DescribeTable", table, &error)),
    }
}

/// Another `init` at the same time may be faster: that is as good.
async fn create(client: &Client, table: &str) -> Result<(), Failure> {
    let built = "every member is given";
    let key = AttributeDefinition::builder().attribute_name(KEY).attribute_type(ScalarAttributeType::S).build().expect(built);
    let schema = KeySchemaElement::builder().attribute_name(KEY).key_type(KeyType::Hash).build().expect(built);
    let create = client.create_table().table_name(table).attribute_definitions(key).key_schema(schema);
    match create.billing_mode(BillingMode::PayPerRequest).send().await.map_err(Error::from) {
        Ok(_) | Err(Error::ResourceInUseException(_)) => Ok(()),
        Err(error) => Err(refused("dynamodb:CreateTable", table, &error)),
    }
}

async fn until_active(client: &Client, table: &str) -> Result<TableDescription, Failure> {
    let deadline = Instant::now() + CREATION;
    loop {
        match describe(client, table).await? {
            Some(described) if matches!(described.table_status(), Some(TableStatus::Active | TableStatus::Updating)) => {
                return Ok(described);
            }
            _ if Instant::now() >= deadline => {
                return Err(Failure::new(
                    Code::Unavailable,
                    format!("the DynamoDB table {table} is still not active after {} s; run this again later", CREATION.as_secs()),
                ));
            }
            _ => sleep(LOOK).await,
        }
    }
}

fn check_key(table: &str, described: &TableDescription) -> Result<(), Failure> {
    let is_ours = matches!(described.key_schema(), [key] if key.attribute_name() == KEY);
    let is_text = described
        .attribute_definitions()
        .iter()
        .any(|attribute| attribute.attribute_name() == KEY && *attribute.attribute_type() == ScalarAttributeType::S);
    if is_ours && is_text {
        return Ok(());
    }
    Err(wrong(format!(
        "the DynamoDB table {table} is another program's: its key is not {KEY} (a string) alone; choose another --dynamodb-table"
    )))
}

enum Ttl {
    Ours,
    Off,
    Other(String),
}

async fn ttl(client: &Client, table: &str) -> Result<Ttl, Failure> {
    let described = client.describe_time_to_live().table_name(table).send().await.map_err(Error::from);
    let described = described.map_err(|error| refused("dynamodb:DescribeTimeToLive", table, &error))?;
    Ok(match described.time_to_live_description() {
        Some(ttl) if is_on(ttl) && ttl.attribute_name() == Some(TTL) => Ttl::Ours,
        Some(ttl) if is_on(ttl) => Ttl::Other(ttl.attribute_name().unwrap_or("another attribute").to_owned()),
        _ => Ttl::Off,
    })
}

fn is_on(ttl: &TimeToLiveDescription) -> bool {
    matches!(ttl.time_to_live_status(), Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling))
}

async fn switch_ttl_on(client: &Client, table: &str) -> Result<(), Failure> {
    let specification = TimeToLiveSpecification::builder().enabled(true).attribute_name(TTL).build().expect("every member is given");
    let updated = client.update_time_to_live().table_name(table).time_to_live_specification(specification).send().await;
    updated.map(drop).map_err(|error| refused("dynamodb:UpdateTimeToLive", table, &Error::from(error)))
}

/// What DynamoDB said to an action, and what to do about it.
fn refused(action: &str, table: &str, error: &Error) -> Failure {
    let why = causes(error);
    let denied = why.contains("AccessDenied");
    let advice = if denied {
        format!("; the role or user needs {action} (webrtc-server init --print shows the least policy)")
    } else {
        String::new()
    };
    let code = if denied { Code::InvalidRequest } else { Code::Unavailable };
    Failure::new(code, format!("DynamoDB did not do {action} on the table {table}: {why}{advice}"))
}

fn wrong(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}
