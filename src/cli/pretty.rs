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

/// How much in which time and how fast; where there is nothing, `nothing` says so in place of the amount.
pub fn amount(count: u64, time: std::time::Duration, nothing: &str) -> String {
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
    fn nothing_has_no_rate() {
        let time = std::time::Duration::from_millis(500);
        assert_eq!(amount(0, time, "no changes"), "no changes, 0.5 s");
        assert_eq!(amount(2_000_000, time, "no changes"), "2 MB in 0.5 s (4 MB/s)");
    }
}
