//! Exit codes, and Ctrl-C against work that stands in for the worker.

use rustix::process::{Signal as Number, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::*;

fn ended(outcome: Outcome) -> End {
    End::Finished { job: "j".parse().unwrap(), outcome, message: String::new() }
}

#[test]
fn the_exit_code_says_how_it_ended() {
    let detached = End::Detached { job: "j".parse().unwrap() };
    for (end, interrupted, stage, code) in [
        (ended(Outcome::Completed), false, Stage::Over, 0),
        (ended(Outcome::Stopped), false, Stage::Over, 0),
        (ended(Outcome::Failed), false, Stage::Over, 6),
        (ended(Outcome::Cancelled), false, Stage::Over, 7),
        (ended(Outcome::Completed), true, Stage::Over, 0),
        (detached.clone(), false, Stage::Following, 0),
        (detached.clone(), true, Stage::Following, 0),
        (detached, true, Stage::Uploading, 130),
        (End::Done, false, Stage::Preparing, 0),
        (End::Done, true, Stage::Fetching, 130),
    ] {
        assert_eq!(exit_code(&end, interrupted, stage), code, "{end:?} {interrupted} {stage:?}");
    }
}

#[tokio::test]
async fn a_command_shows_its_events_and_gives_its_code() {
    let mut interrupts = signal(SignalKind::user_defined1()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let code = drive(output.clone(), &mut interrupts, |events, _| async move {
        for bytes in 0..5000 {
            events.send(Event::Uploading { done: bytes, total: 5000, sent: bytes, round_trip_ms: None }).await.unwrap();
        }
        Ok(ended(Outcome::Failed))
    })
    .await
    .unwrap();
    assert_eq!((code, output.stage()), (6, Stage::Over));
}

#[tokio::test]
async fn a_failure_is_passed_on() {
    let mut interrupts = signal(SignalKind::user_defined1()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let work = async { Err(Failure::new(Code::NoConnection, "no server")) };
    let failure = drive(output, &mut interrupts, |_, _| work).await.unwrap_err();
    assert_eq!(failure.code, Code::NoConnection);
}

/// Work at a worker: ready once `begun` was shown, it ends when it is told to detach.
async fn follow(
    begun: Event,
    number: Number,
    events: mpsc::Sender<Event>,
    mut orders: mpsc::Receiver<UserCommand>,
) -> Result<End, Failure> {
    events.send(begun).await.unwrap();
    // Shown means: taken out of the queue; capacity comes back then.
    while events.capacity() < events.max_capacity() {
        tokio::task::yield_now().await;
    }
    kill_process(getpid(), number).unwrap();
    assert_eq!(orders.recv().await, Some(UserCommand::Detach));
    Ok(End::Detached { job: "j".parse().unwrap() })
}

// Each test has a signal of its own in place of SIGINT: the tests share a process.
#[tokio::test]
async fn ctrl_c_leaves_a_job_that_goes_on() {
    let mut interrupts = signal(SignalKind::user_defined2()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let begun = Event::CaughtUp { job: "j".parse().unwrap(), seq: 3 };
    let code = drive(output, &mut interrupts, |events, orders| follow(begun, Number::USR2, events, orders)).await.unwrap();
    assert_eq!(code, 0);
}

#[tokio::test]
async fn ctrl_c_in_an_upload_is_an_interrupt() {
    let mut interrupts = signal(SignalKind::alarm()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let begun = Event::Uploading { done: 1, total: 3, sent: 1, round_trip_ms: None };
    let code = drive(output, &mut interrupts, |events, orders| follow(begun, Number::ALARM, events, orders)).await.unwrap();
    assert_eq!(code, 130);
}

#[tokio::test]
async fn ctrl_c_before_there_is_a_job_leaves_at_once() {
    let mut interrupts = signal(SignalKind::hangup()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let code = drive(output, &mut interrupts, |_, _| async {
        kill_process(getpid(), Number::HUP).unwrap();
        std::future::pending().await
    });
    assert_eq!(code.await.unwrap(), 130);
}

#[tokio::test]
async fn ctrl_c_twice_leaves_whatever_happens() {
    let mut interrupts = signal(SignalKind::window_change()).unwrap();
    let output = Output::start(false, true, 0, ViewOptions::default());
    let code = drive(output, &mut interrupts, |events, mut orders| async move {
        events.send(Event::CaughtUp { job: "j".parse().unwrap(), seq: 3 }).await.unwrap();
        while events.capacity() < events.max_capacity() {
            tokio::task::yield_now().await;
        }
        kill_process(getpid(), Number::WINCH).unwrap();
        assert_eq!(orders.recv().await, Some(UserCommand::Detach));
        kill_process(getpid(), Number::WINCH).unwrap();
        // Work that does not heed the order.
        std::future::pending().await
    });
    assert_eq!(code.await.unwrap(), 130);
}
