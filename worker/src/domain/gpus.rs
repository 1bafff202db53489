//! Which of the machine's GPUs the trainer will see, and which changes of them are worth telling.

use shared::domain::message::{Gpu, Memory};

/// A change of free memory is told when it is more than this, or more than a hundredth of the GPU's memory.
const WORTH_TELLING: u64 = 256 << 20;

/// The indices of the devices that a program sees with this `CUDA_VISIBLE_DEVICES`, in the order in which it sees them; `None`: the
/// variable is not set. `uuids` are the machine's devices in the order of their indices; an unknown one is empty.
///
/// As CUDA reads it, and PyTorch (`_parse_visible_devices` in `torch/cuda/__init__.py`): indices or beginnings of UUIDs, not both; what
/// is neither, or no device, or several, ends the list; a device named twice leaves none.
pub fn visible(setting: Option<&str>, uuids: &[String]) -> Vec<usize> {
    let Some(setting) = setting else { return (0..uuids.len()).collect() };
    let by_uuid = ["GPU-", "MIG-"].into_iter().find(|prefix| setting.trim_start().starts_with(prefix));
    let mut seen = Vec::new();
    for word in setting.split(',').map(str::trim) {
        let found = match by_uuid {
            Some(prefix) => Some(word).filter(|word| word.starts_with(prefix)).and_then(|word| with_uuid(word, uuids)),
            None => index(word).filter(|index| *index < uuids.len()),
        };
        let Some(found) = found else { break };
        if seen.contains(&found) {
            return Vec::new();
        }
        seen.push(found);
    }
    seen
}

/// Whether one set of GPUs differs from what was told before by more than a little free memory.
pub fn differ(told: &[Gpu], now: &[Gpu]) -> bool {
    told.len() != now.len() || told.iter().zip(now).any(|(told, now)| differs(told, now))
}

fn differs(told: &Gpu, now: &Gpu) -> bool {
    let free = |gpu: &Gpu| gpu.memory.map_or(0, |memory| memory.free);
    let total = |gpu: &Gpu| gpu.memory.map(|Memory { total, .. }| total);
    let limit = WORTH_TELLING.min(total(now).unwrap_or(0) / 100);
    (&told.name, &told.driver, total(told)) != (&now.name, &now.driver, total(now)) || free(told).abs_diff(free(now)) > limit
}

/// The number that a word begins with: CUDA reads `1gpu` as 1.
fn index(word: &str) -> Option<usize> {
    let word = word.strip_prefix('+').unwrap_or(word);
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    word[..digits].parse().ok()
}

fn with_uuid(beginning: &str, uuids: &[String]) -> Option<usize> {
    let mut fitting = uuids.iter().enumerate().filter(|(_, uuid)| uuid.starts_with(beginning));
    let (index, _) = fitting.next()?;
    fitting.next().is_none().then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_visible_devices_is_read_as_cuda_reads_it() {
        let uuids = ["GPU-8f1a", "GPU-8f2b", "", "GPU-c003"].map(str::to_owned);
        let cases: [(Option<&str>, &[usize]); 27] = [
            (None, &[0, 1, 2, 3]),
            (Some(""), &[]),
            (Some("-1"), &[]),
            (Some("none"), &[]),
            (Some("NoDevFiles"), &[]),
            (Some("0"), &[0]),
            (Some("2,0"), &[2, 0]),
            (Some(" 1 , 3 "), &[1, 3]),
            (Some("+1"), &[1]),
            (Some("1gpu2,2ampere"), &[1, 2]),
            (Some("0,-1,1"), &[0]),
            (Some("0,4,1"), &[0]),
            (Some("0,,1"), &[0]),
            (Some("0,"), &[0]),
            (Some(","), &[]),
            (Some("99999999999999999999999"), &[]),
            (Some("0,1,0"), &[]),
            (Some("GPU-8f2b"), &[1]),
            (Some("GPU-c,GPU-8f1"), &[3, 0]),
            (Some("GPU-c003,GPU-8f,GPU-8f1a"), &[3]),
            (Some("GPU-8f1a,GPU-ffff,GPU-8f2b"), &[0]),
            (Some("GPU-8f1a,1"), &[0]),
            (Some("1,GPU-8f1a"), &[1]),
            (Some("GPU-8f1a,GPU-8f1"), &[]),
            (Some("gpu-8f1a"), &[]),
            (Some("MIG-1234"), &[]),
            (Some("ö,0"), &[]),
        ];
        for (setting, seen) in cases {
            assert_eq!(visible(setting, &uuids), seen, "{setting:?}");
        }
        assert_eq!(visible(Some("0"), &[]), [] as [usize; 0]);
    }

    fn gpu(name: &str, memory: Option<(u64, u64)>) -> Gpu {
        let memory = memory.map(|(total, free)| Memory { total: total << 20, free: free << 20 });
        Gpu { name: name.into(), memory, driver: "1".into() }
    }

    #[test]
    fn small_changes_of_free_memory_are_not_worth_telling() {
        let big = |free| vec![gpu("H200", Some((143_000, free)))];
        let small = |free| vec![gpu("T4", Some((15_000, free)))];
        let unknown = vec![gpu("T4", None)];
        let cases = [
            (vec![], vec![], false),
            (big(143_000), big(143_000), false),
            (big(143_000), big(142_744), false),
            (big(143_000), big(142_743), true),
            (big(1000), big(1257), true),
            (small(9000), small(9150), false),
            (small(9000), small(9151), true),
            (small(9000), small(8849), true),
            (small(9000), unknown.clone(), true),
            (unknown.clone(), small(9000), true),
            (unknown.clone(), unknown.clone(), false),
            (unknown, vec![], true),
            (small(9000), vec![gpu("T40", Some((15_000, 9000)))], true),
            (small(9000), vec![gpu("T4", Some((15_001, 9000)))], true),
            (small(9000), [small(9000), small(9000)].concat(), true),
        ];
        for (told, now, differ_much) in cases {
            assert_eq!(differ(&told, &now), differ_much, "{told:?} {now:?}");
        }
    }
}
