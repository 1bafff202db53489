//! Which job a person means: an id, the beginning of one, a name, or nothing at all.

use shared::domain::{
    error::{Code, Failure},
    job::{JobState, JobStatus},
};

/// The job that `wanted` names: its id, a unique beginning of it, or its name (the newest of that name). Without a name: the only
/// running one, else the newest. `jobs` is oldest first.
///
/// # Errors
/// [`Code::JobNotFound`], with what there is to choose from.
pub fn choose<'a>(jobs: &'a [JobStatus], wanted: Option<&str>) -> Result<&'a JobStatus, Failure> {
    let not_found = |why: String| Failure::new(Code::JobNotFound, why);
    let Some(wanted) = wanted else {
        let mut running = jobs.iter().filter(|job| job.state == JobState::Running);
        return match (running.next(), running.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(not_found(format!("several jobs are running; name one of them: {}", listed(jobs)))),
            (None, _) => {
                jobs.last().ok_or_else(|| not_found("the worker has no job yet; submit one with 'webrtc-client train'".to_owned()))
            }
        };
    };
    if let Some(job) = jobs.iter().find(|job| job.job.as_str() == wanted) {
        return Ok(job);
    }
    if let Some(job) = jobs.iter().rev().find(|job| job.name == wanted) {
        return Ok(job);
    }
    let mut matching = jobs.iter().filter(|job| job.job.as_str().starts_with(wanted));
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(not_found(format!("'{wanted}' begins several job ids; give more of it: {}", listed(jobs)))),
        (None, _) => Err(not_found(format!("the worker has no job '{wanted}'; it has: {}", listed(jobs)))),
    }
}

fn listed(jobs: &[JobStatus]) -> String {
    let shown: Vec<String> =
        jobs.iter().rev().take(8).map(|job| format!("{} ({})", &job.job.as_str()[..8.min(job.job.as_str().len())], job.name)).collect();
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::domain::job::Outcome;

    fn job(id: &str, name: &str, state: JobState) -> JobStatus {
        JobStatus {
            job: id.parse().unwrap(),
            name: name.into(),
            state,
            last_seq: 0,
            submitted_at: 0,
            message: String::new(),
            results: None,
        }
    }

    #[test]
    fn people_name_jobs_as_they_like() {
        let ended = JobState::Ended { outcome: Outcome::Completed };
        let jobs = [
            job("aaaa1111", "fly.zip", ended),
            job("aaaa2222", "mouse.zip", JobState::Running),
            job("bbbb3333", "fly.zip", JobState::Queued { ahead: 1 }),
        ];
        for (wanted, id) in [(None, "aaaa2222"), (Some("aaaa1"), "aaaa1111"), (Some("fly.zip"), "bbbb3333"), (Some("bbbb3333"), "bbbb3333")]
        {
            assert_eq!(choose(&jobs, wanted).unwrap().job.as_str(), id, "{wanted:?}");
        }
        for (wanted, says) in [("aaaa", "several job ids"), ("x", "mouse.zip")] {
            assert!(choose(&jobs, Some(wanted)).unwrap_err().message.contains(says));
        }
        assert!(choose(&[], None).unwrap_err().message.contains("no job yet"));
        assert_eq!(choose(&jobs[..1], None).unwrap().job.as_str(), "aaaa1111");
    }
}
