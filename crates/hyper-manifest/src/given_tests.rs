//! Files and secrets of manifests, as they are asked for.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::{Manifest, ManifestError};

const DOCUMENTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {a.conf: one, B: two}
binaryData: {bin: AAEC/w==}
---
apiVersion: v1
kind: Secret
metadata: {name: db}
type: Opaque
data: {pw: c2VzYW1l, blob: /w==}
stringData: {user: root}
";

fn body(pod: &str) -> Result<Value, ManifestError> {
    let mut manifest = Manifest::default();
    manifest.add("pod.yaml", pod)?;
    manifest.add("documents.yaml", DOCUMENTS)?;
    Ok(manifest.plans(&BTreeMap::new())?[0].containers[0].body.clone())
}

fn pod(volumes: &str, mounts: &str, more: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  volumes: {volumes}
  containers:
  - {{name: c, image: i, volumeMounts: {mounts}, {more}}}
"
    )
}

fn files(volume: &str, mount: &str) -> Result<Value, ManifestError> {
    let text = pod(
        &format!("[{{name: v, {volume}}}]"),
        &format!("[{{name: v, mountPath: /m{mount}}}]"),
        "",
    );
    Ok(body(&text)?["HostConfig"]["HyperFiles"][0].clone())
}

fn listed(given: &Value) -> Vec<(String, u64, String)> {
    let list = given["Files"].as_array().unwrap().iter();
    list.map(|file| {
        let content = STANDARD.decode(file["Content"].as_str().unwrap()).unwrap();
        let path = file["Path"].as_str().unwrap().to_owned();
        (path, file["Mode"].as_u64().unwrap(), String::from_utf8_lossy(&content).into_owned())
    })
    .collect()
}

fn list(files: &[(&str, u64, &str)]) -> Vec<(String, u64, String)> {
    files.iter().map(|(path, mode, text)| ((*path).into(), *mode, (*text).into())).collect()
}

#[test]
fn all_keys_of_a_config_map_are_files() {
    let given = files("configMap: {name: conf}", "").unwrap();
    assert_eq!((&given["Target"], &given["Directory"]), (&json!("/m"), &json!(true)));
    let files = listed(&given);
    assert_eq!(files[..2], list(&[("B", 0o644, "two"), ("a.conf", 0o644, "one")]));
    assert_eq!(given["Files"][2]["Content"], "AAEC/w==");
    assert_eq!(given["Files"][0]["Secret"], Value::Null);
}

#[test]
fn items_modes_and_sub_paths() {
    let items = "secret: {secretName: db, defaultMode: 0400, items: [{key: pw, path: x/pw}, {key: user, path: u, mode: 288}]}";
    let given = files(items, "").unwrap();
    assert_eq!(listed(&given), list(&[("u", 0o440, "root"), ("x/pw", 0o400, "sesame")]));
    assert_eq!(given["Files"][1]["Secret"], "db/pw");
    let given = files(items, ", subPath: x").unwrap();
    assert_eq!(listed(&given), list(&[("pw", 0o400, "sesame")]));
    let given = files(items, ", subPath: x/pw").unwrap();
    assert_eq!(
        (&given["Directory"], listed(&given)),
        (&Value::Null, list(&[("", 0o400, "sesame")]))
    );
    let given = files("configMap: {name: none, optional: true}", "").unwrap();
    assert_eq!((&given["Directory"], listed(&given)), (&json!(true), vec![]));
    let both = "projected: {defaultMode: 256, sources: [{configMap: {name: conf, items: [{key: B, path: b}]}}, {secret: {name: db, items: [{key: pw, path: p}]}}]}";
    let given = files(both, "").unwrap();
    assert_eq!(listed(&given), list(&[("b", 0o400, "two"), ("p", 0o400, "sesame")]));
    assert_eq!(given["Files"][0]["Secret"], Value::Null);
}

#[test]
fn what_is_not_there_or_cannot_be_had_is_named() {
    for (volume, mount, words) in [
        ("configMap: {name: none}", "", "`none`"),
        ("configMap: {name: conf, items: [{key: nokey, path: x}]}", "", "no key `nokey`"),
        ("configMap: {name: conf, items: [{key: B, path: ../b}]}", "", "`../b`"),
        ("configMap: {name: conf}", ", subPath: nosub", "no `nosub`"),
        ("secret: {secretName: db, defaultMode: 4096}", "", "secret.defaultMode"),
        ("secret: {secretName: db, defaultMode: '9'}", "", "secret.defaultMode"),
        ("secret: {secretName: db}, emptyDir: {}", "", "exactly one of"),
        ("projected: {sources: [{serviceAccountToken: {path: t}}]}", "", "serviceAccountToken"),
        ("projected: {sources: [{downwardAPI: {}}]}", "", "downwardAPI"),
        (
            "projected: {sources: [{secret: {name: db}}, {secret: {name: db}}]}",
            "",
            "two files of the volume",
        ),
    ] {
        let error = files(volume, mount).unwrap_err().to_string();
        assert!(error.contains(words), "{volume}: {error}");
    }
}

#[test]
fn secrets_of_the_environment_go_their_own_way() {
    let env = "env: [{name: PW, valueFrom: {secretKeyRef: {name: db, key: pw}}}, \
               {name: URL, value: 'db://$(PW)@h'}, {name: A, value: x}], \
               envFrom: [{configMapRef: {name: conf2, optional: true}}]";
    let body = body(&pod("[]", "[]", env)).unwrap();
    assert_eq!(body["Env"], json!(["A=x"]));
    let value = |text: &str| STANDARD.encode(text);
    assert_eq!(
        body["HostConfig"]["HyperSecretEnv"],
        json!([{"Name": "PW", "Secret": "db/pw", "Value": value("sesame")},
               {"Name": "URL", "Secret": "db/pw", "Value": value("db://sesame@h")}])
    );
    for (more, words) in [
        ("envFrom: [{secretRef: {name: db}}]", "`blob` of Secret `db` is no text"),
        (
            "env: [{name: PW, valueFrom: {secretKeyRef: {name: db, key: pw}}}], args: [-p$(PW)]",
            "command line",
        ),
    ] {
        let error = self::body(&pod("[]", "[]", more)).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("sesame"), "{error}");
    }
}

#[test]
fn documents_are_checked_without_telling_what_is_in_them() {
    let secret =
        |fields: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\n{fields}");
    for (text, words) in [
        (secret("stringData: {pin: 12345}"), "stringData.pin"),
        (secret("data: {pin: '12345?'}"), "data.pin"),
        (format!("{0}\n---\n{0}", secret("data: {}")), "two Secrets `s`"),
    ] {
        let error = Manifest::default().add("f", &text).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("12345"), "{error}");
    }
}

fn user_pod(files: &Value, references: &Value) -> Result<Value, ManifestError> {
    let pod = json!({"id": "p", "files": files,
        "containers": [{"image": "i", "files": references}]});
    let mut manifest = Manifest::default();
    manifest.add("pod.json", &pod.to_string())?;
    assert!(manifest.uris().iter().all(|uri| uri == "http://h/x"));
    let fetched = BTreeMap::from([("http://h/x".to_owned(), b"from there".to_vec())]);
    Ok(manifest.plans(&fetched)?[0].containers[0].body["HostConfig"]["HyperFiles"].clone())
}

#[test]
fn files_of_a_user_pod() {
    let files = json!([
        {"name": "a", "content": "plain"},
        {"name": "b", "encoding": "base64", "content": "AAEC\n/w=="},
        {"name": "c", "uri": "http://h/x"},
    ]);
    let references = json!([
        {"path": "/a", "filename": "a"},
        {"path": "/b", "filename": "b", "perm": "0640", "user": "5", "group": "root"},
        {"path": "/c", "filename": "c"},
        {"path": "/d", "detail": {"content": "own"}},
    ]);
    let given = user_pod(&files, &references).unwrap();
    let content =
        |at: usize| STANDARD.decode(given[at]["Files"][0]["Content"].as_str().unwrap()).unwrap();
    assert_eq!(content(0), b"plain");
    assert_eq!(content(1), [0, 1, 2, 255]);
    assert_eq!((content(2), content(3)), (b"from there".to_vec(), b"own".to_vec()));
    let (first, second) = (&given[0]["Files"][0], &given[1]["Files"][0]);
    assert_eq!((&first["Mode"], &given[0]["Writable"]), (&json!(0o755), &json!(true)));
    assert_eq!((&second["Mode"], &second["Owner"]), (&json!(0o640), &json!("5:root")));
    assert_eq!(first["Owner"], Value::Null);

    for (files, references, words) in [
        (json!([]), json!([{"path": "/a", "filename": "x"}]), "no file `x`"),
        (json!([{"content": "x"}]), json!([]), "files[0]"),
        (json!([{"name": "a"}, {"name": "a"}]), json!([]), "two files"),
        (json!([]), json!([{"path": "a", "detail": {}}]), "absolute"),
        (json!([]), json!([{"path": "/a", "perm": "9", "detail": {}}]), "perm"),
        (json!([]), json!([{"path": "/a", "user": "j:e", "detail": {}}]), "`j:e`"),
        (
            json!([]),
            json!([{"path": "/a", "detail": {"encoding": "base64", "content": "a?"}}]),
            "not base64",
        ),
        (json!([]), json!([{"path": "/a", "detail": {"encoding": "gzip"}}]), "`gzip`"),
        (
            json!([]),
            json!([{"path": "/a", "detail": {"uri": "http://h/x", "content": "y"}}]),
            "`content`",
        ),
    ] {
        let error = user_pod(&files, &references).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn volumes_in_memory_and_bandwidths_are_read_and_bad_ones_named() {
    let plan = |annotations: &str, empty: &str| {
        let text = pod(&format!("[{{name: v, emptyDir: {empty}}}]"), "[]", "");
        let text = text.replace("{name: p}", &format!("{{name: p, annotations: {annotations}}}"));
        let mut manifest = Manifest::default();
        manifest.add("pod.yaml", &text)?;
        manifest.plans(&BTreeMap::new()).map(|mut plans| plans.remove(0))
    };
    let both = "{kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 512k}";
    let made = plan(both, "{medium: Memory, sizeLimit: 2Mi}").unwrap();
    assert_eq!(made.pod["network_rate"], "in=10000000,out=512000");
    assert_eq!(made.volumes[0].options["o"], "exec,mode=1777,size=2097152");
    let plain = plan("{}", "{}").unwrap();
    assert!(plain.pod["network_rate"].is_null() && plain.volumes[0].options.is_empty());
    for (annotations, empty, words) in [
        ("{kubernetes.io/egress-bandwidth: fast}", "{}", "`fast` is no rate"),
        ("{}", "{sizeLimit: 1Gi}", "medium: Memory"),
        ("{}", "{medium: HugePages}", "`HugePages`"),
        ("{}", "{medium: Memory, sizeLimit: much}", "`much` is no size"),
    ] {
        let error = plan(annotations, empty).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
