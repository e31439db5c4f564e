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
