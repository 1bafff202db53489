//! Numbers as people read them.

use std::time::Duration;

use shared::domain::{id::JobId, job::Metric};

/// Bytes of files: decimal units, three significant digits (`512 B`, `1.25 MB`, `98.1 GB`).
pub fn bytes(bytes: u64) -> String {
    scaled(bytes, 1000.0, ["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Bytes of memory: binary units, as GPUs are sold (`24.0 GiB`).
pub fn memory(bytes: u64) -> String {
    scaled(bytes, 1024.0, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(bytes: u64, base: f64, units: [&str; 7]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit])
}

/// A span of time (`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`).
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", span.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// As [`duration`], of milliseconds.
pub fn millis(ms: u64) -> String {
    duration(Duration::from_millis(ms))
}

/// A count and its noun (`1 file`, `3 files`).
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A loss or another metric, four significant digits; what is not finite by its name.
pub fn metric(metric: Metric) -> String {
    let value = metric.0;
    match value.abs() {
        _ if value.is_nan() => "NaN".into(),
        size if size.is_infinite() => if value > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        size => {
            let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
            format!("{value:.digits$}")
        }
    }
}

/// The part of a job's id that people use.
pub fn short(job: &JobId) -> &str {
    job.as_str().get(..8).unwrap_or(job.as_str())
}

/// Unix seconds as `2026-11-20 09:20 UTC`.
pub fn date(unix: u64) -> String {
    // Days to civil date: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let days = (unix / 86_400).min(3_000_000) + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", unix % 86_400 / 3600, unix % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (value, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (99_960, "100 kB"),
            (999_999, "1.00 MB"),
            (1_250_000_000, "1.25 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(value), shown);
        }
        assert_eq!(memory(24_576 << 20), "24.0 GiB");
    }

    #[test]
    fn spans_use_the_unit_that_matters() {
        for (ms, shown) in [(430, "0.4 s"), (12_900, "12 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 05 min"), (273_600_000, "3 d 4 h")]
        {
            assert_eq!(millis(ms), shown);
        }
    }

    #[test]
    fn metrics_have_four_digits_or_a_name() {
        for (value, shown) in [
            (0.012_346, "0.01235"),
            (1.5, "1.500"),
            (1234.56, "1235"),
            (0.000_012_3, "1.230e-5"),
            (0.0, "0"),
            (-0.25, "-0.2500"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::MAX, "1.798e308"),
        ] {
            assert_eq!(metric(Metric(value)), shown);
        }
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_166_400 + 3_660), "2026-11-20 10:21 UTC");
        date(u64::MAX);
    }
}
