//! Names and errors as they are shown to people.

/// A name for a message: as it is, but for characters that would break the line or play with the terminal, which are escaped.
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

/// An error with everything beneath it, in one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(source) = below {
        text.push_str(&format!(": {source}"));
        below = source.source();
    }
    text
}

/// Line and paragraph separators, and marks that change the direction of what follows.
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
}
