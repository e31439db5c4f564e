//! The report of `vmsnap pin` and `vmsnap unpin`, and the pins in the report of `vmsnap list`.

use serde::Serialize;

use super::lines::line;
use super::parts::{FailedDomain, Text};
use crate::model::pin::Pin;
use crate::model::text::shown;
use crate::ops::Error;
use crate::ops::monitor::Ending;
use crate::ops::pin::Outcome;

/// A pin in a document.
#[derive(Debug, Serialize)]
pub(crate) struct PinPart<'a> {
    pub(super) since: Option<Text<'a>>,
    pub(super) note: Text<'a>,
}

impl<'a> PinPart<'a> {
    pub(super) fn of(pin: &'a Pin) -> Self {
        PinPart {
            since: pin.since.as_ref().map(Text::of),
            note: Text::from(&pin.note),
        }
    }
}

/// The document of a successful pin or unpin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PinDocument<'a> {
    pub(super) schema: u32,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) was_pinned: bool,
    pub(super) pin: Option<PinPart<'a>>,
}

/// The document of a failed pin or unpin.
#[derive(Debug, Serialize)]
pub(crate) struct FailedPin<'a> {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) failed: FailedDomain<'a>,
}

/// The document of a change to a pin.
pub(crate) fn document<'a>(domain: &'a str, outcome: &'a Outcome) -> PinDocument<'a> {
    PinDocument {
        schema: 1,
        domain: Text::from(domain),
        restore_point: Text::from(&outcome.id),
        was_pinned: outcome.was_pinned,
        pin: outcome.pin.as_ref().map(PinPart::of),
    }
}

/// The document of a failure.
pub(crate) fn failed_document(error: &Error) -> FailedPin<'_> {
    FailedPin {
        schema: 1,
        failed: FailedDomain::of(error, Ending::Failed),
    }
}

/// The line about a change to a pin.
pub(crate) fn text(domain: &str, outcome: &Outcome) -> String {
    let domain = shown(domain);
    let id = &outcome.id;
    line(&match (&outcome.pin, outcome.was_pinned) {
        (Some(pin), _) => format!("{domain}: {id} is {}", sentence(pin)),
        (None, true) => format!("{domain}: {id} is no longer pinned"),
        (None, false) => format!("{domain}: {id} was not pinned"),
    })
}

/// The pin as a sentence, with its note.
pub(super) fn sentence(pin: &Pin) -> String {
    match pin.note.as_str() {
        "" => "pinned".to_owned(),
        note => format!("pinned: {}", shown(note)),
    }
}
