//! A proxy before an emulator that throttles, fails, resets, hangs and loses answers, as AWS and networks do and emulators do not.

use std::{
    io,
    sync::{Arc, Mutex},
};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{Request, Response, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const MAX_BODY: usize = 1024 * 1024;

/// What happens to a request instead of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Refused as AWS does it: 400 with this exception in the body.
    Throttle(&'static str),
    /// This status, and not executed.
    Status(u16),
    /// The connection is reset, and nothing executed.
    Reset,
    /// No answer, and nothing executed.
    Hang,
    /// It is executed; then the connection is reset in place of the answer.
    Lost,
}

/// DynamoDB: the table's throughput is used up.
pub(crate) const PROVISIONED: Fault = Fault::Throttle("com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException");
/// Any service: too many calls.
pub(crate) const THROTTLED: Fault = Fault::Throttle("com.amazon.coral.availability#ThrottlingException");
/// Cognito: too many calls.
pub(crate) const TOO_MANY: Fault = Fault::Throttle("TooManyRequestsException");

#[derive(Debug)]
struct Rule {
    fault: Fault,
    /// The end of `X-Amz-Target`; empty for every request.
    target: String,
    /// Requests that it still applies to.
    left: usize,
}

struct State {
    upstream: String,
    http: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
    bodies: Mutex<Vec<Bytes>>,
}

/// The proxy; it ends with its value.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) endpoint: String,
    state: Arc<State>,
    stop: CancellationToken,
}

impl Proxy {
    /// Before the emulator at this URL; brings everything through until a fault is asked for.
    pub(crate) async fn before(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let http = reqwest::Client::builder().no_proxy().build().expect("a client");
        let state =
            State { upstream: upstream.to_owned(), http, rules: Mutex::default(), seen: Mutex::default(), bodies: Mutex::default() };
        let proxy = Proxy { endpoint, state: Arc::new(state), stop: CancellationToken::new() };
        tokio::spawn(serve(listener, proxy.state.clone(), proxy.stop.clone()));
        proxy
    }

    /// Every request has this fault, until [`Proxy::heal`].
    pub(crate) fn fail(&self, fault: Fault) {
        self.fail_next(usize::MAX, fault, "");
    }

    /// The next `count` requests whose `X-Amz-Target` ends with `target` (such as `PutItem`; empty for all) have this fault.
    pub(crate) fn fail_next(&self, count: usize, fault: Fault, target: &str) {
        self.state.rules.lock().unwrap().push(Rule { fault, target: target.to_owned(), left: count });
    }

    /// No faults any more; what hangs goes on hanging.
    pub(crate) fn heal(&self) {
        self.state.rules.lock().unwrap().clear();
    }

    /// How many requests came whose target ends with `target`, faults included.
    pub(crate) fn count(&self, target: &str) -> usize {
        self.state.seen.lock().unwrap().iter().filter(|seen| seen.ends_with(target)).count()
    }

    /// What was brought through, as JSON.
    pub(crate) fn bodies(&self) -> Vec<serde_json::Value> {
        self.state.bodies.lock().unwrap().iter().filter_map(|body| serde_json::from_slice(body).ok()).collect()
    }

    /// Forgets what came.
    pub(crate) fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { return };
        // Closed without an answer, a connection is to be reset.
        let _ = stream.set_zero_linger();
        let (state, stop) = (state.clone(), stop.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| handle(state.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                // An error is a fault that was asked for.
                _ = connection => {}
            }
        });
    }
}

async fn handle(state: Arc<State>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    state.seen.lock().unwrap().push(target.clone());
    let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
    match state.fault(&target) {
        None => state.forward(request).await,
        Some(Fault::Throttle(exception)) => Ok(answer(400, &json!({"__type": exception, "message": "Rate exceeded"}).to_string())),
        Some(Fault::Status(status)) => Ok(answer(status, "")),
        Some(Fault::Reset) => Err(reset()),
        Some(Fault::Lost) => {
            state.forward(request).await?;
            Err(reset())
        }
        Some(Fault::Hang) => std::future::pending().await,
    }
}

fn answer(status: u16, body: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/x-amz-json-1.0")
        .body(Body::from(body.to_owned()))
        .expect("it is well-formed")
}

impl State {
    fn fault(&self, target: &str) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| rule.left > 0 && target.ends_with(&rule.target))?;
        rule.left -= 1;
        Some(rule.fault)
    }

    async fn forward(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let body: Bytes = to_bytes(Body::new(body), MAX_BODY).await.map_err(io::Error::other)?;
        self.bodies.lock().unwrap().push(body.clone());
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut headers = parts.headers;
        headers.remove(header::CONTENT_LENGTH);
        let sent = self.http.request(parts.method, format!("{}{path}", self.upstream)).headers(headers).body(body).send().await;
        let response = sent.map_err(io::Error::other)?;
        let mut answer = Response::builder().status(response.status());
        for (name, value) in response.headers() {
            if name != header::TRANSFER_ENCODING && name != header::CONNECTION {
                answer = answer.header(name, value);
            }
        }
        let body = response.bytes().await.map_err(io::Error::other)?;
        answer.body(Body::from(body)).map_err(io::Error::other)
    }
}
