//! Everything that can go wrong with images, in words for the person who asked.
//!
//! Texts name the reference, digest, URL or path, and what to do where something can be done; causes are in
//! `source()` and never repeated. [`Error::kind`] is for callers that speak a protocol of their own.

use std::error::Error as StdError;
use std::path::PathBuf;

use crate::digest::{Digest, DigestError};
use crate::platform::{Platform, PlatformError};
use crate::reference::ReferenceError;

pub(crate) type Source = Box<dyn StdError + Send + Sync>;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Not a platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Not a digest.
    #[error(transparent)]
    Digest(#[from] DigestError),

    /// Not in the store.
    #[error("no such image: {name}")]
    NoSuchImage {
        /// As asked for.
        name: String,
    },
    /// Several ids start so.
    #[error("image id `{prefix}` is ambiguous: it could be {candidates}")]
    AmbiguousId {
        /// As asked for.
        prefix: String,
        /// Short ids, separated by commas.
        candidates: String,
    },
    /// The image may not be removed.
    #[error("conflict: unable to remove `{name}`: {reason}")]
    InUse {
        /// As asked for.
        name: String,
        /// Who uses it and what to do.
        reason: String,
    },

    /// The registry knows no such tag or digest.
    #[error(
        "no such tag, digest or repository in the registry: {reference} (asked {url}); check the name, or log in if the repository is private"
    )]
    NotInRegistry {
        /// As asked for.
        reference: String,
        /// What was asked.
        url: String,
    },
    /// The registry wants (other) credentials.
    #[error(
        "not authorised to {action} {reference}: {message}; log in to {registry} with `docker login` or `hyper login`"
    )]
    Unauthorized {
        /// `pull`, `push` …
        action: &'static str,
        /// As asked for.
        reference: String,
        /// Whose credentials are wanted.
        registry: String,
        /// What the registry says.
        message: String,
    },
    /// The signature policy does not let the image in.
    #[error(
        "{reference} is refused by the signature policy ({policy}): {reason}; have it signed with `cosign sign --key`, or change the rule"
    )]
    Untrusted {
        /// As asked for.
        reference: String,
        /// File, line and rule.
        policy: String,
        /// What is missing.
        reason: String,
    },
    /// The signature policy cannot be used.
    #[error("cannot use the signature policy {path}: {reason}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// Line and mistake.
        reason: String,
    },
    /// The registry does not accept the credentials.
    #[error("login to {registry} failed: {message}; check user name and password")]
    LoginRefused {
        /// Which.
        registry: String,
        /// What the registry says.
        message: String,
    },
    /// Nobody answers there.
    #[error("cannot reach {url}; check the name, the network and whether the registry runs")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Refused, unresolved, timed out …
        #[source]
        source: Source,
    },
    /// The registry's certificate or TLS dialect is not acceptable.
    #[error("cannot make a TLS connection to {url}; put the registry's CA at {hint}")]
    Tls {
        /// What was asked.
        url: String,
        /// Where a CA would be looked for.
        hint: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// A TLS handshake was answered in plain text.
    #[error(
        "{registry} speaks plain HTTP where HTTPS is expected ({url}); add it to the insecure registries if that is intended"
    )]
    PlainHttp {
        /// Host and port.
        registry: String,
        /// What was asked.
        url: String,
    },
    /// An answer that is no use, after all retries.
    #[error("registry answered {status} to {url}: {message}")]
    Registry {
        /// HTTP status.
        status: u16,
        /// What was asked.
        url: String,
        /// From the answer's body.
        message: String,
    },
    /// The connection broke, after all retries.
    #[error("transfer of {url} failed after {received} bytes")]
    Transfer {
        /// What was asked.
        url: String,
        /// Bytes so far.
        received: u64,
        /// Why.
        #[source]
        source: Source,
    },
    /// A certificate, key or credentials file cannot be used.
    #[error("cannot use {path}: {reason}")]
    ClientFile {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Given credentials cannot be read.
    #[error("cannot get credentials for {registry}: {reason}")]
    Credentials {
        /// Whose.
        registry: String,
        /// Why; never the credentials themselves.
        reason: String,
    },

    /// Nothing for this platform.
    #[error("{reference} has no image for {wanted}; it offers {offered}")]
    NoPlatform {
        /// As asked for.
        reference: String,
        /// As asked for.
        wanted: Platform,
        /// Platforms, separated by commas.
        offered: String,
    },
    /// Docker's old format.
    #[error(
        "{reference} is in Docker's old image format (manifest schema 1), which cannot be verified and is not supported; push it again with a current tool"
    )]
    Schema1 {
        /// As asked for.
        reference: String,
    },
    /// Something other than a container image.
    #[error("{what} is not a container image: {reason}")]
    NotAnImage {
        /// Reference or digest.
        what: String,
        /// Why.
        reason: String,
    },
    /// A layer that must be fetched from elsewhere.
    #[error(
        "layer {digest} is a foreign layer ({media_type}), which is not distributed by its registry and not supported"
    )]
    ForeignLayer {
        /// Which.
        digest: Digest,
        /// As declared.
        media_type: String,
    },
    /// JSON that is not what it should be.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Document.
        what: String,
        /// Why.
        reason: String,
    },

    /// Content that is not what its name says.
    #[error("digest mismatch for {what}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Reference, URL or archive entry.
        what: String,
        /// As named.
        expected: Digest,
        /// As found.
        actual: Digest,
    },
    /// Shorter or longer than declared.
    #[error("size mismatch for {what}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// URL or archive entry.
        what: String,
        /// As declared.
        expected: u64,
        /// As found (at least).
        actual: u64,
    },
    /// The layer's archive cannot be converted.
    #[error("cannot convert layer {digest}")]
    Layer {
        /// Blob.
        digest: Digest,
        /// Truncated, escaping path, limit …
        #[source]
        source: Source,
    },
    /// The process that takes layers apart failed, and not for what is in the layer.
    #[error("cannot unpack {}", what_is_unpacked(digest.as_ref()))]
    Unpacking {
        /// Blob, or an archive that was given.
        digest: Option<Digest>,
        /// Why.
        #[source]
        source: Source,
    },
    /// Layers that do not fit each other, or metadata that cannot be written.
    #[error("cannot assemble the root file system of image {image}")]
    Rootfs {
        /// Config digest.
        image: Digest,
        /// Why.
        #[source]
        source: Source,
    },
    /// An archive given to `load`.
    #[error("cannot load the archive: {reason}")]
    Archive {
        /// Why.
        reason: String,
    },
    /// The archive's stream broke.
    #[error("cannot read the archive")]
    ArchiveRead(#[source] Source),

    /// The disk is full.
    #[error(
        "no space left for {path}: {need} bytes are needed, {available} are free; remove images or make room"
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes of what was to be written.
        need: u64,
        /// Bytes free on that file system.
        available: u64,
    },
    /// The store has the size it may have.
    #[error(
        "the image store {path} may hold {} and holds {}: no room for {} more; remove images (`hyper image prune -a`) or raise `image-store-limit`",
        crate::store::quota::shown(*limit), crate::store::quota::shown(*used), crate::store::quota::shown(*need)
    )]
    Quota {
        /// The store.
        path: PathBuf,
        /// Bytes it may hold.
        limit: u64,
        /// Bytes it holds.
        used: u64,
        /// Bytes that were to be added.
        need: u64,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// Verb.
        action: &'static str,
        /// Object.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has the store.
    #[error(
        "the image store {path} is in use by another process; stop it or choose another data root"
    )]
    Locked {
        /// The store.
        path: PathBuf,
    },
    /// A file of the store is not what was put there.
    #[error("the image store is damaged at {path}: {reason}")]
    Damaged {
        /// File.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// The operation was given up by its caller.
    #[error("cancelled")]
    Cancelled,
}

fn what_is_unpacked(digest: Option<&Digest>) -> String {
    digest.map_or_else(|| "the archive".to_owned(), |digest| format!("layer {digest}"))
}

/// What sort of error, for protocols with status codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong (400).
    Invalid,
    /// No such thing (404).
    NotFound,
    /// Credentials (401).
    Unauthorized,
    /// Not allowed (403).
    Forbidden,
    /// Not in this state (409).
    Conflict,
    /// The registry's fault or the network's (502).
    Registry,
    /// Content is not what it claims (500).
    Corrupt,
    /// Disk full (507).
    NoSpace,
    /// Ours or the host's fault (500).
    Internal,
}

impl Error {
    /// What sort of error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference(_) | Self::Platform(_) | Self::Digest(_) | Self::AmbiguousId { .. } => {
                ErrorKind::Invalid
            }
            Self::NoSuchImage { .. } | Self::NotInRegistry { .. } | Self::NoPlatform { .. } => {
                ErrorKind::NotFound
            }
            Self::Unauthorized { .. } | Self::LoginRefused { .. } => ErrorKind::Unauthorized,
            Self::Untrusted { .. } => ErrorKind::Forbidden,
            Self::InUse { .. } => ErrorKind::Conflict,
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::PlainHttp { .. }
            | Self::Registry { .. }
            | Self::Transfer { .. } => ErrorKind::Registry,
            Self::Schema1 { .. }
            | Self::NotAnImage { .. }
            | Self::ForeignLayer { .. }
            | Self::Malformed { .. }
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Layer { .. }
            | Self::Rootfs { .. }
            | Self::Archive { .. }
            | Self::ArchiveRead(_) => ErrorKind::Corrupt,
            Self::NoSpace { .. } | Self::Quota { .. } => ErrorKind::NoSpace,
            Self::ClientFile { .. }
            | Self::Policy { .. }
            | Self::Credentials { .. }
            | Self::Io { .. }
            | Self::Locked { .. }
            | Self::Unpacking { .. }
            | Self::Damaged { .. }
            | Self::Cancelled => ErrorKind::Internal,
        }
    }

    /// The text with its causes, separated by colons: for logs and protocols with one line for an error.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
