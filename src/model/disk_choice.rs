//! A disk that the user has chosen to restore. Pure.

use std::str::FromStr;

/// A disk of a restore point, and the disk onto which it is written if that is another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskChoice {
    /// The target of the disk in the restore point.
    pub disk: String,
    /// The other domain, and the target of its disk.
    pub onto: Option<(String, String)>,
}

/// The error for a text that does not name a disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected TARGET, or TARGET=DOMAIN:TARGET")]
pub struct NoDiskChoice;

impl FromStr for DiskChoice {
    type Err = NoDiskChoice;

    fn from_str(text: &str) -> Result<Self, NoDiskChoice> {
        let Some((disk, onto)) = text.split_once('=') else {
            let disk = text.to_owned();
            return Ok(DiskChoice { disk, onto: None });
        };
        // A domain's name may hold a colon, the target of a disk cannot.
        let (domain, target) = onto.rsplit_once(':').ok_or(NoDiskChoice)?;
        match [disk, domain, target].contains(&"") {
            true => Err(NoDiskChoice),
            false => Ok(DiskChoice {
                disk: disk.to_owned(),
                onto: Some((domain.to_owned(), target.to_owned())),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_may_name_the_disk_of_another_domain() {
        let read = |text: &str| text.parse::<DiskChoice>();
        let choice = |disk: &str, onto: Option<(&str, &str)>| {
            Ok(DiskChoice {
                disk: disk.to_owned(),
                onto: onto.map(|(domain, target)| (domain.to_owned(), target.to_owned())),
            })
        };
        assert_eq!(read("vda"), choice("vda", None));
        assert_eq!(read("vda=vm2:vdb"), choice("vda", Some(("vm2", "vdb"))));
        assert_eq!(read("vda=a:b=c:vdb"), choice("vda", Some(("a:b=c", "vdb"))));
        for wrong in ["vda=", "vda=vm2", "vda=:vdb", "vda=vm2:", "=vm2:vdb"] {
            assert_eq!(read(wrong), Err(NoDiskChoice), "{wrong}");
        }
    }
}
