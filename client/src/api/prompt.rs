//! The one question that is asked: which of several workers.

use std::io::IsTerminal;

use dialoguer::{Select, console::Term, theme::ColorfulTheme};
use shared::domain::{id::PeerId, message::WorkerInfo};

use crate::domain::select;

/// Whether there is somebody to ask.
pub(super) fn is_possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks which worker to use; `None`: none, the user wants to leave.
pub(super) fn choose_worker(workers: &[WorkerInfo], own: &PeerId) -> Option<PeerId> {
    let best = select::best(workers).map(|worker| &worker.peer);
    let default = workers.iter().position(|worker| worker.peer == *own);
    let default = default.or_else(|| workers.iter().position(|worker| Some(&worker.peer) == best)).unwrap_or(0);
    let theme = ColorfulTheme::default();
    let choice = Select::with_theme(&theme)
        .with_prompt("Several workers are in the room; which one?")
        .items(workers.iter().map(select::describe))
        .default(default)
        .interact_on_opt(&Term::stderr());
    match choice {
        Ok(choice) => choice.and_then(|index| workers.get(index)).map(|worker| worker.peer.clone()),
        Err(_) => {
            // Interrupted: the cursor was hidden for the list. Nothing can be done if that fails.
            let _ = Term::stderr().show_cursor();
            None
        }
    }
}
