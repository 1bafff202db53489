//! The production pair: rooms in DynamoDB and users in Cognito, which moto plays, set up and served by the real program.

use std::net::SocketAddr;

use super::{
    balancer::Balancer,
    lab::{Lab, eventually},
    moto::{Moto, environment},
    nats::NatsServer,
    package::{self, Steady},
    program::Program,
};

/// An account with a table and a user pool, and a lab that uses them.
struct Account {
    lab: Lab,
    moto: Moto,
    options: Vec<String>,
}

impl Account {
    /// As an operator sets it up: with `webrtc-server init`, whose answer says what the servers are told.
    fn new() -> Self {
        let (lab, moto) = (Lab::new(), Moto::start());
        let mut command = lab.server_command("operator");
        command.envs(environment(&moto.endpoint)).args(["init", "--cognito", "--json"]);
        let mut init = Program::start(command, &lab.path("init.log"));
        assert_eq!(init.exit_code(), 0);
        let made = &init.events[0]["cognito"];
        let (pool, client) = (made["pool"].as_str().unwrap(), made["client"].as_str().unwrap());
        // Its tokens say that they are AWS's; their keys are here.
        let keys = format!("{}/{pool}/.well-known/jwks.json", moto.endpoint);
        let options = [
            ["--store", "dynamodb"],
            ["--auth", "cognito"],
            ["--cognito-pool", pool],
            ["--cognito-client", client],
            ["--cognito-jwks-url", &keys],
        ];
        let options = options.concat().into_iter().map(str::to_owned).collect();
        Account { lab, moto, options }
    }

    /// A server of this name on a free port.
    fn server(&self, name: &str, more: &[&str]) -> OneOf {
        let mut command = self.lab.server_command(name);
        command.envs(environment(&self.moto.endpoint)).args(["--json", "--listen", "127.0.0.1:0"]).args(&self.options).args(more);
        let mut program = Program::start(command, &self.lab.path(&format!("{name}.log")));
        let listening = program.wait_until("its address", |event| event["event"] == "listening");
        let address = listening["http"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        OneOf { program, address }
    }
}

/// One of the servers.
struct OneOf {
    program: Program,
    address: SocketAddr,
}

#[test]
fn the_main_job_with_rooms_in_dynamodb_and_users_in_cognito() {
    let account = Account::new();
    let server = account.server("server", &[]);
    let _balancer = Balancer::at(&account.lab.server_address(), server.address);
    let _worker = account.lab.worker("trainer/sleap_nn_lite.py");
    let mut anna = account.lab.train(&package::flies(&account.lab.path("flies.zip")), &[]);
    assert_eq!(anna.exit_code(), 0);
    anna.whole_journal();
    let finished = anna.all("finished")[0];
    assert_eq!(finished["outcome"], "completed");
    account.lab.assert_models_are_those_of(&account.lab.job(finished));
    assert_eq!(account.lab.sign_ins(), 2, "the worker's and the client's");
}

#[test]
fn a_server_of_several_is_killed_and_its_worker_found_on_another() {
    let (account, nats) = (Account::new(), NatsServer::start());
    let (lab, url) = (&account.lab, nats.url());
    let mut servers = ["one", "two", "three"].map(|name| account.server(name, &["--nats", &url]));
    let balancer = Balancer::at(&lab.server_address(), servers[0].address);
    let _worker = lab.worker("odd_trainers/steady.py");
    balancer.send_to(servers[1].address);
    let mut anna = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    anna.wait_for_entry("batch_ended");
    balancer.send_to(servers[2].address);
    servers[0].program.kill9();
    anna.skip_to_now();
    for _ in 0..20 {
        anna.wait_for_entry("batch_ended");
    }
    let log = || std::fs::read_to_string(lab.path("three.log")).unwrap();
    eventually("the worker is on the third server", || log().contains("peer registered"));
    balancer.send_to(servers[1].address);
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(anna.exit_code(), 0);
    assert!(anna.all("disconnected").is_empty());
    anna.whole_journal();
    lab.assert_models_are_those_of(&lab.job(anna.all("finished")[0]));
}
