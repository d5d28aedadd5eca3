//! The log driver `journald`: which journal, and what its entries say of the container.
//!
//! Options are Docker's `tag`, `labels` and `env`, and `namespace`: a journal namespace of
//! systemd-journald, so that tenants have journals of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hyper_task::stdio::JournalConfig;

use super::spec::{Log, Spec};
use crate::{Error, Result, id};

/// Options that it takes beside those of the log that is read.
pub(crate) const OPTIONS: [&str; 4] = ["env", "labels", NAMESPACE, TAG];
const NAMESPACE: &str = "namespace";
const TAG: &str = "tag";

/// Refuses what cannot be written to.
pub(crate) fn check(log: &Log) -> Result<()> {
    if let Some(namespace) = log.options.get(NAMESPACE)
        && !id::is_name(namespace)
    {
        let why = "letters, digits, `_`, `.` and `-` are allowed";
        return Err(Error::Invalid(format!("invalid journal namespace `{namespace}`: {why}")));
    }
    if let Some(tag) = log.options.get(TAG) {
        expand(tag, &[])?;
    }
    let socket = socket(log);
    match socket.exists() {
        true => Ok(()),
        false => Err(Error::Unsupported(format!(
            "log driver \"journald\": {} is not there: no journald runs on this host, or it does \
             not serve that namespace: start it, or use json-file or local",
            socket.display()
        ))),
    }
}

/// For the supervisor of container `name`.
pub(crate) fn config(spec: &Spec, name: &str) -> JournalConfig {
    let log = &spec.host.log;
    let short = id::short(&spec.id);
    let words = [
        ("ID", short),
        ("FullID", &spec.id),
        ("Name", name),
        ("ImageName", &spec.image),
        ("DaemonName", "hyperd"),
    ];
    let tag = log.options.get(TAG).and_then(|tag| expand(tag, &words).ok());
    let tag = tag.unwrap_or_else(|| short.to_owned());
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let listed = |key: &str| log.options.get(key).map(String::as_str).unwrap_or_default();
    for label in listed("labels").split(',') {
        if let Some(value) = spec.labels.get(label) {
            fields.insert(field_name(label), value.clone());
        }
    }
    for wanted in listed("env").split(',') {
        let all = spec.env.iter().filter_map(|pair| pair.split_once('='));
        if let Some((key, value)) = all.into_iter().find(|(key, _)| *key == wanted) {
            fields.insert(field_name(key), value.to_owned());
        }
    }
    fields.remove("");
    for (key, value) in [
        ("CONTAINER_ID", short),
        ("CONTAINER_ID_FULL", &spec.id),
        ("CONTAINER_NAME", name),
        ("CONTAINER_TAG", &tag),
        ("IMAGE_NAME", &spec.image),
        ("SYSLOG_IDENTIFIER", &tag),
    ] {
        fields.insert(key.to_owned(), value.to_owned());
    }
    JournalConfig { socket: socket(log), fields }
}

fn socket(log: &Log) -> PathBuf {
    let namespace = log.options.get(NAMESPACE).map(|name| format!(".{name}"));
    format!("/run/systemd/journal{}/socket", namespace.unwrap_or_default()).into()
}

/// `{{.Name}}` and the like; without `words` only a check.
fn expand(tag: &str, words: &[(&str, &str)]) -> Result<String> {
    const KNOWN: [&str; 5] = ["ID", "FullID", "Name", "ImageName", "DaemonName"];
    let mut text = String::new();
    let mut rest = tag;
    while let Some((before, after)) = rest.split_once("{{") {
        let name = after.split_once("}}").and_then(|(inside, behind)| {
            rest = behind;
            KNOWN.into_iter().find(|known| inside.trim().strip_prefix('.') == Some(known))
        });
        let Some(name) = name else {
            return Err(Error::Invalid(format!(
                "invalid log tag `{tag}`: {{{{.NAME}}}} is known for {}",
                KNOWN.join(", ")
            )));
        };
        text.push_str(before);
        text.push_str(words.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| *value));
    }
    text.push_str(rest);
    Ok(text)
}

/// As journald takes names: upper case, digits and `_`, a letter first, at most 64.
fn field_name(key: &str) -> String {
    let name: String = key
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect();
    name.trim_start_matches(|c: char| !c.is_ascii_uppercase()).chars().take(64).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tags_are_dockers_templates() {
        let words = [("Name", "web"), ("ID", "0123")];
        assert_eq!(expand("a/{{.Name}}-{{ .ID }}!", &words).unwrap(), "a/web-0123!");
        for bad in ["{{.Nope}}", "{{.ID", "{{ID}}"] {
            assert!(expand(bad, &words).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }

    #[test]
    fn an_entry_names_its_container_and_chosen_labels_and_variables() {
        let mut spec = Spec {
            id: "0123456789abcdef".to_owned(),
            env: vec!["TIER=back=end".to_owned(), "OTHER=1".to_owned()],
            labels: [("com.x/team".to_owned(), "blue".to_owned())].into(),
            ..Spec::default()
        };
        for (key, value) in [("labels", "com.x/team,none"), ("env", "TIER"), ("tag", "t-{{.Name}}")]
        {
            spec.host.log.options.insert(key.to_owned(), value.to_owned());
        }
        spec.host.log.options.insert(NAMESPACE.to_owned(), "ci".to_owned());
        let JournalConfig { socket, fields } = config(&spec, "web");
        assert_eq!(socket, PathBuf::from("/run/systemd/journal.ci/socket"));
        let told = |key: &str| fields.get(key).map(String::as_str);
        assert_eq!(told("COM_X_TEAM"), Some("blue"));
        assert_eq!(told("TIER"), Some("back=end"));
        assert_eq!((told("SYSLOG_IDENTIFIER"), told("OTHER")), (Some("t-web"), None));
        assert_eq!(told("CONTAINER_ID"), Some("0123456789ab"));
    }
}
