//! Reads the clock. Every verb is told the time, so that tests can choose it.

/// The present moment in the local time zone.
#[allow(clippy::disallowed_methods, reason = "this is the only place")]
pub(super) fn now() -> jiff::Zoned {
    jiff::Zoned::now()
}
