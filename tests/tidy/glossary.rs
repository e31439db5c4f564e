//! Checks the words in names of types against the glossary.

use std::collections::{BTreeMap, BTreeSet};

/// Words whose meaning in names of types is the usual one in English or in programming.
const EVERYDAY: &str = "
    action active allowed amount beneath bounds buffer by call cause changes class compared concern connection content copied count covered daemons
    define description detail device dir done each edits ended ending entry error event exit extensions facts format found from guard group head header health held
    hold host id info inputs item judged key keys kind known layout left limit line link list listed live location lock locked look looks map mark meaning
    means monitor mount name named network new newest next no note now number of offer on options out outlook pending plan planned planner part pool
    preview progress proved read reader reason record ref report request result reuse round run runs server set setup silent simulated size small sizes state stats status step stop stored
    subject suspected system table target text time to trouble turn type uncompared unknown unusable use user wait waiting wanted watch which wishes wish word writer writing written
";

/// The words of a name in camel case, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for c in name.chars() {
        match words.last_mut() {
            Some(word) if !c.is_uppercase() => word.push(c),
            _ => words.push(c.to_lowercase().to_string()),
        }
    }
    words
}

/// The words that the glossary explains, which are in bold.
fn explained(glossary: &str) -> BTreeSet<String> {
    let bold = glossary.split("**").skip(1).step_by(2);
    let words = bold.flat_map(|term| term.split(|c: char| !c.is_alphanumeric()));
    words.map(str::to_lowercase).collect()
}

/// The types of a source file that other files may use.
fn exported_types(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line
            .strip_prefix("pub ")
            .or_else(|| line.strip_prefix("pub(crate) "))?;
        let kinds = ["struct ", "enum ", "trait ", "type "];
        let name = kinds.iter().find_map(|kind| rest.strip_prefix(kind))?;
        name.split(|c: char| !c.is_alphanumeric()).next()
    })
}

/// The words in names of these types that are neither in the glossary nor everyday words, each
/// with an example. Plurals and participles count as their stem.
pub fn unexplained<'a>(glossary: &str, texts: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let mut known = explained(glossary);
    known.extend(EVERYDAY.split_whitespace().map(str::to_owned));
    let is_known = |word: &str| {
        let stems = ["", "s", "d", "ed"].map(|ending| word.strip_suffix(ending));
        stems.into_iter().flatten().any(|stem| known.contains(stem))
    };
    let mut unexplained = BTreeMap::new();
    for name in texts.flat_map(exported_types) {
        for word in words(name).into_iter().filter(|word| !is_known(word)) {
            unexplained.insert(word, name.to_owned());
        }
    }
    unexplained
}

mod tests {
    use super::*;

    #[test]
    fn words_of_types_are_looked_up_in_bold_words() {
        let glossary = "| **restore point** | one moment |\n| **dirty bitmap** | written since |\n";
        let text = "/// Doc.\npub struct RestorePoints {\n}\npub enum FrobBitmap {}\nstruct Private;\npub fn f() {}\n";
        let found = unexplained(glossary, std::iter::once(text));
        assert_eq!(
            found,
            BTreeMap::from([("frob".to_owned(), "FrobBitmap".to_owned())])
        );
    }
}
