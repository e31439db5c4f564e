//! The errors of an object store.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::model::stop::StopReason;

/// The operation that deletes an object.
pub(crate) const DELETE: &str = "delete";

/// A call of an object store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {location}: {kind}")]
pub struct ObjectError {
    /// The operation, as a verb.
    pub operation: &'static str,
    /// The object, or the place in the store.
    pub location: String,
    /// The kind of the failure.
    pub kind: ObjectErrorKind,
    /// The error of the system or of the library, if there is one.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

/// The kind of a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectErrorKind {
    /// The object does not exist.
    #[error("it does not exist")]
    NotFound,
    /// The bucket, or the folder, does not exist.
    #[error("the {0} does not exist")]
    NoPlace(&'static str),
    /// The server knows the caller but refuses access.
    #[error("access was refused")]
    Refused,
    /// The server does not accept the credentials.
    #[error("the server does not accept the credentials")]
    BadCredentials,
    /// No credentials were found.
    #[error("no credentials were found")]
    NoCredentials,
    /// The clocks of this machine and of the server differ too much.
    #[error("the clock of this machine differs too much from that of the server")]
    ClockOff,
    /// The bucket is in another region than the one that was used.
    #[error("the bucket is in another region")]
    OtherRegion,
    /// The object is larger than allowed.
    #[error("it has more than {most} bytes")]
    TooLarge {
        /// The largest allowed size in bytes.
        most: u64,
    },
    /// The list is longer than allowed.
    #[error("there are more than {most} objects")]
    TooMany {
        /// The largest allowed number.
        most: usize,
    },
    /// The object ends before the end of the requested range.
    #[error("it ends before the end of the requested range")]
    TooShort,
    /// The store does not support the operation.
    #[error("the store does not support this operation")]
    Unsupported,
    /// No answer arrived in time.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The work was stopped.
    #[error("stopped on request")]
    Stopped(StopReason),
    /// The file system has no space left.
    #[error("no space is left")]
    NoSpace,
    /// The answer of the server is invalid; the text says why.
    #[error("{0}")]
    Unexpected(String),
    /// A repeated request would fail in the same way; the source says why.
    #[error("the request is not possible")]
    Impossible,
    /// Any other failure, which the source describes.
    #[error("the request failed")]
    Failed,
}

impl ObjectError {
    /// An error without a source.
    pub(crate) fn new(operation: &'static str, location: String, kind: ObjectErrorKind) -> ObjectError {
        ObjectError {
            operation,
            location,
            kind,
            source: None,
        }
    }

    /// The error of a file operation.
    pub(crate) fn io(operation: &'static str, location: String, source: io::Error) -> ObjectError {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ObjectErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ObjectErrorKind::Refused,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ObjectErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput => ObjectErrorKind::Impossible,
            _ => ObjectErrorKind::Failed,
        };
        ObjectError {
            operation,
            location,
            kind,
            source: Some(Box::new(source)),
        }
    }

    /// Whether the object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.kind == ObjectErrorKind::NotFound
    }

    /// Whether the object is larger than allowed.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self.kind, ObjectErrorKind::TooLarge { .. })
    }

    /// A hint on what the user can do, if there is one.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self.kind {
            ObjectErrorKind::NoPlace("bucket") => "create the bucket first, or check its name",
            ObjectErrorKind::NoPlace(_) => "check the path, and mount its file system",
            ObjectErrorKind::Refused if self.operation == DELETE => {
                "use a user or credentials with the right to delete (in a bucket: s3:DeleteObject)"
            }
            ObjectErrorKind::Refused => {
                "give this user read and write access (in a bucket: s3:GetObject, s3:PutObject and s3:ListBucket)"
            }
            ObjectErrorKind::BadCredentials => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile in ~/.aws/credentials"
            }
            ObjectErrorKind::NoCredentials => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile in ~/.aws/credentials"
            }
            ObjectErrorKind::ClockOff => "correct the clock of this machine, for example with NTP",
            ObjectErrorKind::OtherRegion => "set AWS_REGION to the region of the bucket",
            ObjectErrorKind::TimedOut(_) => "check the network and the address of the server",
            ObjectErrorKind::NoSpace => "free space on that file system, then run again",
            _ => return None,
        })
    }
}
