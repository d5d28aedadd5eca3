//! Public keys as cosign writes them, and what they signed.
//!
//! | key | signature |
//! | --- | --- |
//! | ECDSA P-256 | ASN.1, SHA-256 |
//! | ECDSA P-384 | ASN.1, SHA-384 (cosign 3) or SHA-256 (before) |
//! | RSA 2048 … 8192 | PKCS #1 v1.5, SHA-256 |
//! | Ed25519 | of the message itself |

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
use spki::der::asn1::{AnyRef, BitString};
use spki::der::{Decode as _, Document};
use spki::{ObjectIdentifier, SubjectPublicKeyInfo};

const ECDSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const ED: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// One key.
#[derive(Clone)]
pub(super) struct Key {
    algorithms: Vec<&'static dyn VerificationAlgorithm>,
    bytes: Vec<u8>,
}

impl Key {
    /// From a PEM text (`-----BEGIN PUBLIC KEY-----`); why not, in words.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        let (label, document) =
            Document::from_pem(pem.trim()).map_err(|error| format!("it is no PEM ({error})"))?;
        if label != "PUBLIC KEY" {
            return Err(format!("it is a PEM of a `{label}`, not of a `PUBLIC KEY`"));
        }
        let info = SubjectPublicKeyInfo::<AnyRef<'_>, BitString>::from_der(document.as_bytes())
            .map_err(|error| format!("it is no public key ({error})"))?;
        let (oid, curve) = (info.algorithm.oid, info.algorithm.parameters);
        let curve = curve.and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        let algorithms: Vec<&'static dyn VerificationAlgorithm> = match (oid, curve) {
            (ECDSA, Some(P256)) => vec![&ECDSA_P256_SHA256_ASN1],
            (ECDSA, Some(P384)) => vec![&ECDSA_P384_SHA384_ASN1, &ECDSA_P384_SHA256_ASN1],
            (RSA, _) => vec![&RSA_PKCS1_2048_8192_SHA256],
            (ED, _) => vec![&ED25519],
            (ECDSA, Some(curve)) => return Err(unknown(&format!("ECDSA on the curve {curve}"))),
            (oid, _) => return Err(unknown(&oid.to_string())),
        };
        let bytes = info.subject_public_key.as_bytes().unwrap_or_default().to_vec();
        Ok(Self { algorithms, bytes })
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithms.iter().any(|algorithm| {
            UnparsedPublicKey::new(*algorithm, &self.bytes).verify(message, signature).is_ok()
        })
    }
}

fn unknown(kind: &str) -> String {
    format!("a key of the kind {kind} is not known here: ECDSA (P-256, P-384), RSA and Ed25519 are")
}

#[cfg(test)]
mod test {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn openssl(arguments: &[&str], dir: &Path) -> bool {
        Command::new("openssl")
            .args(arguments)
            .current_dir(dir)
            .output()
            .is_ok_and(|output| output.status.success())
    }

    #[test]
    fn what_openssl_signs() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        if !openssl(&["version"], at) {
            return;
        }
        std::fs::write(at.join("text"), b"some text").unwrap();
        let kinds: [(&[&str], &[&str]); 5] = [
            (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"], &["-sha256"]),
            (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], &["-sha256"]),
            (&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], &["-sha384"]),
            (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], &["-sha256"]),
            (&["-algorithm", "ED25519"], &[]),
        ];
        for (kind, hash) in kinds {
            assert!(openssl(&[&["genpkey", "-out", "key"], kind].concat(), at), "{kind:?}");
            assert!(openssl(&["pkey", "-in", "key", "-pubout", "-out", "pub"], at));
            let signed = match hash {
                [hash] => openssl(&["dgst", hash, "-sign", "key", "-out", "sig", "text"], at),
                _ => openssl(
                    &["pkeyutl", "-sign", "-inkey", "key", "-rawin", "-in", "text", "-out", "sig"],
                    at,
                ),
            };
            assert!(signed, "{kind:?}");
            let key = Key::parse(&std::fs::read_to_string(at.join("pub")).unwrap()).unwrap();
            let mut signature = std::fs::read(at.join("sig")).unwrap();
            assert!(key.verifies(b"some text", &signature), "{kind:?} {hash:?}");
            assert!(!key.verifies(b"some Text", &signature), "{kind:?}");
            let last = signature.len() - 1;
            signature[last] ^= 1;
            assert!(!key.verifies(b"some text", &signature), "{kind:?}");
        }
        let curve = ["genpkey", "-out", "key", "-algorithm", "EC", "-pkeyopt"];
        assert!(openssl(&[&curve[..], &["ec_paramgen_curve:P-521"]].concat(), at));
        assert!(openssl(&["pkey", "-in", "key", "-pubout", "-out", "pub"], at));
        let text = std::fs::read_to_string(at.join("pub")).unwrap();
        let error = Key::parse(&text).err().unwrap();
        assert!(error.contains("1.3.132.0.35") && error.contains("P-384"), "{error}");
        let private = std::fs::read_to_string(at.join("key")).unwrap();
        assert!(Key::parse(&private).err().unwrap().contains("PRIVATE KEY"));
        assert!(Key::parse("hello").is_err());
    }
}
