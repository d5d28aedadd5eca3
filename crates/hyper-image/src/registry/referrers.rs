//! Referrers in a registry: its own list, or the tag that stands for one where it has none.
//!
//! Source: OCI distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema".

use super::Repository;
use crate::digest::Digest;
use crate::error::Error;
use crate::spec::{Descriptor, Document, Index, OCI_INDEX};

impl Repository {
    /// Descriptors of everything that names `subject`. Empty if the registry knows of nothing.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        match self.index(&format!("referrers/{subject}")).await {
            Ok(Some(index)) => Ok(index.manifests),
            // No such list here: what clients do instead is a tag.
            Ok(None) => Ok(self.tagged(subject).await?.map_or_else(Vec::new, |i| i.manifests)),
            Err(error) => Err(error),
        }
    }

    /// Adds a descriptor to the tag's list; for registries that make no list of their own.
    pub(crate) async fn list_by_tag(
        &self,
        subject: &Digest,
        referrer: &Descriptor,
    ) -> Result<(), Error> {
        let mut index = self.tagged(subject).await?.unwrap_or_else(|| Index {
            schema_version: 2,
            media_type: Some(OCI_INDEX.to_owned()),
            manifests: Vec::new(),
        });
        if index.manifests.iter().any(|other| other.digest == referrer.digest) {
            return Ok(());
        }
        index.manifests.push(referrer.clone());
        let bytes = serde_json::to_vec(&index).map_err(|error| Error::Malformed {
            what: format!("the list of referrers of {subject}"),
            reason: error.to_string(),
        })?;
        self.put_manifest(&tag(subject), OCI_INDEX, &bytes).await.map(drop)
    }

    async fn tagged(&self, subject: &Digest) -> Result<Option<Index>, Error> {
        self.index(&format!("manifests/{}", tag(subject))).await
    }

    /// An index, or `None` if there is nothing, or something else, there.
    async fn index(&self, path: &str) -> Result<Option<Index>, Error> {
        let (bytes, media_type, _) = match self.document(path, Some(OCI_INDEX)).await {
            Ok(found) => found,
            // Registries that do not know the path say so in many ways.
            Err(Error::NotInRegistry { .. } | Error::Registry { status: 400..500, .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        match Document::parse(&bytes, &media_type) {
            Ok(Document::Index(index)) => Ok(Some(index)),
            _ => Ok(None),
        }
    }
}

fn tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}
