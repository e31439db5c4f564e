//! Formats names, errors and sizes for people.

/// A name for a message. Characters that would break the line or control the terminal are escaped.
pub fn shown(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() || is_invisible(character) {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

/// A word of a command for a message, quoted if a POSIX shell would change it or run a part of it.
pub fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:@%+,=".contains(c);
    let word = shown(word);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// An error with all its sources, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}

/// A size in decimal units with up to three significant digits, as npm's pretty-bytes writes it:
/// `14.3 GB`, `107 GB`, `1.02 kB`, `0 B`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let exponent = (count.ilog10() / 3) as usize;
    // Floating point as in pretty-bytes, so that ties are rounded in the same way.
    let value = count as f64 / 1000f64.powi(exponent as i32);
    format!("{} {}", three_digits(value), UNITS[exponent])
}

/// Three significant digits, exact ties rounded up, trailing zeroes dropped. `value` is from 1 to
/// 1000.
fn three_digits(value: f64) -> String {
    // The exact decimal expansion of such a number has fewer than 60 places.
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

/// Whether it is a line or paragraph separator, or a mark that changes the text direction.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_would_break_the_line_is_escaped() {
        assert_eq!(shown("web & \"db\" $(x) büro"), "web & \"db\" $(x) büro");
        assert_eq!(shown("a\tb\u{1b}[31m\u{202e}"), "a\\tb\\u{1b}[31m\\u{202e}");
    }

    #[test]
    fn words_of_commands_are_quoted_for_a_shell() {
        for plain in ["vm1", "/mnt/point", "büro-1.2"] {
            assert_eq!(shell_word(plain), plain);
        }
        assert_eq!(shell_word("a b;$(x)"), "'a b;$(x)'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
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
