use proptest::prelude::*;

use super::*;

const BUDGET: u64 = 64 << 20;

/// A path with a queue in front of it; each connection's bytes leave in the order in which they were handed over.
struct Path {
    /// Bytes a second.
    rate: f64,
    round_trip: Duration,
    /// Bytes that wait or are on their way, by connection: until when each is acknowledged.
    under_way: BTreeMap<u32, VecDeque<(Duration, usize)>>,
    free: Duration,
    /// The longest time that anything waited, since it was last looked at.
    waited: Duration,
}

impl Path {
    fn new(megabits: f64, round_trip: u64) -> Self {
        let round_trip = Duration::from_millis(round_trip);
        Path { rate: megabits * 125e3, round_trip, under_way: BTreeMap::new(), free: Duration::ZERO, waited: Duration::ZERO }
    }

    fn send(&mut self, now: Duration, connection: u32, bytes: usize) {
        let begin = self.free.max(now);
        self.waited = self.waited.max(begin - now);
        self.free = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        self.under_way.entry(connection).or_default().push_back((self.free + self.round_trip, bytes));
    }

    fn outstanding(&mut self, now: Duration, connection: u32) -> u64 {
        let queue = self.under_way.entry(connection).or_default();
        while queue.front().is_some_and(|&(at, _)| at <= now) {
            queue.pop_front();
        }
        queue.iter().map(|&(_, bytes)| bytes as u64).sum()
    }
}

/// Tells what is acknowledged by now.
fn look(windows: &mut Windows, path: &mut Path, now: Duration, connection: u32) {
    let delivered = windows.sent(connection) - path.outstanding(now, connection);
    windows.handle_delivered(now, connection, delivered);
}

/// Keeps these connections busy until then.
fn run(windows: &mut Windows, path: &mut Path, connections: &[u32], from: Duration, until: Duration) {
    let mut now = from;
    while now < until {
        for &connection in connections {
            look(windows, path, now, connection);
            while windows.room(connection) > 0 {
                let bytes = windows.room(connection).min(windows.piece());
                path.send(now, connection, bytes);
                windows.handle_sent(now, connection, bytes);
            }
        }
        now += windows.look_again();
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn opened(connections: &[u32]) -> Windows {
    let mut windows = Windows::new(BUDGET);
    connections.iter().for_each(|&connection| windows.opened(connection));
    windows
}

#[test]
fn a_path_is_filled_and_its_queue_stays_short() {
    for (megabits, round_trip) in [(1.0, 60), (20.0, 40), (100.0, 30), (1000.0, 1), (1000.0, 50), (400.0, 150)] {
        for connections in [&[1][..], &[1, 2, 3, 4], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]] {
            let (mut windows, mut path) = (opened(connections), Path::new(megabits, round_trip));
            run(&mut windows, &mut path, connections, seconds(0), seconds(3));
            let before = windows.delivered();
            path.waited = Duration::ZERO;
            run(&mut windows, &mut path, connections, seconds(3), seconds(5));
            let used = (windows.delivered() - before) as f64 / 2.0 / path.rate;
            let what = format!("{megabits} Mbit/s, {round_trip} ms, {} connections: {used:.2}, {:?}", connections.len(), path.waited);
            assert!(used > 0.93, "{what}");
            // What one byte of each connection takes on a thin path cannot be less.
            let least = connections.len() as f64 * 2.0 * MIN_PIECE / path.rate;
            let slack = if round_trip < 2 { SHORT_SLACK * 2.0 } else { SLACK * 4.0 };
            let most = path.round_trip.as_secs_f64() * 0.75 + slack + least;
            assert!(path.waited.as_secs_f64() < most.max(LEAST * 2.0 / path.rate), "{what}");
        }
    }
}

#[test]
fn the_search_ends_soon_after_a_queue_shows() {
    for (megabits, round_trip) in [(100.0, 30), (1000.0, 50), (20.0, 100)] {
        let (mut windows, mut path) = (opened(&[1]), Path::new(megabits, round_trip));
        run(&mut windows, &mut path, &[1], seconds(0), seconds(4));
        assert!(path.waited < path.round_trip * 5 / 2, "{megabits} Mbit/s, {round_trip} ms: {:?}", path.waited);
    }
}

#[test]
fn a_path_is_full_when_it_is_filled_and_not_when_each_connection_is_held_by_its_losses() {
    let connections = [1, 2, 3, 4];
    let (mut windows, mut path) = (opened(&connections), Path::new(20.0, 200));
    assert!(!windows.is_full(seconds(0)), "nothing is known");
    run(&mut windows, &mut path, &connections, seconds(0), seconds(8));
    assert!(windows.is_full(seconds(8)));
    assert!(!windows.is_full(seconds(11)), "what was seen so long ago says nothing");

    let (mut windows, mut path) = (opened(&connections), Path::new(100.0, 200));
    let mut now = seconds(0);
    while now < seconds(8) {
        for connection in connections {
            look(&mut windows, &mut path, now, connection);
            // What its congestion control lets go; a twentieth of the path with all four.
            if windows.room(connection) > 0 && path.outstanding(now, connection) < 32 << 10 {
                let bytes = windows.room(connection).min(windows.piece()).min(4096);
                path.send(now, connection, bytes);
                windows.handle_sent(now, connection, bytes);
            }
        }
        now += windows.look_again();
    }
    assert!(!windows.is_full(now));
}

#[test]
fn a_connection_that_stalls_gives_its_share_to_the_others() {
    let (mut windows, mut path) = (opened(&[1, 2]), Path::new(100.0, 30));
    run(&mut windows, &mut path, &[1, 2], seconds(0), seconds(3));
    let before = windows.delivered();
    for step in 0..3000 {
        // Nothing of the second one is delivered any more.
        let now = seconds(3) + Duration::from_millis(step);
        run(&mut windows, &mut path, &[1], now, now + Duration::from_millis(1));
    }
    let used = (windows.delivered() - before) as f64 / 3.0 / path.rate;
    assert!(used > 0.9, "{used}");
}

#[test]
fn a_connection_that_only_repairs_losses_is_stuck_and_others_are_not() {
    let (mut windows, mut path) = (opened(&[1, 2]), Path::new(1000.0, 50));
    run(&mut windows, &mut path, &[1, 2], seconds(0), seconds(2));
    let (lost, round_trip) = (windows.sent(2), path.round_trip);
    let under_way = path.under_way[&2].iter().map(|&(_, bytes)| bytes as u64).sum::<u64>();
    assert!(under_way > STUCK_BYTES);
    for round in 0..60 {
        // A packet in each round trip is all that it brings.
        let now = seconds(2) + round_trip * round;
        run(&mut windows, &mut path, &[1], now, now + round_trip);
        windows.handle_delivered(now, 2, lost - under_way + u64::from(round) * 1200);
        if windows.is_stuck(2) {
            assert!((18..32).contains(&round), "{round}");
            assert!(!windows.is_stuck(1));
            return;
        }
    }
    panic!("it was not noticed");
}

#[test]
fn a_path_that_carries_nothing_for_a_while_has_no_stuck_connections() {
    let (mut windows, mut path) = (opened(&[1, 2]), Path::new(100.0, 30));
    run(&mut windows, &mut path, &[1, 2], seconds(0), seconds(2));
    // Nothing arrives for 10 s; then one connection goes on before the other.
    let [one, two] = [1, 2].map(|connection| windows.flows[&connection].delivered);
    for step in 0..2000 {
        let now = seconds(2) + Duration::from_millis(5) * step;
        windows.handle_delivered(now, 1, one);
        windows.handle_delivered(now, 2, two);
    }
    windows.handle_delivered(seconds(12), 1, windows.sent(1));
    windows.handle_delivered(seconds(12), 2, two);
    assert!(![1, 2].iter().any(|&connection| windows.is_stuck(connection)));
    path.free = seconds(12);
    run(&mut windows, &mut path, &[1, 2], seconds(12), seconds(15));
    assert!(![1, 2].iter().any(|&connection| windows.is_stuck(connection)));
}

#[test]
fn a_slow_path_has_no_stuck_connections() {
    for (megabits, round_trip, count) in [(0.3, 300, 4), (1.0, 60, 16), (100.0, 200, 32)] {
        let connections: Vec<u32> = (1..=count).collect();
        let (mut windows, mut path) = (opened(&connections), Path::new(megabits, round_trip));
        for second in 0..20 {
            run(&mut windows, &mut path, &connections, seconds(second), seconds(second + 1));
            assert!(!connections.iter().any(|&connection| windows.is_stuck(connection)), "{megabits} Mbit/s, {second} s");
        }
    }
}

#[test]
fn regression_what_is_sent_while_somebody_looks_does_not_shorten_the_round_trip() {
    let (mut windows, mut path, mut now) = (opened(&[1, 2, 3, 4]), Path::new(100.0, 50), Duration::ZERO);
    while now < seconds(5) {
        for connection in 1..=4 {
            // Three tasks: one asks what was sent, another sends, and the first hears how much of all that is outstanding.
            let sent = windows.sent(connection);
            let outstanding = path.outstanding(now, connection);
            while windows.room(connection) > 0 {
                let bytes = windows.room(connection).min(windows.piece());
                path.send(now, connection, bytes);
                windows.handle_sent(now, connection, bytes);
            }
            windows.handle_delivered(now, connection, sent - outstanding);
        }
        now += windows.look_again();
    }
    assert!(windows.round_trip().unwrap() >= path.round_trip, "{windows}");
    assert!(windows.delivered() as f64 > path.rate * 3.5, "{windows}");
}

#[test]
fn a_longer_way_is_noticed() {
    let (mut windows, mut path) = (opened(&[1]), Path::new(100.0, 20));
    run(&mut windows, &mut path, &[1], seconds(0), seconds(3));
    path.round_trip = Duration::from_millis(90);
    run(&mut windows, &mut path, &[1], seconds(3), seconds(30));
    let before = windows.delivered();
    run(&mut windows, &mut path, &[1], seconds(30), seconds(34));
    let used = (windows.delivered() - before) as f64 / 4.0 / path.rate;
    assert!(used > 0.9, "{used}: {:?}", windows.round_trip());
}

#[test]
fn more_capacity_and_less_are_noticed() {
    for (first, then) in [(20.0, 200.0), (200.0, 20.0)] {
        let (mut windows, mut path) = (opened(&[1]), Path::new(first, 40));
        run(&mut windows, &mut path, &[1], seconds(0), seconds(3));
        path.rate = then * 125e3;
        run(&mut windows, &mut path, &[1], seconds(3), seconds(9));
        let before = windows.delivered();
        path.waited = Duration::ZERO;
        run(&mut windows, &mut path, &[1], seconds(9), seconds(12));
        let used = (windows.delivered() - before) as f64 / 3.0 / path.rate;
        assert!(used > 0.9 && path.waited < Duration::from_millis(60), "{first} → {then}: {used}, {:?}", path.waited);
    }
}

#[test]
fn a_pause_does_not_make_the_window_forget() {
    let (mut windows, mut path) = (opened(&[1]), Path::new(100.0, 30));
    run(&mut windows, &mut path, &[1], seconds(0), seconds(3));
    for step in 0..40 {
        let now = seconds(3) + Duration::from_millis(step * 5);
        look(&mut windows, &mut path, now, 1);
    }
    let before = windows.delivered();
    path.waited = Duration::ZERO;
    run(&mut windows, &mut path, &[1], seconds(8), seconds(9));
    let used = (windows.delivered() - before) as f64 / path.rate;
    assert!(used > 0.85 && path.waited < path.round_trip * 3 / 2, "{used}, {:?}", path.waited);
}

#[derive(Debug, Clone)]
enum Input {
    Opened(u32),
    Closed(u32),
    Sent(u32, usize),
    Delivered(u32, u64),
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        (0..5u32).prop_map(Input::Opened),
        (0..5u32).prop_map(Input::Closed),
        (0..5u32, 1..100_000usize).prop_map(|(connection, bytes)| Input::Sent(connection, bytes)),
        (0..5u32, prop_oneof![0..200_000u64, any::<u64>()]).prop_map(|(connection, bytes)| Input::Delivered(connection, bytes)),
    ]
}

#[test]
fn a_round_trip_that_turns_out_shorter_leaves_nobody_without_room() {
    let mut windows = Windows::new(4 << 20);
    let at = Duration::from_micros;
    windows.opened(4);
    windows.handle_sent(at(0), 4, 65_537);
    windows.handle_delivered(at(1000), 4, 13_700);
    windows.opened(3);
    windows.handle_delivered(at(4726), 4, 65_537);
    windows.handle_sent(at(4726), 3, 1);
    // The slack of a short path is larger, and so is the piece: with a window of less than one, connection 3 would have had no room, and nothing under way
    // whose delivery gives some.
    windows.handle_delivered(at(4726), 3, 1);
    let piece = windows.piece() as u64;
    assert!(windows.flows.values().all(|flow| flow.window >= 2 * piece), "{windows}: {}", windows.flows());
}

proptest! {
    #[test]
    fn whatever_happens_the_budget_is_kept_and_nobody_starves(inputs in proptest::collection::vec((0..50_000u64, input()), 0..400)) {
        let (mut windows, mut now) = (Windows::new(4 << 20), Duration::ZERO);
        for (micros, input) in inputs {
            now += Duration::from_micros(micros);
            match input {
                Input::Opened(connection) => windows.opened(connection),
                Input::Closed(connection) => windows.closed(connection),
                Input::Sent(connection, bytes) => windows.handle_sent(now, connection, bytes),
                Input::Delivered(connection, bytes) => windows.handle_delivered(now, connection, bytes),
            }
            let piece = windows.piece();
            prop_assert!((4096..=262_144).contains(&piece));
            let all: u64 = windows.flows.values().map(|flow| flow.window).sum();
            prop_assert!(all <= (4 << 20) + windows.flows.len() as u64 * 2 * piece as u64);
            prop_assert!(windows.flows.values().all(|flow| flow.window >= 2 * piece as u64), "a connection may always send something");
            prop_assert!((1..=10).contains(&windows.look_again().as_millis()));
        }
    }
}
