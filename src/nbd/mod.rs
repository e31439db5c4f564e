//! The reader: an NBD client that turns an export into extents and blocks.

/// What can go wrong between us and an NBD server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The user asked to stop.
    #[error("stopped on request")]
    Stopped,
}
