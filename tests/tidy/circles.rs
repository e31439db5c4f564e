//! Finds modules that import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path within the crate (`["ops", "heal"]`; empty for the root).
type Name = Vec<String>;

/// The modules of a crate, with the paths that their code uses.
pub struct Crate {
    modules: BTreeMap<Name, Paths>,
}

/// The paths in the code of one module.
#[derive(Default)]
struct Paths {
    /// Every path that the code names.
    named: BTreeSet<String>,
    /// The names that `use` brings into the module, each with the path it stands for.
    brought_in: BTreeMap<String, String>,
}

impl Crate {
    /// Reads source files, given as path below `src/` and text. Code of tests is skipped.
    pub fn read<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Crate {
        let files: Vec<(Name, String)> = files
            .map(|(path, text)| (module_name(path), product_code(text)))
            .collect();
        let tests: Vec<Name> = files
            .iter()
            .flat_map(|(name, code)| test_modules(name, code))
            .collect();
        let product = files
            .iter()
            .filter(|(name, _)| !tests.iter().any(|test| name.starts_with(test)));
        Crate {
            modules: product.map(|(name, code)| (name.clone(), paths(code))).collect(),
        }
    }

    /// The circles, each as one of the imports that form it.
    ///
    /// Only imports between siblings count, including those of the modules below them:
    /// `ops::restore::define` using `ops::heal::x` makes `ops::restore` import `ops::heal`. A
    /// module may use an item that its parent defines, such as `super::Error`, while the parent
    /// uses the module. A name that the parent only re-exports counts as defined by its own module.
    pub fn circles(&self) -> Vec<String> {
        let mut circles = Vec::new();
        for (parent, graph) in self.siblings() {
            for member in graph.keys().filter(|member| graph.can_reach_itself(member)) {
                let imports = &graph.0[member];
                let back = imports
                    .iter()
                    .filter(|(other, _)| graph.reachable(other).contains(member));
                for (other, (from, to)) in back {
                    circles.push(format!(
                        "{}: {member} and {other} ({} uses {})",
                        parent.join("::"),
                        from.join("::"),
                        to.join("::")
                    ));
                }
            }
        }
        circles
    }

    /// For each parent, the imports between its children.
    fn siblings(&self) -> BTreeMap<Name, Graph> {
        let mut siblings: BTreeMap<Name, Graph> = BTreeMap::new();
        for (from, paths) in &self.modules {
            for to in paths.named.iter().filter_map(|path| self.home(from, path, 0)) {
                let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                let (Some(child), Some(other)) = (from.get(common), to.get(common)) else {
                    continue;
                };
                let graph = siblings.entry(from[..common].to_vec()).or_default();
                let imports = graph.0.entry(child.clone()).or_default();
                imports
                    .entry(other.clone())
                    .or_insert_with(|| (from.clone(), to.clone()));
            }
        }
        siblings
    }

    /// The module that defines the item of a path, followed through `use`. `None` for other crates.
    fn home(&self, from: &Name, path: &str, depth: usize) -> Option<Name> {
        let (module, item) = self.locate(from, path)?;
        let passed_on = item.and_then(|item| self.modules[&module].brought_in.get(&item));
        match passed_on {
            Some(onward) if depth < 8 && onward != path => {
                self.home(&module, onward, depth + 1).or(Some(module))
            }
            _ => Some(module),
        }
    }

    /// The last module of a path, and the first name after it.
    fn locate(&self, from: &Name, path: &str) -> Option<(Name, Option<String>)> {
        let mut words = path.split("::").peekable();
        let mut at = from.clone();
        match words.peek().copied()? {
            "crate" => {
                at.clear();
                words.next();
            }
            "self" => {
                words.next();
            }
            "super" => {
                while words.next_if_eq(&"super").is_some() {
                    at.pop()?;
                }
            }
            word if !self.modules.contains_key(&child(&at, word)) => return None,
            _ => {}
        }
        while let Some(word) = words.next_if(|word| self.modules.contains_key(&child(&at, word))) {
            at.push(word.to_owned());
        }
        self.modules
            .contains_key(&at)
            .then(|| (at, words.next().map(str::to_owned)))
    }
}

/// The imports between siblings, each with one example: the importing and the imported module.
#[derive(Default)]
struct Graph(BTreeMap<String, BTreeMap<String, (Name, Name)>>);

impl Graph {
    fn keys(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    fn reachable(&self, from: &str) -> BTreeSet<&String> {
        let mut found = BTreeSet::new();
        let mut to_visit: Vec<&str> = vec![from];
        while let Some(at) = to_visit.pop() {
            for next in self.0.get(at).into_iter().flat_map(BTreeMap::keys) {
                if found.insert(next) {
                    to_visit.push(next);
                }
            }
        }
        found
    }

    fn can_reach_itself(&self, member: &String) -> bool {
        self.reachable(member).contains(member)
    }
}

fn child(parent: &[String], word: &str) -> Name {
    let mut name = parent.to_vec();
    name.push(word.to_owned());
    name
}

/// The name of the module in a file: `ops/heal.rs` and `ops/heal/mod.rs` are both `ops::heal`.
fn module_name(path: &str) -> Name {
    let path = path.trim_end_matches(".rs");
    let path = path.trim_end_matches("/mod");
    match path {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// The code without comments and without the tests at its end.
fn product_code(text: &str) -> String {
    let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("");
    let lines = product.lines().map(|line| line.split("//").next().unwrap_or(""));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// The modules that are declared for tests only.
fn test_modules(name: &Name, code: &str) -> Vec<Name> {
    let after = code.split("#[cfg(test)]").skip(1);
    let declared = after.filter_map(|rest| {
        let rest = rest
            .trim_start()
            .trim_start_matches("pub ")
            .strip_prefix("mod ")?;
        rest.split_once(';').map(|(word, _)| word)
    });
    declared
        .filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .map(|word| child(name, word))
        .collect()
}

fn paths(code: &str) -> Paths {
    let mut paths = Paths::default();
    let mut rest = code;
    while let Some((before, tree, after)) = next_use(rest) {
        paths.named.extend(inline_paths(before));
        for (path, name) in leaves("", tree) {
            paths.brought_in.insert(name, path.clone());
            paths.named.insert(path);
        }
        rest = after;
    }
    paths.named.extend(inline_paths(rest));
    paths
}

/// Splits the code at its next `use`: the text before it, its tree, the text after it.
fn next_use(code: &str) -> Option<(&str, &str, &str)> {
    let starts = code.match_indices("use ");
    let mut starts = starts.filter(|(at, _)| {
        let before = code[..*at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace())
    });
    let (at, word) = starts.next()?;
    let (tree, after) = code[at + word.len()..].split_once(';')?;
    Some((&code[..at], tree, after))
}

/// The paths of a `use` tree, each with the name it introduces.
fn leaves(prefix: &str, tree: &str) -> Vec<(String, String)> {
    let tree = tree.trim();
    let Some((head, group)) = tree.split_once('{') else {
        let (path, name) = match tree.split_once(" as ") {
            Some((path, name)) => (path.trim(), Some(name.trim())),
            None => (tree, None),
        };
        let path = format!("{prefix}{path}");
        let path = path.trim_end_matches("::self").to_owned();
        let last = path.rsplit("::").next().unwrap_or_default().to_owned();
        return vec![(path, name.map_or(last, str::to_owned))];
    };
    let prefix = format!("{prefix}{}", head.trim());
    let group = group.trim_end().trim_end_matches('}');
    let mut depth = 0;
    let parts = group.split(|c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        c == ',' && depth == 0
    });
    let parts = parts.filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| leaves(&prefix, part)).collect()
}

/// The paths in the code outside of `use` (`heal::undo`).
fn inline_paths(code: &str) -> impl Iterator<Item = String> {
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    words
        .filter(|word| word.contains("::"))
        .map(|word| word.trim_matches(':').to_owned())
}

mod tests {
    use super::Crate;

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        Crate::read(files.iter().copied()).circles()
    }

    #[test]
    fn two_modules_that_import_each_other_are_a_circle() {
        let files = [
            ("ops/mod.rs", "mod a;\nmod b;\n"),
            ("ops/a.rs", "use super::b::{self, C};\n"),
            ("ops/b.rs", "fn f() { crate::ops::a::g(); }\n"),
            ("lib.rs", "mod ops;\n"),
        ];
        let expected = [
            "ops: a and b (ops::a uses ops::b)",
            "ops: b and a (ops::b uses ops::a)",
        ];
        assert_eq!(circles(&files), expected);
        assert!(circles(&files[..2]).is_empty());
    }

    #[test]
    fn circle_of_three_through_children_is_found() {
        let files = [
            (
                "ops/mod.rs",
                "mod a;\nmod b;\nmod c;\npub use c::{x::Thing as T};\n",
            ),
            ("ops/a.rs", "use super::b;\n"),
            ("ops/b.rs", "mod deep;\n"),
            ("ops/b/deep.rs", "use crate::ops::{T};\n"),
            ("ops/c.rs", "mod x;\n"),
            ("ops/c/x.rs", "fn f() { super::super::a::g() }\n"),
            ("lib.rs", "mod ops;\n"),
        ];
        assert_eq!(circles(&files).len(), 3, "{:?}", circles(&files));
    }

    #[test]
    fn parents_children_comments_and_tests_are_no_circle() {
        let files = [
            (
                "ops/mod.rs",
                "mod a;\nmod b;\n#[cfg(test)]\nmod t;\npub struct Error;\nuse a::x;\n",
            ),
            ("ops/a.rs", "use super::{Error, t::y};\n// super::b\n"),
            (
                "ops/b.rs",
                "use super::a;\n#[cfg(test)]\nmod tests {\n use super::super::b;\n}\n",
            ),
            ("ops/t.rs", "use super::a;\n"),
            ("lib.rs", "mod ops;\n"),
        ];
        assert_eq!(circles(&files), Vec::<String>::new());
    }
}
