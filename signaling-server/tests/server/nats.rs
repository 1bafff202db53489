//! A real NATS server on an address of its own, and a wire to it that can be cut.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::{
    io::{AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A running `nats-server`; killed when dropped.
pub(crate) struct NatsServer {
    child: Child,
    options: Vec<String>,
    pub(crate) address: String,
}

impl NatsServer {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(options: &[&str]) -> Self {
        Self::start_at(&free_host(), options)
    }

    pub(crate) fn start_at(host: &str, options: &[&str]) -> Self {
        let options: Vec<String> = ["-a", host, "-p", "4222"].iter().chain(options).map(|&option| option.to_owned()).collect();
        NatsServer { child: spawn(&options), options, address: format!("{host}:4222") }
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it until [`NatsServer::go_on`]; when this returns, none of its threads runs any more.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
        waitid(WaitId::Pid(Pid::from_child(&self.child)), WaitIdOptions::STOPPED).unwrap();
    }

    /// Ends a pause.
    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.options);
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Says something to it in its own protocol, and waits until it has taken it.
    pub(crate) async fn say(&self, subject: &str, payload: &[u8]) {
        let mut socket = TcpStream::connect(&self.address).await.unwrap();
        let head = format!("CONNECT {{\"verbose\":false}}\r\nPUB {subject} {}\r\n", payload.len());
        socket.write_all(&[head.as_bytes(), payload, b"\r\nPING\r\n"].concat()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"PONG\r\n") {
            assert!(tokio::io::AsyncReadExt::read_buf(&mut socket, &mut heard).await.unwrap() > 0, "{:?}", String::from_utf8_lossy(&heard));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address of its own for each, so that one that is started again finds its port free.
pub(crate) fn free_host() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(1);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{count}", 1 + process / 250 % 250, 1 + process % 250)
}

fn spawn(options: &[String]) -> Child {
    let mut child = Command::new(program()).args(options).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("nats-server starts");
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    while !said.last().is_some_and(|line: &String| line.contains("Server is ready")) {
        said.push(log.next().unwrap_or_else(|| panic!("nats-server did not start: {said:?}")));
    }
    // Read all along: a program whose log nobody reads stops at a full pipe.
    std::thread::spawn(move || log.for_each(drop));
    child
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).map(|dir| dir.join("nats-server")).find(|path| path.is_file());
    found.expect("these tests need nats-server: run scripts/test, which installs it, or install the Debian package nats-server")
}

/// A way to a NATS server.
pub(crate) struct Wire {
    pub(crate) url: String,
    whole: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Wire {
    pub(crate) async fn to(nats: &NatsServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, target) = (format!("nats://{}", listener.local_addr().unwrap()), nats.address.clone());
        let (whole, _) = watch::channel(true);
        let state = whole.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut state, target) = (state.subscribe(), target.clone());
                tokio::spawn(async move {
                    let carry = async {
                        if let Ok(mut far) = TcpStream::connect(target).await {
                            let _ = copy_bidirectional(&mut near, &mut far).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        _ = state.wait_for(|whole| !whole) => {}
                        () = carry => {}
                    }
                });
            }
        });
        Wire { url, whole, task }
    }

    /// Ends what passes, and everything that comes until it is mended.
    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
