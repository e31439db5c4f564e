//! Translates the errors of the crate `object_store`.

use std::error::Error as StdError;
use std::fmt;

use object_store::Error;

use crate::repo::pack::objects::{ObjectError, ObjectErrorKind};

/// The longest text of a server that a message repeats, in characters.
const LONGEST: usize = 300;

/// The address at which machines of AWS get their credentials.
const MACHINE: &str = "169.254.169.254";

/// A text from outside, as an error.
#[derive(Debug)]
struct Message(String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Message {}

/// A text from outside, shortened, as the source of an error.
pub(super) fn message(text: &str) -> Box<dyn StdError + Send + Sync> {
    Box::new(Message(shortened(text)))
}

fn shortened(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text,
    }
}

/// Finds the kind of an error, and what the server or the system says about it.
pub(super) fn translate(operation: &'static str, location: String, error: &Error) -> ObjectError {
    let all = texts(error);
    let code = all.iter().find_map(|text| element(text, "Code"));
    let message_of_server = all.iter().find_map(|text| element(text, "Message"));
    let message_of_server = unescaped(message_of_server.unwrap_or_default());
    let kind = match (kind_of(code.unwrap_or_default(), &message_of_server), error) {
        (Some(kind), _) => kind,
        (None, Error::NotFound { .. }) => ObjectErrorKind::NotFound,
        (None, Error::PermissionDenied { .. }) => ObjectErrorKind::Refused,
        (None, Error::Unauthenticated { .. }) => ObjectErrorKind::BadCredentials,
        (None, Error::NotImplemented { .. } | Error::NotSupported { .. }) => ObjectErrorKind::Unsupported,
        _ if all.iter().any(|text| text.contains(MACHINE)) => ObjectErrorKind::NoCredentials,
        _ if all.iter().any(|text| text.contains("redirect without LOCATION")) => {
            ObjectErrorKind::OtherRegion
        }
        _ if all.iter().any(|text| text.contains("501 Not Implemented")) => ObjectErrorKind::Unsupported,
        _ => ObjectErrorKind::Failed,
    };
    let detail = match code {
        Some(code) => Some(format!("{code}: {message_of_server}")),
        // The innermost error is that of the system, for example of the connection.
        None => all.last().cloned(),
    };
    ObjectError {
        operation,
        location,
        source: detail.filter(|_| !kind.is_clear()).map(|text| message(&text)),
        kind,
    }
}

/// Whether a put failed because the server requires a checksum, as for a bucket with object lock.
/// The error codes of servers differ, but each message names one of the two headers.
pub(super) fn lacks_checksum(error: &Error) -> bool {
    let is_about_it = |text: &String| {
        let text = text.to_ascii_lowercase();
        text.contains("400 bad request") && text.contains("content-md5")
    };
    texts(error).iter().any(is_about_it)
}

/// The kind that a code of S3 means, and a message if the code is used for several things.
fn kind_of(code: &str, message: &str) -> Option<ObjectErrorKind> {
    Some(match code {
        // Garage refuses credentials with this code, too.
        "AccessDenied" if message.contains("Invalid signature") || message.contains("No such key") => {
            ObjectErrorKind::BadCredentials
        }
        "NoSuchBucket" => ObjectErrorKind::NoPlace("bucket"),
        "NoSuchKey" => ObjectErrorKind::NotFound,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => ObjectErrorKind::Refused,
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidToken"
        | "ExpiredToken"
        | "TokenRefreshRequired" => ObjectErrorKind::BadCredentials,
        "RequestTimeTooSkewed" | "RequestExpired" => ObjectErrorKind::ClockOff,
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            ObjectErrorKind::OtherRegion
        }
        "NotImplemented" => ObjectErrorKind::Unsupported,
        _ => return None,
    })
}

impl ObjectErrorKind {
    /// Whether the kind says everything.
    fn is_clear(&self) -> bool {
        matches!(self, ObjectErrorKind::NotFound | ObjectErrorKind::NoPlace(_))
    }
}

/// The texts of an error and its sources.
fn texts(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string()];
    let mut below = error.source();
    while let Some(source) = below {
        texts.push(source.to_string());
        below = source.source();
    }
    texts
}

/// A text of an XML document without escapes.
fn unescaped(text: &str) -> String {
    let escapes = [
        ("&apos;", "'"),
        ("&quot;", "\""),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    let replaced = |text: String, (escape, plain): (&str, &str)| text.replace(escape, plain);
    escapes.into_iter().fold(text.to_owned(), replaced)
}

/// The content of an XML element without attributes. Error documents of S3 have no nested ones.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (content, _) = rest.split_once(&format!("</{name}>"))?;
    Some(content).filter(|content| !content.is_empty() && !content.contains('<'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(error: Error) -> ObjectErrorKind {
        translate("read", "s3://b/x".to_owned(), &error).kind
    }

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.into(),
        }
    }

    #[test]
    fn codes_of_the_server_decide() {
        for (code, expected) in [
            ("NoSuchBucket", ObjectErrorKind::NoPlace("bucket")),
            ("RequestTimeTooSkewed", ObjectErrorKind::ClockOff),
            ("SignatureDoesNotMatch", ObjectErrorKind::BadCredentials),
            ("AccessDenied", ObjectErrorKind::Refused),
            ("PermanentRedirect", ObjectErrorKind::OtherRegion),
            ("NotImplemented", ObjectErrorKind::Unsupported),
            ("SlowDown", ObjectErrorKind::Failed),
        ] {
            let body =
                format!("status: 403: <?xml?><Error><Code>{code}</Code><Message>why</Message></Error>");
            assert_eq!(kind(generic(&body)), expected, "{code}");
        }
    }

    #[test]
    fn garage_refuses_credentials_with_the_code_of_missing_rights() {
        for (message, expected) in [
            ("Forbidden: Invalid signature", ObjectErrorKind::BadCredentials),
            ("Forbidden: No such key: GK0", ObjectErrorKind::BadCredentials),
            (
                "Forbidden: Operation is not allowed for this key.",
                ObjectErrorKind::Refused,
            ),
        ] {
            let body = format!("<Code>AccessDenied</Code><Message>{message}</Message>");
            assert_eq!(kind(generic(&body)), expected, "{message}");
        }
    }

    #[test]
    fn messages_have_no_escapes_of_xml() {
        let body = "<Code>SlowDown</Code><Message>&apos;a&amp;lt;&apos; &lt;b&gt;</Message>";
        let error = translate("read", "s3://b/x".to_owned(), &generic(body));
        let source = error.source.expect("the answer").to_string();
        assert_eq!(source, "SlowDown: 'a&lt;' <b>");
    }

    #[test]
    fn long_and_hostile_answers_are_shortened() {
        let long = "x".repeat(100_000);
        let body = format!("<Code>SlowDown</Code><Message>{long}\n\u{1b}[2J</Message>");
        for text in [
            body,
            long.clone(),
            "<Code></Code>".to_owned(),
            "<Code><Code></Code>".to_owned(),
        ] {
            let error = translate("read", "s3://b/x".to_owned(), &generic(&text));
            let source = error.source.expect("an unclear error has one").to_string();
            assert!(
                source.chars().count() <= LONGEST + 2 && !source.contains('\n'),
                "{source}"
            );
        }
    }

    #[test]
    fn machines_without_credentials_lack_them() {
        let error = generic("Error performing PUT http://169.254.169.254/latest/api/token in 1s");
        assert_eq!(kind(error), ObjectErrorKind::NoCredentials);
    }
}
