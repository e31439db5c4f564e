//! Selects domains by names, comma lists and globs.

use wildmatch::WildMatch;

/// The result of a selection.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Selection {
    /// The selected domains, each once, in the order of the patterns; those of a glob in the order
    /// of `names`.
    pub domains: Vec<String>,
    /// The patterns that match nothing.
    pub unmatched: Vec<String>,
}

/// Splits arguments into patterns: at commas, trimmed, without empty items. An argument that is the
/// name of an existing domain stays whole, even with commas or blanks in it.
pub(crate) fn patterns(typed: &[String], names: &[String]) -> Vec<String> {
    let mut patterns = Vec::new();
    for argument in typed {
        if names.contains(argument) {
            patterns.push(argument.clone());
            continue;
        }
        let items = argument.split(',').map(str::trim).filter(|item| !item.is_empty());
        patterns.extend(items.map(str::to_owned));
    }
    patterns
}

/// Selects the names that the patterns match. `*` matches any run of characters, `?` one character;
/// everything else is literal. A pattern that is an existing name selects only that name.
pub fn select(typed: &[String], names: &[String]) -> Selection {
    let mut selection = Selection::default();
    for pattern in patterns(typed, names) {
        let matcher = WildMatch::new(&pattern);
        let exact = names.iter().filter(|name| **name == pattern);
        let mut matching: Vec<&String> = exact.collect();
        if matching.is_empty() {
            matching = names.iter().filter(|name| matcher.matches(name)).collect();
        }
        if matching.is_empty() {
            selection.unmatched.push(pattern);
            continue;
        }
        for name in matching {
            if !selection.domains.contains(name) {
                selection.domains.push(name.clone());
            }
        }
    }
    selection
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn lists_and_globs_mix_and_the_first_place_wins() {
        let names = strings(&["web-2", "web-1", "db", "101"]);
        let found = select(&strings(&["db, web-?", "101", "*"]), &names);
        assert_eq!(found.domains, ["db", "web-2", "web-1", "101"]);
        assert!(found.unmatched.is_empty());
    }

    #[test]
    fn unmatched_patterns_are_reported_and_others_still_count() {
        let found = select(&strings(&["nope,db"]), &strings(&["db"]));
        assert_eq!(found.domains, ["db"]);
        assert_eq!(found.unmatched, ["nope"]);
    }

    #[test]
    fn brackets_braces_and_dots_are_literal() {
        let names = strings(&["a[1]", "a1", "a.b", "axb", "{a,b}"]);
        assert_eq!(select(&strings(&["a[1]"]), &names).domains, ["a[1]"]);
        assert_eq!(select(&strings(&["a.b"]), &names).domains, ["a.b"]);
        assert_eq!(select(&strings(&["{a,b}"]), &names).domains, ["{a,b}"]);
    }

    #[test]
    fn a_name_that_looks_like_a_glob_means_itself_first() {
        let names = strings(&["vm1", "vm*"]);
        assert_eq!(select(&strings(&["vm*"]), &names).domains, ["vm*"]);
    }
}
