//! Reads where a domain's UEFI variables and the state of its TPM are.

use std::path::PathBuf;

use roxmltree::Node;

use super::{child, text};
use crate::model::firmware::{Nvram, Tpm, TpmPlace};

/// Reads the place of the UEFI variables from `<os>`.
///
/// The path is the text of `<nvram>` or, since libvirt 8.5, its `<source file=…>`. Other sources,
/// such as a block device, are only described. Without `<nvram>`, a writable firmware image holds
/// the variables.
pub(super) fn read_nvram(os: Node) -> Option<Nvram> {
    let Some(nvram) = child(os, "nvram") else {
        return writable_loader(os).map(Nvram::Loader);
    };
    let source = child(nvram, "source");
    let path = match source {
        Some(source) => source.attribute("file").unwrap_or_default().to_owned(),
        None => text(nvram).trim().to_owned(),
    };
    if !path.is_empty() {
        return Some(Nvram::File {
            path: path.into(),
            is_qcow2: nvram.attribute("format") == Some("qcow2"),
        });
    }
    source.map(|source| Nvram::Elsewhere(other_source(nvram.attribute("type"), source)))
}

/// Describes a source that is not a file.
fn other_source(kind: Option<&str>, source: Node) -> String {
    let named = ["dev", "name", "volume"]
        .into_iter()
        .find_map(|attribute| source.attribute(attribute));
    let what = match kind {
        Some("block") => "the block device",
        Some("network") => "an image on a server:",
        Some("volume") => "the storage volume",
        _ => "a source that vmsnap does not know:",
    };
    let protocol = source
        .attribute("protocol")
        .map(|protocol| format!("{protocol}:"));
    let (protocol, named) = (protocol.unwrap_or_default(), named.unwrap_or("without a name"));
    format!("{what} {protocol}{named}")
}

/// Returns the image of a firmware that keeps the variables within itself.
fn writable_loader(os: Node) -> Option<PathBuf> {
    let loader = child(os, "loader")?;
    let has = |attribute, value| loader.attribute(attribute) == Some(value);
    let is_writable = has("type", "pflash") && !has("readonly", "yes") && !has("stateless", "yes");
    let path = text(loader).trim().to_owned();
    (is_writable && os.attribute("firmware").is_none() && !path.is_empty()).then(|| path.into())
}

/// Reads a TPM from `<tpm>`; `None` if it is not emulated, because then there is no state to save.
pub(super) fn read_tpm(tpm: Node) -> Option<Tpm> {
    let backend = child(tpm, "backend").filter(|backend| backend.attribute("type") == Some("emulator"))?;
    // Since libvirt 10.10.
    let source = child(backend, "source");
    let path = source.and_then(|source| source.attribute("path"));
    let place = match (source.and_then(|source| source.attribute("type")), path) {
        (Some("file"), Some(path)) => TpmPlace::File(path.into()),
        (_, Some(path)) => TpmPlace::Folder(path.into()),
        (_, None) => TpmPlace::Usual,
    };
    let encryption = child(backend, "encryption");
    Some(Tpm {
        version: backend.attribute("version").unwrap_or("2.0").to_owned(),
        place,
        secret: encryption.map(|node| node.attribute("secret").unwrap_or_default().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::read_domain;
    use super::*;

    fn nvram(os: &str) -> Option<Nvram> {
        let xml = format!("<domain><name>x</name>{os}</domain>");
        read_domain(&xml).expect("well-formed").nvram
    }

    fn tpm(backend: &str) -> Option<Tpm> {
        let devices = format!("<devices><tpm model='tpm-crb'>{backend}</tpm></devices>");
        let xml = format!("<domain><name>x</name>{devices}</domain>");
        read_domain(&xml).expect("well-formed").tpm
    }

    #[test]
    fn every_spelling_of_the_variables_is_read() {
        for (os, expected) in [
            ("<os><nvram>\n /n.fd </nvram></os>", Some(Nvram::raw("/n.fd"))),
            (
                "<os><nvram type='file'><source file='/n.fd'/></nvram></os>",
                Some(Nvram::raw("/n.fd")),
            ),
            (
                "<os><nvram template='/t' templateFormat='qcow2' format='qcow2'>/n.qcow2</nvram></os>",
                Some(Nvram::File {
                    path: "/n.qcow2".into(),
                    is_qcow2: true,
                }),
            ),
            (
                "<os><nvram type='file' format='qcow2'><source file='/n.qcow2'/></nvram></os>",
                Some(Nvram::File {
                    path: "/n.qcow2".into(),
                    is_qcow2: true,
                }),
            ),
            (
                "<os><nvram type='block'><source dev='/dev/vg/n'/></nvram></os>",
                Some(Nvram::Elsewhere("the block device /dev/vg/n".into())),
            ),
            (
                "<os><nvram type='network'><source protocol='nbd' name='n'><host name='h'/></source></nvram></os>",
                Some(Nvram::Elsewhere("an image on a server: nbd:n".into())),
            ),
            ("<os firmware='efi'><nvram template='/t'/></os>", None),
            ("<os/>", None),
        ] {
            assert_eq!(nvram(os), expected, "{os}");
        }
    }

    #[test]
    fn a_writable_firmware_holds_the_variables_itself() {
        let loader = |attributes: &str, more: &str| {
            nvram(&format!("<os><loader {attributes}>/ovmf.fd</loader>{more}</os>"))
        };
        assert_eq!(
            loader("type='pflash' readonly='no'", ""),
            Some(Nvram::Loader("/ovmf.fd".into()))
        );
        for fixed in [
            "type='pflash' readonly='yes'",
            "type='rom'",
            "readonly='no'",
            "type='pflash' stateless='yes'",
        ] {
            assert_eq!(loader(fixed, ""), None, "{fixed}");
        }
        assert_eq!(
            loader("type='pflash' readonly='no'", "<nvram>/n</nvram>"),
            Some(Nvram::raw("/n"))
        );
    }

    #[test]
    fn a_tpm_is_read_with_its_version_place_and_secret() {
        for (backend, folder, place, secret) in [
            (
                "<backend type='emulator' version='2.0'/>",
                Some("tpm2"),
                TpmPlace::Usual,
                None,
            ),
            (
                "<backend type='emulator' version='1.2' persistent_state='yes'/>",
                Some("tpm1.2"),
                TpmPlace::Usual,
                None,
            ),
            ("<backend type='emulator'/>", Some("tpm2"), TpmPlace::Usual, None),
            (
                "<backend type='emulator' version='9'/>",
                None,
                TpmPlace::Usual,
                None,
            ),
            (
                "<backend type='emulator' version='2.0'><encryption secret='6dd3'/></backend>",
                Some("tpm2"),
                TpmPlace::Usual,
                Some("6dd3"),
            ),
            (
                "<backend type='emulator' version='2.0'><source type='dir' path='/t'/></backend>",
                Some("tpm2"),
                TpmPlace::Folder("/t".into()),
                None,
            ),
            (
                "<backend type='emulator' version='2.0'><source type='file' path='/t'/></backend>",
                Some("tpm2"),
                TpmPlace::File("/t".into()),
                None,
            ),
        ] {
            let found = tpm(backend).expect("it is emulated");
            assert_eq!(found.folder(), folder, "{backend}");
            assert_eq!(
                (found.place, found.secret.as_deref()),
                (place, secret),
                "{backend}"
            );
        }
        for other in [
            "",
            "<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
            "<backend type='external'><source type='unix' mode='connect' path='/s'/></backend>",
        ] {
            assert_eq!(tpm(other), None, "{other}");
        }
    }
}
