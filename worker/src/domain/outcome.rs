//! How a step ended: decided from everything that is known, never from the exit code alone.
//!
//! A trainer that was ended by SIGTERM in the middle exits with 0; one whose losses are all NaN does, too. So success is: no
//! cancel asked, exit 0, `train_end` seen, the results there, and losses that are numbers.

use shared::domain::job::{Command, Outcome};

use super::{progress::Facts, trainer::Trainer};

/// How the trainer's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It returned this.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It could not be started: why.
    NotStarted(NotStarted),
}

/// Why a process could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStarted {
    /// There is no such program.
    NotFound,
    /// The file may not be executed.
    NotAllowed,
    /// Anything else.
    Other(String),
}

/// Everything that a step's outcome is decided by.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// Who trained.
    pub trainer: &'a Trainer,
    /// The program that was called.
    pub program: &'a str,
    /// What a client asked for and the trainer was told, the strongest.
    pub asked: Option<Command>,
    /// How the process ended.
    pub exit: Exit,
    /// What its messages said.
    pub facts: &'a Facts,
    /// Results that should be there and are not.
    pub missing: &'a [String],
    /// The last lines that it printed.
    pub last_lines: &'a [String],
}

/// The outcome, and one sentence about it: for a failure its cause and what to do.
pub fn judge(evidence: &Evidence<'_>) -> (Outcome, String) {
    if evidence.asked == Some(Command::Cancel) {
        let kept = if evidence.missing.is_empty() && evidence.facts.train_begin { "; the best model so far is kept" } else { "" };
        return (Outcome::Cancelled, format!("cancelled on request{kept}"));
    }
    if let Some(message) = failure(evidence) {
        return (Outcome::Failed, message);
    }
    let diverged = if evidence.facts.bad_losses > 0 && !evidence.facts.last_loss_finite {
        "; the loss ended as NaN or infinite: the model is the best one from before"
    } else {
        ""
    };
    match evidence.asked {
        Some(Command::Stop) => (Outcome::Stopped, format!("stopped on request; the model is whole{diverged}")),
        _ => (Outcome::Completed, format!("training and evaluation are complete{diverged}")),
    }
}

fn failure(evidence: &Evidence<'_>) -> Option<String> {
    let facts = evidence.facts;
    match &evidence.exit {
        Exit::NotStarted(why) => return Some(not_started(evidence, why)),
        Exit::Code(0) => {}
        exit => return Some(ended_badly(evidence, exit)),
    }
    // An operator's trainer need not send progress; one that began to must also have ended.
    let needs_end = !matches!(evidence.trainer, Trainer::Custom(_)) || facts.train_begin;
    if needs_end && !facts.train_end {
        return Some(if facts.train_begin {
            "the trainer exited as if all were well, but in the middle of training: somebody else may have ended it (SIGTERM). Submit the \
             job again"
                .to_owned()
        } else {
            let cause = diagnosis(evidence).unwrap_or_else(|| {
                "is the program really a trainer, and is its progress reporting (pyzmq) installed? See trainer.log on the worker".into()
            });
            format!("the trainer exited without having trained: {cause}")
        });
    }
    if !evidence.missing.is_empty() {
        let missing = evidence.missing.join(", ");
        return Some(format!("training ended, but {missing} was not written: is the worker's disk full? See trainer.log on the worker"));
    }
    if facts.bad_losses > 0 && facts.finite_losses == 0 {
        return Some("every loss was NaN or infinite, so the model is of no use: lower the learning rate, or check the labels".into());
    }
    None
}

fn not_started(evidence: &Evidence<'_>, why: &NotStarted) -> String {
    let program = evidence.program;
    match (why, evidence.trainer) {
        (NotStarted::NotFound, Trainer::SleapNn) => format!(
            "{program} was not found on the worker: install it there (pip install sleap-nn), or set sleap_nn in the worker's \
             webrtc-connect.toml to where it is"
        ),
        (NotStarted::NotFound, Trainer::SleapTrain) => format!(
            "{program} was not found on the worker: install SLEAP 1.4 or older there, or set sleap_train in the worker's webrtc-connect.toml \
             to where it is"
        ),
        (NotStarted::NotFound, Trainer::Custom(name)) => {
            format!("{program} was not found on the worker: install it there, or correct worker.trainers.{name}.command")
        }
        (NotStarted::NotAllowed, _) => format!("{program} may not be executed on the worker: check its permissions (chmod +x)"),
        (NotStarted::Other(error), _) => format!("{program} could not be started on the worker: {error}"),
    }
}

fn ended_badly(evidence: &Evidence<'_>, exit: &Exit) -> String {
    let how = match exit {
        Exit::Signal(9) => {
            return "the trainer was killed (SIGKILL), most often because the worker ran out of memory: reduce the batch size or the number of \
                    data-loader workers"
                .to_owned();
        }
        Exit::Signal(11 | 7 | 6) => "the trainer crashed".to_owned(),
        Exit::Signal(signal) => format!("the trainer was ended by signal {signal}"),
        Exit::Code(code) => format!("the trainer failed with exit code {code}"),
        Exit::NotStarted(_) => String::new(),
    };
    let cause = diagnosis(evidence).or_else(|| last_error(evidence.last_lines));
    match cause {
        Some(cause) => format!("{how}: {cause}"),
        None => format!("{how} and printed nothing that says why; see trainer.log on the worker"),
    }
}

/// What people meet most, by a part of the line that tells it (lower case), and what to do.
const KNOWN: [(&str, &str); 14] = [
    ("address already in use", "a port is taken: another trainer or SLEAP's own monitor runs on the worker with fixed ports; end it"),
    ("cuda out of memory", "the GPU's memory is too small: reduce the batch size or the input scale, or end what else runs on it"),
    ("outofmemoryerror", "the GPU's memory is too small: reduce the batch size or the input scale, or end what else runs on it"),
    ("cublas_status_alloc_failed", "the GPU's memory is too small: reduce the batch size or the input scale, or end what else runs on it"),
    ("resource exhausted: oom", "the GPU's memory is too small: reduce the batch size or the input scale, or end what else runs on it"),
    ("no kernel image is available", "the installed PyTorch does not know this GPU: install the build that fits it"),
    ("nvidia driver on your system is too old", "the worker's NVIDIA driver is too old for the installed PyTorch: update one of them"),
    ("modulenotfounderror", "a Python package is missing on the worker: install it in the trainer's environment"),
    ("importerror", "a Python package on the worker is broken or of the wrong version: reinstall the trainer's environment"),
    ("no space left on device", "the worker's disk is full: free space, and submit the job again"),
    ("no labeled frames", "the labels hold no labelled frames: export the package again from SLEAP"),
    ("video file not found", NO_IMAGES),
    ("could not find backend for video", NO_IMAGES),
    ("filenotfounderror", NO_IMAGES),
];

const NO_IMAGES: &str = "a file is missing, most often because a plain .slp names videos on another machine: use SLEAP's \"Export training job \
                         package\", whose .pkg.slp holds the images";

/// The cause and remedy that the last lines tell, with the line itself.
fn diagnosis(evidence: &Evidence<'_>) -> Option<String> {
    // From the end: the last line that says something known is the one that ended it.
    evidence.last_lines.iter().rev().find_map(|line| {
        let lower = line.to_lowercase();
        let (_, remedy) = KNOWN.iter().find(|(part, _)| lower.contains(part))?;
        Some(format!("{remedy} ({})", shorten(line)))
    })
}

/// The last line that looks like the end of a traceback, or the last line of all.
fn last_error(lines: &[String]) -> Option<String> {
    let is_error = |line: &&String| {
        let head = line.split(':').next().unwrap_or_default();
        head.len() < 80 && !head.contains(' ') && (head.ends_with("Error") || head.ends_with("Exception"))
    };
    let line = lines.iter().rev().find(is_error).or_else(|| lines.last())?;
    Some(shorten(line))
}

fn shorten(line: &str) -> String {
    let line = line.trim();
    if line.chars().count() <= 300 { line.to_owned() } else { line.chars().take(299).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(train_begin: bool, train_end: bool, finite: u64, bad: u64) -> Facts {
        Facts { train_begin, train_end, finite_losses: finite, bad_losses: bad, last_loss_finite: bad == 0 }
    }

    fn judged(asked: Option<Command>, exit: Exit, facts: &Facts, missing: &[&str], lines: &[&str]) -> (Outcome, String) {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        judge(&Evidence {
            trainer: &Trainer::SleapNn,
            program: "sleap-nn",
            asked,
            exit,
            facts,
            missing: &owned(missing),
            last_lines: &owned(lines),
        })
    }

    /// The measured table: what happened, exit, train_end, what is on disk.
    #[test]
    fn outcomes_are_as_measured() {
        const ALL: &[&str] = &[];
        const NO_CKPT: &[&str] = &["best.ckpt"];
        let (whole, begun, nothing) = (facts(true, true, 5, 0), facts(true, false, 5, 0), facts(false, false, 0, 0));
        let nan = facts(true, true, 0, 5);
        let (stop, cancel) = (Some(Command::Stop), Some(Command::Cancel));
        for (what, asked, exit, facts, missing, expected) in [
            ("normal", None, Exit::Code(0), &whole, ALL, Outcome::Completed),
            ("ZMQ stop", stop, Exit::Code(0), &whole, ALL, Outcome::Stopped),
            ("all losses NaN", None, Exit::Code(0), &nan, ALL, Outcome::Failed),
            ("stopped with NaN", stop, Exit::Code(0), &nan, ALL, Outcome::Failed),
            ("an exception", None, Exit::Code(1), &nothing, NO_CKPT, Outcome::Failed),
            ("an exception after a stop", stop, Exit::Code(1), &begun, NO_CKPT, Outcome::Failed),
            ("somebody's SIGTERM while importing", None, Exit::Signal(15), &nothing, NO_CKPT, Outcome::Failed),
            ("somebody's SIGTERM in training", None, Exit::Code(0), &begun, ALL, Outcome::Failed),
            ("cancelled while importing", cancel, Exit::Signal(15), &nothing, NO_CKPT, Outcome::Cancelled),
            ("cancelled in training", cancel, Exit::Code(0), &begun, ALL, Outcome::Cancelled),
            ("cancelled with data-loader workers", cancel, Exit::Code(1), &begun, NO_CKPT, Outcome::Cancelled),
            ("cancelled, ranks hang, killed", cancel, Exit::Signal(9), &begun, NO_CKPT, Outcome::Cancelled),
            ("cancelled after train_end", cancel, Exit::Code(0), &whole, ALL, Outcome::Cancelled),
            ("no checkpoint", None, Exit::Code(0), &whole, NO_CKPT, Outcome::Failed),
            ("exit 0 and nothing else", None, Exit::Code(0), &nothing, ALL, Outcome::Failed),
            ("killed", None, Exit::Signal(9), &begun, ALL, Outcome::Failed),
        ] {
            let (outcome, message) = judged(asked, exit, facts, missing, &[]);
            assert_eq!(outcome, expected, "{what}: {message}");
            assert!(!message.is_empty());
        }
    }

    #[test]
    fn a_failure_names_cause_and_remedy() {
        let nothing = facts(false, false, 0, 0);
        for (exit, lines, words) in [
            (Exit::NotStarted(NotStarted::NotFound), vec![], vec!["sleap-nn was not found", "pip install sleap-nn", "sleap_nn"]),
            (Exit::NotStarted(NotStarted::NotAllowed), vec![], vec!["chmod +x"]),
            (Exit::Signal(9), vec![], vec!["memory", "batch size"]),
            (Exit::Signal(11), vec!["Fatal Python error: Segmentation fault"], vec!["crashed", "Segmentation fault"]),
            (Exit::Code(1), vec!["Traceback", "torch.OutOfMemoryError: CUDA out of memory. Tried"], vec!["batch size", "Tried"]),
            (Exit::Code(1), vec!["ModuleNotFoundError: No module named 'zmq'"], vec!["install", "'zmq'"]),
            (Exit::Code(1), vec!["zmq.error.ZMQError: Address already in use"], vec!["port is taken"]),
            (
                Exit::Code(1),
                vec!["FileNotFoundError: [Errno 2] No such file: '/home/x/a.mp4'"],
                vec!["Export training job package", "a.mp4"],
            ),
            (
                Exit::Code(1),
                vec!["Traceback", "  raise ValueError", "ValueError: bad sigma", "cleanup done"],
                vec!["exit code 1", "ValueError: bad sigma"],
            ),
            (Exit::Code(3), vec![], vec!["exit code 3", "trainer.log"]),
            (Exit::Code(0), vec!["ImportError: libcuda"], vec!["without having trained", "libcuda"]),
        ] {
            let (outcome, message) = judged(None, exit, &nothing, &["best.ckpt"], &lines);
            assert_eq!(outcome, Outcome::Failed);
            for word in words {
                assert!(message.contains(word), "{word:?} in {message}");
            }
        }
    }

    #[test]
    fn an_operators_trainer_need_not_send_progress() {
        let judged = |facts: &Facts| {
            let trainer = Trainer::Custom("mine".into());
            let evidence =
                Evidence { trainer: &trainer, program: "t", asked: None, exit: Exit::Code(0), facts, missing: &[], last_lines: &[] };
            judge(&evidence).0
        };
        assert_eq!(judged(&facts(false, false, 0, 0)), Outcome::Completed);
        assert_eq!(judged(&facts(true, false, 3, 0)), Outcome::Failed);
    }

    #[test]
    fn a_loss_that_diverged_late_leaves_a_good_model_and_a_warning() {
        let (outcome, message) = judged(None, Exit::Code(0), &facts(true, true, 9, 2), &[], &[]);
        assert_eq!(outcome, Outcome::Completed);
        assert!(message.contains("NaN"), "{message}");
    }
}
