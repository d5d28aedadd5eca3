//! The environment of a container: what is written in the pod, and what comes from the documents
//! beside it. Values of `Secret`s, and what they are put into, go another way than the others.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Container, EnvVar, Pod, ValueFrom, expand};
use crate::document::{Documents, Keys};
use crate::{FieldResult, wrong};

/// One variable.
#[derive(Clone)]
pub(super) struct Variable {
    pub name: String,
    pub value: String,
    /// `NAME/KEY` of the secret that is in the value.
    pub secret: Option<String>,
}

impl Variable {
    /// `NAME=VALUE`, if that may be seen.
    pub fn plain(&self) -> Option<String> {
        self.secret.is_none().then(|| format!("{}={}", self.name, self.value))
    }

    /// One of `HostConfig.HyperSecretEnv`.
    pub fn secret_json(&self) -> Option<Value> {
        let secret = self.secret.as_ref()?;
        let value = STANDARD.encode(&self.value);
        Some(json!({ "Name": self.name, "Secret": secret, "Value": value }))
    }
}

/// Each name once: of two the later counts.
pub(super) fn all(
    pod: &Pod,
    beside: &Documents,
    container: &Container,
) -> FieldResult<Vec<Variable>> {
    let mut all: Vec<Variable> = Vec::new();
    for from in &container.env_from {
        let (kind, reference, maps) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(reference), None) => ("ConfigMap", reference, &beside.config_maps),
            (None, Some(reference)) => ("Secret", reference, &beside.secrets),
            _ => return wrong("envFrom", "exactly one of configMapRef and secretRef is wanted"),
        };
        let keys: &Keys = match maps.get(&reference.name) {
            Some(keys) => keys,
            None if reference.optional => continue,
            None => {
                let why = format!("there is no {kind} `{}` beside the pod", reference.name);
                return wrong("envFrom", why);
            }
        };
        for (key, value) in keys {
            let name = format!("{}{key}", from.prefix);
            let value = text("envFrom", kind, &reference.name, key, value)?;
            put(&mut all, Variable { name, value, secret: secret(kind, &reference.name, key) });
        }
    }
    for variable in &container.env {
        if let Some(variable) = one(pod, beside, variable, &all)? {
            put(&mut all, variable);
        }
    }
    Ok(all)
}

fn put(all: &mut Vec<Variable>, variable: Variable) {
    all.retain(|known| known.name != variable.name);
    all.push(variable);
}

fn secret(kind: &str, name: &str, key: &str) -> Option<String> {
    (kind == "Secret").then(|| format!("{name}/{key}"))
}

fn text(field: &str, kind: &str, name: &str, key: &str, value: &[u8]) -> FieldResult<String> {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => wrong(
            field,
            format!("`{key}` of {kind} `{name}` is no text: take it as a file, by a volume"),
        ),
    }
}

fn one(
    pod: &Pod,
    beside: &Documents,
    variable: &EnvVar,
    before: &[Variable],
) -> FieldResult<Option<Variable>> {
    let field = format!("env `{}`", variable.name);
    if variable.name.is_empty() || variable.name.contains('=') {
        return wrong(field, "it is no name of a variable");
    }
    let name = variable.name.clone();
    let Some(ValueFrom { config_map_key_ref, secret_key_ref, field_ref }) = &variable.value_from
    else {
        // Only what is written here is expanded, by what came before it.
        let (value, secret) = expand::one(&variable.value, before);
        return Ok(Some(Variable { name, value, secret }));
    };
    let (kind, reference, maps) = match (config_map_key_ref, secret_key_ref, field_ref) {
        (Some(reference), None, None) => ("ConfigMap", reference, &beside.config_maps),
        (None, Some(reference), None) => ("Secret", reference, &beside.secrets),
        (None, None, Some(reference)) => {
            let value = own_field(pod, &reference.field_path).map_err(|why| (field, why))?;
            return Ok(Some(Variable { name, value, secret: None }));
        }
        _ => {
            let why = "exactly one of configMapKeyRef, secretKeyRef, fieldRef is wanted";
            return wrong(field, why);
        }
    };
    let (of, key) = (&reference.name, &reference.key);
    match maps.get(of).and_then(|map| map.get(key)) {
        Some(value) => {
            let value = text(&field, kind, of, key, value)?;
            Ok(Some(Variable { name, value, secret: secret(kind, of, key) }))
        }
        None if reference.optional => Ok(None),
        None => wrong(field, format!("there is no {kind} `{of}` with `{key}` beside the pod")),
    }
}

fn own_field(pod: &Pod, path: &str) -> Result<String, String> {
    let metadata = &pod.metadata;
    match path {
        "metadata.name" => Ok(metadata.name.clone()),
        "metadata.namespace" => {
            Ok(metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()))
        }
        _ => {
            let key =
                path.strip_prefix("metadata.labels['").and_then(|rest| rest.strip_suffix("']"));
            match key {
                Some(key) => Ok(metadata.labels.get(key).cloned().unwrap_or_default()),
                None => Err(format!("fieldPath `{path}` is not known here")),
            }
        }
    }
}
