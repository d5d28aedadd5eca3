//! Signatures as cosign 3 writes them: a sigstore bundle, which is a referrer of the image.
//!
//! Its DSSE envelope holds an in-toto statement about the image's digest. Only the given keys count, as everywhere
//! here: the transparency log's entries and certificates in it are not looked at.
//! Source: sigstore's protobuf-specs (`sigstore_bundle.proto`), `secure-systems-lab/dsse` (PAE).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::key::Key;
use crate::digest::Digest;
use crate::error::Error;
use crate::registry::Repository;
use crate::spec::{Descriptor, Document};

/// What bundles' media types begin with; `.v0.3+json` follows, and a `-` before the digits in older ones.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle";
const STATEMENT: &str = "application/vnd.in-toto+json";
/// What a statement is that says no more than that the image is signed.
const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";
/// Largest bundle, and most of them, that are looked at.
const MAX_BUNDLE: u64 = 512 << 10;
const MAX_BUNDLES: usize = 16;

/// Whether one of the keys signed a digest; why not, in words. A registry that does not answer is an error.
pub(super) async fn signed(
    digest: &Digest,
    keys: &[Key],
    repository: &Repository,
) -> Result<Result<(), String>, Error> {
    let listed = repository.referrers(digest).await?;
    let kind = |entry: &&Descriptor| {
        // Lists by tag may leave the type out.
        entry.artifact_type.as_ref().is_none_or(|kind| kind.starts_with(BUNDLE))
    };
    let mut reason = "no referrer is a sigstore bundle".to_owned();
    for entry in listed.iter().filter(kind).take(MAX_BUNDLES) {
        let raw = match repository.manifest(&entry.digest.to_string()).await {
            Ok(raw) => raw,
            Err(Error::NotInRegistry { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Ok(Document::Manifest(manifest)) = Document::parse(&raw.bytes, &raw.media_type) else {
            continue;
        };
        let layers = manifest.layers.iter().filter(|l| l.media_type.starts_with(BUNDLE));
        for layer in layers.take(MAX_BUNDLES) {
            if layer.size > MAX_BUNDLE {
                reason = format!("bundle {} is larger than {MAX_BUNDLE} bytes", layer.digest);
                continue;
            }
            let bytes = repository.small_blob(layer.digest, layer.size).await?;
            match check(&bytes, digest, keys) {
                Ok(()) => return Ok(Ok(())),
                Err(why) => reason = format!("bundle {}: {why}", layer.digest),
            }
        }
    }
    Ok(Err(reason))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    dsse_envelope: Option<Envelope>,
    message_signature: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: BTreeMap<String, String>,
}

/// Checks one bundle: signed by one of the keys, and about this digest.
fn check(bytes: &[u8], digest: &Digest, keys: &[Key]) -> Result<(), String> {
    let bundle: Bundle =
        serde_json::from_slice(bytes).map_err(|_| "it is no sigstore bundle".to_owned())?;
    let Some(envelope) = bundle.dsse_envelope else {
        return Err(match bundle.message_signature {
            Some(_) => "it holds a message signature, which is not known here: sign the image \
                        with cosign 3, or with `--new-bundle-format=false`"
                .to_owned(),
            None => "it holds no signature".to_owned(),
        });
    };
    if envelope.payload_type != STATEMENT {
        return Err(format!("its payload is no in-toto statement ({STATEMENT})"));
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| "it is not base64".to_owned());
    let payload = decode(&envelope.payload)?;
    let message = encoded(&envelope.payload_type, &payload);
    let mut good = false;
    for signature in envelope.signatures.iter().take(MAX_BUNDLES) {
        let signature = decode(&signature.sig)?;
        good |= keys.iter().any(|key| key.verifies(&message, &signature));
    }
    if !good {
        return Err("its signature is by none of the keys".to_owned());
    }
    let statement: Statement = serde_json::from_slice(&payload)
        .map_err(|_| "its payload is no in-toto statement".to_owned())?;
    if statement.predicate_type != SIGNED {
        return Err(format!(
            "it attests `{}`, and signs nothing",
            shown(&statement.predicate_type)
        ));
    }
    let about = |subject: &Subject| subject.digest.get("sha256") == Some(&digest.hex());
    match statement.subject.iter().any(about) {
        true => Ok(()),
        false => Err("its signature is about another image".to_owned()),
    }
}

/// DSSE's pre-authentication encoding: what is signed.
fn encoded(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend(payload);
    message
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

    fn keys() -> (EcdsaKeyPair, Key) {
        let random = SystemRandom::new();
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random)
                .unwrap();
        let mut der = vec![
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        der.extend(pair.public_key().as_ref());
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"));
        (pair, Key::parse(&pem).unwrap())
    }

    fn bundle(pair: &EcdsaKeyPair, digest: &Digest, predicate: &str) -> Vec<u8> {
        let statement = serde_json::json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"digest": {"sha256": digest.hex()}}],
            "predicateType": predicate,
        })
        .to_string();
        let message = encoded(STATEMENT, statement.as_bytes());
        let signature = pair.sign(&SystemRandom::new(), &message).unwrap();
        serde_json::json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(statement),
                "payloadType": STATEMENT,
                "signatures": [{"sig": STANDARD.encode(signature.as_ref())}],
            },
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn only_the_key_and_only_the_image() {
        let ((pair, key), (_, other)) = (keys(), keys());
        let (digest, another) = (Digest::of(b"image"), Digest::of(b"other"));
        let bytes = bundle(&pair, &digest, SIGNED);
        assert_eq!(check(&bytes, &digest, &[other.clone(), key.clone()]), Ok(()));
        let why = |bytes: &[u8], digest, key: &Key| {
            check(bytes, digest, std::slice::from_ref(key)).unwrap_err()
        };
        assert!(why(&bytes, &digest, &other).contains("none of the keys"));
        assert!(why(&bytes, &another, &key).contains("another image"));
        let attested = bundle(&pair, &digest, "https://spdx.dev/Document");
        assert!(why(&attested, &digest, &key).contains("spdx.dev"));
        assert!(why(br#"{"messageSignature":{}}"#, &digest, &key).contains("message signature"));
        assert!(why(b"{}", &digest, &key).contains("no signature"));
        assert!(why(b"[", &digest, &key).contains("no sigstore bundle"));
    }
}
