//! Locations of repositories, as a user gives them.
//!
//! * `s3:https://HOST[:PORT]/BUCKET[/PREFIX]`: a bucket of any S3 server. `http:` is accepted for
//!   this machine only, because requests hold names and sizes in the clear.
//! * `s3://BUCKET[/PREFIX]`: a bucket at AWS.
//! * `pack:DIRECTORY`: the same objects as files in a folder.
//! * Anything else is the path of a folder with chains of images. `./s3:x` is a path, too.

use std::ffi::OsStr;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::error::{PackError, Result};
use super::objects::{BucketLocation, is_segment};
use crate::model::text::shown;

/// The longest prefix in bytes: with a name of an object it has to fit into a key of S3.
const LONGEST_PREFIX: usize = 512;

/// The longest host name in bytes (RFC 1035).
const LONGEST_HOST: usize = 253;

/// Where a pack repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackLocation {
    /// In a folder.
    Folder(PathBuf),
    /// In a bucket.
    Bucket(BucketLocation),
}

impl PackLocation {
    /// Reads a location. Returns `None` if it is the path of another kind of repository.
    ///
    /// # Errors
    /// The text begins like the location of a pack repository, but is invalid.
    pub fn parse(text: &OsStr) -> Result<Option<PackLocation>> {
        let bytes = text.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"pack:") {
            return folder(text, Path::new(OsStr::from_bytes(path))).map(Some);
        }
        if !bytes.starts_with(b"s3:") {
            return Ok(None);
        }
        let invalid = |why: &str| PackError::Location {
            location: redacted(&text.to_string_lossy()),
            why: why.to_owned(),
        };
        let text = text.to_str().ok_or_else(|| invalid("it is not valid UTF-8"))?;
        bucket(text)
            .map(PackLocation::Bucket)
            .map(Some)
            .map_err(|why| invalid(&why))
    }
}

impl fmt::Display for PackLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PackLocation::Folder(path) => write!(f, "pack:{}", path.display()),
            PackLocation::Bucket(bucket) => write!(f, "{bucket}"),
        }
    }
}

fn folder(text: &OsStr, path: &Path) -> Result<PackLocation> {
    let invalid = |why: &str| PackError::Location {
        location: shown(&text.to_string_lossy()),
        why: why.to_owned(),
    };
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(invalid("the folder is missing: use pack:/DIRECTORY"));
    }
    if bytes.contains(&0) {
        return Err(invalid("it contains a zero byte"));
    }
    let path = std::path::absolute(path).map_err(|error| invalid(&error.to_string()))?;
    Ok(PackLocation::Folder(path))
}

/// The text without what could be a password.
fn redacted(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => format!("s3:…@{}", shown(rest)),
        None => shown(text),
    }
}

const FORMS: &str = "use s3:https://HOST/BUCKET/PREFIX, or s3://BUCKET/PREFIX for AWS";

fn bucket(text: &str) -> std::result::Result<BucketLocation, String> {
    let rest = text.strip_prefix("s3:").unwrap_or(text);
    if let Some(rest) = rest.strip_prefix("//") {
        return in_bucket(None, rest);
    }
    let (scheme, rest) = rest.split_once("://").ok_or_else(|| FORMS.to_owned())?;
    if rest.contains('@') {
        return Err(
            "credentials do not belong in a location: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
             or ~/.aws/credentials"
                .to_owned(),
        );
    }
    let (host, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let is_this_machine = authority(host)?;
    match scheme {
        "https" => {}
        "http" if is_this_machine => {}
        "http" => {
            return Err(
                "http: is accepted for this machine only (localhost, 127.0.0.1, [::1]): use https:"
                    .to_owned(),
            );
        }
        _ => return Err(FORMS.to_owned()),
    }
    in_bucket(Some(format!("{scheme}://{host}")), rest)
}

fn in_bucket(endpoint: Option<String>, rest: &str) -> std::result::Result<BucketLocation, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(format!("the bucket is missing: {FORMS}"));
    }
    if !is_bucket(bucket) {
        return Err(
            "the name of a bucket has 3 to 63 lower-case letters, digits, dots and hyphens, \
             and begins and ends with a letter or digit"
                .to_owned(),
        );
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if prefix.len() > LONGEST_PREFIX {
        return Err(format!("the prefix is longer than {LONGEST_PREFIX} bytes"));
    }
    if !prefix.is_empty() && !prefix.split('/').all(is_segment) {
        return Err(
            "a prefix consists of names of letters, digits, '.', '_' and '-', with a slash between them; \
             no name is empty or begins with a dot"
                .to_owned(),
        );
    }
    let slash = if prefix.is_empty() { "" } else { "/" };
    Ok(BucketLocation {
        endpoint,
        bucket: bucket.to_owned(),
        prefix: format!("{prefix}{slash}"),
    })
}

/// Checks `HOST[:PORT]`. Returns whether it is this machine.
fn authority(text: &str) -> std::result::Result<bool, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']').ok_or("the host lacks a ']'")?;
            let address: Ipv6Addr = address.parse().map_err(|_| "the IPv6 address is invalid")?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or("only a port may follow the ']'")?),
            };
            (Host::V6(address), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (Host::named(host)?, port)
        }
    };
    if let Some(port) = port {
        let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || !matches!(port.parse::<u16>(), Ok(1..)) {
            return Err("the port is not a number from 1 to 65535".to_owned());
        }
    }
    Ok(host.is_this_machine())
}

enum Host<'a> {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Name(&'a str),
}

impl Host<'_> {
    fn named(text: &str) -> std::result::Result<Host<'_>, String> {
        if let Ok(address) = text.parse() {
            return Ok(Host::V4(address));
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_label =
            |label: &str| !label.is_empty() && !label.starts_with('-') && label.bytes().all(is_plain);
        match text.len() <= LONGEST_HOST && text.split('.').all(is_label) {
            true => Ok(Host::Name(text)),
            false => Err("the host name is invalid".to_owned()),
        }
    }

    fn is_this_machine(&self) -> bool {
        match self {
            Host::V4(address) => address.is_loopback(),
            Host::V6(address) => address.is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// Whether S3 allows this name (without its rules against confusion with addresses).
fn is_bucket(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_any = |byte: u8| is_inner(byte) || matches!(byte, b'.' | b'-');
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| is_any(*byte))
        && bytes.first().is_some_and(|byte| is_inner(*byte))
        && bytes.last().is_some_and(|byte| is_inner(*byte))
        && !name.contains("..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<PackLocation>> {
        PackLocation::parse(OsStr::new(text))
    }

    fn why(text: &str) -> String {
        match parse(text) {
            Err(error) => error.to_string(),
            Ok(found) => panic!("{text} was accepted: {found:?}"),
        }
    }

    #[test]
    fn valid_locations_are_shown_as_they_were_given() {
        for text in [
            "s3:https://s3.example.org/backups/hosts/kvm1",
            "s3:https://s3.example.org:9000/backups",
            "s3:https://192.0.2.7/backups/a.b_c-d",
            "s3:https://[2001:db8::7]:443/backups",
            "s3:http://localhost:9000/backups",
            "s3:http://127.0.0.1/backups/x",
            "s3:http://[::1]:1/backups",
            "s3://backups",
            "s3://backups/hosts",
            "pack:/backups/pack",
        ] {
            let found = parse(text).expect("valid").expect("a pack repository");
            assert_eq!(found.to_string(), text);
        }
        let found = parse("s3://backups/hosts/").expect("valid").expect("a bucket");
        assert_eq!(found.to_string(), "s3://backups/hosts");
    }

    #[test]
    fn paths_are_other_repositories() {
        for path in ["/backups", "backups", "./s3:x", "./pack:x", "", "S3:x", "s4:x"] {
            assert_eq!(parse(path).expect("no error"), None, "{path}");
        }
    }

    #[test]
    fn invalid_locations_are_explained() {
        for (text, part) in [
            ("s3:", "use s3:https://HOST/BUCKET/PREFIX"),
            ("s3:/backups", "use s3:https://"),
            ("s3:backups", "use s3:https://"),
            ("s3:ftp://host/backups", "use s3:https://"),
            ("s3://", "the bucket is missing"),
            ("s3:https://host", "the bucket is missing"),
            ("s3:https:///backups", "the host name is invalid"),
            ("s3:http://s3.example.org/backups", "for this machine only"),
            ("s3:http://localhost.example.org/backups", "for this machine only"),
            ("s3:http://128.0.0.1/backups", "for this machine only"),
            ("s3:https://host:0/backups", "the port"),
            ("s3:https://host:99999/backups", "the port"),
            ("s3:https://host:+80/backups", "the port"),
            ("s3:https://[::1/backups", "lacks a ']'"),
            ("s3:https://[::1]x/backups", "only a port"),
            ("s3:https://host/Backups", "the name of a bucket"),
            ("s3://ab", "the name of a bucket"),
            ("s3://a..b", "the name of a bucket"),
            ("s3://backups//x", "no name is empty"),
            ("s3://backups/../x", "no name is empty or begins with a dot"),
            ("s3://backups/a b", "a prefix consists of"),
            ("s3://backups/x?y=z", "a prefix consists of"),
            ("s3://backups/a%2fb", "a prefix consists of"),
            ("pack:", "the folder is missing"),
        ] {
            let message = why(text);
            assert!(message.contains(part), "{text}: {message}");
        }
        let not_text = OsStr::from_bytes(b"s3://backups/\xff");
        assert!(PackLocation::parse(not_text).is_err());
    }

    #[test]
    fn a_password_in_a_location_is_not_repeated() {
        for text in ["s3:https://key:hunter2@host/backups", "s3://key:hunter2@backups"] {
            let message = why(text);
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_location_or_an_error(text in "(s3:|pack:)?(https?:)?//\\PC{0,40}") {
            if let Ok(Some(found)) = parse(&text) {
                let again = parse(&found.to_string()).expect("valid").expect("the same");
                prop_assert_eq!(again, found);
            }
        }

        #[test]
        fn text_without_a_scheme_is_a_path(text in "[^sp]\\PC{0,40}") {
            prop_assert!(parse(&text).expect("no error").is_none());
        }
    }
}
