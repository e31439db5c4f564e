//! Reads `--exclude-disk`: `vdb`, or `vm1:vdb` for one domain.

use wildmatch::WildMatch;

use super::select::Selection;
use crate::model::left_out::{Exclusion, Exclusions};
use crate::model::text::shown;
use crate::ops::Host;

/// An item of the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    /// The domains to which the item applies: a name or a glob; `None` for all.
    domain: Option<String>,
    /// The disk's target.
    disk: String,
}

impl Item {
    /// Whether the item applies to this domain. An existing name that looks like a glob is taken as
    /// a name.
    fn is_for(&self, domain: &str, names: &[String]) -> bool {
        match &self.domain {
            None => true,
            Some(pattern) if names.contains(pattern) => pattern == domain,
            Some(pattern) => WildMatch::new(pattern).matches(domain),
        }
    }

    fn names_one(&self, names: &[String]) -> bool {
        self.domain.as_ref().is_some_and(|domain| names.contains(domain))
    }

    fn text(&self) -> String {
        match &self.domain {
            Some(domain) => format!("{}:{}", shown(domain), self.disk),
            None => self.disk.clone(),
        }
    }
}

/// Splits the arguments at commas and skips empty items. The disk follows the last colon of an
/// item. An argument that names an existing domain with a comma in its name is not split.
fn items(typed: &[String], names: &[String]) -> Result<Vec<Item>, String> {
    let mut items = Vec::new();
    for word in typed {
        let of_existing =
            |(domain, disk): &(&str, &str)| is_target(disk) && names.iter().any(|name| name == domain);
        let whole = word.rsplit_once(':').filter(of_existing);
        let parts: Vec<&str> = match whole {
            Some(_) => vec![word],
            None => word
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .collect(),
        };
        let mut last_domain = None;
        for part in parts {
            let (domain, disk) = match part.rsplit_once(':') {
                Some((domain, disk)) => (Some(domain), disk),
                None => (None, part),
            };
            if !is_target(disk) || domain == Some("") {
                return Err(format!(
                    "--exclude-disk takes a disk's target like vdb, or vm1:vdb for one domain, not '{}'",
                    shown(part)
                ));
            }
            // `vm1:vda,vdb` is ambiguous: a wrong guess would leave out too much.
            if let (None, Some(last)) = (domain, last_domain) {
                return Err(format!(
                    "ambiguous --exclude-disk: to leave out {disk} of {last}, write {last}:{disk}; to leave out {disk} of every domain, put {disk} first",
                    last = shown(last)
                ));
            }
            last_domain = domain;
            items.push(Item {
                domain: domain.map(str::to_owned),
                disk: disk.to_owned(),
            });
        }
    }
    Ok(items)
}

/// Whether the word can be the target of a disk.
fn is_target(word: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !word.is_empty() && word.bytes().all(is_allowed)
}

/// The disks that the user excludes.
pub struct Excluded {
    /// The excluded disks, by domain.
    pub of: Exclusions,
    /// The items that name a domain that does not exist.
    pub unused: Vec<String>,
}

/// Assigns the items to the selected domains. A missing disk is reported if the item names one
/// domain, or if no domain that the item applies to has such a disk.
///
/// # Errors
/// A sentence about an item that is invalid or ambiguous.
pub fn excluded(
    typed: &[String],
    selection: &Selection,
    names: &[String],
    host: &dyn Host,
) -> Result<Excluded, String> {
    let items = items(typed, names)?;
    let mut excluded = Excluded {
        of: Exclusions::new(),
        unused: Vec::new(),
    };
    if items.is_empty() {
        return Ok(excluded);
    }
    // A domain that cannot be read fails later, when it is backed up.
    let looked = selection.domains.iter().map(|name| (name, host.domain(name)));
    let domains: Vec<_> = looked
        .filter_map(|(name, domain)| Some((name, domain.ok()?)))
        .collect();
    for item in &items {
        if !names.iter().any(|name| item.is_for(name, names)) {
            excluded.unused.push(item.text());
        }
        let meant = || domains.iter().filter(|(name, _)| item.is_for(name, names));
        let is_expected =
            item.names_one(names) || !meant().any(|(_, domain)| domain.disk(&item.disk).is_some());
        for (name, _) in meant() {
            let of_domain = excluded.of.entry((*name).clone()).or_default();
            of_domain.push(Exclusion {
                disk: item.disk.clone(),
                is_expected,
            });
        }
    }
    Ok(excluded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn texts(typed: &[&str], names: &[&str]) -> Vec<String> {
        let items = items(&strings(typed), &strings(names)).expect("all are valid");
        items.iter().map(Item::text).collect()
    }

    #[test]
    fn lists_and_several_words_mix_and_empty_items_are_ignored() {
        assert_eq!(
            texts(&["vdb, vm1:vdc", "", " , ", "web-*:sda"], &[]),
            ["vdb", "vm1:vdc", "web-*:sda"]
        );
    }

    #[test]
    fn a_domain_may_hold_colons_and_an_existing_one_commas() {
        let names = ["a:b", "a,b"];
        let disks = |typed: &str| {
            let items = items(&strings(&[typed]), &strings(&names)).expect("valid");
            items
                .iter()
                .map(|item| (item.domain.clone(), item.disk.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(disks("a:b:vda"), [(Some("a:b".to_owned()), "vda".to_owned())]);
        assert_eq!(disks("a,b:vda"), [(Some("a,b".to_owned()), "vda".to_owned())]);
        assert_eq!(
            disks("a,c:vda"),
            [(None, "a".to_owned()), (Some("c".to_owned()), "vda".to_owned())]
        );
    }

    #[test]
    fn a_disk_after_one_of_a_single_domain_is_ambiguous() {
        let typed = strings(&["vm1:vda,vdb"]);
        let refused = items(&typed, &strings(&["vm1"])).expect_err("not guessed");
        assert!(refused.contains("vm1:vdb"), "{refused}");
        assert_eq!(texts(&["vdb,vm1:vda", "vdc"], &[]), ["vdb", "vm1:vda", "vdc"]);
    }

    #[test]
    fn what_names_no_disk_is_refused() {
        for typed in ["vm1:", ":vda", "vd*", "a/b", "vm1:v\u{e4}", "vda vdb", "vm1: vda"] {
            let refused = items(&strings(&[typed]), &[]).expect_err(typed);
            assert!(refused.contains("--exclude-disk"), "{refused}");
        }
    }

    #[test]
    fn globs_name_domains_and_a_name_like_a_glob_means_itself() {
        let names = strings(&["vm1", "vm*", "db"]);
        let is_for = |pattern: &str, domain: &str| {
            let item = Item {
                domain: Some(pattern.to_owned()),
                disk: "vda".to_owned(),
            };
            item.is_for(domain, &names)
        };
        assert!(is_for("v?1", "vm1") && !is_for("v?1", "db"));
        assert!(is_for("vm*", "vm*") && !is_for("vm*", "vm1"));
    }
}
