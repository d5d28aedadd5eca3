//! `RUN`: a container of the image so far, in a pod of its own, and what it changed as a layer.
//!
//! ```text
//!  create ─► attach ─► start ─► output to the client ─► exit code ─► changes ─► layer
//!     └────────────────── whatever happens ──► remove ◄──┘
//! ```
//! The container is marked, so that a hyperd that was killed finds it again and removes it.

use hyper_dockerfile::Tmpfs;
use hyper_engine::spec::{CreateRequest, HealthCheck, HostSpec, Log};
use hyper_engine::{Engine, WaitCondition};
use hyper_image::{Digest, NewLayer};
use hyper_stdio::Wanted;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BuildError;
use crate::request::Event;

/// Annotation of a build's containers.
const MARK: &str = "io.hyper.build";

/// What a `RUN` runs.
#[derive(Debug)]
pub(crate) struct Running<'r> {
    pub engine: &'r Engine,
    pub events: &'r mpsc::Sender<Event>,
    pub cancel: &'r CancellationToken,
    pub host: &'r HostSpec,
    pub image: Digest,
    pub argv: Vec<String>,
    pub env: Vec<String>,
    /// The network it has instead of the build's.
    pub network: Option<String>,
    /// Empty directories in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// For the error.
    pub command: String,
    pub keep: bool,
}

impl Running<'_> {
    /// Runs it, and returns the layer of its changes.
    pub async fn run(self) -> Result<NewLayer, BuildError> {
        let mut host = self.host.clone();
        if !self.keep {
            host.annotations.insert(MARK.to_owned(), "1".to_owned());
        }
        if let Some(network) = &self.network {
            host.network.clone_from(network);
        }
        for Tmpfs { target, size } in &self.tmpfs {
            let options = size.as_ref().map(|size| format!("size={size}")).unwrap_or_default();
            host.tmpfs.insert(target.clone(), options);
        }
        host.plain_volumes = true;
        host.log = Log { driver: Log::NONE.to_owned(), ..Log::default() };
        let created = self
            .engine
            .create(CreateRequest {
                image: self.image.to_string(),
                entrypoint: Some(Vec::new()),
                cmd: Some(self.argv.clone()),
                env: self.env.clone(),
                // A step is not a service.
                health: Some(HealthCheck {
                    test: vec!["NONE".to_owned()],
                    ..HealthCheck::default()
                }),
                host,
                ..CreateRequest::default()
            })
            .await?;
        let id = created.id;
        let result = self.in_container(&id).await;
        if self.keep && !matches!(result, Err(BuildError::Cancelled)) {
            return result;
        }
        let short: String = id.chars().take(12).collect();
        match self.engine.remove(&id, true).await {
            Ok(()) if result.is_ok() => {
                self.say(format!(" ---> Removed intermediate container {short}\n")).await?;
            }
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(container = id, error = error.chain(), "a build's container stays");
            }
        }
        result
    }

    async fn in_container(&self, id: &str) -> Result<NewLayer, BuildError> {
        let short: String = id.chars().take(12).collect();
        self.say(format!(" ---> Running in {short}\n")).await?;
        let wanted = Wanted { stdin: false, stdout: true, stderr: true };
        let attaching = self.engine.attach(id, wanted).await?;
        let ended = self.engine.wait(id, WaitCondition::NextExit)?;
        self.engine.start(id).await?;
        let output = async {
            if let Some(mut attached) = attaching.streams().await {
                let mut text = Decoder::default();
                while let Ok(Some(frame)) = attached.streams.0.next().await {
                    self.say(text.decode(&frame.data)).await?;
                }
                self.say(text.end()).await?;
            }
            Ok::<(), BuildError>(())
        };
        let over = async {
            output.await?;
            Ok::<_, BuildError>(ended.await)
        };
        let outcome = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            outcome = over => outcome?,
        };
        if !outcome.error.is_empty() {
            return Err(BuildError::Invalid(format!(
                "the pod of container {short} ended: {}",
                outcome.error
            )));
        }
        if outcome.exit_code != 0 {
            let command = self.command.clone();
            return Err(BuildError::Command { command, code: outcome.exit_code });
        }
        let (layer, note) = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(BuildError::Cancelled),
            changes = self.engine.changes_layer(id) => changes?,
        };
        if let Some(note) = note {
            self.say(format!(" ---> [Warning] {note}\n")).await?;
        }
        Ok(layer)
    }

    async fn say(&self, text: String) -> Result<(), BuildError> {
        if text.is_empty() {
            return Ok(());
        }
        self.events.send(Event::Text(text)).await.map_err(|_| BuildError::Cancelled)
    }
}

/// Removes the containers that builds of an earlier hyperd left. To be called before the first build.
pub async fn sweep(engine: &Engine) {
    for view in engine.containers() {
        if view.spec.host.annotations.contains_key(MARK) {
            let id = &view.spec.id;
            match engine.remove(id, true).await {
                Ok(()) => tracing::info!(container = id, "removed: its build ended with hyperd"),
                Err(error) => {
                    tracing::warn!(
                        container = id,
                        error = error.chain(),
                        "a build's container stays"
                    );
                }
            }
        }
    }
}

/// Output as text: characters may come in pieces.
#[derive(Debug, Default)]
struct Decoder(Vec<u8>);

impl Decoder {
    fn decode(&mut self, bytes: &[u8]) -> String {
        self.0.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.0) {
            Ok(_) => self.0.len(),
            // At the end, a character may go on in the next piece.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => {
                // Bytes that are no text: all but an unfinished end is shown as it is.
                let unfinished = (1..=3.min(self.0.len())).find(|back| {
                    let tail = &self.0[self.0.len() - back..];
                    std::str::from_utf8(tail)
                        .is_err_and(|e| e.error_len().is_none() && e.valid_up_to() == 0)
                });
                self.0.len() - unfinished.unwrap_or(0)
            }
        };
        let rest = self.0.split_off(whole);
        let text = String::from_utf8_lossy(&self.0).into_owned();
        self.0 = rest;
        text
    }

    fn end(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn characters_in_pieces() {
        let text = "aé€😀z".as_bytes();
        for cut in 0..text.len() {
            let mut decoder = Decoder::default();
            let all = [decoder.decode(&text[..cut]), decoder.decode(&text[cut..]), decoder.end()];
            assert_eq!(all.concat().as_bytes(), text, "{cut}");
        }
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xffb\xc3"), "a\u{fffd}b");
        assert_eq!(decoder.decode(b"\xa9"), "é");
        assert_eq!(decoder.decode(b"\xf0\x9f"), "");
        assert_eq!(decoder.end(), "\u{fffd}");
    }
}
