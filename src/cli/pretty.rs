//! Sizes and times for people.

/// A size in decimal units with three significant digits: `14.3 GB`, `107 GB`, `1.02 kB`, `0 B` (as npm's pretty-bytes writes them).
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let exponent = (count.ilog10() / 3) as usize;
    // Floating point as there: a tie in decimal that is none in binary is rounded alike.
    let value = count as f64 / 1000f64.powi(exponent as i32);
    format!("{} {}", three_digits(value), UNITS[exponent])
}

/// Three significant digits, exact ties rounded up, trailing zeroes dropped. `value` is from 1 to 1000.
fn three_digits(value: f64) -> String {
    // The exact decimal expansion of such a number has less than 60 places.
    let exact = format!("{value:.60}");
    let (whole, fraction) = exact.split_once('.').unwrap_or((&exact, ""));
    let places = 3usize.saturating_sub(whole.len());
    let kept: u64 = format!("{whole}{}", &fraction[..places]).parse().unwrap_or(0);
    let rounds_up = fraction
        .as_bytes()
        .get(places)
        .is_some_and(|digit| *digit >= b'5');
    let scaled = kept + u64::from(rounds_up);
    let divisor = 10u64.pow(places as u32);
    let text = format!("{}.{:0places$}", scaled / divisor, scaled % divisor);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

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

    #[test]
    fn sizes_have_three_significant_digits_and_decimal_units() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (1024, "1.02 kB"),
            (1125, "1.13 kB"),
            (1005, "1 kB"),
            (999_999, "1000 kB"),
            (14_293_934_080, "14.3 GB"),
            (107_374_182_400, "107 GB"),
            (u64::MAX, "18.4 EB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected, "{count}");
        }
    }
}
