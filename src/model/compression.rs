//! How the images of a restore point are compressed.

use std::fmt;
use std::str::FromStr;

/// Whether and how clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// All clusters are stored as they are.
    None,
    /// Clusters that shrink are stored as zstd frames.
    Zstd(ZstdLevel),
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Zstd(ZstdLevel::default())
    }
}

/// zstd's level, 1 (fast) to 19 (small).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZstdLevel(u8);

impl ZstdLevel {
    /// The level with this number; `None` if the number is not from 1 to 19.
    pub fn new(number: u8) -> Option<ZstdLevel> {
        (1..=19).contains(&number).then_some(ZstdLevel(number))
    }

    /// Its number.
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

impl Default for ZstdLevel {
    fn default() -> Self {
        ZstdLevel(1)
    }
}

/// The error for an invalid value of `--compress`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 'none', 'zstd' or 'zstd:LEVEL' with a LEVEL from 1 to 19")]
pub struct UnknownCompression;

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, UnknownCompression> {
        match text {
            "none" => Ok(Compression::None),
            "zstd" => Ok(Compression::default()),
            other => {
                let number = other.strip_prefix("zstd:").ok_or(UnknownCompression)?;
                let is_plain = number.bytes().all(|digit| digit.is_ascii_digit());
                let level = number.parse().ok().filter(|_| is_plain);
                let level = level.and_then(ZstdLevel::new).ok_or(UnknownCompression)?;
                Ok(Compression::Zstd(level))
            }
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Zstd(level) => write!(f, "zstd:{}", level.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_documented_words_are_accepted() {
        for (text, number) in [("zstd:1", 1), ("zstd:19", 19), ("zstd:07", 7)] {
            let Ok(Compression::Zstd(level)) = text.parse() else {
                panic!("{text} is accepted");
            };
            assert_eq!(level.number(), number);
        }
        assert_eq!("none".parse(), Ok(Compression::None));
        assert_eq!("zstd".parse(), Ok(Compression::default()));
        for text in [
            "", "zlib", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:-1", "zstd:300", "ZSTD", "none:1",
        ] {
            assert_eq!(text.parse::<Compression>(), Err(UnknownCompression), "{text}");
        }
    }

    #[test]
    fn what_is_shown_is_what_is_typed() {
        for text in ["none", "zstd:1", "zstd:12"] {
            let parsed: Compression = text.parse().expect("it is accepted");
            assert_eq!(parsed.to_string(), text);
        }
    }
}
