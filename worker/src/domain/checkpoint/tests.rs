//! The decisions, one by one and in random order.

use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn file(version: u64) -> Vec<Stamp> {
    vec![Stamp { inode: 1, size: 100, modified_ns: i128::from(version) * 1_000_000 }]
}

fn there(version: u64) -> Found {
    Found::There { stamps: file(version), sure: true }
}

fn epoch_started(epoch: u32) -> JobEvent {
    JobEvent::EpochStarted { step: 0, epoch }
}

fn epoch_ended(epoch: u32, loss: f64) -> JobEvent {
    JobEvent::EpochEnded { step: 0, epoch, metrics: Metrics::from([("val/loss".to_owned(), Metric(loss))]) }
}

/// Looks at its deadline until it wants a copy or rests; gives the time of that.
fn look_until(watch: &mut CheckpointWatch, mut now: Duration, found: &Found) -> (Duration, bool) {
    for _ in 0..10 {
        now = now.max(watch.deadline());
        watch.begin_look();
        if watch.handle_found(now, found) {
            return (now, true);
        }
    }
    (now, false)
}

#[test]
fn an_epochs_end_is_answered_with_a_copy_once_the_file_was_the_same_twice() {
    let mut watch = CheckpointWatch::new();
    assert_eq!(watch.deadline(), SLOW);
    watch.handle_event(ms(1000), 5000, &epoch_started(3));
    assert!(watch.handle_event(ms(2000), 6000, &epoch_ended(3, 0.5)));
    assert_eq!(watch.deadline(), ms(2000));
    watch.begin_look();
    assert!(!watch.handle_found(ms(2000), &there(5990)));
    assert_eq!(watch.deadline(), ms(2000) + QUIET);
    watch.begin_look();
    assert!(!watch.handle_found(ms(2100), &there(5999)), "another file than a moment ago");
    watch.begin_look();
    assert!(watch.handle_found(ms(2200), &there(5999)));
    assert_eq!(watch.origin(&file(5999)), (Some(3), Some(Metric(0.5))));
    watch.handle_copied(ms(2300), &file(5999), Copied::Whole, ms(100));
    assert_eq!(watch.deadline(), ms(2300) + SLOW);
    watch.begin_look();
    assert!(!watch.handle_found(ms(12300), &there(5999)), "nothing new");
}

#[test]
fn a_trainer_that_says_nothing_is_looked_at_now_and_then() {
    let mut watch = CheckpointWatch::new();
    let unsure = Found::There { stamps: file(1), sure: false };
    watch.begin_look();
    watch.handle_found(SLOW, &Found::Missing);
    assert_eq!(watch.deadline(), 2 * SLOW);
    assert_eq!(look_until(&mut watch, 2 * SLOW, &unsure), (2 * SLOW + QUIET_UNSURE, true));
    assert_eq!(watch.origin(&file(1)), (None, None));
}

#[test]
fn a_half_written_file_is_looked_at_ever_later_and_never_copied() {
    let mut watch = CheckpointWatch::new();
    watch.handle_event(ms(0), 0, &epoch_ended(0, 1.0));
    let mut waits = Vec::new();
    let mut now = watch.deadline();
    for _ in 0..8 {
        watch.begin_look();
        assert!(!watch.handle_found(now, &Found::Half));
        waits.push(watch.deadline() - now);
        now = watch.deadline();
    }
    assert_eq!(waits[..3], [ms(250), ms(500), ms(1000)]);
    assert_eq!(waits[7], SLOW);
}

#[test]
fn a_file_that_changes_under_the_copy_is_copied_afresh() {
    let mut watch = CheckpointWatch::new();
    watch.handle_event(ms(0), 0, &epoch_ended(0, 1.0));
    let (now, copy) = look_until(&mut watch, ms(0), &there(1));
    assert!(copy);
    watch.handle_copied(now, &file(1), Copied::Changed, ms(0));
    assert_eq!(watch.deadline(), now + RETRY);
    assert!(look_until(&mut watch, now, &there(2)).1);
}

#[test]
fn copies_leave_the_machine_alone_most_of_the_time() {
    let mut watch = CheckpointWatch::new();
    watch.handle_event(ms(0), 0, &epoch_ended(0, 1.0));
    let (now, _) = look_until(&mut watch, ms(0), &there(1));
    watch.handle_copied(now + ms(500), &file(1), Copied::Whole, ms(500));
    let copied = now + ms(500);
    watch.handle_event(copied + ms(10), 20, &epoch_ended(1, 0.9));
    assert_eq!(watch.deadline(), copied + ms(4500));
    assert_eq!(look_until(&mut watch, copied + ms(10), &there(2)), (copied + ms(4500) + QUIET, true));
    // The end of the trainer waits for nothing.
    let mut watch = CheckpointWatch::new();
    watch.handle_copied(ms(500), &file(1), Copied::Whole, ms(500));
    watch.handle_end(ms(600));
    assert_eq!(look_until(&mut watch, ms(600), &there(2)), (ms(600) + QUIET, true));
}

#[test]
fn what_is_said_during_a_copy_is_not_forgotten() {
    let mut watch = CheckpointWatch::new();
    watch.handle_event(ms(0), 0, &epoch_ended(0, 1.0));
    let (now, _) = look_until(&mut watch, ms(0), &there(1));
    watch.handle_event(now, 1, &epoch_ended(1, 0.9));
    watch.handle_copied(now + ms(10), &file(1), Copied::Whole, ms(10));
    assert_eq!(watch.deadline(), now + ms(100));
}

#[test]
fn a_full_disk_is_tried_again_later() {
    let mut watch = CheckpointWatch::new();
    watch.handle_event(ms(0), 0, &epoch_ended(0, 1.0));
    let (now, _) = look_until(&mut watch, ms(0), &there(1));
    watch.handle_copied(now, &file(1), Copied::Failed, ms(0));
    assert_eq!(watch.deadline(), now + SLOW);
    assert!(look_until(&mut watch, now, &there(1)).1);
}

#[test]
fn a_file_is_of_the_epoch_in_which_it_was_written() {
    let mut watch = CheckpointWatch::new();
    for epoch in 0..200u32 {
        watch.handle_event(ms(0), u64::from(epoch) * 1000, &epoch_started(epoch));
        watch.handle_event(ms(0), u64::from(epoch) * 1000 + 900, &epoch_ended(epoch, f64::from(epoch)));
    }
    assert_eq!(watch.epochs.len(), MAX_EPOCHS);
    // Written in 197 and looked at when two more had gone by.
    assert_eq!(watch.origin(&file(197_800)), (Some(197), Some(Metric(197.0))));
    assert_eq!(watch.origin(&file(900_000)).0, Some(199));
    assert_eq!(watch.origin(&file(5)), (None, None), "older than what is remembered");
}

#[test]
fn configurations_are_no_models() {
    let results = ["best.ckpt", "training_config.yaml", "a/b.JSON", "model"].map(str::to_owned);
    assert_eq!(models(&results), ["best.ckpt", "model"]);
}

proptest! {
    /// Whatever happens in whatever order: a copy is of files that were the same for a moment, and rests are kept.
    #[test]
    fn copies_are_quiet_and_rare(steps in proptest::collection::vec((0..4u8, 0..400u64, 0..3u64), 1..200)) {
        let mut watch = CheckpointWatch::new();
        let (mut now, mut version, mut changed) = (ms(0), 0u64, ms(0));
        let mut free_from = ms(0);
        for (what, wait, took) in steps {
            now += ms(wait);
            match what {
                0 => { version += 1; changed = now; }
                1 => { watch.handle_event(now, 0, &epoch_ended(0, 1.0)); }
                _ => {
                    watch.begin_look();
                    let found = if what == 2 { there(version) } else { Found::Half };
                    if watch.handle_found(now, &found) {
                        prop_assert!(now >= changed + QUIET && now >= free_from);
                        let took = ms(took * 100);
                        now += took;
                        let copied = [Copied::Whole, Copied::Changed][usize::from(version % 3 == 0)];
                        watch.handle_copied(now, &file(version), copied, took);
                        free_from = now + took * REST_FACTOR;
                    }
                    prop_assert!(watch.deadline() <= now + MAX_REST + SLOW);
                }
            }
        }
    }
}
