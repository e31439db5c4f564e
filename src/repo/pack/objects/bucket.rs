//! The location of a bucket.

use std::fmt;

/// A bucket, and a prefix in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketLocation {
    /// The URL of the server without a slash at its end; `None` for AWS.
    pub endpoint: Option<String>,
    /// The name of the bucket.
    pub bucket: String,
    /// The prefix of the names of all objects: empty, or segments with a slash after each.
    pub prefix: String,
}

impl fmt::Display for BucketLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = self.prefix.trim_end_matches('/');
        let slash = if prefix.is_empty() { "" } else { "/" };
        match &self.endpoint {
            Some(endpoint) => write!(f, "s3:{endpoint}/{}{slash}{prefix}", self.bucket),
            None => write!(f, "s3://{}{slash}{prefix}", self.bucket),
        }
    }
}
