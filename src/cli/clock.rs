//! Reads the clock. Verbs get the time as an argument, so that tests can choose it.

/// The present moment in the local time zone.
#[allow(clippy::disallowed_methods, reason = "this is the only place")]
pub(super) fn now() -> jiff::Zoned {
    jiff::Zoned::now()
}
