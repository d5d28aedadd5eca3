//! What a client asks for, and what it is told.

use std::collections::BTreeMap;

use hyper_engine::spec::HostSpec;
use hyper_image::{Credentials, Digest, Reference};

use crate::context::Context;

/// A build.
#[derive(Debug)]
pub struct Request {
    /// The files, the Dockerfile among them.
    pub context: Context,
    /// Name of the Dockerfile in the context.
    pub dockerfile: String,
    /// `--build-arg`; `None`: named without a value, as if it was not given.
    pub arguments: BTreeMap<String, Option<String>>,
    /// `--label`: one more step at the end.
    pub labels: BTreeMap<String, String>,
    /// Names of the result.
    pub tags: Vec<Reference>,
    /// The last stage to build; the Dockerfile's last if absent.
    pub target: Option<String>,
    /// `os/arch`; the host's if absent.
    pub platform: Option<String>,
    /// No step is taken from the cache.
    pub no_cache: bool,
    /// Images whose steps count as cached.
    pub cache_from: Vec<String>,
    /// Base images are pulled even if they are there.
    pub pull: bool,
    /// Containers of `RUN`s are kept, to be looked at.
    pub keep: bool,
    /// Network, limits and so on of `RUN`s.
    pub host: HostSpec,
    /// Credentials by registry.
    pub auth: BTreeMap<String, Credentials>,
}

/// What happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// Text for the client's terminal: headings of steps, and what `RUN`s print.
    Text(String),
    /// A base image is being pulled.
    Pull(Box<Reference>, Box<hyper_image::Event>),
    /// The result.
    Built(Digest),
}
