//! Pod manifests as requests to hyperd: Kubernetes' `v1/Pod` (with the `ConfigMap`s and `Secret`s
//! beside it) and `UserPod` of the first Hyper, as YAML or JSON.
//!
//! ```text
//! text ──▶ documents ──▶ Pod | UserPod ──▶ Plan: one body for the pod, one per container
//!                          └─▶ URIs, read by the caller ──▲
//! ```
//! Invariants
//! - What is not understood, or cannot be honoured, is an error that names the field; nothing is
//!   left out in silence.
//! - No file and no network is touched here: text in, requests out.
//! - The types are the schema: [`schemas`] is made from them and committed under `docs/schema`.
#![forbid(unsafe_code)]

mod document;
mod kubernetes;
mod plan;
mod quantity;
mod userpod;

use std::collections::{BTreeMap, BTreeSet};

pub use plan::{ContainerPlan, Plan, Pull, VolumePlan};

/// Why a manifest is no plan.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not YAML, or not of the kind's form; the parser's words name line and field.
    #[error("{place}: {why}")]
    Form { place: String, why: String },
    #[error("{place}: {field}: {why}")]
    Field { place: String, field: String, why: String },
    #[error("no pod in it: a document with `kind: Pod`, or a UserPod with `containers`, is wanted")]
    NoPod,
}

/// The documents of one file or of several, which may refer to each other.
#[derive(Default)]
pub struct Manifest {
    documents: document::Documents,
}

/// Without what is in it, which may be secret.
impl std::fmt::Debug for Manifest {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Manifest").finish_non_exhaustive()
    }
}

impl Manifest {
    /// Adds the documents of a file; `place` names it in errors.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn add(&mut self, place: &str, text: &str) -> Result<(), ManifestError> {
        document::split(place, text, &mut self.documents)
    }

    /// What has to be read for [`Self::plans`].
    #[must_use]
    pub fn uris(&self) -> BTreeSet<String> {
        let pods = self.documents.user_pods.iter();
        pods.flat_map(|(_, pod)| userpod::uris(pod)).map(str::to_owned).collect()
    }

    /// The pods in order, Kubernetes' first; `fetched` has the contents of all [`Self::uris`].
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn plans(&self, fetched: &BTreeMap<String, Vec<u8>>) -> Result<Vec<Plan>, ManifestError> {
        let mut plans = Vec::new();
        for (place, pod) in &self.documents.pods {
            plans.push(kubernetes::plan(place, pod, &self.documents)?);
        }
        for (place, pod) in &self.documents.user_pods {
            plans.push(userpod::plan(place, pod, fetched)?);
        }
        if plans.is_empty() { Err(ManifestError::NoPod) } else { Ok(plans) }
    }
}

/// Names and JSON schemas of the two kinds of manifest.
#[must_use]
pub fn schemas() -> [(&'static str, schemars::Schema); 2] {
    [
        ("pod.json", schemars::schema_for!(kubernetes::Pod)),
        ("userpod.json", schemars::schema_for!(userpod::UserPod)),
    ]
}

/// An error about a field, in a function that says where it is.
pub(crate) type FieldResult<T> = Result<T, (String, String)>;

pub(crate) fn wrong<T>(field: impl Into<String>, why: impl Into<String>) -> FieldResult<T> {
    Err((field.into(), why.into()))
}

#[cfg(test)]
mod given_tests;

#[cfg(test)]
mod test {
    /// `HYPER_WRITE_DOCS=1 cargo test -p hyper-manifest schemas` writes them anew.
    #[test]
    fn the_committed_schemas_are_not_stale() {
        for (name, schema) in super::schemas() {
            let path = format!("{}/../../docs/schema/{name}", env!("CARGO_MANIFEST_DIR"));
            let fresh = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
            if std::env::var_os("HYPER_WRITE_DOCS").is_some() {
                std::fs::write(&path, &fresh).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), fresh, "stale: {path}");
        }
    }
}
