//! `ADD https://…`: a file from the network, as Docker fetches it. Bounded in size and time.

use std::io::{Cursor, Read as _, Seek as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper_erofs::Timestamp;
use hyper_erofs::tar::write::{END, encode, padding_of};
use hyper_erofs::tar::{Header, HeaderKind};
use sha2::{Digest as _, Sha256};

use crate::BuildError;
use crate::context::{Scratch, unpack};
use crate::transfer::hex;
use crate::tree::Files;
use hyper_dockerfile::Ignore;

/// For all of a download.
const DEADLINE: Duration = Duration::from_secs(3600);
/// As Docker: what comes from the network is its owner's business only.
const MODE: u16 = 0o600;

/// A file to be copied: from a URL, or written in the Dockerfile.
pub(crate) fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// Whether BuildKit would clone a repository; refused by name.
pub(crate) fn is_git(source: &str) -> bool {
    source.starts_with("git://")
        || source.starts_with("git@")
        || (is_url(source) && source.split('#').next().is_some_and(|url| url.ends_with(".git")))
}

/// Fetches a URL into a file of its own name.
pub(crate) async fn fetch(
    store: &hyper_image::Store,
    url: &str,
    checksum: Option<&str>,
    scratch: &Scratch,
) -> Result<(Arc<Files>, String), BuildError> {
    let failed =
        |why: String| BuildError::Invalid(format!("ADD failed: failed to GET {url}: {why}"));
    let parsed = reqwest::Url::parse(url).map_err(|e| failed(e.to_string()))?;
    let name = parsed.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    if name.is_empty() || matches!(name, "." | "..") {
        return Err(BuildError::Invalid(format!(
            "ADD failed: cannot determine a file name from the URL {url}: it ends with a slash; \
             name the file in the destination's place with curl in a RUN"
        )));
    }
    let name = name.to_owned();
    let host = parsed.host_str().unwrap_or_default().to_owned();
    let download = async {
        let client = store.web_client(&host).await?;
        let response = client.get(parsed).send().await.map_err(|e| failed(chain(&e)))?;
        if !response.status().is_success() {
            return Err(failed(format!("status {}", response.status())));
        }
        let header = response.headers().get("last-modified").and_then(|value| value.to_str().ok());
        let seconds = header.and_then(modified).unwrap_or_default();
        let full = |e| BuildError::file("write the temporary file of a download", e);
        let mut file = tempfile::tempfile_in(&scratch.directory).map_err(full)?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|e| failed(chain(&e)))?;
            size += piece.len() as u64;
            if size > scratch.unpacker.limits.max_data_bytes {
                let limit = scratch.unpacker.limits.max_data_bytes;
                return Err(failed(format!("it has more than {limit} bytes")));
            }
            hasher.update(&piece);
            // Pieces are small: what the page cache cannot take at once is the disk's pace.
            file = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file))
                .await
                .map_err(|_| BuildError::Cancelled)?
                .map_err(full)?;
        }
        Ok((file, size, seconds, hex(&hasher.finalize())))
    };
    let (file, size, seconds, digest) = tokio::time::timeout(DEADLINE, download)
        .await
        .map_err(|_| failed(format!("it took longer than {} s", DEADLINE.as_secs())))??;
    if let Some(wanted) = checksum {
        let found = format!("sha256:{digest}");
        if wanted != found {
            return Err(failed(format!("its digest is {found}, --checksum wants {wanted}")));
        }
    }
    let head = head(name.as_bytes(), size, MODE, seconds);
    let scratch = scratch.ours();
    let files = tokio::task::spawn_blocking(move || {
        let mut file = file;
        file.rewind().map_err(|e| BuildError::file("read a download", e))?;
        let stream = Cursor::new(head).chain(file).chain(padding_of(size)).chain(&END[..]);
        unpack(stream, &scratch)
    })
    .await
    .map_err(|_| BuildError::Cancelled)??
    .0;
    Ok((Arc::new(Files { files, ignore: Ignore::default() }), name))
}

/// Files that are written in the Dockerfile. Blocking.
pub(crate) fn inline(
    files: &[(String, String)],
    scratch: &Scratch,
) -> Result<Arc<Files>, BuildError> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let size = content.len() as u64;
        archive.extend(head(name.as_bytes(), size, 0o644, 0));
        archive.extend(content.as_bytes());
        archive.extend(padding_of(size));
    }
    archive.extend(END);
    let (files, _) = unpack(Cursor::new(archive), &scratch.ours())?;
    Ok(Arc::new(Files { files, ignore: Ignore::default() }))
}

fn head(name: &[u8], size: u64, mode: u16, seconds: i64) -> Vec<u8> {
    encode(&Header {
        // No name may look like the first bytes of a compressed stream.
        path: [b"./", name].concat(),
        kind: HeaderKind::File { size },
        mode,
        uid: 0,
        gid: 0,
        mtime: Timestamp { seconds, nanoseconds: 0 },
        xattrs: Vec::new(),
    })
}

/// Seconds since the Unix epoch of an HTTP date.
fn modified(text: &str) -> Option<i64> {
    let format = time::format_description::well_known::Rfc2822;
    let text = text.replace("GMT", "+0000");
    time::OffsetDateTime::parse(&text, &format).ok().map(time::OffsetDateTime::unix_timestamp)
}

/// An error with its causes: those of requests say nothing by themselves.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn dates_and_repositories() {
        assert_eq!(modified("Wed, 21 Oct 2015 07:28:00 GMT"), Some(1_445_412_480));
        assert_eq!(modified("yesterday"), None);
        assert!(is_git("https://x/y.git#main") && is_git("git@x:y") && !is_git("https://x/y.gitx"));
    }
}
