//! A worker's places for clients: those that went without a word do not keep them, those that are there do.

use std::time::{Duration, Instant};

use shared::domain::invite::Invite;

use super::{
    lab::{Lab, eventually},
    package::Steady,
    wire::Wire,
};

/// How many places a worker has.
const PLACES: usize = 16;
/// How long a client may be turned away: 3 s until dead ones are found, and what starting and connecting take on a busy machine.
const SOON: Duration = Duration::from_secs(8);

#[test]
fn clients_that_are_killed_one_after_the_other_find_a_place() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let package = lab.package("endless", &Steady::endless());
    for attempt in 0..PLACES + 6 {
        let began = Instant::now();
        let mut client = lab.train(&package, &[]);
        client.wait_for_entry("batch_ended");
        assert!(began.elapsed() < SOON, "attempt {attempt} took {:?}", began.elapsed());
        client.kill9();
    }
}

#[test]
fn links_of_the_same_client_that_do_not_answer_make_room() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let mut clients = vec![lab.train(&lab.package("endless", &Steady::endless()), &[])];
    clients[0].wait_for_entry("batch_ended");
    clients.extend((1..PLACES).map(|_| lab.client(&["watch"])));
    for client in &mut clients {
        client.wait_for_entry("batch_ended");
        // Neither the server nor the worker is told: it looks as if its machine had lost power.
        client.pause();
    }
    let began = Instant::now();
    lab.client(&["watch"]).wait_for_entry("batch_ended");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[test]
fn a_client_whose_way_to_the_server_broke_keeps_its_link() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let wire = Wire::to(lab.server_address());
    let invite: Invite = std::fs::read_to_string(lab.path("invite")).unwrap().parse().unwrap();
    std::fs::write(lab.path("invite"), Invite { server: wire.url.clone(), ..invite }.expose()).unwrap();
    let mut client = lab.train(&lab.package("endless", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    wire.cut();
    let log = || std::fs::read_to_string(lab.path("worker.log")).unwrap();
    eventually("the worker doubts that the client is there", || log().contains("it is asked for a sign of life"));
    let asked = Instant::now();
    client.wait_until("news 5 s later", |event| event["type"] == "journal" && asked.elapsed() > Duration::from_secs(5));
    assert_eq!((client.all("connected").len(), client.all("disconnected").len()), (1, 0));
    assert!(!log().contains("link has ended"), "{}", log());
}
