use proptest::prelude::*;

use super::*;

/// The events of frames, as compact text.
fn told(frames: &[&str]) -> Vec<String> {
    let mut tracker = Tracker::new(0);
    frames.iter().flat_map(|frame| tracker.handle(frame.as_bytes())).map(|event| text(&event)).collect()
}

fn text(event: &JobEvent) -> String {
    let show = |metrics: &Metrics| metrics.iter().map(|(key, value)| format!(" {key}={}", value.0)).collect::<String>();
    match event {
        JobEvent::PhaseEntered { phase, .. } => format!("{phase:?}"),
        JobEvent::EpochStarted { epoch, .. } => format!("epoch {epoch}"),
        JobEvent::BatchEnded { epoch, batch, metrics, .. } => format!("batch {}.{batch}{}", epoch.unwrap_or(99), show(metrics)),
        JobEvent::EpochEnded { epoch, metrics, .. } => format!("end {epoch}{}", show(metrics)),
        JobEvent::Gap { what, from, to, .. } => format!("gap {what} {from}-{to}"),
        JobEvent::Notice { .. } => "notice".into(),
        other => format!("{other:?}"),
    }
}

const BEGIN: &str = r#"{"what": "", "event": "train_begin", "logs": null, "wandb_url": null}"#;
const END: &str = r#"{"what": "", "event": "train_end", "logs": null}"#;

#[test]
fn an_ordinary_run_is_told_once_and_in_order() {
    assert_eq!(
        told(&[
            BEGIN,
            r#"{"what": "", "event": "epoch_begin", "logs": null, "epoch": 0}"#,
            r#"{"what": "", "event": "batch_start", "logs": null, "batch": 0}"#,
            r#"{"what": "", "event": "batch_end", "logs": {"loss": 0.5}, "epoch": 0, "batch": 0}"#,
            r#"{"what": "", "event": "batch_end", "logs": {"loss": 0.25}, "epoch": 0, "batch": 1}"#,
            r#"{"what": "", "event": "epoch_end", "logs": {"loss": 0.25, "val/loss": NaN, "x": -Infinity}, "epoch": 0}"#,
            r#"{"what": "", "event": "epoch_begin", "logs": null, "epoch": 1}"#,
            r#"{"what": "", "event": "batch_end", "logs": {"loss": 0.25, "val/loss": NaN, "x": -Infinity, "lr": 1}, "epoch": 1, "batch": 0}"#,
            END,
        ]),
        [
            "Training",
            "epoch 0",
            "batch 0.0 loss=0.5",
            "batch 0.1 loss=0.25",
            "end 0 loss=0.25 val/loss=NaN x=-inf",
            "epoch 1",
            "batch 1.0 loss=0.25 lr=1",
            "Evaluating",
        ]
    );
}

#[test]
fn the_older_trainers_spelling_is_read() {
    assert_eq!(
        told(&[
            r#"{"event": "train_begin", "logs": {}, "what": "not_set"}"#,
            r#"{"epoch": 0, "event": "epoch_begin", "logs": {}, "what": "not_set"}"#,
            r#"{"batch": 0, "event": "batch_begin", "logs": {}, "what": "not_set"}"#,
            r#"{"batch": 0, "event": "batch_end", "logs": {"loss": 0.5}, "what": "not_set"}"#,
            r#"{"epoch": 0, "event": "epoch_end", "logs": {"loss": 0.5, "lr": {"py/reduce": [{"py/function": "os.system"}, "x"]}, "py/id": 3, "val_loss": 1}, "what": "not_set"}"#,
        ]),
        ["Training", "epoch 0", "batch 0.0 loss=0.5", "end 0 loss=0.5 val_loss=1"]
    );
}

#[test]
fn holes_in_the_trainers_numbers_are_told() {
    let batch = |epoch: u32, batch: u32| format!(r#"{{"event": "batch_end", "logs": {{}}, "epoch": {epoch}, "batch": {batch}}}"#);
    let begin = |epoch: u32| format!(r#"{{"event": "epoch_begin", "epoch": {epoch}}}"#);
    let end = |epoch: u32| format!(r#"{{"event": "epoch_end", "logs": {{}}, "epoch": {epoch}}}"#);
    assert_eq!(told(&[BEGIN, &begin(5)]), ["Training", "epoch 5"], "a run that is taken up again may begin anywhere");
    assert_eq!(told(&[&begin(1)]), ["Training", "gap epoch 0-1", "epoch 1"]);
    let frames = [begin(0), batch(0, 0), batch(0, 3), end(0), begin(1), batch(1, 2), begin(4), batch(4, 0), end(4), begin(5), batch(5, 0)];
    let frames: Vec<&str> = frames.iter().map(String::as_str).collect();
    assert_eq!(
        told(&frames),
        [
            "Training",
            "epoch 0",
            "batch 0.0",
            "gap batch 0-3",
            "batch 0.3",
            "end 0",
            "epoch 1",
            "gap batch 3-2",
            "batch 1.2",
            "gap epoch 1-4",
            "epoch 4",
            "batch 4.0",
            "end 4",
            "epoch 5",
            "batch 5.0",
        ]
    );
}

#[test]
fn garbage_is_a_handful_of_notices() {
    let mut tracker = Tracker::new(0);
    let huge = vec![b'['; MAX_FRAME + 1];
    let deep = vec![b'['; 100_000];
    let mut notices = 0;
    for frame in [&b"END_OF_FILE"[..], b"", b"\xff\xfe", b"[1]", b"{\"event\": 3}", b"{\"event\": \"tea\"}", b"{", &huge, &deep].repeat(100)
    {
        notices += tracker.handle(frame).len();
    }
    assert_eq!(notices, 3, "the 1st, the 10th, the 100th of 900");
    assert_eq!(tracker.facts(), &Facts::default());
    assert_eq!(tracker.handle(BEGIN.as_bytes()).len(), 1, "and the next message is read as ever");
}

#[test]
fn losses_are_weighed() {
    let mut tracker = Tracker::new(0);
    for (loss, expected) in [("1.5", (1, 0, true)), ("NaN", (1, 1, false)), ("\"x\"", (1, 1, false)), ("Infinity", (1, 2, false))] {
        tracker.handle(format!(r#"{{"event": "batch_end", "batch": 0, "logs": {{"loss": {loss}}}}}"#).as_bytes());
        let facts = tracker.facts();
        assert_eq!((facts.finite_losses, facts.bad_losses, facts.last_loss_finite), expected);
    }
}

#[test]
fn strings_that_look_like_numbers_stay_strings() {
    let quoted = quote_bare(br#"{"NaN \" Infinity": NaN, "a": -Infinity}"#);
    assert_eq!(std::str::from_utf8(&quoted).unwrap(), r#"{"NaN \" Infinity": "NaN", "a": "-Infinity"}"#);
}

#[test]
fn wild_metrics_are_bounded() {
    let logs: String = (0..1000).map(|i| format!("\"k{i}\": {i}, ")).collect();
    let frame = format!(r#"{{"event": "epoch_end", "epoch": 0, "logs": {{{logs} "{}": 1}}}}"#, "x".repeat(5000));
    let events = Tracker::new(0).handle(frame.as_bytes());
    let Some(JobEvent::EpochEnded { metrics, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(metrics.len(), MAX_METRICS);
    assert!(serde_json::to_string(events.last().unwrap()).unwrap().len() < 32 * 1024);
}

/// Excerpts of recordings of sleap-nn 0.3.5: every frame is understood, nothing is missing.
#[test]
fn recorded_runs_are_understood_whole() {
    for (name, recording, epochs, finite) in [
        ("normal", include_str!("../../tests/fixtures/zmq_normal.jsonl"), 3, true),
        ("nan_loss", include_str!("../../tests/fixtures/zmq_nan_loss.jsonl"), 1, false),
        ("stopped", include_str!("../../tests/fixtures/zmq_stopped.jsonl"), 1, true),
        ("stopped in validation", include_str!("../../tests/fixtures/zmq_stopped_in_validation.jsonl"), 2, true),
    ] {
        let mut tracker = Tracker::new(0);
        let events: Vec<_> = recording.lines().flat_map(|frame| tracker.handle(frame.as_bytes())).collect();
        let strange: Vec<_> = events.iter().filter(|e| matches!(e, JobEvent::Gap { .. } | JobEvent::Notice { .. })).collect();
        assert!(strange.is_empty(), "{name}: {strange:?}");
        let ended = events.iter().filter(|event| matches!(event, JobEvent::EpochEnded { .. })).count();
        assert_eq!((ended, tracker.phase()), (epochs, Phase::Evaluating), "{name}");
        assert!(tracker.facts().train_end && tracker.facts().last_loss_finite == finite, "{name}: {:?}", tracker.facts());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_dropped(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        Tracker::new(0).handle(&bytes);
    }

    #[test]
    fn any_numbers_and_order_are_survived(frames in proptest::collection::vec((0usize..7, any::<f64>(), -2i64..(1 << 40), any::<Option<u32>>()), 0..30)) {
        const EVENTS: [&str; 7] = ["train_begin", "epoch_begin", "batch_start", "batch_end", "epoch_end", "train_end", "x"];
        let mut tracker = Tracker::new(0);
        for (event, loss, epoch, batch) in frames {
            let frame = format!(r#"{{"event": "{}", "logs": {{"loss": {loss:?}}}, "epoch": {epoch}, "batch": {}}}"#,
                EVENTS[event], batch.map_or("null".into(), |b| b.to_string()));
            for event in tracker.handle(frame.as_bytes()) {
                let line = serde_json::to_string(&event).unwrap();
                let read = serde_json::from_str::<JobEvent>(&line).unwrap();
                prop_assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(&event), "{}", line);
            }
        }
    }
}
