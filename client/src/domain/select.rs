//! Which worker of a room: the one that was named, else the one that the invite came from, else the one with the most free GPU memory.

use shared::domain::{
    error::{Code, Failure},
    id::PeerId,
    message::{Gpu, WorkerInfo},
};

use super::{format, text};

/// Chooses a worker. `wanted` is a name or a peer id, or a beginning of one that fits a single worker; `own` is the worker that
/// printed the invite.
///
/// # Errors
/// [`Code::PeerNotFound`] when there is none, [`Code::InvalidRequest`] when `wanted` fits none or several; the message lists them.
pub fn choose<'a>(workers: &'a [WorkerInfo], wanted: Option<&str>, own: &PeerId) -> Result<&'a WorkerInfo, Failure> {
    if workers.is_empty() {
        return Err(Failure::new(
            Code::PeerNotFound,
            "no worker is in the room at present: check that webrtc-worker is running, or ask for a new invite",
        ));
    }
    if let Some(wanted) = wanted {
        return named(workers, wanted);
    }
    let own = workers.iter().find(|worker| worker.peer == *own);
    Ok(own.unwrap_or_else(|| best(workers).expect("there is at least one worker")))
}

/// The worker with the most free memory on one GPU; among equals the one with fewer jobs, then the first by name.
pub fn best(workers: &[WorkerInfo]) -> Option<&WorkerInfo> {
    workers.iter().min_by_key(|worker| (std::cmp::Reverse(free_gpu_memory(worker)), worker.jobs, &worker.name, &worker.peer))
}

/// One line about a worker, for lists and prompts.
pub fn describe(worker: &WorkerInfo) -> String {
    let label = if worker.name == worker.peer.as_str() { worker.name.clone() } else { format!("{} ({})", worker.name, worker.peer) };
    text::line(&format!("{label}: {}, {}", gpus(&worker.gpus), format::count(worker.jobs.into(), "job")))
}

/// A worker's GPUs in a few words: `no GPU`, or name and free memory of each.
pub fn gpus(gpus: &[Gpu]) -> String {
    if gpus.is_empty() {
        return "no GPU".into();
    }
    let one = |gpu: &Gpu| format!("{}, {} of {} free", gpu.name, format::memory(gpu.memory_free), format::memory(gpu.memory));
    gpus.iter().take(8).map(one).collect::<Vec<_>>().join("; ")
}

fn free_gpu_memory(worker: &WorkerInfo) -> u64 {
    worker.gpus.iter().map(|gpu| gpu.memory_free).max().unwrap_or(0)
}

fn named<'a>(workers: &'a [WorkerInfo], wanted: &str) -> Result<&'a WorkerInfo, Failure> {
    let tests: [&dyn Fn(&WorkerInfo) -> bool; 3] = [&|worker| worker.peer.as_str() == wanted, &|worker| worker.name == wanted, &|worker| {
        worker.peer.as_str().starts_with(wanted) || worker.name.starts_with(wanted)
    }];
    for fits in tests {
        let found: Vec<&WorkerInfo> = workers.iter().filter(|worker| fits(worker)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one),
            _ => {
                return Err(refused(format!("'{wanted}' fits several workers: {}; name one by its peer id", list(found.into_iter()))));
            }
        }
    }
    Err(refused(format!("there is no worker '{wanted}' in the room; there are: {}", list(workers.iter()))))
}

fn list<'a>(workers: impl Iterator<Item = &'a WorkerInfo>) -> String {
    workers.take(20).map(|worker| format!("{} ({})", worker.name, worker.peer)).collect::<Vec<_>>().join(", ")
}

fn refused(message: String) -> Failure {
    Failure::new(Code::InvalidRequest, text::line(&message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(peer: &str, name: &str, free: &[u64], jobs: u32) -> WorkerInfo {
        let gpu = |free: &u64| Gpu { name: "A40".into(), memory: 48 << 30, memory_free: free << 30, driver: "1".into() };
        WorkerInfo {
            peer: peer.parse().unwrap(),
            name: name.into(),
            version: "0.1.0".into(),
            gpus: free.iter().map(gpu).collect(),
            trainers: vec![],
            jobs,
            disk_free: 0,
        }
    }

    fn room() -> Vec<WorkerInfo> {
        vec![worker("p-cpu", "lab-cpu", &[], 0), worker("p-two", "lab-two", &[10, 20], 3), worker("p-big", "lab-big", &[5, 20], 1)]
    }

    fn chosen(wanted: Option<&str>, own: &str) -> Result<String, Failure> {
        choose(&room(), wanted, &own.parse().unwrap()).map(|worker| worker.peer.to_string())
    }

    #[test]
    fn a_name_wins_then_the_invites_own_then_free_memory() {
        assert_eq!(chosen(Some("lab-cpu"), "p-two").unwrap(), "p-cpu");
        assert_eq!(chosen(Some("p-b"), "p-two").unwrap(), "p-big");
        assert_eq!(chosen(None, "p-two").unwrap(), "p-two");
        assert_eq!(chosen(None, "gone").unwrap(), "p-big", "equal memory, fewer jobs");
    }

    #[test]
    fn an_exact_name_is_not_ambiguous() {
        let workers = [worker("a", "gpu", &[], 0), worker("b", "gpu-2", &[], 0)];
        assert_eq!(choose(&workers, Some("gpu"), &"x".parse().unwrap()).unwrap().peer.as_str(), "a");
    }

    #[test]
    fn errors_list_the_candidates() {
        let several = chosen(Some("lab"), "p-two").unwrap_err();
        assert_eq!(several.code, Code::InvalidRequest);
        assert!(several.message.contains("lab-cpu (p-cpu), lab-two (p-two), lab-big (p-big)"), "{several}");
        let none = chosen(Some("mars"), "p-two").unwrap_err();
        assert!(none.message.contains("no worker 'mars'") && none.message.contains("lab-big"), "{none}");
        let empty = choose(&[], None, &"x".parse().unwrap()).unwrap_err();
        assert_eq!(empty.code, Code::PeerNotFound);
    }

    #[test]
    fn a_workers_own_words_are_escaped() {
        let failure = choose(&[worker("a", "x\x1b[2J", &[], 0)], Some("b"), &"x".parse().unwrap()).unwrap_err();
        assert!(!failure.message.contains('\x1b'), "{failure:?}");
        assert!(!describe(&worker("a", "x\x1b[2J", &[1], 0)).contains('\x1b'));
    }

    #[test]
    fn a_worker_without_a_gpu_says_so() {
        assert_eq!(describe(&room()[0]), "lab-cpu (p-cpu): no GPU, 0 jobs");
        assert_eq!(describe(&room()[2]), "lab-big (p-big): A40, 5.00 GiB of 48.0 GiB free; A40, 20.0 GiB of 48.0 GiB free, 1 job");
    }
}
