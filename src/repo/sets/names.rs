//! Names of the files that virtnbdbackup writes. Pure.

/// The name of virtnbdbackup's checkpoints, without the number.
pub(super) const CHECKPOINT: &str = "virtnbdbackup.";

/// The ending of data files.
const DATA: &str = ".data";

/// A run of virtnbdbackup, as the names of its files show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Run {
    /// A full backup with a checkpoint (`full`) or without one (`copy`).
    Base,
    /// An incremental backup, with the number in the name of its checkpoint.
    Incremental(u64),
    /// A differential backup, with the time in the name of the file, in seconds since 1970.
    Differential(u64),
}

/// The level of a file with a whole disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    Full,
    Copy,
}

/// The name of a data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataName {
    /// The target of the disk.
    pub(super) target: String,
    /// The run.
    pub(super) run: Run,
    /// The level of a file of the base.
    pub(super) whole: Option<Whole>,
}

impl DataName {
    /// Reads `vda.full.data`, `vda.copy.data`, `vda.inc.virtnbdbackup.1.data` and
    /// `vda.diff.1732837463.data`. `None` for any other name.
    pub(super) fn parse(name: &str) -> Option<DataName> {
        let stem = name.strip_suffix(DATA)?;
        let of_base = |target: &str, whole| (target.to_owned(), Run::Base, Some(whole));
        let (target, run, whole) = if let Some(target) = stem.strip_suffix(".full") {
            of_base(target, Whole::Full)
        } else if let Some(target) = stem.strip_suffix(".copy") {
            of_base(target, Whole::Copy)
        } else if let Some((target, checkpoint)) = stem.rsplit_once(".inc.") {
            (
                target.to_owned(),
                Run::Incremental(checkpoint_number(checkpoint)?),
                None,
            )
        } else {
            let (target, time) = stem.rsplit_once(".diff.")?;
            (target.to_owned(), Run::Differential(number(time)?), None)
        };
        is_target(&target).then_some(DataName { target, run, whole })
    }
}

/// The number in the name of a checkpoint of virtnbdbackup; `None` for other names. Those of
/// vmsnap's own checkpoints have more digits than virtnbdbackup uses.
pub(super) fn checkpoint_number(name: &str) -> Option<u64> {
    number(name.strip_prefix(CHECKPOINT)?)
}

/// A number without superfluous zeroes and with at most 12 digits.
fn number(digits: &str) -> Option<u64> {
    let is_plain = (1..=12).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    is_plain.then(|| digits.parse().ok()).flatten()
}

/// Whether a text can be the target of a disk: letters, digits, `_`, `-` and `.`, as in libvirt's
/// definitions.
pub(super) fn is_target(text: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(safe) && !text.starts_with(['.', '-'])
}

/// The run of a file with the domain's definition, from its name: `vmconfig.virtnbdbackup.0.xml`,
/// `vmconfig.copy.xml`, `vmconfig.1732837463.xml`.
pub(super) fn config_run(name: &str) -> Option<Run> {
    let ident = name.strip_prefix("vmconfig.")?.strip_suffix(".xml")?;
    match (ident, checkpoint_number(ident)) {
        ("copy", _) | (_, Some(0)) => Some(Run::Base),
        (_, Some(number)) => Some(Run::Incremental(number)),
        _ => number(ident).map(Run::Differential),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(name: &str) -> Option<(String, Run)> {
        DataName::parse(name).map(|name| (name.target, name.run))
    }

    #[test]
    fn names_of_data_files_are_read() {
        let vda = |run| Some(("vda".to_owned(), run));
        assert_eq!(parsed("vda.full.data"), vda(Run::Base));
        assert_eq!(parsed("vda.copy.data"), vda(Run::Base));
        assert_eq!(parsed("vda.inc.virtnbdbackup.12.data"), vda(Run::Incremental(12)));
        assert_eq!(
            parsed("vda.diff.1732837463.data"),
            vda(Run::Differential(1_732_837_463))
        );
        let odd = "a.full.x-1.inc.virtnbdbackup.3.data";
        assert_eq!(parsed(odd), Some(("a.full.x-1".to_owned(), Run::Incremental(3))));
    }

    #[test]
    fn other_names_are_none() {
        for name in [
            "vda.data",
            ".full.data",
            "-x.full.data",
            "a b.full.data",
            "vda.full.data.partial",
            "vda.full.data.chksum",
            "vda.inc.data",
            "vda.inc.virtnbdbackup.data",
            "vda.inc.virtnbdbackup.01.data",
            "vda.inc.virtnbdbackup.1793667600000000000000000.data",
            "vda.diff.-1.data",
            "../x.full.data",
        ] {
            assert_eq!(DataName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn definitions_belong_to_their_runs() {
        assert_eq!(config_run("vmconfig.virtnbdbackup.0.xml"), Some(Run::Base));
        assert_eq!(config_run("vmconfig.copy.xml"), Some(Run::Base));
        assert_eq!(
            config_run("vmconfig.virtnbdbackup.7.xml"),
            Some(Run::Incremental(7))
        );
        assert_eq!(config_run("vmconfig.99.xml"), Some(Run::Differential(99)));
        assert_eq!(config_run("vmconfig.xml"), None);
    }

    proptest! {
        #[test]
        fn any_name_is_read_or_not(name in "\\PC{0,60}|[a-z.0-9]{0,20}\\.(inc|full|diff)[.a-z0-9]{0,30}\\.data") {
            if let Some(parsed) = DataName::parse(&name) {
                prop_assert!(is_target(&parsed.target) && name.starts_with(&parsed.target));
            }
        }
    }
}
