//! A file's documents, by kind.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::ManifestError;
use crate::kubernetes::{Metadata, Pod};
use crate::userpod::UserPod;

/// Everything in a file.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub pods: Vec<Pod>,
    pub user_pods: Vec<UserPod>,
    /// Name → key → text.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigMap {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Secret {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    #[serde(rename = "type", default)]
    _type: Option<String>,
    /// Base64.
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

pub(crate) fn split(place: &str, text: &str) -> Result<Documents, ManifestError> {
    let form = |place: String, why: &dyn std::fmt::Display| ManifestError::Form {
        place,
        why: why.to_string(),
    };
    // YAML 1.2 has all of JSON in it.
    let values: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| form(place.to_owned(), &error))?;
    let mut documents = Documents::default();
    for (at, value) in values.into_iter().enumerate() {
        if value.is_null() {
            continue;
        }
        let place = format!("{place}: document {}", at + 1);
        let kind = value["kind"].as_str().map(str::to_owned);
        let wrong = |error: serde_json::Error| form(place.clone(), &error);
        match kind.as_deref() {
            Some("Pod") => documents.pods.push(serde_json::from_value(value).map_err(wrong)?),
            Some("ConfigMap") => {
                let map: ConfigMap = serde_json::from_value(value).map_err(wrong)?;
                documents.config_maps.insert(map.metadata.name, map.data);
            }
            Some("Secret") => {
                let secret: Secret = serde_json::from_value(value).map_err(wrong)?;
                let (name, all) = texts(secret, &place)?;
                documents.secrets.insert(name, all);
            }
            Some(other) => {
                let why = format!("kind `{other}` is none of Pod, ConfigMap, Secret");
                return Err(form(place, &why));
            }
            None => documents.user_pods.push(serde_json::from_value(value).map_err(wrong)?),
        }
    }
    Ok(documents)
}

fn texts(secret: Secret, place: &str) -> Result<(String, BTreeMap<String, String>), ManifestError> {
    let mut all = secret.string_data;
    for (key, encoded) in secret.data {
        let text = crate::userpod::base64(&encoded)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| ManifestError::Field {
                place: place.to_owned(),
                field: format!("data.{key}"),
                why: "not base64 of a text".to_owned(),
            })?;
        all.insert(key, text);
    }
    Ok((secret.metadata.name, all))
}
