//! Objects in a bucket of an S3 server, through the crate `object_store`.
//!
//! * `credentials`: finds the credentials that other programs for S3 use.
//! * `failure`: translates errors.
//!
//! The crate is asynchronous: a private runtime with one thread waits for the network, and each
//! call blocks its caller.

mod credentials;
mod failure;

use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore as _, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use tokio::runtime::{Builder, Runtime};

use super::{
    BucketLocation, ListPage, ListedObject, ObjectError, ObjectErrorKind, ObjectName, ObjectResult,
    ObjectStore, PAGE, PutResult,
};
use crate::model::stop::WaitLimit;
use crate::model::text::shown;

use credentials::{Credentials, Settings};

/// How often a call looks whether a stop was requested.
const STEP: Duration = Duration::from_millis(50);

/// The longest time for a connection to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest time for one try of a request.
const TRY: Duration = Duration::from_secs(30);

/// When no further try is started. Signatures stay valid for much longer.
const RETRIES_END: Duration = Duration::from_secs(40);

/// The most tries after the first one.
const RETRIES: usize = 5;

/// A call about more bytes than this is a large one.
const LARGE: usize = 1 << 20;

/// The longest time for one try of a large call. Its limit is usually shorter.
const LARGE_TRY: Duration = Duration::from_secs(15 * 60);

/// Objects below a prefix of a bucket.
pub(crate) struct S3Objects {
    location: String,
    prefix: String,
    bucket: AmazonS3,
    /// The same for large calls, which take longer on a slow line.
    large: AmazonS3,
    /// Present until the drop.
    runtime: Option<Runtime>,
}

impl S3Objects {
    /// Prepares access to a bucket. The server is not asked yet.
    ///
    /// # Errors
    /// There are no credentials, or they are invalid.
    pub(crate) fn open(location: &BucketLocation) -> ObjectResult<S3Objects> {
        S3Objects::open_with(location, Settings::find(&|name| std::env::var_os(name)))
    }

    /// Opens a bucket with these variables instead of those of the environment.
    ///
    /// # Errors
    /// As [`S3Objects::open`].
    #[cfg(feature = "testkit")]
    pub(crate) fn open_in(
        location: &BucketLocation,
        environment: &dyn Fn(&str) -> Option<std::ffi::OsString>,
    ) -> ObjectResult<S3Objects> {
        S3Objects::open_with(location, Settings::find(environment))
    }

    fn open_with(location: &BucketLocation, settings: Result<Settings, String>) -> ObjectResult<S3Objects> {
        let unusable = |kind, source: Option<String>| ObjectError {
            operation: "open",
            location: location.to_string(),
            kind,
            source: source.map(|text| failure::message(&text)),
        };
        let settings = settings.map_err(|why| unusable(ObjectErrorKind::NoCredentials, Some(why)))?;
        // Only AWS has machines that have credentials of their own.
        if matches!(settings.credentials, Credentials::OfMachine) && location.endpoint.is_some() {
            return Err(unusable(ObjectErrorKind::NoCredentials, None));
        }
        // A provider that another part of the program has installed is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = builder(location, settings);
        let build = |longest_try, retries_end| {
            let built = with_times(builder.clone(), location, longest_try, retries_end).build();
            built.map_err(|error| unusable(ObjectErrorKind::Failed, Some(error.to_string())))
        };
        let bucket = build(TRY, RETRIES_END)?;
        let large = build(LARGE_TRY, LARGE_TRY)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("s3")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| unusable(ObjectErrorKind::Failed, Some(error.to_string())))?;
        Ok(S3Objects {
            location: location.to_string(),
            prefix: location.prefix.clone(),
            bucket,
            large,
            runtime: Some(runtime),
        })
    }

    /// The bucket for a call about this many bytes.
    fn bucket_for(&self, bytes: usize) -> &AmazonS3 {
        if bytes > LARGE { &self.large } else { &self.bucket }
    }

    fn path(&self, name: &ObjectName) -> Path {
        Path::from(format!("{}{name}", self.prefix))
    }

    fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.location)
    }

    /// Performs a call until its deadline, or until a stop is requested.
    fn call<T>(
        &self,
        operation: &'static str,
        name: &str,
        limit: &WaitLimit,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, CallFailure> {
        let started = Instant::now();
        let failed = |kind| CallFailure {
            error: ObjectError::new(operation, self.at(name), kind),
            exists: false,
        };
        let Some(runtime) = &self.runtime else {
            return Err(failed(ObjectErrorKind::Failed));
        };
        runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                if let Some(reason) = limit.stop.reason() {
                    return Err(failed(ObjectErrorKind::Stopped(reason)));
                }
                let Some(left) = limit.deadline.checked_sub(started.elapsed()) else {
                    return Err(failed(ObjectErrorKind::TimedOut(limit.deadline)));
                };
                if let Ok(result) = tokio::time::timeout(left.min(STEP), &mut work).await {
                    return result.map_err(|error| CallFailure {
                        exists: matches!(error, Error::AlreadyExists { .. }),
                        error: failure::translate(operation, self.at(name), &error),
                    });
                }
            }
        })
    }
}

impl Drop for S3Objects {
    fn drop(&mut self) {
        // Names of hosts are looked up on threads that cannot be interrupted.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A failed call.
struct CallFailure {
    error: ObjectError,
    /// Whether it failed because the object exists.
    exists: bool,
}

impl From<CallFailure> for ObjectError {
    fn from(failure: CallFailure) -> ObjectError {
        failure.error
    }
}

fn with_times(
    builder: AmazonS3Builder,
    location: &BucketLocation,
    longest_try: Duration,
    retries_end: Duration,
) -> AmazonS3Builder {
    let is_plain = location
        .endpoint
        .as_ref()
        .is_some_and(|url| url.starts_with("http:"));
    let client = ClientOptions::new()
        .with_allow_http(is_plain)
        .with_connect_timeout(CONNECT)
        .with_timeout(longest_try);
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: retries_end,
    };
    builder.with_client_options(client).with_retry(retry)
}

fn builder(location: &BucketLocation, settings: Settings) -> AmazonS3Builder {
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&location.bucket)
        .with_region(settings.region)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = &location.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if is_aws(location.endpoint.as_deref()) {
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    match settings.credentials {
        Credentials::Static { id, secret, token } => {
            builder = builder
                .with_access_key_id(id)
                .with_secret_access_key(secret.as_str());
            match token {
                Some(token) => builder.with_token(token.as_str()),
                None => builder,
            }
        }
        Credentials::OfEnvironment(values) => {
            for (name, value) in values {
                if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
                    builder = builder.with_config(key, value);
                }
            }
            builder
        }
        Credentials::OfMachine => builder,
    }
}

/// Whether an endpoint is one of AWS. Where a bucket has a default retention (object lock), AWS
/// refuses objects without a checksum in a header. Other servers may refuse the header.
fn is_aws(endpoint: Option<&str>) -> bool {
    let Some(endpoint) = endpoint else {
        return true;
    };
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    [".amazonaws.com", ".amazonaws.com.cn"]
        .iter()
        .any(|end| host.ends_with(end))
}

impl ObjectStore for S3Objects {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        let path = self.path(name);
        let read = async {
            let bucket = self.bucket_for(usize::try_from(most).unwrap_or(usize::MAX));
            let found = bucket.get_opts(&path, Default::default()).await?;
            match found.meta.size > most {
                true => Ok(None),
                false => found.bytes().await.map(Some),
            }
        };
        let content = self.call("read", name.as_str(), limit, read)?;
        // A server may send more than it has announced.
        let content = content.filter(|content| content.len() as u64 <= most);
        let too_large = || {
            let kind = ObjectErrorKind::TooLarge { most };
            ObjectError::new("read", self.at(name.as_str()), kind)
        };
        content.map(Vec::from).ok_or_else(too_large)
    }

    fn get_range(&self, name: &ObjectName, range: Range<u64>, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let path = self.path(name);
        let length = range.end - range.start;
        let content = self.call(
            "read",
            name.as_str(),
            limit,
            self.bucket_for(length as usize).get_range(&path, range),
        )?;
        match content.len() as u64 == length {
            true => Ok(Vec::from(content)),
            false => {
                let location = self.at(name.as_str());
                Err(ObjectError::new("read", location, ObjectErrorKind::TooShort))
            }
        }
    }

    fn put_if_absent(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<PutResult> {
        let path = self.path(name);
        let payload = PutPayload::from(content.to_vec());
        let options = PutOptions::from(PutMode::Create);
        match self.call(
            "write",
            name.as_str(),
            limit,
            self.bucket_for(content.len()).put_opts(&path, payload, options),
        ) {
            Ok(_) => Ok(PutResult::Created),
            Err(failure) if failure.exists => Ok(PutResult::Existed),
            Err(failure) => Err(failure.into()),
        }
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        let path = self.path(name);
        let payload = PutPayload::from(content.to_vec());
        let put = self.bucket_for(content.len()).put(&path, payload);
        self.call("write", name.as_str(), limit, put)?;
        Ok(())
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        let whole = format!("{}{prefix}", self.prefix);
        let options = PaginatedListOptions {
            offset: from.map(|from| format!("{}{from}", self.prefix)),
            max_keys: Some(PAGE),
            ..Default::default()
        };
        let whole = Some(whole.as_str()).filter(|whole| !whole.is_empty());
        let found = self.call("list", prefix, limit, self.bucket.list_paginated(whole, options))?;
        let mut page = ListPage::default();
        let mut last = None;
        for object in found.result.objects {
            let key = object.location.as_ref();
            let Some(name) = key.strip_prefix(&self.prefix) else {
                let kind = ObjectErrorKind::Unexpected("the server lists another prefix".to_owned());
                return Err(ObjectError::new("list", self.at(prefix), kind));
            };
            last = last.max(Some(name.to_owned()));
            let (seconds, nanos) = (
                object.last_modified.timestamp(),
                object.last_modified.timestamp_subsec_nanos(),
            );
            let modified = i32::try_from(nanos).ok();
            let modified = modified.and_then(|nanos| Timestamp::new(seconds, nanos).ok());
            match ObjectName::new(name) {
                Some(name) => page.objects.push(ListedObject {
                    name,
                    size: object.size,
                    modified,
                }),
                None => page.foreign.push(shown(name)),
            }
        }
        page.next = last.filter(|_| found.page_token.is_some());
        if found.page_token.is_some() && page.next.is_none() {
            let kind = ObjectErrorKind::Unexpected("the server sends an empty part of the list".to_owned());
            return Err(ObjectError::new("list", self.at(prefix), kind));
        }
        Ok(page)
    }

    fn head(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<Option<u64>> {
        let path = self.path(name);
        match self.call("read", name.as_str(), limit, self.bucket.head(&path)) {
            Ok(found) => Ok(Some(found.size)),
            Err(failure) if failure.error.is_not_found() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        let path = self.path(name);
        match self.call("delete", name.as_str(), limit, self.bucket.delete(&path)) {
            Err(failure) if !failure.error.is_not_found() => Err(failure.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_to_aws_have_a_checksum() {
        for (endpoint, expected) in [
            (None, true),
            (Some("https://s3.eu-central-1.amazonaws.com"), true),
            (Some("https://s3.cn-north-1.amazonaws.com.cn:443"), true),
            (Some("https://s3.example.org"), false),
            (Some("https://amazonaws.com.example.org"), false),
            (Some("https://s3.us-west-004.backblazeb2.com"), false),
        ] {
            let location = BucketLocation {
                endpoint: endpoint.map(str::to_owned),
                bucket: "backups".to_owned(),
                prefix: String::new(),
            };
            let settings = Settings {
                credentials: Credentials::OfMachine,
                region: "eu-central-1".to_owned(),
            };
            let builder = builder(&location, settings);
            let checksum = builder.get_config_value(&AmazonS3ConfigKey::Checksum);
            assert_eq!(checksum.is_some(), expected, "{endpoint:?}");
        }
    }
}
