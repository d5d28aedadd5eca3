//! Who must have signed what: a policy by registry and repository, and cosign signatures, checked offline.
//!
//! ```toml
//! default = "accept"                       # for what no rule is for; "warn" and "refuse" need keys
//! [[rule]]
//! images = "registry.example/team/*"       # a registry, a repository, or everything below one (/*)
//! action = "refuse"                        # accept | warn | refuse: what becomes of an image without a good signature
//! keys = ["/etc/hyper/keys/team.pub"]      # cosign public keys (PEM: ECDSA, RSA, Ed25519); one good signature is enough
//! ```
//! The longest `images` that fits counts. A signature is what `cosign sign --key` pushes: the tag `sha256-HEX.sig` of
//! the same repository, whose layers are simple-signing payloads that name the digest, signed over their bytes; or, of
//! cosign 3, a [`bundle`] among the image's referrers. Only the registry is asked and only the given keys count: no
//! transparency log, no certificates.
//!
//! The policy is for what registries send. An archive is loaded by whoever may give this host's root a file.

mod bundle;
mod key;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use key::Key;

use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;
use crate::registry::Repository;
use crate::spec::{Document, Manifest};

/// Largest policy or key file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// Largest payload, and most signatures of one image that are looked at.
const MAX_PAYLOAD: u64 = 64 << 10;
const MAX_SIGNATURES: usize = 64;
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// See the module. The default accepts everything.
#[derive(Clone, Default)]
pub struct Policy {
    path: PathBuf,
    default: Action,
    rules: Vec<Rule>,
}

/// What becomes of an image without a good signature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Nothing is checked.
    #[default]
    Accept,
    /// It is pulled, and the log and the client say so.
    Warn,
    /// It is not pulled.
    Refuse,
}

#[derive(Clone)]
struct Rule {
    images: String,
    /// In the file.
    line: usize,
    action: Action,
    keys: Vec<Key>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("path", &self.path)
            .field("default", &self.default)
            .field("rules", &self.rules.len())
            .finish()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    default: Action,
    #[serde(default)]
    rule: Vec<toml::Spanned<RawRule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    images: String,
    action: Action,
    #[serde(default)]
    keys: Vec<PathBuf>,
}

impl Policy {
    /// Reads a policy file and the keys it names (relative to the file's directory).
    ///
    /// # Errors
    /// [`Error::Policy`]
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = read(path).map_err(|reason| failed(path, reason))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let file: File = toml::from_str(text).map_err(|error| failed(path, error.to_string()))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut rules = Vec::new();
        for raw in file.rule {
            let line = text[..raw.span().start.min(text.len())].matches('\n').count() + 1;
            let wrong = |reason: String| failed(path, format!("line {line}: {reason}"));
            let raw = raw.into_inner();
            let images = raw.images.strip_suffix("/*").unwrap_or(&raw.images).to_owned();
            if images.is_empty() || images.contains(['*', '@', ' ']) || images.ends_with('/') {
                return Err(wrong(format!(
                    "`{}` is neither a registry, nor a repository, nor one of them with `/*`",
                    raw.images
                )));
            }
            if raw.action == Action::Warn && raw.keys.is_empty() {
                return Err(wrong("`warn` needs keys: nothing could be without a warning".into()));
            }
            let mut keys = Vec::new();
            for key in raw.keys {
                let key = directory.join(key);
                let shown = |reason: String| wrong(format!("key {}: {reason}", key.display()));
                let pem = read(&key).map_err(shown)?;
                keys.push(Key::parse(&pem).map_err(shown)?);
            }
            rules.push(Rule { images: raw.images, line, action: raw.action, keys });
        }
        if file.default == Action::Warn {
            let reason = "`default` is accept or refuse: a warning needs a rule with keys";
            return Err(failed(path, reason.to_owned()));
        }
        Ok(Self { path: path.to_owned(), default: file.default, rules })
    }

    /// The rule for a repository; of several the one with the longest `images`.
    fn rule(&self, reference: &Reference) -> Option<&Rule> {
        let name = reference.name();
        let fits = |rule: &&Rule| match rule.images.strip_suffix("/*") {
            Some(above) => name.strip_prefix(above).is_some_and(|rest| rest.starts_with('/')),
            None => rule.images == name || rule.images == reference.registry(),
        };
        self.rules.iter().filter(fits).max_by_key(|rule| rule.images.len())
    }

    /// Judges what a reference stands for in its registry: `digests` are those of the index and of the manifest.
    /// Returns a warning for the client.
    pub(crate) async fn judge(
        &self,
        reference: &Reference,
        digests: &[Digest],
        repository: &Repository,
    ) -> Result<Option<String>, Error> {
        let refused = |line: String, reason: String| Error::Untrusted {
            reference: reference.familiar(),
            policy: line,
            reason,
        };
        let Some(rule) = self.rule(reference) else {
            if self.default == Action::Accept {
                return Ok(None);
            }
            let line = format!("{}: default = \"refuse\"", self.path.display());
            return Err(refused(line, "no rule is for it".to_owned()));
        };
        if rule.action == Action::Accept {
            return Ok(None);
        }
        let line =
            format!("{} line {}: images = \"{}\"", self.path.display(), rule.line, rule.images);
        if rule.keys.is_empty() {
            return Err(refused(line, "the rule has no keys and refuses everything".to_owned()));
        }
        let mut reasons = Vec::new();
        for digest in digests {
            match signed(digest, &rule.keys, repository).await? {
                Ok(()) => return Ok(None),
                Err(reason) => reasons.push(reason),
            }
        }
        reasons.dedup();
        let reason = reasons.join("; ");
        if rule.action == Action::Warn {
            let text = format!("{} has no good signature ({line}): {reason}", reference.familiar());
            tracing::warn!(
                image = reference.familiar(),
                policy = line,
                reason,
                "no good signature"
            );
            return Ok(Some(text));
        }
        Err(refused(line, reason))
    }
}

/// Whether one of the keys signed a digest; why not, in words. A registry that does not answer is an error.
async fn signed(
    digest: &Digest,
    keys: &[Key],
    repository: &Repository,
) -> Result<Result<(), String>, Error> {
    let by_tag = match signed_by_tag(digest, keys, repository).await? {
        Ok(()) => return Ok(Ok(())),
        Err(why) => why,
    };
    let by_bundle = bundle::signed(digest, keys, repository).await?;
    Ok(by_bundle.map_err(|why| format!("{by_tag}, and {why}")))
}

async fn signed_by_tag(
    digest: &Digest,
    keys: &[Key],
    repository: &Repository,
) -> Result<Result<(), String>, Error> {
    let tag = format!("sha256-{}.sig", digest.hex());
    let raw = match repository.manifest(&tag).await {
        Ok(raw) => raw,
        Err(Error::NotInRegistry { .. }) => return Ok(Err(format!("there is no tag {tag}"))),
        Err(error) => return Err(error),
    };
    let Ok(Document::Manifest(manifest)) = Document::parse(&raw.bytes, &raw.media_type) else {
        return Ok(Err(format!("{tag} is no manifest of signatures")));
    };
    let mut reason = format!("{tag} holds no signature");
    for (layer, signature) in signatures(&manifest) {
        if layer.size > MAX_PAYLOAD {
            reason = format!("a payload of {tag} is larger than {MAX_PAYLOAD} bytes");
            continue;
        }
        let payload = repository.small_blob(layer.digest, layer.size).await?;
        match check(&payload, &signature, digest, keys) {
            Ok(()) => return Ok(Ok(())),
            Err(why) => reason = format!("{tag}: {why}"),
        }
    }
    Ok(Err(reason))
}

fn signatures(
    manifest: &Manifest,
) -> impl Iterator<Item = (&crate::spec::Descriptor, String)> + Send {
    manifest.layers.iter().take(MAX_SIGNATURES).filter_map(|layer| {
        let signature = layer.annotations.get(SIGNATURE)?.clone();
        (layer.media_type == PAYLOAD_TYPE).then_some((layer, signature))
    })
}

/// Checks one payload: signed by one of the keys, and about this digest.
fn check(payload: &[u8], signature: &str, digest: &Digest, keys: &[Key]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: BTreeMap<String, String>,
        #[serde(rename = "type")]
        kind: String,
    }
    let signature =
        STANDARD.decode(signature).map_err(|_| "its signature is not base64".to_owned())?;
    if !keys.iter().any(|key| key.verifies(payload, &signature)) {
        return Err("its signature is by none of the keys".to_owned());
    }
    let parsed: Payload = serde_json::from_slice(payload)
        .map_err(|_| "its payload is no simple-signing document".to_owned())?;
    let about = parsed.critical.image.get("docker-manifest-digest").map(String::as_str);
    if parsed.critical.kind != "cosign container image signature"
        || about != Some(digest.to_string().as_str())
    {
        return Err("its signature is about another image".to_owned());
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MAX_FILE {
        return Err(format!("it is larger than {MAX_FILE} bytes"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn failed(path: &Path, reason: String) -> Error {
    Error::Policy { path: path.to_owned(), reason }
}

#[cfg(test)]
mod test {
    use super::*;

    fn policy(text: &str) -> Result<Policy, Error> {
        Policy::parse(Path::new("/nowhere/policy.toml"), text)
    }

    #[test]
    fn the_longest_rule_counts() {
        let text = "[[rule]]\nimages = \"reg.example\"\naction = \"refuse\"\n\n[[rule]]\n\
                    images = \"reg.example/team/*\"\naction = \"accept\"\n[[rule]]\n\
                    images = \"docker.io/library/busybox\"\naction = \"refuse\"\n";
        let policy = policy(text).unwrap();
        let line = |name: &str| policy.rule(&name.parse().unwrap()).map(|rule| rule.line);
        assert_eq!(line("reg.example/x"), Some(1));
        assert_eq!(line("reg.example/team/x:1"), Some(5));
        assert_eq!(line("reg.example/teams"), Some(1));
        assert_eq!(line("busybox"), Some(8));
        assert_eq!(line("busybox2"), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, named) in [
            ("[[rule]]\nimages = \"a/*/b\"\naction = \"refuse\"\n", "a/*/b"),
            ("[[rule]]\nimages = \"a\"\naction = \"warn\"\n", "needs keys"),
            ("[[rule]]\nimages = \"a\"\naction = \"deny\"\n", "deny"),
            (
                "\n[[rule]]\nimages = \"a\"\naction = \"refuse\"\nkeys = [\"k\"]\n",
                "line 2: key /nowhere/k",
            ),
            ("default = \"warn\"\n", "default"),
            ("defualt = \"accept\"\n", "defualt"),
        ] {
            let error = policy(text).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("policy.toml"), "{error}");
        }
    }
}
