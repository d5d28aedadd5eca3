//! A blob as a stream that survives broken connections.
//!
//! ```text
//!  from ─► GET (Range) ─┬─ 206 from here ─► chunks ─┬─ all bytes: End
//!          ▲            └─ 200: skip what is known ─┤
//!          └──── pause ◄──── broken, short, 5xx ◄───┘   (attempts count anew after every byte of progress)
//! ```

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::Repository;
use super::fault::Fault;
use super::repository::Ask;
use crate::digest::Digest;
use crate::error::Error;
use crate::progress::{LayerState, Progress};

/// Connections one blob may take in all: a server that gives a byte at a time is not worth more.
const MAX_CONNECTIONS: u32 = 200;

/// A piece of a blob. A channel closed without `End` means that the transfer was given up.
#[derive(Debug)]
pub(crate) enum Chunk {
    Data(Bytes),
    End,
}

/// The blob to transfer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub digest: Digest,
    pub size: u64,
    /// Bytes already there.
    pub from: u64,
}

impl Repository {
    /// Where a blob is fetched from, for messages.
    pub(crate) fn blob_url(&self, digest: &Digest) -> String {
        self.url(self.first_site(), &format!("blobs/{digest}"))
    }

    /// Sends the bytes `from..size` of a blob and `End` into `sink`. Digests are the receiver's part.
    pub(crate) async fn transfer(
        &self,
        wanted: Wanted,
        sink: &mpsc::Sender<Chunk>,
        progress: &Progress,
    ) -> Result<(), Error> {
        let path = format!("blobs/{}", wanted.digest);
        let retry = self.registries.options.retry;
        let mut position = wanted.from;
        let mut failures = 0;
        let mut connections = 0;
        while position < wanted.size {
            let before = position;
            let outcome = self.connection(&path, wanted.size, &mut position, sink).await;
            let Err(fault) = outcome else { break };
            connections += 1;
            failures = if position > before { 1 } else { failures + 1 };
            if !fault.transient
                || failures >= retry.attempts.max(1)
                || connections >= MAX_CONNECTIONS
            {
                return Err(fault.error);
            }
            let after = fault.after.unwrap_or_else(|| retry.pause(failures));
            let reason = fault.error.chain();
            tracing::debug!(digest = %wanted.digest, position, ?after, reason, "transfer interrupted");
            progress.layer(wanted.digest, LayerState::Retrying { after, reason });
            tokio::time::sleep(after).await;
        }
        sink.send(Chunk::End).await.map_err(|_| Error::Cancelled)
    }

    /// One connection's worth of the blob.
    async fn connection(
        &self,
        path: &str,
        size: u64,
        position: &mut u64,
        sink: &mpsc::Sender<Chunk>,
    ) -> Result<(), Fault> {
        let opened = self.open(&Ask { path, accept: None, from: *position }).await;
        let (mut response, site) = opened.map_err(|mut fault| {
            // 416: the registry's blob ends before the manifest says.
            if let Error::Registry { status: 416, url, .. } = &fault.error {
                fault.error =
                    Error::SizeMismatch { what: url.clone(), expected: size, actual: *position };
            }
            fault
        })?;
        let url = self.url(site, path);
        let mut skip = start(&response, *position).map_err(|message| {
            Fault::fatal(Error::Registry { status: 206, url: url.clone(), message })
        })?;
        loop {
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *position == size => return Ok(()),
                Ok(None) => {
                    let error =
                        Error::SizeMismatch { what: url, expected: size, actual: *position };
                    return Err(Fault { error, transient: true, elsewhere: true, after: None });
                }
                Err(error) => {
                    let endpoint = self.endpoint(site);
                    return Err(Fault::request(&self.registries, endpoint, &url, *position, error));
                }
            };
            let known = skip.min(chunk.len() as u64);
            skip -= known;
            let chunk =
                chunk.split_off(usize::try_from(known).unwrap_or(usize::MAX).min(chunk.len()));
            if chunk.is_empty() {
                continue;
            }
            *position += chunk.len() as u64;
            if *position > size {
                let error = Error::SizeMismatch { what: url, expected: size, actual: *position };
                return Err(Fault::fatal(error));
            }
            sink.send(Chunk::Data(chunk)).await.map_err(|_| Fault::fatal(Error::Cancelled))?;
        }
    }
}

/// Bytes at the start of an answer that are known already.
fn start(response: &Response, position: u64) -> Result<u64, String> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(position);
    }
    let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = header.and_then(|range| {
        range.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse::<u64>().ok()
    });
    match first {
        Some(first) if first <= position => Ok(position - first),
        _ => Err(format!(
            "asked for bytes from {position}, got `{}`",
            header.unwrap_or("no Content-Range")
        )),
    }
}
