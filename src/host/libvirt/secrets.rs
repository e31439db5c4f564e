//! Reads the secrets that open encrypted images from libvirt.

use virt::secret::Secret;
use virt_sys as sys;

use super::link::Link;
use super::{CallError, HostError, Refusal, Result, ffi};
use crate::host::chain::key_name;
use crate::host::qemu::Keys;
use crate::model::storage::SecretRef;

/// Reads the values of these secrets, under the names that images use for them.
pub fn keys(link: &Link, secrets: &[SecretRef]) -> Result<Keys> {
    let mut values = Vec::with_capacity(secrets.len());
    for (number, secret) in secrets.iter().enumerate() {
        values.push((key_name(number), value(link, secret)?));
    }
    Keys::hold(values)
}

fn value(link: &Link, wanted: &SecretRef) -> Result<Vec<u8>> {
    let connection = link.connection()?;
    let (shown, text) = match wanted {
        SecretRef::Uuid(uuid) => (format!("secret {uuid}"), uuid),
        SecretRef::Usage(usage) => (format!("secret for the volume {usage}"), usage),
    };
    // The bindings cannot take a NUL byte, and XML cannot hold one.
    ffi::c_string(text).map_err(|error| unreadable(&shown, &error))?;
    let found = match wanted {
        SecretRef::Uuid(uuid) => Secret::lookup_by_uuid_string(&connection, uuid),
        SecretRef::Usage(usage) => {
            Secret::lookup_by_usage(&connection, sys::VIR_SECRET_USAGE_TYPE_VOLUME as i32, usage)
        }
    };
    let value = found.and_then(|secret| secret.get_value(0));
    value.map_err(|error| unreadable(&shown, &error.into()))
}

fn unreadable(shown: &str, error: &CallError) -> HostError {
    let secret = shown.to_owned();
    let message = error.message.clone();
    Refusal::SecretUnavailable { secret, message }.into()
}
