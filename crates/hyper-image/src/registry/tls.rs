//! TLS per host: the system's CAs, and what `certs.d/HOST/` holds.
//!
//! Layout of `certs.d` as in Docker's "Verify repository client with certificates": `*.crt` are CAs, `NAME.cert` with
//! `NAME.key` is a client certificate. The provider is ring: half the build time of aws-lc and no C compiler flags.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::Error;
use crate::reference::DEFAULT_REGISTRY;

/// Largest certificate or key file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Files of one directory that are watched for changes.
const MAX_FILES: usize = 1000;

/// The configuration for `host` (`host:port` or `docker.io`). Reads files: not for an async thread.
pub(super) fn config(
    host: &str,
    secure: bool,
    directories: &[PathBuf],
) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Unreachable { url: host.to_owned(), source: error.into() })?;
    let files = Files::find(host, directories)?;
    let builder = if secure {
        let mut roots = system_roots().clone();
        let mut known = Vec::new();
        for path in &files.authorities {
            for certificate in certificates(path)? {
                known.push(certificate.clone());
                roots.add(certificate).map_err(|error| unusable(path, error))?;
            }
        }
        if known.is_empty() {
            builder.with_root_certificates(roots)
        } else {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| Error::Unreachable {
                    url: host.to_owned(),
                    source: error.into(),
                })?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(OrPinned { inner, known }))
        }
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    match files.client {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(&certificate)?;
            let key_der = PrivateKeyDer::from_pem_slice(&read(&key)?)
                .map_err(|error| unusable(&key, error))?;
            builder
                .with_client_auth_cert(chain, key_der)
                .map_err(|error| unusable(&certificate, error))
        }
    }
}

/// Where a CA for a host is looked for, for error texts.
pub(super) fn hint(host: &str, directories: &[PathBuf]) -> String {
    let directory = directories.first().map_or_else(|| PathBuf::from("certs.d"), Clone::clone);
    directory.join(host).join("ca.crt").display().to_string()
}

/// What `certs.d` holds for a host, as far as `stat` tells: another value means that [`config`] is to be asked again.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(PathBuf, Option<FileStamp>)>);

/// Inode, modification time, length.
type FileStamp = (u64, i64, i64, u64);

impl Stamp {
    /// Looks, a handful of `stat`s: not for an async thread. What cannot be read is an error of [`config`], not here.
    pub(super) fn of(host: &str, directories: &[PathBuf]) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let mut seen = Vec::new();
        for directory in places(host, directories) {
            let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
            let files = entries.take(MAX_FILES).map(|entry| entry.path());
            seen.extend(files.map(|path| {
                // Of what a link points to, which is what is read.
                let found = std::fs::metadata(&path).ok();
                let found = found.map(|at| (at.ino(), at.mtime(), at.mtime_nsec(), at.len()));
                (path, found)
            }));
        }
        seen.sort();
        Self(seen)
    }
}

/// The directories with what is for a host.
fn places(host: &str, directories: &[PathBuf]) -> Vec<PathBuf> {
    // A host comes from a parsed reference: it has no slash and is not `..`. Be sure nevertheless.
    if host.contains('/') || host.starts_with('.') {
        return Vec::new();
    }
    let names: &[&str] =
        if host == DEFAULT_REGISTRY { &[host, "registry-1.docker.io"] } else { &[host] };
    directories.iter().flat_map(|base| names.iter().map(|name| base.join(name))).collect()
}

#[derive(Default)]
struct Files {
    authorities: Vec<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl Files {
    fn find(host: &str, directories: &[PathBuf]) -> Result<Self, Error> {
        let mut found = Self::default();
        for directory in places(host, directories) {
            let entries = match std::fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unusable(&directory, error)),
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                match path.extension().and_then(|extension| extension.to_str()) {
                    Some("crt") => found.authorities.push(path),
                    Some("cert") if found.client.is_none() => {
                        let key = path.with_extension("key");
                        if !key.exists() {
                            return Err(unusable(
                                &path,
                                format!("its key {} is missing", key.display()),
                            ));
                        }
                        found.client = Some((path, key));
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }
}

/// The system's CAs, read once. None at all is no error: a host's own CA may be enough.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "a system certificate cannot be used");
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unusable(path, "it holds no PEM certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(path, error)),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let length = std::fs::metadata(path).map_err(|error| unusable(path, error))?.len();
    if length > MAX_FILE {
        return Err(unusable(path, format!("it is larger than {MAX_FILE} bytes")));
    }
    std::fs::read(path).map_err(|error| unusable(path, error))
}

#[expect(clippy::needless_pass_by_value, reason = "called with whatever error is at hand")]
fn unusable(path: &Path, reason: impl ToString) -> Error {
    Error::ClientFile { path: path.to_owned(), reason: reason.to_string() }
}

/// As usual, but a certificate that lies in `certs.d` itself is good for its names, though it says that it is a CA:
/// what `openssl req -x509` makes does, and Docker takes it. Whoever put it there answers for its dates.
#[derive(Debug)]
struct OrPinned {
    inner: Arc<WebPkiServerVerifier>,
    known: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OrPinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now);
        if judged.is_ok() || !self.known.iter().any(|known| known == certificate) {
            return judged;
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// For registries configured as insecure. Content is still checked against its digest.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_stamp_changes_with_what_is_there() {
        let base = tempfile::tempdir().unwrap();
        let directories = [base.path().to_owned()];
        let look = || Stamp::of("reg:5000", &directories);
        let empty = look();
        let own = base.path().join("reg:5000");
        std::fs::create_dir(&own).unwrap();
        assert_eq!(look(), empty);
        std::fs::write(own.join("ca.crt"), "a").unwrap();
        let first = look();
        assert_ne!(first, empty);
        assert_eq!(look(), first);
        // Of the same length, and in its place by a rename.
        std::fs::write(own.join("new"), "b").unwrap();
        std::fs::rename(own.join("new"), own.join("ca.crt")).unwrap();
        assert_ne!(look(), first);
        std::fs::remove_file(own.join("ca.crt")).unwrap();
        assert_eq!(look(), empty);
        assert_eq!(Stamp::of("../reg:5000", &directories), empty);
    }
}
