//! Image references, normalised as Docker does.
//!
//! ```text
//!  busybox                        docker.io / library/busybox
//!  localhost:5000/a/b:1@sha256:…  localhost:5000 / a/b : 1 @ sha256:…
//!  ───────registry─────── ─path─ tag ──digest──
//! ```
//! Grammar: github.com/distribution/reference (`reference.go`, `normalize.go`). The first component is a registry
//! exactly if it holds a `.` or `:`, is `localhost`, or has an upper-case letter; otherwise the registry is
//! `docker.io`, where a single component lies under `library/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Registry of names without one.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Tag of names without one.
pub const DEFAULT_TAG: &str = "latest";
/// Longest registry and path together, in bytes.
const MAX_NAME: usize = 255;
/// Longest tag in bytes.
const MAX_TAG: usize = 128;

/// A name of an image: registry and path, and a tag, a digest, both or neither.
///
/// `Display` and serde give the canonical form (`docker.io/library/busybox:latest`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not a reference. The texts name the string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing there.
    #[error("an image reference must not be empty")]
    Empty,
    /// Upper-case letters in the path.
    #[error("invalid reference `{0}`: the repository name must be lower case")]
    Uppercase(String),
    /// A bare 64-digit hexadecimal string is an image id, not a name.
    #[error(
        "invalid reference `{0}`: 64 hexadecimal digits are an image id, not a repository name"
    )]
    LooksLikeId(String),
    /// Registry and path are too long.
    #[error("invalid reference `{0}`: the repository name is longer than {MAX_NAME} bytes")]
    TooLong(String),
    /// Not `host`, `host:port` or `[ipv6]:port`.
    #[error("invalid reference `{reference}`: `{registry}` is not a registry address")]
    Registry {
        /// The whole string.
        reference: String,
        /// The part at fault.
        registry: String,
    },
    /// A path component is empty or has characters outside `a-z0-9._-`.
    #[error("invalid reference `{reference}`: `{component}` is not a valid path component")]
    Path {
        /// The whole string.
        reference: String,
        /// The part at fault.
        component: String,
    },
    /// Not `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
    #[error("invalid reference `{reference}`: `{tag}` is not a valid tag")]
    Tag {
        /// The whole string.
        reference: String,
        /// The part at fault.
        tag: String,
    },
    /// A digest where only a tag makes sense.
    #[error("`{0}` has a digest: only a name with a tag can be given to an image")]
    NotATag(String),
    /// What follows `@` is not a digest.
    #[error("invalid reference `{reference}`")]
    Digest {
        /// The whole string.
        reference: String,
        /// Why.
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// `docker.io`, `localhost:5000` …
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry: `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and path: `docker.io/library/busybox`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Registry and path as users write them: `busybox`, `foo/bar`, `localhost:5000/a`.
    #[must_use]
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.name();
        }
        let short = match self.repository.strip_prefix("library/") {
            // `docker.io/library/a/b` would come back as `docker.io/a/b`, another repository.
            Some(rest) if !rest.contains('/') => rest,
            _ => &self.repository,
        };
        // `docker.io/a.b/c` would come back as `c` of the registry `a.b`, and 64 digits as an id.
        match short.parse::<Self>() {
            Ok(again) if again.registry == self.registry && again.repository == self.repository => {
                short.to_owned()
            }
            _ => self.name(),
        }
    }

    /// The whole reference as users write it: `busybox:latest`, `busybox@sha256:…`.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    /// With `:latest` if it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository at a digest, without a tag.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same repository and tag without the digest.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self { digest: None, ..self.clone() }
    }

    /// The same repository with a tag and no digest.
    ///
    /// # Errors
    /// [`ReferenceError::Tag`]
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag, &format!("{}:{tag}", self.familiar_name()))?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// What follows `manifests/` in a registry's API: the digest if there is one, else the tag, else `latest`.
    #[must_use]
    pub fn manifest_key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        // Bounds the work and the error text; the longest valid reference is 255 + 1 + 128 + 1 + 71 bytes.
        if text.len() > 512 {
            return Err(ReferenceError::TooLong(text.chars().take(64).collect::<String>() + "…"));
        }
        let whole = || text.to_owned();
        if Digest::from_hex(text).is_some() {
            return Err(ReferenceError::LooksLikeId(whole()));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|source| ReferenceError::Digest { reference: whole(), source })?;
                (rest, Some(digest))
            }
        };
        // A colon after the last slash starts a tag; one before it belongs to the registry's port.
        let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            None => (rest, None),
            Some(colon) => {
                let tag = &rest[after_slash + colon + 1..];
                check_tag(tag, text)?;
                (&rest[..after_slash + colon], Some(tag.to_owned()))
            }
        };
        let (registry, path) = split_registry(name);
        if registry != DEFAULT_REGISTRY && !is_registry(registry) {
            return Err(ReferenceError::Registry {
                reference: whole(),
                registry: registry.to_owned(),
            });
        }
        check_path(path, text)?;
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::TooLong(whole()));
        }
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
fn is_registry(registry: &str) -> bool {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((v6, port)) = rest.split_once(']') else { return false };
        if v6.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|_| !port.starts_with('+')))
}

fn check_path(path: &str, reference: &str) -> Result<(), ReferenceError> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceError::Uppercase(reference.to_owned()));
    }
    match path.split('/').find(|component| !is_component(component)) {
        None => Ok(()),
        Some(component) => Err(ReferenceError::Path {
            reference: reference.to_owned(),
            component: component.to_owned(),
        }),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|&b| alphanumeric(b))
        || !bytes.last().is_some_and(|&b| alphanumeric(b))
    {
        return false;
    }
    component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
    })
}

fn check_tag(tag: &str, reference: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid {
        Ok(())
    } else {
        Err(ReferenceError::Tag { reference: reference.to_owned(), tag: tag.to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn parse(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn familiar_name_never_means_another_repository() {
        let id = "a".repeat(64);
        for (text, familiar) in [
            ("docker.io/a.b/c", "docker.io/a.b/c"),
            ("docker.io/localhost/c", "docker.io/localhost/c"),
            ("docker.io/library/busybox", "busybox"),
            (&format!("docker.io/library/{id}"), &format!("docker.io/library/{id}")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn normalised_as_docker_does() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for (text, canonical, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
            ("foo/bar", "docker.io/foo/bar:latest", "foo/bar:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/a/b:c", "docker.io/a/b:c", "a/b:c"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("localhost:5000/a:b", "localhost:5000/a:b", "localhost:5000/a:b"),
            (
                "127.0.0.1:5000/a/b__c.d--e",
                "127.0.0.1:5000/a/b__c.d--e:latest",
                "127.0.0.1:5000/a/b__c.d--e:latest",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            ("ghcr.io/o/r:v1.2-x_3", "ghcr.io/o/r:v1.2-x_3", "ghcr.io/o/r:v1.2-x_3"),
            ("Host/a", "Host/a:latest", "Host/a:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ] {
            let reference = parse(text).or_latest();
            assert_eq!(reference.to_string(), canonical);
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(parse(&reference.to_string()), reference);
            assert_eq!(parse(&reference.familiar()), reference, "{text}");
        }
        let both = parse(&format!("a:b@sha256:{hex}"));
        assert_eq!(both.manifest_key(), format!("sha256:{hex}"));
        assert_eq!(both.or_latest().tag(), Some("b"));
        assert_eq!(parse(&format!("a@sha256:{hex}")).or_latest().tag(), None);
    }

    #[test]
    fn errors_name_the_value() {
        let long = "a".repeat(256);
        for (text, part) in [
            ("Busybox", "lower case"),
            ("a//b", "``"),
            ("a/-b", "`-b`"),
            ("a/b___c", "`b___c`"),
            ("a:", "tag"),
            ("a:-x", "`-x`"),
            ("a@sha256:12", "a@sha256:12"),
            ("host:port/a", "`host:port`"),
            ("host.:1/a", "`host.:1`"),
            ("http://x/y", "`http:`"),
            ("a b", "`a b`"),
            ("ü", "`ü`"),
            ("../a", "`..`"),
            (&"f".repeat(64), "image id"),
            (&long, "longer"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!("".parse::<Reference>(), Err(ReferenceError::Empty));
        assert!("x".repeat(100_000).parse::<Reference>().unwrap_err().to_string().len() < 300);
    }
}
