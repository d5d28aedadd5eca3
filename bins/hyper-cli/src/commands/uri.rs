//! Files of a manifest that are somewhere else: `file://`, `http://` and `https://`, bounded in
//! size and time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rustls::ClientConfig;
use rustls::crypto::ring;

use crate::arguments::{MAX_GIVEN_BYTES, read_given};

/// For one file.
const DEADLINE: Duration = Duration::from_secs(60);

/// The bytes at `uri`.
pub async fn read(uri: &str) -> anyhow::Result<Vec<u8>> {
    if let Some(path) = uri.strip_prefix("file://") {
        let path = path.strip_prefix("localhost").unwrap_or(path);
        if !path.starts_with('/') {
            bail!("file://HOST/… is of another host: file:///PATH is wanted");
        }
        if path.contains(['%', '?', '#']) {
            bail!("a path with `%`, `?` or `#` is not understood: rename the file");
        }
        return read_given(Path::new(path));
    }
    if !uri.starts_with("http://") && !uri.starts_with("https://") {
        bail!("it is none of file://, http://, https://");
    }
    tokio::time::timeout(DEADLINE, get(uri))
        .await
        .with_context(|| format!("it took over {} s", DEADLINE.as_secs()))?
}

async fn get(uri: &str) -> anyhow::Result<Vec<u8>> {
    let mut response = client()?.get(uri).send().await?.error_for_status()?;
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MAX_GIVEN_BYTES {
            bail!("it has more than {MAX_GIVEN_BYTES} bytes");
        }
    }
    Ok(bytes)
}

/// With the system's authorities; the provider is ring, as hyperd's.
fn client() -> anyhow::Result<reqwest::Client> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls).build()?)
}
