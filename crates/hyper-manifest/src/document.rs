//! A file's documents, by kind.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::ManifestError;
use crate::kubernetes::{Metadata, Pod};
use crate::userpod::UserPod;

/// Everything in a file.
#[derive(Default)]
pub(crate) struct Documents {
    /// With the file that each is in.
    pub pods: Vec<(String, Pod)>,
    pub user_pods: Vec<(String, UserPod)>,
    pub config_maps: BTreeMap<String, Keys>,
    pub secrets: BTreeMap<String, Keys>,
}

/// Key → contents.
pub(crate) type Keys = BTreeMap<String, Vec<u8>>;

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
    /// Base64.
    #[serde(default)]
    binary_data: BTreeMap<String, String>,
    /// Nothing changes it here anyway.
    #[serde(rename = "immutable", default)]
    _immutable: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
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
    /// Nothing changes it here anyway.
    #[serde(rename = "immutable", default)]
    _immutable: Option<bool>,
}

/// Adds the documents of a file.
pub(crate) fn split(
    file: &str,
    text: &str,
    documents: &mut Documents,
) -> Result<(), ManifestError> {
    let form = |place: String, why: &dyn std::fmt::Display| ManifestError::Form {
        place,
        why: why.to_string(),
    };
    // YAML 1.2 has all of JSON in it. Modes are written as Kubernetes reads them: 0400 is octal.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let values: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| form(file.to_owned(), &error))?;
    for (at, value) in values.into_iter().enumerate() {
        if value.is_null() {
            continue;
        }
        let place = format!("{file}: document {}", at + 1);
        let kind = value["kind"].as_str().map(str::to_owned);
        let wrong = |error: serde_json::Error| form(place.clone(), &error);
        let (kind, name, keys) = match kind.as_deref() {
            Some("Pod") => {
                documents
                    .pods
                    .push((file.to_owned(), serde_json::from_value(value).map_err(wrong)?));
                continue;
            }
            None => {
                let pod = serde_json::from_value(value).map_err(wrong)?;
                documents.user_pods.push((file.to_owned(), pod));
                continue;
            }
            Some("ConfigMap") => {
                only_texts(&value, &place)?;
                let map: ConfigMap = serde_json::from_value(value).map_err(wrong)?;
                let keys = keys(map.data, map.binary_data, "binaryData", &place)?;
                ("ConfigMap", map.metadata.name, keys)
            }
            Some("Secret") => {
                only_texts(&value, &place)?;
                let secret: Secret = serde_json::from_value(value).map_err(wrong)?;
                // As Kubernetes: stringData wins.
                let data = secret.data.into_iter();
                let data = data.filter(|(key, _)| !secret.string_data.contains_key(key)).collect();
                let keys = keys(secret.string_data, data, "data", &place)?;
                ("Secret", secret.metadata.name, keys)
            }
            Some(other) => {
                let why = format!("kind `{other}` is none of Pod, ConfigMap, Secret");
                return Err(form(place, &why));
            }
        };
        let maps =
            if kind == "Secret" { &mut documents.secrets } else { &mut documents.config_maps };
        if maps.insert(name.clone(), keys).is_some() {
            return Err(form(place, &format!("there are two {kind}s `{name}`")));
        }
    }
    Ok(())
}

/// A number or a boolean is refused here, since the parser's own words would quote a secret.
fn only_texts(value: &Value, place: &str) -> Result<(), ManifestError> {
    for field in ["data", "stringData", "binaryData"] {
        let keys = value[field].as_object().into_iter().flatten();
        if let Some((key, _)) = keys.into_iter().find(|(_, value)| !value.is_string()) {
            return Err(ManifestError::Field {
                place: place.to_owned(),
                field: format!("{field}.{key}"),
                why: "a text is wanted: put it in quotes".to_owned(),
            });
        }
    }
    Ok(())
}

fn keys(
    texts: BTreeMap<String, String>,
    encoded: BTreeMap<String, String>,
    field: &str,
    place: &str,
) -> Result<Keys, ManifestError> {
    let mut all: Keys = texts.into_iter().map(|(key, text)| (key, text.into_bytes())).collect();
    for (key, text) in encoded {
        let wrong = |why: &str| ManifestError::Field {
            place: place.to_owned(),
            field: format!("{field}.{key}"),
            why: why.to_owned(),
        };
        let bytes = crate::userpod::base64(&text).ok_or_else(|| wrong("it is not base64"))?;
        if all.insert(key.clone(), bytes).is_some() {
            return Err(wrong("the key is in `data`, too"));
        }
    }
    Ok(all)
}
