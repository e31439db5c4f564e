//! The reports of `vmsnap init`, `vmsnap repository info` and `vmsnap key`.

use std::path::Path;

use serde::Serialize;

use super::lines::{line, push_line, table};
use super::parts::Text;
use crate::model::text::{bytes, shown};
use crate::ops::init::{Cipher, ConditionalPuts, KeySlot, PackFacts, SlotKind, SlotState};

/// The document of `init` and of `repository info`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PackDocument<'a> {
    pub(super) schema: u32,
    pub(super) location: Text<'a>,
    pub(super) id: Text<'a>,
    pub(super) created: Text<'a>,
    pub(super) program: Text<'a>,
    pub(super) cipher: &'static str,
    pub(super) block_bytes: u64,
    pub(super) pack_bytes: u64,
    pub(super) conditional_puts: &'static str,
    pub(super) slots: Vec<SlotPart<'a>>,
}

/// The document of `key list`.
#[derive(Debug, Serialize)]
pub(crate) struct KeysDocument<'a> {
    pub(super) schema: u32,
    pub(super) location: Text<'a>,
    pub(super) slots: Vec<SlotPart<'a>>,
}

/// A key slot in a document.
#[derive(Debug, Serialize)]
pub(crate) struct SlotPart<'a> {
    pub(super) id: Text<'a>,
    pub(super) kind: Option<&'static str>,
    pub(super) label: Text<'a>,
    pub(super) recipient: Option<Text<'a>>,
    pub(super) created: Option<Text<'a>>,
    pub(super) state: &'static str,
}

impl<'a> SlotPart<'a> {
    fn of(slot: &'a KeySlot) -> Self {
        SlotPart {
            id: Text::from(&slot.id),
            kind: slot.kind.map(SlotKind::word),
            label: Text::from(&slot.label),
            recipient: slot.recipient.as_ref().map(Text::from),
            created: slot.created.as_ref().map(Text::of),
            state: slot.state.word(),
        }
    }
}

/// The document about a repository.
pub(crate) fn document(facts: &PackFacts) -> PackDocument<'_> {
    PackDocument {
        schema: 1,
        location: Text::from(&facts.location),
        id: Text::from(&facts.id),
        created: Text::of(&facts.created),
        program: Text::from(&facts.program),
        cipher: facts.cipher.word(),
        block_bytes: facts.sizes.block_bytes,
        pack_bytes: facts.sizes.pack_bytes,
        conditional_puts: facts.conditional_puts.word(),
        slots: facts.slots.iter().map(SlotPart::of).collect(),
    }
}

/// The document about the key slots of a repository.
pub(crate) fn keys_document(facts: &PackFacts) -> KeysDocument<'_> {
    KeysDocument {
        schema: 1,
        location: Text::from(&facts.location),
        slots: facts.slots.iter().map(SlotPart::of).collect(),
    }
}

/// The lines about a new repository.
pub(crate) fn created(facts: &PackFacts) -> String {
    let mut text = line(&format!("{}: created", facts.location)) + &facts_lines(facts);
    push_line(
        &mut text,
        "`vmsnap backup DOMAIN --output LOCATION` backs up into it.",
    );
    if facts.cipher != Cipher::None {
        push_line(
            &mut text,
            "Without a key, backups in this repository cannot be read. `vmsnap key export` writes a copy of a key slot: keep the copy elsewhere.",
        );
    }
    text
}

/// The lines about a repository.
pub(crate) fn text(facts: &PackFacts) -> String {
    let mut text = line(&facts.location) + &facts_lines(facts);
    let slots = facts.slots.len();
    if facts.cipher != Cipher::None {
        push_line(
            &mut text,
            &format!("  key slots: {slots} (`vmsnap key list` shows them)"),
        );
    }
    text
}

fn facts_lines(facts: &PackFacts) -> String {
    let sizes = facts.sizes;
    let cipher = match facts.cipher {
        Cipher::None => "none: everybody who can read the objects can read the backups",
        cipher => cipher.word(),
    };
    let puts = match facts.conditional_puts {
        ConditionalPuts::Honoured => "honoured",
        ConditionalPuts::Ignored => "ignored by this store",
    };
    let mut text = String::new();
    for (name, value) in [
        ("id", facts.id.as_str()),
        ("created", &format!("{} by {}", facts.created, facts.program)),
        ("encryption", cipher),
        ("blocks", &format!("up to {}", bytes(sizes.block_bytes))),
        ("packs", &format!("about {}", bytes(sizes.pack_bytes))),
        ("conditional puts", puts),
    ] {
        push_line(&mut text, &format!("  {name}: {value}"));
    }
    text
}

/// The table of key slots.
pub(crate) fn keys(facts: &PackFacts) -> String {
    if facts.cipher == Cipher::None {
        return line(&format!(
            "{} is not encrypted: it has no key slots",
            facts.location
        ));
    }
    if facts.slots.is_empty() {
        return line(&format!(
            "{} has no key slot left: only a recovery file opens it",
            facts.location
        ));
    }
    let heading = ["SLOT", "KIND", "CREATED", "STATE", "LABEL", "RECIPIENT"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(facts.slots.iter().map(row));
    table(&rows, &[])
}

fn row(slot: &KeySlot) -> Vec<String> {
    let or_dash = |text: Option<String>| {
        text.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "-".to_owned())
    };
    vec![
        slot.id.clone(),
        or_dash(slot.kind.map(|kind| kind.to_string())),
        or_dash(slot.created.map(|created| created.to_string())),
        match &slot.state {
            SlotState::Damaged(why) => format!("damaged: {why}"),
            state => state.word().to_owned(),
        },
        or_dash(Some(slot.label.clone())),
        slot.recipient.clone().unwrap_or_default(),
    ]
}

/// The line about a new slot.
pub(crate) fn added(slot: &KeySlot) -> String {
    line(&format!("key slot {} added{}", slot.id, labelled(slot)))
}

/// The line about a removed slot.
pub(crate) fn removed(slot: &KeySlot) -> String {
    line(&format!(
        "key slot {} removed{}; copies of the slot still open the repository",
        slot.id,
        labelled(slot)
    ))
}

/// The lines about a recovery file.
pub(crate) fn exported(slot: &KeySlot, file: &Path) -> String {
    let opens = match slot.kind {
        Some(SlotKind::Passphrase) => "the passphrase of the slot opens this file",
        Some(SlotKind::X25519) => "the identity of the slot opens this file",
        None => "the secret of the slot opens this file",
    };
    let mut text = line(&format!(
        "{}: a copy of key slot {}{}; {opens}",
        file.display(),
        slot.id,
        labelled(slot)
    ));
    push_line(
        &mut text,
        "Keep this file outside the repository. `age -d` shows the key; `vmsnap key add --recovery-file` adds a slot with the key to the repository.",
    );
    text
}

fn labelled(slot: &KeySlot) -> String {
    match slot.label.as_str() {
        "" => String::new(),
        label => format!(" ({})", shown(label)),
    }
}

/// The most names that a message repeats.
const MOST_NAMES: usize = 5;

/// Some of these names, in one line.
pub(crate) fn some(names: &[String]) -> String {
    let some: Vec<String> = names.iter().take(MOST_NAMES).map(|name| shown(name)).collect();
    let more = if names.len() > MOST_NAMES { ", …" } else { "" };
    some.join(", ") + more
}
