//! The machine's GPUs, through NVIDIA's management library; a machine without them has none, which is no error.
//!
//! * the library may block for as long as the driver likes: it is asked in a thread for such work, never twice at once, and whoever
//!   wants to know gets what was seen last
//! * the GPUs are those that a trainer will see, too: `CUDA_VISIBLE_DEVICES` is handed on to it

use std::{path::Path, sync::Arc, time::Duration};

use nvml_wrapper::{Device, Nvml, error::NvmlError};
use shared::domain::message::{Gpu, Memory};
use tokio::{
    sync::{Mutex, watch},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::domain::gpus::visible;

/// How long a look is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// What there is where NVIDIA's driver is.
const DRIVER: &str = "/dev/nvidiactl";

type Seen = Result<Vec<Gpu>, Unseen>;

/// The GPUs as they were seen last.
pub struct Gpus {
    ask: Arc<dyn Fn() -> Seen + Send + Sync>,
    patience: Duration,
    seen: watch::Sender<Vec<Gpu>>,
    looking: Mutex<Looking>,
}

/// Only one at a time looks.
#[derive(Default)]
struct Looking {
    under_way: Option<JoinHandle<Seen>>,
    /// Why there are none, as it was last told to people.
    told: Option<String>,
}

/// Why no GPU is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unseen {
    reason: String,
    /// Whether somebody might have expected one.
    surprising: bool,
}

impl Gpus {
    /// Those that a program with this `CUDA_VISIBLE_DEVICES` sees; none until the first look.
    pub fn new(visible_devices: Option<String>) -> Self {
        Self::asking(move || ask(visible_devices.as_deref()), PATIENCE)
    }

    fn asking(ask: impl Fn() -> Seen + Send + Sync + 'static, patience: Duration) -> Self {
        Gpus { ask: Arc::new(ask), patience, seen: watch::Sender::new(Vec::new()), looking: Mutex::default() }
    }

    /// What was seen last.
    pub fn seen(&self) -> Vec<Gpu> {
        self.seen.borrow().clone()
    }

    /// Looks again. A look that takes long is left to itself, and the next call waits for it instead of beginning another one.
    pub async fn look(&self) {
        let mut looking = self.looking.lock().await;
        let ask = self.ask.clone();
        let under_way = looking.under_way.get_or_insert_with(|| spawn_blocking(move || ask()));
        let seen = match timeout(self.patience, under_way).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(error)) => Err(Unseen { reason: format!("the look at them failed: {error}"), surprising: true }),
            Err(_) => {
                if let Some(reason) = news(&mut looking.told, Some("the driver does not answer".to_owned())) {
                    tracing::warn!("what is known of the GPUs may be old: {reason}; does nvidia-smi work?");
                }
                return;
            }
        };
        looking.under_way = None;
        let unseen = seen.as_ref().err().cloned();
        self.seen.send_replace(seen.unwrap_or_default());
        if let Some(unseen) = &unseen {
            tracing::debug!(reason = unseen.reason, "no GPU");
        }
        if let Some(reason) = news(&mut looking.told, unseen.filter(|unseen| unseen.surprising).map(|unseen| unseen.reason)) {
            tracing::warn!("no GPU is seen: {reason}; does nvidia-smi work?");
        }
    }
}

/// The reason, if it is another one than was told before.
fn news(told: &mut Option<String>, reason: Option<String>) -> Option<String> {
    let new = *told != reason;
    told.clone_from(&reason);
    reason.filter(|_| new)
}

/// Asks the driver; may block.
fn ask(visible_devices: Option<&str>) -> Seen {
    let nvml = Nvml::init().map_err(|error| unseen(&error, Path::new(DRIVER).exists()))?;
    let slices = visible_devices.is_some_and(|setting| setting.trim_start().starts_with("MIG-"));
    let devices = devices(&nvml, slices).map_err(|error| unseen(&error, true))?;
    let uuid = |device: &Option<Device>| device.as_ref().and_then(|device| device.uuid().ok()).unwrap_or_default();
    let uuids: Vec<String> = devices.iter().map(uuid).collect();
    let chosen = visible(visible_devices, &uuids);
    if chosen.is_empty() {
        let setting = visible_devices.unwrap_or_default().trim();
        let reason = format!("the driver knows {}, and CUDA_VISIBLE_DEVICES is {setting:?}", devices.len());
        return Err(Unseen { reason, surprising: !devices.is_empty() && !matches!(setting, "" | "-1") });
    }
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    Ok(chosen.into_iter().filter_map(|index| devices[index].as_ref()).map(|device| describe(device, &driver)).collect())
}

/// All GPUs by their indices, or their slices (MIG); one that does not answer has its index all the same.
fn devices(nvml: &Nvml, slices: bool) -> Result<Vec<Option<Device<'_>>>, NvmlError> {
    let gpus = (0..nvml.device_count()?).map(|index| nvml.device_by_index(index).ok());
    if !slices {
        return Ok(gpus.collect());
    }
    Ok(gpus.flatten().flat_map(slices_of).collect())
}

fn slices_of(gpu: Device<'_>) -> Vec<Option<Device<'_>>> {
    (0..gpu.mig_device_count().unwrap_or(0)).map(|index| gpu.mig_device_by_index(index).ok()).collect()
}

fn describe(device: &Device, driver: &str) -> Gpu {
    Gpu {
        name: device.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
        memory: device.memory_info().ok().map(|memory| Memory { total: memory.total, free: memory.free }),
        driver: driver.to_owned(),
    }
}

/// A machine without the library has no NVIDIA driver, unless there is a trace of one.
fn unseen(error: &NvmlError, driver: bool) -> Unseen {
    Unseen { reason: error.to_string(), surprising: driver || !matches!(error, NvmlError::LibloadingError(_)) }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    };

    use super::*;

    fn gpu() -> Gpu {
        Gpu { name: "T4".into(), memory: None, driver: "1".into() }
    }

    #[tokio::test]
    async fn a_machine_answers_with_or_without_a_gpu() {
        let gpus = Gpus::new(None);
        gpus.look().await;
        for gpu in gpus.seen() {
            assert!(!gpu.name.is_empty() && gpu.memory.is_none_or(|memory| memory.free <= memory.total));
        }
    }

    #[tokio::test]
    async fn a_driver_that_blocks_holds_nobody_up_and_is_asked_once() {
        let (release, released) = mpsc::channel();
        let (released, asked) = (std::sync::Mutex::new(released), Arc::new(AtomicU32::new(0)));
        let count = asked.clone();
        let ask = move || {
            count.fetch_add(1, Ordering::Relaxed);
            released.lock().unwrap().recv().unwrap();
            Ok(vec![gpu()])
        };
        let mut gpus = Gpus::asking(ask, Duration::from_millis(10));
        gpus.look().await;
        gpus.look().await;
        assert_eq!(gpus.seen(), []);
        gpus.patience = PATIENCE;
        release.send(()).unwrap();
        gpus.look().await;
        assert_eq!((gpus.seen(), asked.load(Ordering::Relaxed)), (vec![gpu()], 1));
        release.send(()).unwrap();
        gpus.look().await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_driver_that_fails_later_leaves_no_gpu() {
        let answers = std::sync::Mutex::new(vec![Err(Unseen { reason: "lost".into(), surprising: true }), Ok(vec![gpu()])]);
        let gpus = Gpus::asking(move || answers.lock().unwrap().pop().expect("the third look panics"), PATIENCE);
        gpus.look().await;
        assert_eq!(gpus.seen(), [gpu()]);
        gpus.look().await;
        assert_eq!(gpus.seen(), []);
        gpus.look().await;
        let told = gpus.looking.lock().await.told.clone().unwrap();
        assert!(told.contains("failed"), "{told}");
    }

    #[test]
    fn a_reason_is_told_once_as_long_as_it_stays() {
        let mut told = None;
        let looks = [None, Some("a"), Some("a"), Some("b"), None, None, Some("b")];
        let said = looks.map(|reason| news(&mut told, reason.map(str::to_owned)).is_some());
        assert_eq!(said, [false, true, false, true, false, false, true]);
    }

    #[test]
    fn only_a_machine_without_a_driver_lacks_a_gpu_in_silence() {
        assert!(unseen(&NvmlError::DriverNotLoaded, false).surprising, "the library is there");
        let Err(error) = Nvml::builder().lib_path("no-such-library.so".as_ref()).init() else { panic!("there is no such library") };
        assert!(!unseen(&error, false).surprising);
        assert!(unseen(&error, true).surprising);
    }
}
