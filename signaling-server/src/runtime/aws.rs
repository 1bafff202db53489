//! What every AWS client of ours shares: region, credentials, endpoints, retries and time-outs, loaded once.
//!
//! * Where AWS is and who we are come from the standard places, as with the AWS CLI: `AWS_REGION`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` and
//!   `AWS_SECRET_ACCESS_KEY`, the files in `~/.aws`, web identity (EKS), the roles of ECS tasks and EC2 instances.
//! * `AWS_ENDPOINT_URL_DYNAMODB`, `AWS_ENDPOINT_URL_COGNITO_IDENTITY_PROVIDER` or `AWS_ENDPOINT_URL` name other endpoints: an emulator, or a VPC endpoint.
//! * `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` are obeyed, also for endpoints on this machine: where a proxy is set, `NO_PROXY` must name those.
//! * Retries and time-outs are ours and not the environment's, since the server promises answers in time.

use std::{error::Error, time::Duration};

use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::{Credentials, provider::ProvideCredentials};
use shared::domain::error::{Code, Failure};

use super::config::AwsSettings;

/// To open a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// For one attempt; DynamoDB answers within milliseconds.
const ATTEMPT: Duration = Duration::from_millis(800);
/// For an operation with all its attempts.
const OPERATION: Duration = Duration::from_secs(2);
/// Attempts of one operation; more would not fit into its time.
const ATTEMPTS: u32 = 3;
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_millis(400);
/// For credentials at the start: an instance's metadata service is asked several times.
const CREDENTIALS: Duration = Duration::from_secs(15);

/// Reads the environment (what the settings name wins over it) and makes sure that there are a region and credentials.
///
/// # Errors
/// [`Code::InvalidRequest`] when one of them is missing; the message says what to set.
pub async fn load(settings: &AwsSettings) -> Result<SdkConfig, Failure> {
    let config = overlaid(loader(), settings).load().await;
    if config.region().is_none() {
        return Err(wrong("no AWS region is set; set AWS_REGION (such as eu-central-1), or region in ~/.aws/config".to_owned()));
    }
    probe_credentials(&config).await?;
    Ok(config)
}

/// Time-outs for operations that are slower than a database's; connecting takes as long as always.
pub fn timeouts(attempt: Duration, operation: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(attempt).operation_timeout(operation).build()
}

/// An error and what caused it, for people, on one line.
pub fn causes(error: &dyn Error) -> String {
    let one_line = |error: &dyn Error| error.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    let mut text = one_line(error);
    let mut source = error.source();
    while let Some(error) = source {
        let cause = one_line(error);
        // Some wrappers repeat what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// Pinned, so that an update of the SDK does not change how the server behaves.
fn loader() -> ConfigLoader {
    aws_config::defaults(BehaviorVersion::v2026_01_12())
        .retry_config(
            RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(FIRST_BACKOFF).with_max_backoff(LONGEST_BACKOFF),
        )
        .timeout_config(timeouts(ATTEMPT, OPERATION))
}

fn overlaid(mut loader: ConfigLoader, settings: &AwsSettings) -> ConfigLoader {
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(url) = &settings.endpoint_url {
        loader = loader.endpoint_url(url);
    }
    if let Some(keys) = &settings.keys {
        let credentials = Credentials::new(&keys.id, keys.secret.expose(), None, None, "settings");
        loader = loader.credentials_provider(credentials);
    }
    loader
}

async fn probe_credentials(config: &SdkConfig) -> Result<(), Failure> {
    let why = match config.credentials_provider() {
        None => "none are configured".to_owned(),
        Some(provider) => match tokio::time::timeout(CREDENTIALS, provider.provide_credentials()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => causes(&error),
            Err(_) => "whoever gives them does not answer".to_owned(),
        },
    };
    Err(wrong(format!(
        "no AWS credentials were found ({why}); run with a role (EC2, ECS, EKS), or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )))
}

fn wrong(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::config::AwsKeys;
    use shared::domain::id::Secret;

    fn settings() -> AwsSettings {
        AwsSettings {
            region: Some("eu-central-1".to_owned()),
            endpoint_url: Some("http://127.0.0.1:1".to_owned()),
            keys: Some(AwsKeys { id: "id".to_owned(), secret: Secret::new("canary".to_owned()) }),
        }
    }

    #[tokio::test]
    async fn settings_win_and_time_is_bounded() {
        let config = load(&settings()).await.unwrap();
        assert_eq!(config.region().map(Region::as_ref), Some("eu-central-1"));
        assert_eq!(config.endpoint_url(), Some("http://127.0.0.1:1"));
        assert_eq!(config.retry_config().unwrap().max_attempts(), ATTEMPTS);
        assert_eq!(config.timeout_config().unwrap().operation_timeout(), Some(OPERATION));
        assert!(!format!("{:?}", settings()).contains("canary"));
    }

    #[tokio::test]
    async fn an_error_is_told_with_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(causes(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(causes(&Outer(std::io::Error::other("tried:\n  one\n  two"))), "outer: tried: one; two");
        let no_credentials = SdkConfig::builder().build();
        let failure = probe_credentials(&no_credentials).await.unwrap_err();
        assert!(failure.message.contains("AWS_PROFILE"), "{failure}");
    }
}
