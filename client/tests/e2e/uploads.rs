//! Uploads that are broken off continue: nothing that was acknowledged is sent again.

use serde_json::Value;

use super::{lab::Lab, package::Steady, program::Program};

/// Enough to be killed in the middle of it.
const BALLAST: u64 = 200 << 20;
/// What a kill may cost, in bytes.
const WINDOW: u64 = 16 << 20;

fn heavy() -> Steady {
    Steady { ballast: BALLAST, ..Steady::default() }
}

/// Waits until a quarter is at the worker; how many bytes have been acknowledged then.
fn quarter_sent(client: &mut Program) -> u64 {
    let event = client.wait_until("a quarter is sent", |event| {
        event["type"] == "uploading" && 4 * event["done"].as_u64().unwrap() >= event["total"].as_u64().unwrap()
    });
    let (done, total) = (event["done"].as_u64().unwrap(), event["total"].as_u64().unwrap());
    assert!(done < total, "the upload is over before it could be disturbed");
    done
}

/// The most that this client has heard to be on the worker's disk.
fn acknowledged(client: &Program) -> u64 {
    client.all("uploading").into_iter().map(|event| event["done"].as_u64().unwrap()).max().unwrap_or_default()
}

fn assert_continues(plan: &Value, acknowledged: u64) {
    let (bytes, there, to_send) = (&plan["bytes"], &plan["already_there"], plan["to_send"].as_u64().unwrap());
    assert!(to_send <= BALLAST + 4096 - acknowledged, "{acknowledged} bytes were acknowledged: {plan}");
    assert_eq!(bytes.as_u64().unwrap(), there.as_u64().unwrap() + to_send);
}

#[test]
fn a_killed_client_continues_where_it_was() {
    let lab = Lab::heavy();
    let (_server, _worker) = lab.open();
    let package = lab.package("heavy", &heavy());
    let mut killed = lab.train(&package, &[]);
    quarter_sent(&mut killed);
    killed.kill9();
    killed.drain();
    let mut again = lab.train(&package, &[]);
    assert_continues(&again.wait_for("plan"), acknowledged(&killed));
    assert_eq!(again.exit_code(), 0);
    again.whole_journal();
    lab.assert_models_are_those_of(&lab.job(again.all("plan")[0]));
}

#[test]
fn a_killed_agent_takes_the_upload_up_again() {
    let lab = Lab::heavy();
    let (_server, mut worker) = lab.open();
    let invite = std::fs::read(lab.path("invite")).unwrap();
    let mut client = lab.train(&lab.package("heavy", &heavy()), &[]);
    let acknowledged = quarter_sent(&mut client);
    worker.kill9();
    worker.start_again();
    client.wait_for("connected");
    assert_continues(&client.wait_for("plan"), acknowledged);
    let sent = client.wait_for("uploaded")["sent"].as_u64().unwrap();
    assert!((BALLAST..=BALLAST + WINDOW + 4096).contains(&sent), "{} bytes were sent twice", sent - BALLAST);
    assert_eq!(client.exit_code(), 0);
    client.whole_journal();
    assert_eq!(std::fs::read(lab.path("invite")).unwrap(), invite, "the same room and invite");
    lab.assert_models_are_those_of(&lab.job(client.all("plan")[0]));
}

#[test]
fn a_killed_server_does_not_disturb_an_upload() {
    let lab = Lab::heavy();
    let (mut server, _worker) = lab.open();
    let mut client = lab.train(&lab.package("heavy", &heavy()), &[]);
    quarter_sent(&mut client);
    server.kill9();
    client.wait_for("uploaded");
    server.start_again();
    let mut late = lab.watcher(&["watch"]);
    assert_eq!((client.exit_code(), late.exit_code()), (0, 0));
    assert!(client.all("disconnected").is_empty());
    assert_eq!(client.whole_journal(), late.whole_journal());
}

#[test]
fn what_another_user_has_sent_is_proved_and_not_sent_again() {
    let lab = Lab::new();
    let (_server, _worker) = lab.open();
    let package = lab.package("annas", &Steady { ballast: 8 << 20, ..Steady::default() });
    assert_eq!(lab.train(&package, &[]).exit_code(), 0);
    let own = lab.path("carls");
    std::fs::create_dir(&own).unwrap();
    for name in ["steady.yaml", "ballast.bin"] {
        std::fs::copy(package.join(name), own.join(name)).unwrap();
    }
    std::fs::write(own.join("flies.pkg.slp"), "labels of his own").unwrap();
    let mut carl = lab.train_as("carl", &own);
    let plan = carl.wait_for("plan");
    assert_eq!((plan["to_send"].as_u64(), carl.exit_code()), (Some(17), 0), "{plan}");
}
