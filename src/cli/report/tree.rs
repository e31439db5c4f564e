//! A document before it is text: the same keys in the same order as JSON and as YAML.

use serde::{Serialize, Serializer};

/// A value of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// Nothing.
    Null,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Values in an order.
    List(Vec<Tree>),
    /// Values with keys, in the order in which they are written.
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// A text.
    pub fn text(text: impl Into<String>) -> Tree {
        Tree::Text(text.into())
    }

    /// A text, or nothing.
    pub fn text_or_null(text: Option<impl Into<String>>) -> Tree {
        text.map_or(Tree::Null, Tree::text)
    }

    /// A number, or nothing.
    pub fn number_or_null(number: Option<u64>) -> Tree {
        number.map_or(Tree::Null, Tree::Number)
    }

    /// Values with keys.
    pub fn map<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
        Tree::Map(
            entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }

    /// A list of texts.
    pub fn texts(texts: &[String]) -> Tree {
        Tree::List(texts.iter().map(Tree::text).collect())
    }

    /// As JSON, on one line or with two blanks for each level.
    pub fn json(&self, one_line: bool) -> String {
        let text = if one_line {
            serde_json::to_string(self)
        } else {
            serde_json::to_string_pretty(self)
        };
        // Keys are strings and numbers are whole: there is nothing in a tree that JSON lacks.
        text.unwrap_or_default()
    }

    /// As YAML, in the layout of the Node program: two blanks for each level, bare keys, texts in double quotes.
    pub fn yaml(&self) -> String {
        let mut text = String::new();
        write_yaml(self, 0, &mut text);
        text
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Tree::Null => serializer.serialize_unit(),
            Tree::Bool(value) => serializer.serialize_bool(*value),
            Tree::Number(value) => serializer.serialize_u64(*value),
            Tree::Text(value) => serializer.serialize_str(value),
            Tree::List(values) => serializer.collect_seq(values),
            Tree::Map(entries) => serializer.collect_map(entries.iter().map(|(key, value)| (key, value))),
        }
    }
}

/// Writes a value as its own lines, each with its line end, behind so many blanks.
fn write_yaml(value: &Tree, indent: usize, text: &mut String) {
    match value {
        Tree::Map(entries) if !entries.is_empty() => {
            for (key, value) in entries {
                text.push_str(&" ".repeat(indent));
                text.push_str(&yaml_key(key));
                text.push(':');
                write_behind(value, indent + 2, text);
            }
        }
        Tree::List(values) if !values.is_empty() => {
            for value in values {
                let mut lines = String::new();
                write_yaml(value, indent + 2, &mut lines);
                // The hyphen stands in the indentation of the value's first line.
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                text.push_str(lines.trim_start_matches(' '));
            }
        }
        single => {
            text.push_str(&" ".repeat(indent));
            text.push_str(&yaml_word(single));
            text.push('\n');
        }
    }
}

/// Writes the value of a key: behind the colon, or on lines of its own.
fn write_behind(value: &Tree, indent: usize, text: &mut String) {
    let mut lines = String::new();
    write_yaml(value, indent, &mut lines);
    let has_own_lines = match value {
        Tree::Map(entries) => !entries.is_empty(),
        Tree::List(values) => !values.is_empty(),
        _ => false,
    };
    if has_own_lines {
        text.push('\n');
        text.push_str(&lines);
    } else {
        text.push(' ');
        text.push_str(lines.trim_start_matches(' '));
    }
}

fn yaml_word(value: &Tree) -> String {
    match value {
        Tree::Null => "null".to_owned(),
        Tree::Bool(value) => value.to_string(),
        Tree::Number(value) => value.to_string(),
        Tree::Text(value) => quoted(value),
        Tree::List(_) => "[]".to_owned(),
        Tree::Map(_) => "{}".to_owned(),
    }
}

/// A key stands bare where it cannot be read as anything but this text (YAML 1.1 takes `no`, `on` and `1_0` for something else).
fn yaml_key(key: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let starts_well = key.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    let is_word = WORDS.iter().any(|word| key.eq_ignore_ascii_case(word));
    if starts_well && key.chars().all(is_plain) && !is_word {
        key.to_owned()
    } else {
        quoted(key)
    }
}

/// A text in double quotes, with the escapes that JSON and YAML share.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            // What YAML would not print, or would take for a line's end.
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            _ if character.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => quoted.push(character),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_has_the_layout_of_the_node_program() {
        let tree = Tree::map([
            (
                "vm1",
                Tree::map([
                    (
                        "checkpoints",
                        Tree::texts(&["virtnbdbackup.0".into(), "a\u{e9}\"b".into()]),
                    ),
                    (
                        "disks",
                        Tree::List(vec![
                            Tree::map([
                                ("disk", Tree::text("vda")),
                                ("virtualSize", Tree::Number(1)),
                                ("actualSize", Tree::text("0 B")),
                                ("bitmaps", Tree::List(vec![])),
                            ]),
                            Tree::map([
                                ("disk", Tree::text("vdb")),
                                ("bitmaps", Tree::texts(&["x".into()])),
                            ]),
                        ]),
                    ),
                    ("overallStatus", Tree::Number(0)),
                    ("backupDirStats", Tree::map([("path", Tree::text("/b/vm1"))])),
                ]),
            ),
            ("vm2", Tree::map([("next", Tree::Null), ("f", Tree::Map(vec![]))])),
        ]);
        // The first domain is what json-to-pretty-yaml 1.2.2 prints.
        let expected = "vm1:
  checkpoints:
    - \"virtnbdbackup.0\"
    - \"a\u{e9}\\\"b\"
  disks:
    - disk: \"vda\"
      virtualSize: 1
      actualSize: \"0 B\"
      bitmaps: []
    - disk: \"vdb\"
      bitmaps:
        - \"x\"
  overallStatus: 0
  backupDirStats:
    path: \"/b/vm1\"
vm2:
  next: null
  f: {}
";
        assert_eq!(tree.yaml(), expected);
    }

    #[test]
    fn a_name_that_yaml_would_take_for_something_else_is_quoted() {
        for name in [
            "101",
            "1.0",
            "no",
            "True",
            "a: b",
            "#x",
            "-",
            "",
            "a\nb",
            "$(rm)",
            "b\u{fc}ro",
            "~",
        ] {
            assert_eq!(yaml_key(name), quoted(name), "{name:?}");
        }
        for name in ["vm1", "web-1.example", "_x"] {
            assert_eq!(yaml_key(name), name);
        }
        assert_eq!(
            quoted("a\tb\u{1b}\u{85}\u{2028}"),
            "\"a\\tb\\u001b\\u0085\\u2028\""
        );
    }
}
