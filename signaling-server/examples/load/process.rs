//! What /proc says of the server and of this program.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

/// `USER_HZ`, which is 100 on every Linux that we know.
const TICKS: f64 = 100.0;
/// How long an idle server is looked at.
const IDLE: Duration = Duration::from_secs(3);

/// The server's process.
#[derive(Clone, Copy)]
pub(crate) struct Server {
    pub(crate) pid: u32,
}

fn status(pid: &str, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the server has gone")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<u64>()? * 1024)
}

fn cpu(pid: &str) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server has gone")?;
    let after_name = stat.rsplit_once(')').context("no name")?.1;
    let ticks: Vec<u64> = after_name.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() as f64 / TICKS)
}

impl Server {
    /// Resident memory: bytes.
    pub(crate) fn rss(self) -> anyhow::Result<u64> {
        status(&self.pid.to_string(), "VmRSS:")
    }

    /// Processor time so far: seconds.
    pub(crate) fn cpu(self) -> anyhow::Result<f64> {
        cpu(&self.pid.to_string())
    }

    /// The share of one processor that it takes while nothing is asked of it but pings.
    pub(crate) async fn idle_share(self) -> anyhow::Result<f64> {
        let (cpu, began) = (self.cpu()?, Instant::now());
        sleep(IDLE).await;
        Ok((self.cpu()? - cpu) / began.elapsed().as_secs_f64())
    }
}

/// Processor time of this program so far: seconds.
pub(crate) fn own_cpu() -> anyhow::Result<f64> {
    cpu("self")
}
