//! Platforms: what a kernel and a processor an image is made for.
//!
//! Names follow Go's `GOOS` and `GOARCH` (OCI image-spec, `image-index.md`); the usual other spellings are accepted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Operating system, architecture and variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64` …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8` … Only compared if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform (expected OS/ARCHITECTURE[/VARIANT], such as linux/amd64)")]
pub struct PlatformError(pub String);

impl Platform {
    /// The platform of this machine's guests.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" | "amd64" => ("amd64".to_owned(), None),
            "aarch64" | "arm64" => ("arm64".to_owned(), None),
            "i386" | "i686" | "x86" => ("386".to_owned(), None),
            "armhf" | "arm7" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            other => (other.to_owned(), None),
        };
        let variant = variant.or(implied).map(str::to_owned);
        // arm64/v8 and amd64/v1 are what every processor of the kind has.
        let variant = variant.filter(|variant| {
            !matches!((architecture.as_str(), variant.as_str()), ("arm64", "v8") | ("amd64", "v1"))
        });
        Self { os: os.to_ascii_lowercase(), architecture, variant }
    }

    /// This platform with the usual spelling of its parts.
    #[must_use]
    pub fn normalised(&self) -> Self {
        Self::new(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// How well `offered` serves a request for this platform: `None` if not at all, lower is better.
    pub(crate) fn accepts(&self, offered: &Self) -> Option<u8> {
        let (wanted, offered) = (self.normalised(), offered.normalised());
        if wanted.os != offered.os || wanted.architecture != offered.architecture {
            return None;
        }
        match (&wanted.variant, &offered.variant) {
            (None, None) => Some(0),
            // A variant nobody asked for may need newer instructions: only if nothing else is there.
            (None, Some(_)) => Some(2),
            (Some(_), None) => Some(1),
            (Some(wanted), Some(offered)) => (wanted == offered).then_some(0),
        }
    }
}

impl Default for Platform {
    fn default() -> Self {
        Self::host()
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        match parts.as_slice() {
            parts if !parts.iter().all(word) => {}
            [os, architecture] => return Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => return Ok(Self::new(os, architecture, Some(variant))),
            _ => {}
        }
        Err(PlatformError(text.chars().take(100).collect()))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |part: &str| if part.is_empty() { "unknown" } else { part }.to_owned();
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn spellings() {
        assert_eq!(platform("linux/x86_64"), platform("linux/amd64"));
        assert_eq!(platform("linux/arm64/v8").to_string(), "linux/arm64");
        assert_eq!(platform("Linux/armhf").to_string(), "linux/arm/v7");
        for bad in ["", "linux", "linux/", "a/b/c/d", "a b/c"] {
            assert!(bad.parse::<Platform>().unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn preference() {
        let wanted = platform("linux/amd64");
        assert_eq!(wanted.accepts(&platform("linux/amd64")), Some(0));
        assert_eq!(wanted.accepts(&platform("linux/amd64/v3")), Some(2));
        assert_eq!(wanted.accepts(&platform("linux/arm64")), None);
        assert_eq!(wanted.accepts(&platform("windows/amd64")), None);
        assert_eq!(platform("linux/arm/v7").accepts(&platform("linux/arm/v6")), None);
    }
}
