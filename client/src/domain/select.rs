//! Which worker of a room: the one that was named, else the one that the invite came from, else the one with the most free GPU memory.

use shared::domain::{
    error::{Code, Failure},
    id::PeerId,
    message::{Gpu, Memory, WorkerInfo},
};

use super::{format, text};

/// GPUs that are named, at most.
const MAX_GPUS: usize = 8;
const UNKNOWN: &str = "memory unknown";

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
    let one = |gpu: &Gpu| match gpu.memory {
        Some(Memory { total, free }) => format!("{}, {} of {} free", gpu.name, format::memory(free), format::memory(total)),
        None => format!("{}, {UNKNOWN}", gpu.name),
    };
    gpus.iter().take(MAX_GPUS).map(one).collect::<Vec<_>>().join("; ")
}

/// The same for a list, equal GPUs together and each kind in at most `width` characters: `2 × NVIDIA H200, 140 GiB free`. Where one
/// kind is too long its name is cut, and never its memory.
pub fn gpus_in_short(gpus: &[Gpu], width: usize) -> String {
    let mut kinds: Vec<Vec<&Gpu>> = Vec::new();
    for gpu in gpus.iter().take(MAX_GPUS) {
        let same = |kind: &&mut Vec<&Gpu>| kind[0].name == gpu.name && kind[0].memory.is_some() == gpu.memory.is_some();
        match kinds.iter_mut().find(same) {
            Some(kind) => kind.push(gpu),
            None => kinds.push(vec![gpu]),
        }
    }
    if kinds.is_empty() {
        return "no GPU".into();
    }
    kinds.iter().map(|kind| kind_in_short(kind, width)).collect::<Vec<_>>().join("; ")
}

fn kind_in_short(kind: &[&Gpu], width: usize) -> String {
    let count = if kind.len() > 1 { format!("{} × ", kind.len()) } else { String::new() };
    let free = || kind.iter().filter_map(|gpu| gpu.memory).map(|memory| memory.free);
    let memory = match (free().min().map(format::memory), free().max().map(format::memory)) {
        (Some(least), Some(most)) if least == most => format!("{most} free"),
        (Some(least), Some(most)) => format!("{least} to {most} free"),
        _ => UNKNOWN.to_owned(),
    };
    let room = width.saturating_sub(count.chars().count() + 2 + memory.chars().count());
    format!("{count}{}, {memory}", text::shorten(&text::line(&kind[0].name), room))
}

fn free_gpu_memory(worker: &WorkerInfo) -> u64 {
    worker.gpus.iter().filter_map(|gpu| gpu.memory).map(|memory| memory.free).max().unwrap_or(0)
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
        let gpu = |free: &u64| gpu("A40", Some(*free));
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

    fn gpu(name: &str, free: Option<u64>) -> Gpu {
        Gpu { name: name.into(), memory: free.map(|free| Memory { total: 48 << 30, free: free << 30 }), driver: "1".into() }
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
        assert_eq!(gpus(&[gpu("A40", None)]), "A40, memory unknown");
    }

    #[test]
    fn in_short_equal_gpus_are_together_and_memory_is_never_cut() {
        let long = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition";
        let cases: [(&[Gpu], &str); 8] = [
            (&[], "no GPU"),
            (&[gpu("NVIDIA H200", Some(20))], "NVIDIA H200, 20.0 GiB free"),
            (&[gpu("H200", Some(20)), gpu("H200", Some(20))], "2 × H200, 20.0 GiB free"),
            (&[gpu("H200", Some(30)), gpu("H200", Some(20))], "2 × H200, 20.0 GiB to 30.0 GiB free"),
            (&[gpu("H200", Some(20)), gpu("T4", Some(2)), gpu("H200", Some(20))], "2 × H200, 20.0 GiB free; T4, 2.00 GiB free"),
            (&[gpu("H200", None), gpu("H200", None)], "2 × H200, memory unknown"),
            (&[gpu("H200", None), gpu("H200", Some(0))], "H200, memory unknown; H200, 0 B free"),
            (&[gpu(long, Some(20)), gpu(long, Some(30))], "2 × NVIDIA RTX PRO 6…, 20.0 GiB to 30.0 GiB free"),
        ];
        for (gpus, short) in cases {
            assert_eq!(gpus_in_short(gpus, 48), short);
        }
    }
}
