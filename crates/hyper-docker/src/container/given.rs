//! Files and secrets in a create request: two fields of `HostConfig` that Docker's API has not.
//!
//! ```json
//! "HyperFiles": [{"Target": "/run/secrets/db", "Directory": false, "Mode": 493, "Writable": false,
//!                 "Files": [{"Path": "", "Mode": 256, "Uid": 0, "Gid": 0, "Secret": "db",
//!                            "Content": "BASE64"}]}],
//! "HyperSecretEnv": [{"Name": "TOKEN", "Secret": "token", "Value": "BASE64"}]
//! ```
//! `Owner` (`USER[:GROUP]`, names of the image) may stand for `Uid` and `Gid` of a file that is not in
//! a directory. `Secret` is what errors and `inspect` call it; without it a file is no secret, and stored. What
//! `inspect` shows has no contents, but `Bytes` of what is no secret.

use hyper_engine::spec::{Contents, Given, GivenFile, HostSpec, SecretVariable};
use serde::Deserialize;
use serde_json::{Value, json};

/// What stands for the value of a secret variable in `inspect`.
const HIDDEN: &str = "[secret]";
/// Of a directory that says nothing of it.
const DIRECTORY_MODE: u32 = 0o755;

/// The part of a create request that is ours.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Extension {
    #[serde(rename = "HostConfig", default)]
    host: Option<HostExtension>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostExtension {
    hyper_files: Option<Vec<Files>>,
    hyper_secret_env: Option<Vec<Variable>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Files {
    target: String,
    directory: bool,
    mode: Option<u32>,
    writable: bool,
    files: Vec<File>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct File {
    path: String,
    mode: u32,
    uid: u32,
    gid: u32,
    owner: Option<String>,
    secret: Option<String>,
    content: Contents,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Variable {
    name: String,
    secret: String,
    value: Contents,
}

impl Extension {
    /// Puts it into what is to be created.
    pub fn apply(self, host: &mut HostSpec) {
        let own = self.host.unwrap_or_default();
        host.files = own.hyper_files.into_iter().flatten().map(given).collect();
        let variables = own.hyper_secret_env.into_iter().flatten();
        let variable = |Variable { name, secret, value }| SecretVariable { name, secret, value };
        host.secret_env = variables.map(variable).collect();
    }
}

fn given(files: Files) -> Given {
    let file = |file: File| GivenFile {
        path: file.path,
        mode: file.mode,
        uid: file.uid,
        gid: file.gid,
        owner: file.owner,
        secret: file.secret,
        content: file.content,
    };
    Given {
        target: files.target,
        directory: files.directory,
        mode: files.mode.unwrap_or(DIRECTORY_MODE),
        writable: files.writable,
        files: files.files.into_iter().map(file).collect(),
    }
}

/// `HyperFiles` and `HyperSecretEnv` of `inspect`, where there are any.
pub(super) fn inspect(host: &HostSpec, into: &mut Value) {
    if !host.files.is_empty() {
        into["HyperFiles"] = host.files.iter().map(shown).collect();
    }
    if !host.secret_env.is_empty() {
        let one =
            |variable: &SecretVariable| json!({ "Name": variable.name, "Secret": variable.secret });
        into["HyperSecretEnv"] = host.secret_env.iter().map(one).collect();
    }
}

fn shown(given: &Given) -> Value {
    let file = |file: &GivenFile| {
        let mut shown = json!({
            "Path": file.path, "Mode": file.mode, "Uid": file.uid, "Gid": file.gid,
        });
        if let Some(owner) = &file.owner {
            shown["Owner"] = json!(owner);
        }
        match &file.secret {
            Some(name) => shown["Secret"] = json!(name),
            None => shown["Bytes"] = json!(file.content.0.len()),
        }
        shown
    };
    json!({
        "Target": given.target, "Directory": given.directory, "Mode": given.mode,
        "Writable": given.writable, "Files": given.files.iter().map(file).collect::<Vec<_>>(),
    })
}

/// The environment as `inspect` shows it: names of secret variables without their values.
pub(super) fn environment(env: &[String], host: &HostSpec) -> Vec<String> {
    let hidden = |entry: &&String| {
        let name = entry.split('=').next().unwrap_or_default();
        !host.secret_env.iter().any(|variable| variable.name == name)
    };
    let secret = host.secret_env.iter().map(|variable| format!("{}={HIDDEN}", variable.name));
    env.iter().filter(hidden).cloned().chain(secret).collect()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn files_and_variables_are_taken_and_shown_without_what_is_in_them() {
        let extension: Extension = serde_json::from_value(json!({
            "Image": "busybox", "HostConfig": { "Memory": 5,
                "HyperFiles": [{"Target": "/s", "Files": [
                    {"Mode": 256, "Secret": "db", "Content": "c2VzYW1l"}]}],
                "HyperSecretEnv": [{"Name": "A", "Secret": "a", "Value": "c2VzYW1l"}] },
        }))
        .unwrap();
        let mut host = HostSpec::default();
        extension.apply(&mut host);
        assert_eq!(host.files[0].files[0].content.0, b"sesame");
        assert_eq!(host.secret_env[0].value.0, b"sesame");
        let mut shown = json!({});
        inspect(&host, &mut shown);
        assert_eq!(shown["HyperFiles"][0]["Files"][0]["Secret"], "db");
        assert!(!shown.to_string().contains("c2VzYW1l"), "{shown}");
        let env = environment(&["A=old".to_owned(), "B=1".to_owned()], &host);
        assert_eq!(env, ["B=1", "A=[secret]"]);
    }

    #[test]
    fn an_error_names_the_field_and_no_contents() {
        for (files, words) in [
            (json!([{"Target": "/s", "Tarket": 1}]), "Tarket"),
            (json!([{"Files": [{"Content": "se?ame"}]}]), "base64"),
            (json!([{"Files": [{"Content": 123_321}]}]), "base64"),
        ] {
            let body = json!({ "HostConfig": { "HyperFiles": files } });
            let error = serde_json::from_value::<Extension>(body).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("se?ame") && !error.contains("123321"), "{error}");
        }
    }
}
