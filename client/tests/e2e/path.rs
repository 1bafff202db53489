//! The network path between client and worker is away for a while.

use std::time::{Duration, Instant};

use super::{cable::Side, lab::Lab, package::Steady, program::Program};

/// Longer than either side takes a silence for a pause.
const AWAY: Duration = Duration::from_secs(20);
/// How soon work goes on once the path is back.
const BACK: Duration = Duration::from_secs(10);

/// Cuts the path for a while; then something new of this type must come soon.
fn survives_a_cut(lab: &Lab, client: &mut Program, kind: &str) {
    lab.cable().cut();
    // The silence is the subject here.
    std::thread::sleep(AWAY);
    client.skip_to_now();
    lab.cable().mend();
    let mended = Instant::now();
    client.wait_for(kind);
    let waited = mended.elapsed();
    assert!(waited < BACK, "{kind} came {waited:?} after the path was back");
}

#[test]
fn a_training_is_followed_again_after_the_path_was_cut() {
    let lab = Lab::with_cable(Side::Worker);
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("steady", &Steady::endless()), &[]);
    client.wait_for_entry("batch_ended");
    survives_a_cut(&lab, &mut client, "journal");
    assert_eq!(lab.client(&["stop"]).exit_code(), 0);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
}

#[test]
fn an_upload_continues_after_the_path_was_cut() {
    let lab = Lab::with_cable(Side::Client);
    let (_server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("heavy", &Steady { ballast: 200 << 20, ..Steady::default() }), &[]);
    client.wait_until("the upload", |event| event["type"] == "uploading" && event["done"].as_u64() > Some(20 << 20));
    survives_a_cut(&lab, &mut client, "uploading");
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
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
