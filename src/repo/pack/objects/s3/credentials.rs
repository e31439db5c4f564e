//! Finds credentials and the region where other programs for S3 find them: in the environment, then
//! in `~/.aws/credentials` and `~/.aws/config`.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// The region of a server that has none.
const REGION: &str = "us-east-1";

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The variables of credentials that a server on this machine or in its cluster issues.
const ISSUED: [&str; 7] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
];

/// Credentials and a region.
pub(super) struct Settings {
    pub(super) credentials: Credentials,
    pub(super) region: String,
}

/// Credentials, or where to get them.
pub(super) enum Credentials {
    /// A key.
    Static {
        id: String,
        secret: Zeroizing<String>,
        token: Option<Zeroizing<String>>,
    },
    /// These variables name a server that issues them.
    OfEnvironment(Vec<(String, String)>),
    /// The credentials of this machine, if it runs at AWS.
    OfMachine,
}

/// Reads a variable of the environment.
type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Settings {
    /// Finds the credentials and the region.
    ///
    /// # Errors
    /// The credentials are incomplete, or a file with them cannot be read. The text contains no
    /// secret.
    pub(super) fn find(environment: Environment<'_>) -> Result<Settings, String> {
        let variable = |name: &str| {
            let value = environment(name).filter(|value| !value.is_empty());
            let text = value.map(|value| {
                value
                    .into_string()
                    .map_err(|_| format!("{name} is not valid UTF-8"))
            });
            text.transpose()
        };
        let profile = variable("AWS_PROFILE")?;
        let files = Files::find(environment, profile.as_deref())?;
        let region = match variable("AWS_REGION")? {
            Some(region) => Some(region),
            None => variable("AWS_DEFAULT_REGION")?,
        };
        let id = variable("AWS_ACCESS_KEY_ID")?;
        let secret = variable("AWS_SECRET_ACCESS_KEY")?.map(Zeroizing::new);
        let token = variable("AWS_SESSION_TOKEN")?.map(Zeroizing::new);
        let credentials = match (id, secret) {
            (Some(id), Some(secret)) => Credentials::Static { id, secret, token },
            (Some(_), None) => return Err("AWS_SECRET_ACCESS_KEY is missing".to_owned()),
            (None, Some(_)) => return Err("AWS_ACCESS_KEY_ID is missing".to_owned()),
            (None, None) => match files.credentials {
                Some(credentials) => credentials,
                None if profile.is_some() => {
                    return Err("the profile in AWS_PROFILE has no key in the credentials file".to_owned());
                }
                None => issued(&variable)?,
            },
        };
        let region = region.or(files.region).unwrap_or_else(|| REGION.to_owned());
        Ok(Settings { credentials, region })
    }
}

fn issued(variable: &dyn Fn(&str) -> Result<Option<String>, String>) -> Result<Credentials, String> {
    let mut values = Vec::new();
    for name in ISSUED {
        if let Some(value) = variable(name)? {
            values.push((name.to_ascii_lowercase(), value));
        }
    }
    Ok(match values.is_empty() {
        true => Credentials::OfMachine,
        false => Credentials::OfEnvironment(values),
    })
}

/// What the files of AWS say about a profile.
#[derive(Default)]
struct Files {
    credentials: Option<Credentials>,
    region: Option<String>,
}

impl Files {
    fn find(environment: Environment<'_>, profile: Option<&str>) -> Result<Files, String> {
        let profile = profile.unwrap_or("default");
        let home = environment("HOME").filter(|home| !home.is_empty());
        let path = |variable: &str, name: &str| {
            let given = environment(variable).filter(|path| !path.is_empty());
            let usual = home.as_ref().map(|home| Path::new(home).join(".aws").join(name));
            given.map(PathBuf::from).or(usual)
        };
        let mut files = Files::default();
        if let Some(text) = read(path("AWS_SHARED_CREDENTIALS_FILE", "credentials").as_deref())? {
            files.credentials = key_of(&text, profile)?;
            files.region = value(&text, profile, "region").map(str::to_owned);
        }
        if let Some(text) = read(path("AWS_CONFIG_FILE", "config").as_deref())? {
            let section = match profile {
                "default" => profile.to_owned(),
                profile => format!("profile {profile}"),
            };
            let region = value(&text, &section, "region").map(str::to_owned);
            files.region = files.region.or(region);
        }
        Ok(files)
    }
}

fn key_of(text: &str, profile: &str) -> Result<Option<Credentials>, String> {
    let secret = |name| value(text, profile, name).map(|text| Zeroizing::new(text.to_owned()));
    match (
        value(text, profile, "aws_access_key_id"),
        secret("aws_secret_access_key"),
    ) {
        (Some(id), Some(key)) => Ok(Some(Credentials::Static {
            id: id.to_owned(),
            secret: key,
            token: secret("aws_session_token"),
        })),
        (None, None) => Ok(None),
        _ => Err(format!(
            "profile {} of the credentials file lacks half of its key",
            crate::model::text::shown(profile)
        )),
    }
}

/// Reads a file; a missing one is `None`.
fn read(path: Option<&Path>) -> Result<Option<Zeroizing<String>>, String> {
    let Some(path) = path else {
        return Ok(None);
    };
    let open = || -> io::Result<_> {
        let mut text = Zeroizing::new(String::new());
        File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
        Ok(text)
    };
    match open() {
        Ok(text) => Ok(Some(text)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// The value of a key in a section of such a file.
fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut is_here = false;
    let mut found = None;
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            is_here = name.split_whitespace().eq(section.split_whitespace());
        } else if is_here
            && !line.starts_with(['#', ';'])
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            found = Some(value.trim()).filter(|value| !value.is_empty());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Settings::find(&|name| variables.get(name).map(OsString::from))
    }

    fn id(settings: &Settings) -> &str {
        match &settings.credentials {
            Credentials::Static { id, .. } => id,
            Credentials::OfEnvironment(_) => "of the environment",
            Credentials::OfMachine => "of the machine",
        }
    }

    #[test]
    fn the_environment_comes_before_the_files() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(home.path().join(".aws")).expect("created");
        let text = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=s=1\n\n[work]\nregion = eu-west-1\n\
                    aws_access_key_id = B\naws_secret_access_key = t\naws_session_token = u\n[half]\naws_access_key_id = C\n";
        std::fs::write(home.path().join(".aws/credentials"), text).expect("written");
        let config = "[default]\nregion = eu-central-1\n[profile half]\nregion = x\n";
        std::fs::write(home.path().join(".aws/config"), config).expect("written");
        let home = home.path().to_str().expect("UTF-8");

        let default = find(&[("HOME", home)]).expect("found");
        assert_eq!((id(&default), default.region.as_str()), ("A", "eu-central-1"));
        let Credentials::Static {
            secret, token: None, ..
        } = &default.credentials
        else {
            panic!("a key without a token");
        };
        assert_eq!(secret.as_str(), "s=1");
        let work = find(&[("HOME", home), ("AWS_PROFILE", "work")]).expect("found");
        assert_eq!((id(&work), work.region.as_str()), ("B", "eu-west-1"));
        let typed = [
            ("HOME", home),
            ("AWS_ACCESS_KEY_ID", "E"),
            ("AWS_SECRET_ACCESS_KEY", "f"),
            ("AWS_REGION", "r"),
        ];
        let typed = find(&typed).expect("found");
        assert_eq!((id(&typed), typed.region.as_str()), ("E", "r"));
        assert!(find(&[("HOME", home), ("AWS_PROFILE", "half")]).is_err());
        assert!(find(&[("HOME", home), ("AWS_PROFILE", "none")]).is_err());
    }

    #[test]
    fn without_keys_those_of_the_machine_are_left() {
        assert_eq!(id(&find(&[]).expect("found")), "of the machine");
        assert_eq!(find(&[]).expect("found").region, REGION);
        let issued = [
            ("AWS_ROLE_ARN", "arn:x"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
        ];
        assert_eq!(id(&find(&issued).expect("found")), "of the environment");
    }

    #[test]
    fn half_a_key_is_an_error_without_the_secret() {
        let error = find(&[("AWS_SECRET_ACCESS_KEY", "hunter2")]).err().expect("half");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(find(&[("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "")]).is_err());
    }
}
