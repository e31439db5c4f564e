//! What `vmsnap pin` and `vmsnap unpin` show, and the pins that `vmsnap list` shows.

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
pub struct PinPart<'a> {
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

/// The document of a pin that was set or removed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinDocument<'a> {
    pub(super) schema: u32,
    pub(super) domain: Text<'a>,
    pub(super) restore_point: Text<'a>,
    pub(super) was_pinned: bool,
    pub(super) pin: Option<PinPart<'a>>,
}

/// The document of a pin that could not be set or removed.
#[derive(Debug, Serialize)]
pub struct FailedPin<'a> {
    pub(super) schema: u32,
    #[serde(flatten)]
    pub(super) failed: FailedDomain<'a>,
}

/// What was done.
pub fn document<'a>(domain: &'a str, outcome: &'a Outcome) -> PinDocument<'a> {
    PinDocument {
        schema: 1,
        domain: Text::from(domain),
        restore_point: Text::from(&outcome.id),
        was_pinned: outcome.was_pinned,
        pin: outcome.pin.as_ref().map(PinPart::of),
    }
}

/// Why nothing was done.
pub fn failed_document(error: &Error) -> FailedPin<'_> {
    FailedPin {
        schema: 1,
        failed: FailedDomain::of(error, Ending::Failed),
    }
}

/// What was done, in a line.
pub fn text(domain: &str, outcome: &Outcome) -> String {
    let domain = shown(domain);
    let id = &outcome.id;
    line(&match (&outcome.pin, outcome.was_pinned) {
        (Some(pin), _) => format!("{domain}: {id} is {}", sentence(pin)),
        (None, true) => format!("{domain}: {id} is no longer pinned"),
        (None, false) => format!("{domain}: {id} was not pinned"),
    })
}

/// That a restore point is pinned, and why.
pub(super) fn sentence(pin: &Pin) -> String {
    match pin.note.as_str() {
        "" => "pinned".to_owned(),
        note => format!("pinned: {}", shown(note)),
    }
}
