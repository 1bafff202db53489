//! The tests' own tools do what they say.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    emulators::{Dynoxide, Moto},
    proxy::{Fault, PROVISIONED, Proxy, THROTTLED, TOO_MANY},
};

/// A call as an SDK makes it, unsigned: emulators do not mind.
pub(crate) async fn call(endpoint: &str, target: &str, body: Value) -> reqwest::Result<(u16, Value)> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    let request = http.post(endpoint).header("X-Amz-Target", target).header("Content-Type", "application/x-amz-json-1.0");
    // moto finds the service in the signature; nobody checks it.
    let signature = "AWS4-HMAC-SHA256 Credential=test/20260101/us-west-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0";
    let response =
        request.header("X-Amz-Date", "20260101T000000Z").header("Authorization", signature).body(body.to_string()).send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

const LIST: &str = "DynamoDB_20120810.ListTables";
const CREATE: &str = "DynamoDB_20120810.CreateTable";

fn table() -> Value {
    json!({
        "TableName": "rooms",
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
    })
}

#[tokio::test]
async fn both_emulators_answer() {
    let (moto, dynoxide) = (Moto::start(), Dynoxide::start());
    for endpoint in [&moto.endpoint, &dynoxide.endpoint] {
        assert_eq!(call(endpoint, LIST, json!({})).await.unwrap(), (200, json!({"TableNames": []})));
        assert_eq!(call(endpoint, CREATE, table()).await.unwrap().0, 200);
        assert_eq!(call(endpoint, LIST, json!({})).await.unwrap(), (200, json!({"TableNames": ["rooms"]})));
    }
}

#[tokio::test]
async fn the_proxy_makes_the_faults_that_it_is_asked_for() {
    let dynoxide = Dynoxide::start();
    let proxy = Proxy::before(&dynoxide.endpoint).await;
    let list = async || call(&proxy.endpoint, LIST, json!({})).await;
    for (fault, status, says) in [
        (PROVISIONED, 400, "ProvisionedThroughputExceededException"),
        (THROTTLED, 400, "ThrottlingException"),
        (TOO_MANY, 400, "TooManyRequestsException"),
        (Fault::Status(503), 503, ""),
    ] {
        proxy.fail_next(1, fault, "ListTables");
        let (answered, body) = list().await.unwrap();
        assert!(answered == status && body.to_string().contains(says), "{fault:?}: {answered} {body}");
        assert_eq!(list().await.unwrap().0, 200, "{fault:?} was asked for once");
    }
    proxy.fail(Fault::Reset);
    assert!(list().await.unwrap_err().is_request());
    assert!(list().await.is_err());
    proxy.heal();
    proxy.fail(Fault::Hang);
    assert!(tokio::time::timeout(Duration::from_millis(200), list()).await.is_err());
    proxy.heal();
    // Only what was named is hit; a lost answer is to a call that was executed.
    proxy.fail_next(1, Fault::Lost, "CreateTable");
    assert_eq!(list().await.unwrap(), (200, json!({"TableNames": []})));
    assert!(call(&proxy.endpoint, CREATE, table()).await.is_err());
    assert_eq!(list().await.unwrap(), (200, json!({"TableNames": ["rooms"]})));
    assert_eq!((proxy.count("CreateTable"), proxy.count("ListTables")), (1, 13));
    proxy.forget();
    assert_eq!(proxy.count(""), 0);
}
