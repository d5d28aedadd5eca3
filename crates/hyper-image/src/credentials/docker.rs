//! `config.json` of the Docker client.
//!
//! Order per registry, as in docker/cli `cli/config/configfile`: `credHelpers[registry]`, then `credsStore`, then
//! `auths[registry]`. `docker.io` is written `https://index.docker.io/v1/` there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Credentials, basic, helper};
use crate::error::Error;
use crate::reference::DEFAULT_REGISTRY;

/// How Docker's tools call `docker.io`.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    auths: Option<BTreeMap<String, Entry>>,
    creds_store: Option<String>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

pub(super) async fn lookup(path: Option<&Path>, registry: &str) -> Result<Credentials, Error> {
    let Some(path) = path.map(Path::to_owned).or_else(default_path) else {
        return Ok(Credentials::Anonymous);
    };
    let failed = |path: &Path, reason: String| Error::ClientFile { path: path.to_owned(), reason };
    let text = match tokio::fs::metadata(&path).await {
        Ok(metadata) if metadata.len() > MAX_FILE => {
            return Err(failed(&path, format!("it is larger than {MAX_FILE} bytes")));
        }
        Ok(_) => tokio::fs::read(&path).await,
        Err(error) => Err(error),
    };
    let file: ConfigFile = match text {
        // serde's error text may quote the file, which holds secrets: only the place is told.
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            failed(
                &path,
                format!("not valid JSON at line {}, column {}", error.line(), error.column()),
            )
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => ConfigFile::default(),
        Err(error) => return Err(failed(&path, error.to_string())),
    };
    from_file(&file, registry).await
}

async fn from_file(file: &ConfigFile, registry: &str) -> Result<Credentials, Error> {
    let key = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
    let of_registry = file
        .cred_helpers
        .iter()
        .flatten()
        .find(|(name, _)| name.as_str() == key || host_of(name) == host_of(key))
        .map(|(_, helper)| helper);
    if let Some(helper) = of_registry.or(file.creds_store.as_ref()).filter(|name| !name.is_empty())
    {
        let found = helper::get(helper, key).await?;
        // A helper named for this registry is the only source; the general store may just not know it.
        if of_registry.is_some() || found != Credentials::Anonymous {
            return Ok(found);
        }
    }
    let auths = file.auths.as_ref();
    let entry = auths.and_then(|auths| {
        auths.get(key).or_else(|| {
            auths.iter().find(|(name, _)| host_of(name) == host_of(key)).map(|(_, entry)| entry)
        })
    });
    let Some(entry) = entry else { return Ok(Credentials::Anonymous) };
    if !entry.registrytoken.is_empty() {
        return Ok(Credentials::RegistryToken(entry.registrytoken.clone()));
    }
    if !entry.identitytoken.is_empty() {
        return Ok(Credentials::IdentityToken(entry.identitytoken.clone()));
    }
    if !entry.auth.is_empty() {
        return basic(&entry.auth).ok_or_else(|| Error::Credentials {
            registry: registry.to_owned(),
            reason: "the `auth` entry of the Docker config is not base64 of user:password"
                .to_owned(),
        });
    }
    if entry.username.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    Ok(Credentials::Basic { username: entry.username.clone(), password: entry.password.clone() })
}

/// The host and port of a key: old clients wrote `https://host/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or(rest)
}

fn default_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG").filter(|value| !value.is_empty()) {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

#[cfg(test)]
mod test {
    use super::*;

    async fn get(json: &str, registry: &str) -> Credentials {
        from_file(&serde_json::from_str(json).unwrap(), registry).await.unwrap()
    }

    #[tokio::test]
    async fn auths() {
        // dTpw = u:p
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"},
            "http://old.example/v1/":{"username":"a","password":"b"},"localhost:5000":{"identitytoken":"t"},"empty":{}}}"#;
        let basic =
            |u: &str, p: &str| Credentials::Basic { username: u.into(), password: p.into() };
        assert_eq!(get(json, "docker.io").await, basic("u", "p"));
        assert_eq!(get(json, "old.example").await, basic("a", "b"));
        assert_eq!(get(json, "localhost:5000").await, Credentials::IdentityToken("t".into()));
        assert_eq!(get(json, "empty").await, Credentials::Anonymous);
        assert_eq!(get(json, "localhost:5001").await, Credentials::Anonymous);
        assert_eq!(get(r#"{"auths":null}"#, "x").await, Credentials::Anonymous);
    }

    #[tokio::test]
    async fn broken_file_is_named_and_not_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"auths":{"x":{"password":hunter2}}}"#).unwrap();
        let error = lookup(Some(&path), "x").await.unwrap_err().chain();
        assert!(error.contains("config.json") && !error.contains("hunter2"), "{error}");
        let missing = directory.path().join("none.json");
        assert_eq!(lookup(Some(&missing), "x").await.unwrap(), Credentials::Anonymous);
    }
}
