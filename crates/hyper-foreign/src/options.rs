//! The options message that a shim gets with Task `Create`.

use std::collections::BTreeMap;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedOutputStream, Message as _};
use containerd_shim_protos::shim::oci::Options;
use hyper_task::foreign::{RUNC_TYPE, Runtime};
use serde_json::Value;

use crate::ForeignError;
use crate::error::Result;

/// containerd's, for shims whose options are a file of their own.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// As containerd's configuration has them: `BinaryName`, `Root`, `SystemdCgroup`, … for the shim of
/// OCI runtimes; `TypeUrl`, `ConfigPath`, `ConfigBody` for others.
///
/// # Errors
/// A key or a kind of value that the shim does not have.
pub fn options(runtime: &Runtime) -> Result<Option<Any>> {
    let wrong = |key: &str, why: &str| {
        let name = &runtime.name;
        ForeignError::Invalid(format!("option `{key}` of runtime `{name}` {why}"))
    };
    let any =
        |type_url: &str, value| Any { type_url: type_url.to_owned(), value, ..Any::default() };
    if runtime.kind == RUNC_TYPE {
        let mut all = Options::new();
        for (key, value) in &runtime.options {
            let text = || value.as_str().ok_or_else(|| wrong(key, "must be a text"));
            let flag = || value.as_bool().ok_or_else(|| wrong(key, "must be true or false"));
            match key.as_str() {
                "BinaryName" => all.binary_name = text()?.to_owned(),
                "Root" => all.root = text()?.to_owned(),
                "ShimCgroup" => all.shim_cgroup = text()?.to_owned(),
                "NoPivotRoot" => all.no_pivot_root = flag()?,
                "NoNewKeyring" => all.no_new_keyring = flag()?,
                "SystemdCgroup" => all.systemd_cgroup = flag()?,
                _ => return Err(wrong(key, "is not one of its shim's")),
            }
        }
        if !runtime.program.as_os_str().is_empty() {
            all.binary_name = runtime.program.display().to_string();
        }
        let bytes = all.write_to_bytes().map_err(|e| ForeignError::Invalid(e.to_string()))?;
        return Ok(Some(any("containerd.runc.v1.Options", bytes)));
    }
    if runtime.options.is_empty() {
        return Ok(None);
    }
    let fields: BTreeMap<&str, u32> =
        BTreeMap::from([("TypeUrl", 1), ("ConfigPath", 2), ("ConfigBody", 3)]);
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    for (key, value) in &runtime.options {
        let number = fields.get(key.as_str());
        let number = number.ok_or_else(|| wrong(key, "is not one of its shim's"))?;
        let encoded = match (value, *number) {
            (Value::String(text), 3) => out.write_bytes(3, text.as_bytes()),
            (Value::String(text), number) => out.write_string(number, text),
            _ => return Err(wrong(key, "must be a text")),
        };
        encoded.map_err(|e| ForeignError::Invalid(e.to_string()))?;
    }
    out.flush().map_err(|e| ForeignError::Invalid(e.to_string()))?;
    drop(out);
    Ok(Some(any(GENERIC, bytes)))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn keys_are_containerds_and_others_are_named() {
        let mut runtime = Runtime {
            name: "foo".into(),
            kind: RUNC_TYPE.into(),
            program: "/usr/bin/crun".into(),
            options: BTreeMap::from([("SystemdCgroup".to_owned(), Value::Bool(true))]),
            ..Runtime::default()
        };
        let any = options(&runtime).unwrap().unwrap();
        let read = Options::parse_from_bytes(&any.value).unwrap();
        assert!(read.systemd_cgroup && read.binary_name == "/usr/bin/crun");
        runtime.options = BTreeMap::from([("Systemd".to_owned(), Value::Bool(true))]);
        let error = options(&runtime).unwrap_err().to_string();
        assert!(error.contains("`Systemd`") && error.contains("`foo`"), "{error}");
        runtime.kind = "io.containerd.runsc.v1".into();
        runtime.options = BTreeMap::from([("ConfigPath".to_owned(), Value::from("/etc/x"))]);
        let any = options(&runtime).unwrap().unwrap();
        assert_eq!(any.value, b"\x12\x06/etc/x");
    }
}
