//! The network path between client and worker is away for a while, or becomes another one; so is the server.

use std::{
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use super::{
    cable::{Cable, Side},
    lab::{Lab, eventually},
    package::Steady,
    program::Program,
};

/// How soon work goes on once the path is back.
const BACK: Duration = Duration::from_secs(10);
/// How soon it goes on at another address: noticed at once, it is there after some round trips.
const MOVED: Duration = Duration::from_secs(5);
/// What a break may cost an upload: what was under way, in bytes.
const WINDOW: u64 = 16 << 20;

/// For how many seconds a session is held that a long cut is to exceed, and what the worker adds for noticing and coming back.
const SHORT: u64 = 12;
const ALLOWANCE: u64 = 15;

/// Does this to the path; then something new of this type must come soon.
fn survives(client: &mut Program, what: &str, kind: &str, soon: Duration, change: impl FnOnce()) {
    client.skip_to_now();
    change();
    client.skip_to_now();
    let changed = Instant::now();
    client.wait_for(kind);
    let waited = changed.elapsed();
    eprintln!("{what}: {kind} came {waited:?} after the path was there again");
    assert!(waited < soon, "{what}: {kind} came {waited:?} after the path was there again");
}

fn survives_a_cut(lab: &Lab, client: &mut Program, kind: &str, seconds: u64, cut: fn(&Cable), mend: fn(&Cable)) {
    survives(client, &format!("{seconds} s"), kind, BACK, || {
        cut(lab.cable());
        // The silence is the subject here.
        sleep(Duration::from_secs(seconds));
        mend(lab.cable());
    });
}

/// A lab with a training under way.
fn training(lab: &Lab) -> Program {
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    client
}

/// Every journal entry came once, and the models are there.
fn ends_well(lab: &Lab, client: &mut Program) {
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
}

fn a_training_survives(seconds: u64, cut: fn(&Cable), mend: fn(&Cable)) {
    // Its session is held for a short time, which a long cut exceeds: the job does not mind, and the viewer is told.
    let lab = Lab::with_cable(Side::Worker).hold(SHORT);
    let (_server, _worker) = lab.open();
    let mut client = training(&lab);
    survives_a_cut(&lab, &mut client, "journal", seconds, cut, mend);
    let told = client.all("notice").iter().any(|event| event["message"].as_str().unwrap().contains("out of reach"));
    let held = client.all("connected")[1..].iter().all(|event| event["resumed"] == true);
    assert_eq!((told, held), if seconds > SHORT + ALLOWANCE { (true, false) } else { (false, true) }, "{seconds} s");
    ends_well(&lab, &mut client);
}

fn an_upload_survives(seconds: u64, cut: fn(&Cable), mend: fn(&Cable)) {
    let lab = Lab::with_cable(Side::Client);
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("heavy", &Steady { ballast: 200 << 20, ..Steady::default() }), &[]);
    client.wait_until("the upload", |event| event["type"] == "uploading" && event["done"].as_u64() > Some(20 << 20));
    survives_a_cut(&lab, &mut client, "uploading", seconds, cut, mend);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    let sent = client.all("uploaded")[0]["sent"].as_u64().unwrap();
    let bytes = client.all("plan")[0]["bytes"].as_u64().unwrap();
    assert!(sent <= bytes + WINDOW, "{sent} bytes were sent of {bytes}");
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
}

/// A client that does nothing for a while, as on a machine that sleeps, shows everything that happened meanwhile.
fn a_client_that_slept_catches_up(seconds: u64) {
    let lab = Lab::with_cable(Side::Worker);
    let (_server, _worker) = lab.open();
    let mut client = training(&lab);
    client.pause();
    sleep(Duration::from_secs(seconds));
    let mut other = lab.watcher(&["watch"]);
    let present = other.wait_for("caught_up")["seq"].as_u64().unwrap();
    client.go_on();
    let awake = Instant::now();
    client.wait_until("the present", |event| event["entry"]["seq"].as_u64() >= Some(present));
    assert!(awake.elapsed() < BACK, "{:?}", awake.elapsed());
    ends_well(&lab, &mut client);
}

#[test]
fn work_goes_on_after_the_path_was_cut() {
    // All at once: most of it is waiting.
    scope(|scope| {
        let cases: [fn(); 5] = [
            || a_client_that_slept_catches_up(31),
            || a_training_survives(5, Cable::cut, Cable::mend),
            || a_training_survives(31, Cable::cut_far_away, Cable::mend_far_away),
            || an_upload_survives(5, Cable::cut_far_away, Cable::mend_far_away),
            || an_upload_survives(31, Cable::cut, Cable::mend),
        ];
        for case in cases.map(|case| scope.spawn(case)) {
            case.join().unwrap();
        }
    });
}

#[test]
fn a_client_that_moves_to_another_network_takes_its_session_along() {
    let lab = Lab::with_cable(Side::Worker);
    let (_server, _worker) = lab.open();
    let mut client = training(&lab);
    for address in ["10.77.0.31", "10.77.0.32"] {
        survives(&mut client, address, "journal", MOVED, || lab.cable().move_to(Side::Client, address));
    }
    assert_eq!(client.all("disconnected").len(), 0, "its link was restarted, not replaced");
    ends_well(&lab, &mut client);
}

#[test]
fn a_worker_that_moves_to_another_network_takes_its_sessions_along() {
    let lab = Lab::with_cable(Side::Client);
    let (_server, _worker) = lab.open();
    let mut client = training(&lab);
    survives(&mut client, "the worker", "journal", MOVED, || lab.cable().move_to(Side::Worker, "10.77.0.31"));
    ends_well(&lab, &mut client);
}

#[test]
fn a_server_that_is_away_leaves_sessions_alone_and_has_its_peers_back_soon() {
    let lab = Lab::new();
    let (mut server, _worker) = lab.open();
    let mut client = training(&lab);
    server.kill9();
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(5) {
        client.wait_for_entry("batch_ended");
    }
    let registered = || std::fs::read_to_string(lab.path("server.log")).unwrap().matches("peer registered").count();
    let before = registered();
    server.start_again();
    let back = Instant::now();
    eventually("client and worker are registered again", || registered() >= before + 2);
    assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
    assert_eq!((client.all("connected").len(), client.all("disconnected").len()), (1, 0));
    ends_well(&lab, &mut client);
}

#[test]
fn an_upload_does_with_short_packets_where_long_ones_vanish() {
    let lab = Lab::with_cable(Side::Worker);
    lab.cable().swallow_long_packets();
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("heavy", &Steady { ballast: 20 << 20, ..Steady::default() }), &[]);
    let begun = Instant::now();
    client.wait_for("uploaded");
    // Before a connection that carries nothing is given up for that, 30 s pass.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(client.exit_code(), 0);
}
