//! The machine's GPUs, through NVIDIA's management library; a machine without them has none, which is no error.

use nvml_wrapper::Nvml;
use shared::domain::message::{Gpu, Memory};

/// The GPUs that there are at this moment, with their free memory. Empty where there is no GPU, no driver, or no answer.
///
/// Loads the driver's library and may take some milliseconds: call it where blocking is allowed.
pub fn list() -> Vec<Gpu> {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            tracing::debug!(%error, "no GPU");
            return Vec::new();
        }
    };
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "unknown".into());
    let count = nvml.device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| {
            let device = nvml.device_by_index(index).ok()?;
            Some(Gpu {
                name: device.name().unwrap_or_else(|_| "NVIDIA GPU".into()),
                memory: device.memory_info().ok().map(|memory| Memory { total: memory.total, free: memory.free }),
                driver: driver.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_answers_with_or_without_a_gpu() {
        for gpu in super::list() {
            assert!(!gpu.name.is_empty() && gpu.memory.is_none_or(|memory| memory.free <= memory.total));
        }
    }
}
