//! Open files: each connection is one, and the usual soft limit of 1,024 is far below what the server's own limits allow.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::Limits;

/// The store, the listeners, the log and what the runtime has open.
const OWN: u64 = 100;

/// Raises the soft limit of open files to the hard one; returns what it then is. `None` is no limit.
///
/// # Errors
/// When the system refuses what it says is allowed; the limit is then as it was.
pub fn raise() -> std::io::Result<Option<u64>> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(current);
    }
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum)
}

/// What to tell the operator when as many files as that are too few for what the limits let in. A WebSocket is not counted among the
/// connections any more.
pub fn too_few(files: Option<u64>, limits: &Limits) -> Option<String> {
    let needed = (limits.sockets as u64).saturating_add(limits.connections as u64).saturating_add(OWN);
    let files = files.filter(|files| *files < needed)?;
    Some(format!(
        "the system allows {files} open files, and {} WebSockets with {} other connections can need {needed}: raise the hard limit \
         (systemd: LimitNOFILE={needed}; shell: ulimit -n), or lower limits.sockets and limits.connections; until then peers above it wait",
        limits.sockets, limits.connections
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise().unwrap(), hard);
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }

    #[test]
    fn only_a_limit_that_can_be_hit_is_told() {
        let limits = Limits { sockets: 1000, connections: 500, ..Limits::default() };
        assert_eq!(too_few(None, &limits), None);
        assert_eq!(too_few(Some(1600), &limits), None);
        let told = too_few(Some(1024), &limits).unwrap();
        assert!(told.contains("1024") && told.contains("LimitNOFILE=1600"), "{told}");
    }
}
