//! Two network namespaces and the link between them, which can be cut and mended. No privilege is needed where users may make
//! namespaces.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The interfaces.
const ENDS: [(Side, &str); 2] = [(Side::Worker, "left"), (Side::Client, "right")];
/// How long a machine has no address that moves from one network to another.
const MOMENT: Duration = Duration::from_millis(500);

const WORKER: &str = "10.77.0.1";
const CLIENT: &str = "10.77.0.2";

/// An end of the cable. The server stands at either.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    /// The worker's.
    Worker,
    /// The clients'.
    Client,
}

/// The link, and the processes that keep its two namespaces.
pub(crate) struct Cable {
    worker: Child,
    client: Child,
}

impl Cable {
    /// A link that works.
    pub(crate) fn new() -> Self {
        let mut unshare = Command::new("unshare");
        let worker = keep(unshare.args(["--user", "--map-root-user", "--net"]));
        let entrance = entrance(worker.id());
        let mut inside = Command::new(&entrance[0]);
        let client = keep(inside.args(&entrance[1..]).args(["unshare", "--net"]));
        let cable = Cable { worker, client };
        cable.run(
            Side::Worker,
            &["ip", "link", "add", "left", "type", "veth", "peer", "name", "right", "netns", &cable.client.id().to_string()],
        );
        for (side, name, address) in [(Side::Worker, "left", WORKER), (Side::Client, "right", CLIENT)] {
            cable.run(side, &["ip", "address", "add", &format!("{address}/24"), "dev", name]);
            cable.run(side, &["ip", "link", "set", "lo", "up"]);
            cable.run(side, &["ip", "link", "set", name, "up"]);
        }
        cable
    }

    /// The address of a side.
    pub(crate) fn address(&self, side: Side) -> &'static str {
        match side {
            Side::Worker => WORKER,
            Side::Client => CLIENT,
        }
    }

    /// From now on the client's interface takes packets of up to 9,000 bytes, and those of more than 1,500 vanish on their way to the worker,
    /// as where a router says nothing.
    pub(crate) fn swallow_long_packets(&self) {
        self.run(Side::Client, &["ip", "link", "set", "right", "mtu", "9000"]);
    }

    /// From now on nothing passes, as when somebody has pulled the cable out: both ends notice.
    pub(crate) fn cut(&self) {
        self.run(Side::Worker, &["ip", "link", "set", "left", "down"]);
    }

    /// From now on everything passes again.
    pub(crate) fn mend(&self) {
        self.run(Side::Worker, &["ip", "link", "set", "left", "up"]);
    }

    /// From now on nothing arrives, as when a router in between has failed: nothing changes at either end.
    pub(crate) fn cut_far_away(&self) {
        for (side, name) in ENDS {
            let chain = format!("type filter hook input priority 0; policy accept; iifname {name} drop");
            self.run(side, &["nft", &format!("table inet cut {{ chain input {{ {chain}; }}; }}")]);
        }
    }

    /// Everything arrives again.
    pub(crate) fn mend_far_away(&self) {
        for (side, _) in ENDS {
            self.run(side, &["nft", "delete table inet cut"]);
        }
    }

    /// A side is in another network from now on: its address is gone, and after a moment without any it has this one.
    pub(crate) fn move_to(&self, side: Side, address: &str) {
        let (_, name) = ENDS[side as usize];
        self.run(side, &["ip", "address", "flush", "dev", name]);
        std::thread::sleep(MOMENT);
        self.run(side, &["ip", "address", "add", &format!("{address}/24"), "dev", name]);
    }

    /// The words before a command that run it on this side.
    pub(crate) fn entrance(&self, side: Side) -> Vec<String> {
        entrance(match side {
            Side::Worker => self.worker.id(),
            Side::Client => self.client.id(),
        })
    }

    fn run(&self, side: Side, words: &[&str]) {
        let entrance = self.entrance(side);
        let output = Command::new(&entrance[0]).args(&entrance[1..]).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for child in [&mut self.worker, &mut self.client] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn entrance(keeper: u32) -> Vec<String> {
    ["nsenter", "--preserve-credentials", "--user", "--net", "--target", &keeper.to_string()].map(str::to_owned).to_vec()
}

/// A process in the namespaces that this command makes. It ends with us, since nobody else holds its input.
fn keep(unshare: &mut Command) -> Child {
    let words = ["sh", "-c", "echo ready; exec cat"];
    let mut child = unshare.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare (util-linux) is there");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(
        line, "ready\n",
        "a network namespace could not be made: allow it to users (sysctl kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
    );
    child
}
