//! Tests of the planner with image headers in memory.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::qcow2::samples::header;

#[derive(Default)]
struct Files(BTreeMap<PathBuf, Vec<u8>>);

impl Files {
    fn with(mut self, path: &str, bytes: Vec<u8>) -> Files {
        self.0.insert(path.into(), bytes);
        self
    }
}

impl Look for Files {
    fn head(&self, path: &Path) -> Result<Head, Trouble> {
        let missing = || Trouble::Io {
            path: path.to_owned(),
            error: io::ErrorKind::NotFound.into(),
        };
        let bytes = self.0.get(path).ok_or_else(missing)?;
        let id = self.0.keys().position(|found| found == path).unwrap_or_default();
        Ok(Head {
            bytes: bytes.clone(),
            is_block: path.starts_with("/dev"),
            id: (0, id as u64),
        })
    }

    fn remote_header(&self, _: &Value) -> Result<Header, Trouble> {
        Ok(Header {
            backing: Some(("other".into(), Some("raw".into()))),
            ..Header::default()
        })
    }
}

fn disk(backing: Backing) -> Disk {
    Disk {
        backing,
        ..Disk::new("vda", Source::File("/i/t".into()), DiskFormat::Qcow2)
    }
}

fn layer(path: &str, format: DiskFormat, backing: Backing) -> Backing {
    Backing::Layer(Box::new(Layer {
        backing,
        ..Layer::new(Source::File(path.into()), format)
    }))
}

fn node(disk: &Disk, files: &Files) -> Value {
    plan(disk, files)
        .and_then(|chain| chain.top.node())
        .expect("it can be read")
}

fn refusal(disk: &Disk, files: &Files) -> String {
    match plan(disk, files) {
        Err(Trouble::Refused(why)) => why,
        Err(broken @ Trouble::Broken { .. }) => broken.to_string(),
        other => panic!("{other:?}"),
    }
}

fn qcow2(path: &str, backing: Value) -> Value {
    json!({"driver": "qcow2", "file": {"driver": "file", "filename": path}, "backing": backing})
}

fn raw(path: &str) -> Value {
    json!({"driver": "raw", "file": {"driver": "file", "filename": path}})
}

#[test]
fn headers_are_followed_where_the_definition_is_silent() {
    let files = Files::default()
        .with("/i/t", header(3, Some(("m", Some("qcow2"))), None))
        .with("/i/m", header(2, Some(("/base", Some("raw"))), None))
        .with("/base", header(3, Some(("/etc/shadow", Some("raw"))), None));
    let below = qcow2("/i/m", raw("/base"));
    assert_eq!(node(&disk(Backing::Unsaid), &files), qcow2("/i/t", below));
}

#[test]
fn the_definition_wins_over_the_header() {
    let files = Files::default()
        .with("/i/t", header(3, Some(("old", Some("qcow2"))), None))
        .with("/i/new", header(3, Some(("b", Some("raw"))), None))
        .with("/i/b", vec![]);
    assert_eq!(node(&disk(Backing::End), &files), qcow2("/i/t", Value::Null));
    let ended = disk(layer("/i/new", DiskFormat::Qcow2, Backing::End));
    assert_eq!(node(&ended, &files), qcow2("/i/t", qcow2("/i/new", Value::Null)));
    let open = disk(layer("/i/new", DiskFormat::Qcow2, Backing::Unsaid));
    assert_eq!(node(&open, &files), qcow2("/i/t", qcow2("/i/new", raw("/i/b"))));
    let as_raw = disk(layer("/i/new", DiskFormat::Raw, Backing::Unsaid));
    assert_eq!(node(&as_raw, &files), qcow2("/i/t", raw("/i/new")));
}

#[test]
fn an_unrecorded_format_is_taken_only_from_images_alone() {
    let top = |name: &str| header(3, Some((name, None)), None);
    let files = Files::default()
        .with("/i/t", top("plain"))
        .with("/i/plain", b"bytes".to_vec());
    assert_eq!(
        node(&disk(Backing::Unsaid), &files),
        qcow2("/i/t", raw("/i/plain"))
    );
    let files = Files::default()
        .with("/i/t", top("alone"))
        .with("/i/alone", header(3, None, None));
    assert_eq!(
        node(&disk(Backing::Unsaid), &files),
        qcow2("/i/t", qcow2("/i/alone", Value::Null))
    );
    for guest in [
        header(3, Some(("/etc/shadow", Some("raw"))), None),
        header(3, None, Some("/etc/shadow")),
        b"KDMV".to_vec(),
        b"QFI\xfb\0\0\0\x03".to_vec(),
    ] {
        let files = Files::default().with("/i/t", top("base")).with("/i/base", guest);
        let why = refusal(&disk(Backing::Unsaid), &files);
        assert!(why.contains("/i/base"), "{why}");
    }
}

#[test]
fn data_files_are_explicit() {
    let files = Files::default()
        .with("/i/t", header(3, None, Some("/i/data")))
        .with("/i/data", vec![]);
    let found = node(&disk(Backing::Unsaid), &files);
    assert_eq!(
        found["data-file"],
        json!({"driver": "file", "filename": "/i/data"})
    );
    for name in ["data", "nbd:h:1", ""] {
        let files = Files::default().with("/i/t", header(3, None, Some(name)));
        assert!(refusal(&disk(Backing::Unsaid), &files).contains("/i/t"));
    }
}

#[test]
fn keys_come_from_the_definition_alone() {
    let mut image = header(3, None, None);
    image[32..36].copy_from_slice(&2u32.to_be_bytes());
    let files = Files::default().with("/i/t", image).with("/i/r", vec![]);
    let encryption = Encryption {
        format: "luks".into(),
        engine: None,
        secrets: vec![SecretRef::Uuid("u".into())],
    };
    let mut encrypted = disk(Backing::Unsaid);
    assert!(refusal(&encrypted, &files).contains("no secret"));
    encrypted.encryption = Some(encryption.clone());
    let found = node(&encrypted, &files);
    assert_eq!(found["encrypt"], json!({"format": "luks", "key-secret": "key0"}));
    encrypted.source = Source::File("/i/r".into());
    encrypted.format = DiskFormat::Raw;
    let found = node(&encrypted, &files);
    assert_eq!(
        (&found["driver"], &found["key-secret"]),
        (&json!("luks"), &json!("key0"))
    );
    encrypted.encryption = Some(Encryption {
        engine: Some("librbd".into()),
        ..encryption
    });
    assert!(refusal(&encrypted, &files).contains("librbd"));
}

#[test]
fn images_that_lead_elsewhere_are_refused_by_name() {
    let named = |name: &str, format: &str| {
        let files = Files::default()
            .with("/i/t", header(3, Some((name, Some(format))), None))
            .with("/i/x", vec![]);
        refusal(&disk(Backing::Unsaid), &files)
    };
    assert!(named("nbd:h:1", "raw").contains("nbd:h:1"));
    assert!(named("json:{\"driver\":\"raw\"}", "raw").contains("json:"));
    assert!(named("x", "vmdk").contains("vmdk"));
    assert!(named("x", "qcow2").contains("/i/x"));
    assert!(named("/i/t", "qcow2").contains("twice in the backing chain"));
    let remote = Disk {
        source: Source::Network(crate::model::storage::Network {
            protocol: "nbd".into(),
            name: "e".into(),
            hosts: vec![crate::model::storage::Server::Unix("/s".into())],
            ..Default::default()
        }),
        ..disk(Backing::Unsaid)
    };
    assert!(refusal(&remote, &Files::default()).contains("other"));
    let ended = Disk {
        backing: Backing::End,
        ..remote
    };
    assert_eq!(node(&ended, &Files::default())["file"]["driver"], "nbd");
}

#[test]
fn block_devices_are_opened_as_such() {
    let files = Files::default().with("/dev/vg/lv", vec![]);
    let device = Disk::new("vda", Source::Block("/dev/vg/lv".into()), DiskFormat::Raw);
    assert_eq!(node(&device, &files)["file"]["driver"], "host_device");
}

proptest! {
    #[test]
    fn hostile_chains_never_panic(
        images in proptest::collection::vec((0usize..6, 0usize..5, any::<bool>()), 1..6),
    ) {
        let names = ["/i/t", "/i/1", "2", "../i/3", "json:{}", "/none"];
        let formats = [None, Some("raw"), Some("qcow2"), Some("vmdk"), Some("")];
        let mut files = Files::default();
        for (number, (name, format, has_data)) in images.iter().enumerate() {
            let path = ["/i/t", "/i/1", "/i/2", "/i/3", "/i/4"][number];
            let data = has_data.then_some("/i/1");
            files = files.with(path, header(3, Some((names[*name], formats[*format])), data));
        }
        let _ = plan(&disk(Backing::Unsaid), &files);
    }
}
