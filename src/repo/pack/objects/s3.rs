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
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore as _, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
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
    bucket: Clients,
    /// The same with a checksum in each put. Present if the server requires it, as it does for
    /// buckets with object lock; other servers may not know the header.
    checked: OnceLock<Clients>,
    /// Builds both.
    plan: Plan,
    /// Present until the drop.
    runtime: Option<Runtime>,
}

impl S3Objects {
    /// Prepares access to a bucket, without a request to the server.
    ///
    /// # Errors
    /// There are no credentials, or they are invalid.
    pub(crate) fn open(location: &BucketLocation) -> ObjectResult<S3Objects> {
        S3Objects::open_with(location, Settings::find(&|name| std::env::var_os(name)))
    }

    /// Opens a bucket with these variables instead of those of the environment.
    ///
    /// # Errors
    /// The errors of [`S3Objects::open`].
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
        let plan = Plan {
            builder,
            is_plain: location
                .endpoint
                .as_ref()
                .is_some_and(|url| url.starts_with("http:")),
        };
        let bucket = plan.clients(false);
        let bucket = bucket.map_err(|error| unusable(ObjectErrorKind::Failed, Some(error.to_string())))?;
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
            checked: OnceLock::new(),
            plan,
            runtime: Some(runtime),
        })
    }

    /// Puts an object, with a checksum if the server has required one.
    fn write(
        &self,
        name: &ObjectName,
        content: &[u8],
        mode: PutMode,
        limit: &WaitLimit,
    ) -> Result<(), CallFailure> {
        let put = |clients: &Clients| {
            let (path, bucket) = (self.path(name), clients.of(content.len()));
            let payload = PutPayload::from(content.to_vec());
            let options = PutOptions::from(mode.clone());
            let work = bucket.put_opts(&path, payload, options);
            self.call("write", name.as_str(), limit, work).map(|_| ())
        };
        if self.checked.get().is_none() {
            match put(&self.bucket) {
                Err(failure) if failure.lacks_checksum => match self.plan.clients(true) {
                    Ok(clients) => {
                        let _ = self.checked.set(clients);
                    }
                    Err(_) => return Err(failure),
                },
                result => return result,
            }
        }
        put(self.checked.get().unwrap_or(&self.bucket))
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
            lacks_checksum: false,
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
                        lacks_checksum: failure::lacks_checksum(&error),
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
    /// Whether it failed because a checksum is missing.
    lacks_checksum: bool,
}

impl From<CallFailure> for ObjectError {
    fn from(failure: CallFailure) -> ObjectError {
        failure.error
    }
}

/// A client for small calls, and one for large calls, which take longer on a slow line.
struct Clients {
    small: AmazonS3,
    large: AmazonS3,
}

impl Clients {
    /// The client for a call about this many bytes.
    fn of(&self, bytes: usize) -> &AmazonS3 {
        if bytes > LARGE { &self.large } else { &self.small }
    }
}

/// How clients are built.
struct Plan {
    builder: AmazonS3Builder,
    /// Whether the connection is not encrypted.
    is_plain: bool,
}

impl Plan {
    fn clients(&self, has_checksums: bool) -> object_store::Result<Clients> {
        Ok(Clients {
            small: self.client(has_checksums, TRY, RETRIES_END)?,
            large: self.client(has_checksums, LARGE_TRY, LARGE_TRY)?,
        })
    }

    fn client(
        &self,
        has_checksums: bool,
        longest_try: Duration,
        retries_end: Duration,
    ) -> object_store::Result<AmazonS3> {
        let mut options = ClientOptions::new()
            .with_allow_http(self.is_plain)
            .with_connect_timeout(CONNECT)
            .with_timeout(longest_try);
        let mut builder = self.builder.clone();
        if has_checksums {
            // Some servers look for the name of the algorithm, others for the checksum.
            let value = HeaderValue::from_static("SHA256");
            let header = (HeaderName::from_static("x-amz-sdk-checksum-algorithm"), value);
            options = options.with_default_headers(HeaderMap::from_iter([header]));
            builder = builder.with_checksum_algorithm(Checksum::SHA256);
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES,
            retry_timeout: retries_end,
        };
        builder.with_client_options(options).with_retry(retry).build()
    }
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

impl ObjectStore for S3Objects {
    fn location(&self) -> String {
        self.location.clone()
    }

    fn get(&self, name: &ObjectName, most: u64, limit: &WaitLimit) -> ObjectResult<Vec<u8>> {
        let path = self.path(name);
        let read = async {
            let bucket = self.bucket.of(usize::try_from(most).unwrap_or(usize::MAX));
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
            self.bucket.of(length as usize).get_range(&path, range),
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
        match self.write(name, content, PutMode::Create, limit) {
            Ok(()) => Ok(PutResult::Created),
            // The answer may also mean that another put of this name is under way.
            Err(failure) if failure.exists => match self.head(name, limit)? {
                Some(_) => Ok(PutResult::Existed),
                None => {
                    let why = "the server says that the object exists, and does not find it";
                    let kind = ObjectErrorKind::Unexpected(why.to_owned());
                    Err(ObjectError::new("write", self.at(name.as_str()), kind))
                }
            },
            Err(failure) => Err(failure.into()),
        }
    }

    fn put(&self, name: &ObjectName, content: &[u8], limit: &WaitLimit) -> ObjectResult<()> {
        Ok(self.write(name, content, PutMode::Overwrite, limit)?)
    }

    fn list(&self, prefix: &str, from: Option<&str>, limit: &WaitLimit) -> ObjectResult<ListPage> {
        let whole = format!("{}{prefix}", self.prefix);
        let options = PaginatedListOptions {
            offset: from.map(|from| format!("{}{from}", self.prefix)),
            max_keys: Some(PAGE),
            ..Default::default()
        };
        let whole = Some(whole.as_str()).filter(|whole| !whole.is_empty());
        let found = self.call(
            "list",
            prefix,
            limit,
            self.bucket.small.list_paginated(whole, options),
        )?;
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
        match self.call("read", name.as_str(), limit, self.bucket.small.head(&path)) {
            Ok(found) => Ok(Some(found.size)),
            Err(failure) if failure.error.is_not_found() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    fn delete(&self, name: &ObjectName, limit: &WaitLimit) -> ObjectResult<()> {
        let path = self.path(name);
        match self.call("delete", name.as_str(), limit, self.bucket.small.delete(&path)) {
            Err(failure) if !failure.error.is_not_found() => Err(failure.into()),
            _ => Ok(()),
        }
    }
}
