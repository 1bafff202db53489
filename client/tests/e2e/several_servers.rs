//! Several servers as one: each with sockets of its own, in a runtime of its own that can be killed; rooms and signing key in common.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
};

use shared::{domain::id::Secret, runtime::shutdown::Shutdown};
use signaling_server::{
    api,
    runtime::{
        config::Config,
        key::KeyPair,
        relay::NatsConfig,
        server::{Common, Server},
        store::{MemoryStore, Store},
    },
};
use tokio::runtime::{Builder, Runtime};

use super::{
    balancer::Balancer,
    lab::{Lab, eventually},
    nats::NatsServer,
    package::{self, Steady},
};

/// One of the servers.
struct OneOf {
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl OneOf {
    fn start(store: Arc<dyn Store>, keys: &Path, nats: &str) -> Self {
        let nats = Some(NatsConfig::read(&Secret::new(nats.to_owned()), None, None).unwrap());
        let common = Common { store, keys: KeyPair::load_or_create(keys).unwrap() };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let shutdown = Shutdown::new();
            let server = Server::with(Config { nats, ..Config::default() }, common, shutdown.token.clone()).await.unwrap();
            tokio::spawn(api::serve(server, vec![listener], shutdown));
            address
        });
        OneOf { runtime: Some(runtime), address }
    }

    /// Its counters.
    fn metrics(&self) -> String {
        let mut socket = TcpStream::connect(self.address).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// Everything of it ends at once, without a goodbye.
    fn kill(&mut self) {
        self.runtime.take().expect("it is killed once").shutdown_background();
    }
}

impl Drop for OneOf {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A lab whose server is several of them.
struct Several {
    lab: Lab,
    nats: NatsServer,
    servers: Vec<OneOf>,
    balancer: Balancer,
}

impl Several {
    fn start(count: usize) -> Self {
        let (lab, nats) = (Lab::new(), NatsServer::start());
        let (store, keys): (Arc<dyn Store>, _) = (Arc::new(MemoryStore::new()), lab.path("keys"));
        std::fs::create_dir(&keys).unwrap();
        let servers: Vec<OneOf> = (0..count).map(|_| OneOf::start(store.clone(), &keys, &nats.url())).collect();
        let balancer = Balancer::at(&lab.server_address(), servers[0].address);
        Several { lab, nats, servers, balancer }
    }

    /// Who connects from now on comes to this server.
    fn at(&self, server: usize) -> &Lab {
        self.balancer.send_to(self.servers[server].address);
        &self.lab
    }
}

#[test]
fn one_submits_on_a_second_server_and_another_watches_on_a_third() {
    let several = Several::start(3);
    let _worker = several.at(0).worker("trainer/sleap_nn_lite.py");
    let mut anna = several.at(1).train(&package::flies(&several.lab.path("flies.zip")), &[]);
    anna.wait_for_entry("batch_ended");
    let mut ben = several.at(2).watcher(&["watch"]);
    ben.wait_for("caught_up");
    assert_eq!((anna.exit_code(), ben.exit_code()), (0, 0));
    assert_eq!(anna.whole_journal(), ben.whole_journal());
    let finished = anna.all("finished")[0];
    assert_eq!(finished["outcome"], "completed");
    several.lab.assert_models_are_those_of(&several.lab.job(finished));
}

#[test]
fn a_training_notices_neither_a_killed_nats_server_nor_a_killed_server() {
    let mut several = Several::start(2);
    let _worker = several.at(0).worker("odd_trainers/steady.py");
    let package = several.lab.package("steady", &Steady::endless());
    let mut anna = several.at(1).train(&package, &[]);
    anna.wait_for_entry("batch_ended");
    several.nats.kill();
    // Who is sent to the worker's server needs no other.
    assert_eq!(several.at(0).client(&["status"]).exit_code(), 0);
    several.nats.start_again();
    several.at(1);
    several.servers[0].kill();
    anna.skip_to_now();
    for _ in 0..20 {
        anna.wait_for_entry("batch_ended");
    }
    // The worker comes back on the server that is left; who comes now finds it there.
    assert_eq!(several.lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(anna.exit_code(), 0);
    assert!(anna.all("disconnected").is_empty());
    anna.whole_journal();
}

#[test]
fn a_worker_whose_server_is_killed_is_found_on_another() {
    let mut several = Several::start(3);
    let _worker = several.at(0).worker("odd_trainers/steady.py");
    several.at(1);
    several.servers[0].kill();
    eventually("the worker is on the second server", || several.servers[1].metrics().contains("webrtc_server_registrations_total 1"));
    let mut anna = several.at(2).train(&several.lab.package("steady", &Steady::default()), &[]);
    assert_eq!(anna.exit_code(), 0);
    several.lab.assert_models_are_those_of(&several.lab.job(anna.all("finished")[0]));
}
