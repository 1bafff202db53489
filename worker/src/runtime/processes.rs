//! Process groups: who is in one, whether it is still the one that was meant, and how to end all of it.
//!
//! A process id alone proves nothing (ids are used again), so a group is remembered with its session, the leader's start time and
//! the machine's boot, and only processes that agree with all of them are signalled.

use std::{fs, time::Duration};

use rustix::process::{Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often a dying group is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long SIGKILL may take: a process in uninterruptible I/O (a dead network disk) does not go at once.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// A process group, as it can be recognised later, by another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The group's id: its leader's process id.
    pub pgid: i32,
    /// The session that it was made in.
    pub session: i32,
    /// When its leader started: clock ticks since boot.
    pub start: u64,
    /// Which boot.
    pub boot: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    zombie: bool,
    parent: i32,
    group: i32,
    session: i32,
    start: u64,
}

impl Group {
    /// The group of this leader; `None` if it is gone already.
    pub fn of(leader: u32) -> Option<Self> {
        let process = inspect(i32::try_from(leader).ok()?)?;
        Some(Group { pgid: process.group, session: process.session, start: process.start, boot: boot() })
    }

    /// The processes that are in it now, zombies left out.
    pub fn members(&self) -> Vec<i32> {
        if self.boot != boot() {
            return Vec::new();
        }
        let all: Vec<Process> = all().filter(|process| process.group == self.pgid && process.session == self.session).collect();
        // A leader that started at another time: the id was used again. Without a leader, no member can be older than it was.
        if all.iter().any(|process| process.pid == self.pgid && process.start != self.start) {
            return Vec::new();
        }
        all.into_iter().filter(|process| process.start >= self.start && !process.zombie).map(|process| process.pid).collect()
    }

    /// Ends the group: SIGTERM, after `grace` SIGKILL. Gives the processes that are left even so.
    pub async fn terminate(&self, grace: Duration) -> Vec<i32> {
        for (signal, wait) in [(Signal::TERM, grace), (Signal::KILL, KILL_WAIT)] {
            if self.members().is_empty() {
                break;
            }
            self.signal(signal);
            self.wait_empty(wait).await;
        }
        self.members()
    }

    /// Whether the group was seen to be empty within this time.
    pub async fn wait_empty(&self, wait: Duration) -> bool {
        let end = Instant::now() + wait;
        loop {
            if self.members().is_empty() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            // There is nothing to wait on for processes that are not our children.
            tokio::time::sleep(LOOK).await;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pgid)
            && let Err(error) = rustix::process::kill_process_group(pid, signal)
        {
            tracing::debug!(pgid = self.pgid, %error, "the group could not be signalled");
        }
    }
}

/// Makes the calling process the parent of every descendant whose own parent ends, so that none gets out of sight.
pub fn adopt_orphans() {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "orphans of the trainer will not be seen");
    }
}

/// Ends the calling process's children except `keep`: what left its group. Gives how many there were.
pub async fn end_adopted(keep: Option<u32>, grace: Duration) -> usize {
    let mut found = std::collections::BTreeSet::new();
    for (signal, wait) in [(Signal::TERM, grace), (Signal::KILL, KILL_WAIT)] {
        let end = Instant::now() + wait;
        let mut told = std::collections::BTreeSet::new();
        loop {
            // Each look may find new ones: the children of those that have just ended.
            let living = adopted(keep);
            for process in &living {
                found.insert(process.pid);
                if told.insert(process.pid)
                    && let Some(pid) = Pid::from_raw(process.pid)
                {
                    let _ = rustix::process::kill_process(pid, signal);
                }
            }
            if living.is_empty() {
                return found.len();
            }
            if Instant::now() >= end {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    found.len()
}

/// The calling process's living children except `keep`; dead ones are reaped on the way.
fn adopted(keep: Option<u32>) -> Vec<Process> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let keep = keep.and_then(|pid| i32::try_from(pid).ok());
    let children = all().filter(|process| process.parent == own && Some(process.pid) != keep);
    children
        .filter(|process| {
            if process.zombie {
                let _ = rustix::process::waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
            }
            !process.zombie
        })
        .collect()
}

fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| inspect(entry.file_name().to_str()?.parse().ok()?))
}

fn inspect(pid: i32) -> Option<Process> {
    parse_stat(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `/proc/<pid>/stat` (proc_pid_stat(5)): the name in parentheses may hold anything, so fields are counted from the last `)`.
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(Process {
        pid,
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: number(1)?,
        group: number(2)?,
        session: number(3)?,
        start: fields.get(19)?.parse().ok()?,
    })
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn a_process_name_may_hold_anything() {
        let stat = "7 (a) R 1 (x) S 5 6 4 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1000";
        let process = parse_stat(7, stat).unwrap();
        assert_eq!((process.zombie, process.parent, process.group, process.session, process.start), (false, 5, 6, 4, 9876));
        assert_eq!(parse_stat(7, ""), None);
        assert_eq!(parse_stat(7, "7 (x) Z 1"), None);
    }

    fn shell(script: &str) -> std::process::Child {
        Command::new("sh").args(["-c", script]).process_group(0).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Waits until the script has printed something.
    fn ready(child: &mut std::process::Child) {
        use std::io::Read;
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }

    #[tokio::test]
    async fn a_group_ends_whole_even_if_it_ignores_sigterm() {
        let mut child = shell("trap '' TERM; sleep 1000 & echo; wait; while true; do sleep 1000; done");
        ready(&mut child);
        let group = Group::of(child.id()).unwrap();
        assert!(group.members().len() >= 2, "{:?}", group.members());
        assert_eq!(group.terminate(Duration::from_millis(50)).await, [] as [i32; 0]);
        assert_eq!(group.members(), [] as [i32; 0]);
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn another_group_under_the_same_id_is_left_alone() {
        let mut child = shell("echo; sleep 1000");
        ready(&mut child);
        let group = Group::of(child.id()).unwrap();
        for other in [
            Group { start: group.start + 1, ..group.clone() },
            Group { session: group.session + 1, ..group.clone() },
            Group { boot: "another".into(), ..group.clone() },
        ] {
            assert_eq!(other.terminate(Duration::ZERO).await, [] as [i32; 0]);
            assert!(!group.members().is_empty(), "{other:?}");
        }
        group.terminate(Duration::from_secs(5)).await;
        child.wait().unwrap();
        assert_eq!(Group::of(child.id()), None);
    }
}
