//! Logs: structured, on stderr, JSON when nobody is watching; and panics that reach the log without what they carried.
//!
//! `WEBRTC_LOG` takes the usual filter directives (`debug`, `signaling_server=trace,warn`) and wins over `-v`.

use std::{backtrace::Backtrace, io::IsTerminal, panic::PanicHookInfo};

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::domain::error::{Code, Failure};

/// The environment variable with the log filter.
pub const LOG_VARIABLE: &str = "WEBRTC_LOG";

/// The crates whose events we show from `info` on.
const OURS: [&str; 4] = ["signaling_server", "worker", "client", "shared"];
/// The crates whose warnings are no news: a peer's every bad packet; each place where a setting was looked for.
const NOISY: [&str; 3] = ["webrtc", "rtc", "aws_config"];
/// The crates that below `info` write whole messages, with the tokens in them. No filter can open these.
const INDISCREET: [&str; 4] = ["tungstenite", "tokio_tungstenite", "h2", "hyper"];
/// The module that does so with the password of the other side's ICE agent; what else its crate tells is how a path was found.
const INDISCREET_MODULE: &str = "rtc_ice::agent";

/// Starts logging to stderr, and a panic hook that logs where a panic happened.
///
/// `verbosity` counts `-v`: 0 shows our own `info`, 1 our `debug`, 2 our `trace`, 3 everybody's `debug`. `json`: `None` chooses JSON
/// when stderr is not a terminal. Call it once, before the first event.
///
/// # Errors
/// [`Code::InvalidRequest`] when `WEBRTC_LOG` does not parse; [`Code::Internal`] when logging was started before.
pub fn init(program: &str, verbosity: u8, json: Option<bool>) -> Result<(), Failure> {
    let filter = filter(std::env::var(LOG_VARIABLE).ok().as_deref(), verbosity)?;
    let terminal = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
    let lines = if json.unwrap_or(!terminal) { lines.json().flatten_event(true).with_span_list(false).boxed() } else { lines.boxed() };
    let started = registry().with(filter).with(filter_fn(is_discreet)).with(lines).try_init();
    started.map_err(|error| Failure::new(Code::Internal, format!("logging cannot start: {error}")))?;
    let program = program.to_owned();
    std::panic::set_hook(Box::new(move |info| log_panic(&program, info)));
    Ok(())
}

fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let krate = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !(INDISCREET.contains(&krate) || metadata.target() == INDISCREET_MODULE)
}

fn filter(directives: Option<&str>, verbosity: u8) -> Result<EnvFilter, Failure> {
    if let Some(directives) = directives.filter(|text| !text.trim().is_empty()) {
        return EnvFilter::try_new(directives)
            .map_err(|error| Failure::new(Code::InvalidRequest, format!("{LOG_VARIABLE} is not a log filter: {error}")));
    }
    let (ours, others) = match verbosity {
        0 => ("info", "warn"),
        1 => ("debug", "warn"),
        2 => ("trace", "info"),
        _ => ("trace", "debug"),
    };
    let mut text = others.to_owned();
    for name in OURS {
        text.push_str(&format!(",{name}={ours}"));
    }
    // A directive names a prefix, so that `rtc` covers `rtc_ice` and the rest.
    for name in NOISY {
        text.push_str(&format!(",{name}={}", if verbosity < 3 { "error" } else { "debug" }));
    }
    Ok(EnvFilter::try_new(text).expect("built from constant directives"))
}

/// A panic's message may be built from data (`unwrap` on an error that quotes a token), so only messages that are literals of the
/// source are logged; the location says the rest.
fn log_panic(program: &str, info: &PanicHookInfo<'_>) {
    let message = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("[withheld: built from data]");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    tracing::error!(program, location, thread = thread.name().unwrap_or("unnamed"), message, %backtrace, "panicked");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    #[test]
    fn the_filter_follows_the_environment_then_the_verbosity() {
        assert_eq!(filter(Some("trace"), 0).unwrap().to_string(), "trace");
        assert!(filter(Some(" "), 0).unwrap().to_string().contains("shared=info"));
        assert!(filter(None, 1).unwrap().to_string().contains("worker=debug"));
        assert!(filter(None, 0).unwrap().to_string().contains("rtc=error"));
        assert_eq!(filter(Some("a=b=c"), 0).unwrap_err().code, Code::InvalidRequest);
    }

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_filter_opens_what_would_log_messages() {
        let buffer = Buffer::default();
        let sink = buffer.clone();
        let subscriber = registry()
            .with(filter(Some("trace"), 0).unwrap())
            .with(filter_fn(is_discreet))
            .with(fmt::layer().with_writer(move || sink.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "tungstenite::protocol", "canary");
            tracing::debug!(target: "h2", "canary");
            tracing::debug!(target: "rtc_ice::agent", "canary");
            tracing::debug!(target: "rtc_ice::agent::agent_selector", "told of a path");
            tracing::warn!(target: "tungstenite", "told");
            tracing::trace!(target: "tungstenite_of_another_name", "told, too");
        });
        let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("told, too") && log.contains("told of a path") && log.contains("told\n") && !log.contains("canary"), "{log}");
    }

    #[test]
    fn a_panic_is_logged_without_the_data_in_it() {
        let buffer = Buffer::default();
        let sink = buffer.clone();
        let subscriber = fmt().json().with_writer(move || sink.clone()).finish();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(|info| log_panic("test", info)));
        tracing::subscriber::with_default(subscriber, || {
            let token = "canary".to_owned();
            let _ = std::panic::catch_unwind(|| panic!("bad token {token}"));
            let _ = std::panic::catch_unwind(|| panic!("a literal"));
        });
        std::panic::set_hook(before);
        let log = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert!(log.contains("telemetry.rs") && log.contains("a literal"), "{log}");
        assert!(!log.contains("canary"), "{log}");
    }
}
