//! Sizes and times for people.

pub use crate::model::text::bytes;

/// A length of time: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 4 min`.
pub fn seconds(time: std::time::Duration) -> String {
    let whole = time.as_secs();
    match whole {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// An estimate of the remaining time: `4 s`, `35 s`, `12 min`, `2 h 10 min`, `3 d`.
pub fn remaining(time: std::time::Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    let minutes = seconds.div_ceil(60);
    match seconds {
        0..=90 => format!("{seconds} s"),
        91..=7200 => format!("{minutes} min"),
        7201..=172_800 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} d", minutes.div_ceil(1440)),
    }
}

/// A number of bytes with its time and rate. If `count` is 0, the text is `nothing` and the time.
pub(crate) fn amount(count: u64, time: std::time::Duration, nothing: &str) -> String {
    if count == 0 {
        return format!("{nothing}, {}", seconds(time));
    }
    let rate = count as f64 / time.as_secs_f64().max(0.001);
    format!("{} in {} ({}/s)", bytes(count), seconds(time), bytes(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_time_is_rounded_up() {
        let shown = |seconds| remaining(std::time::Duration::from_secs_f64(seconds));
        assert_eq!(shown(0.01), "1 s");
        assert_eq!(shown(90.0), "90 s");
        assert_eq!(shown(91.0), "2 min");
        assert_eq!(shown(7200.0), "120 min");
        assert_eq!(shown(7799.0), "2 h 10 min");
        assert_eq!(shown(172_801.0), "3 d");
    }

    #[test]
    fn nothing_has_no_rate() {
        let time = std::time::Duration::from_millis(500);
        assert_eq!(amount(0, time, "no changes"), "no changes, 0.5 s");
        assert_eq!(amount(2_000_000, time, "no changes"), "2 MB in 0.5 s (4 MB/s)");
    }
}
