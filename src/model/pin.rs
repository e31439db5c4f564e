//! A mark that keeps a restore point from being removed.

use jiff::Timestamp;

/// A restore point's pin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// When it was pinned; `None` if the pin cannot be read.
    pub since: Option<Timestamp>,
    /// The reason in the user's words; empty if none was given.
    pub note: String,
}

impl Pin {
    /// The longest note, in bytes.
    pub const LONGEST_NOTE: usize = 1000;
}
