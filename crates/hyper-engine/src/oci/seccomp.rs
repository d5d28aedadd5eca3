//! The system call filter inside the guest.
//!
//! Profiles have the form that Docker's `--security-opt seccomp=FILE` takes; ours (`seccomp.json`)
//! too. [`resolve`] turns one into the OCI `linux.seccomp` object for a set of capabilities: rules
//! that include or exclude capabilities are decided here, those about architectures and kernels
//! too, because the guest is ours. In a kernel of its own the filter is the second wall.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result};

const DEFAULT: &str = include_str!("seccomp.json");
/// Longest profile a client may send, in bytes.
const MAX_PROFILE: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    names: Vec<String>,
    /// Old profiles have one name per rule.
    name: Option<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
}

impl Filter {
    /// Every named capability is held, and the architecture is among those named, if any are.
    fn includes(&self, caps: &BTreeSet<&'static str>) -> bool {
        self.caps.iter().flatten().all(|cap| caps.contains(cap.as_str()))
            && self.arches.as_ref().is_none_or(|list| list.is_empty() || has_our_arch(list))
    }

    /// One named capability is held, or the architecture is named.
    fn excludes(&self, caps: &BTreeSet<&'static str>) -> bool {
        self.caps.iter().flatten().any(|cap| caps.contains(cap.as_str()))
            || self.arches.as_ref().is_some_and(|list| has_our_arch(list))
    }
}

fn has_our_arch(list: &[String]) -> bool {
    let ours: &[&str] = match std::env::consts::ARCH {
        "aarch64" => &["arm64", "aarch64"],
        _ => &["amd64", "x86_64"],
    };
    list.iter().any(|arch| ours.contains(&arch.as_str()))
}

/// The OCI `linux.seccomp` object of our own profile.
pub(crate) fn default_filter(caps: &BTreeSet<&'static str>) -> Result<Value> {
    static PARSED: OnceLock<Profile> = OnceLock::new();
    if let Some(profile) = PARSED.get() {
        return Ok(filter(profile, caps));
    }
    let profile = parse(DEFAULT)?;
    Ok(filter(PARSED.get_or_init(|| profile), caps))
}

/// The OCI `linux.seccomp` object of a profile.
///
/// # Errors
/// [`Error::Invalid`] with the position when the profile cannot be read.
pub(crate) fn resolve(profile: &str, caps: &BTreeSet<&'static str>) -> Result<Value> {
    if profile.len() > MAX_PROFILE {
        return Err(Error::Invalid(format!("seccomp profile is longer than {MAX_PROFILE} bytes")));
    }
    Ok(filter(&parse(profile)?, caps))
}

fn parse(profile: &str) -> Result<Profile> {
    serde_json::from_str(profile)
        .map_err(|e| Error::Invalid(format!("seccomp profile cannot be read: {e}")))
}

fn filter(profile: &Profile, caps: &BTreeSet<&'static str>) -> Value {
    let mut architectures: Vec<&String> = profile.architectures.iter().flatten().collect();
    for map in profile.arch_map.iter().flatten() {
        if map.architecture == our_scmp_arch() {
            architectures.push(&map.architecture);
            architectures.extend(map.sub_architectures.iter().flatten());
        }
    }
    let syscalls: Vec<Value> = profile
        .syscalls
        .iter()
        .flatten()
        .filter(|rule| rule.includes.includes(caps) && !rule.excludes.excludes(caps))
        .map(rule_json)
        .filter(|rule| rule["names"].as_array().is_some_and(|names| !names.is_empty()))
        .collect();
    let mut filter = json!({
        "defaultAction": profile.default_action,
        "architectures": architectures,
        "syscalls": syscalls,
    });
    if let Some(errno) = profile.default_errno_ret {
        filter["defaultErrnoRet"] = json!(errno);
    }
    if let Some(flags) = profile.flags.as_ref().filter(|flags| !flags.is_empty()) {
        filter["flags"] = json!(flags);
    }
    filter
}

fn rule_json(rule: &Rule) -> Value {
    let names: Vec<&String> = rule.name.iter().chain(&rule.names).collect();
    let mut out = json!({ "names": names, "action": rule.action });
    if let Some(errno) = rule.errno_ret {
        out["errnoRet"] = json!(errno);
    }
    let arguments: Vec<Value> = rule
        .args
        .iter()
        .flatten()
        .map(|argument| {
            json!({
                "index": argument.index,
                "value": argument.value,
                "valueTwo": argument.value_two,
                "op": argument.op,
            })
        })
        .collect();
    if !arguments.is_empty() {
        out["args"] = Value::Array(arguments);
    }
    out
}

fn our_scmp_arch() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        _ => "SCMP_ARCH_X86_64",
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn names(filter: &Value, action: &str) -> Vec<String> {
        filter["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|rule| rule["action"] == action)
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn our_profile_allows_the_usual_and_refuses_mount() {
        let filter = default_filter(&BTreeSet::from(["CAP_CHOWN"])).unwrap();
        let allowed = names(&filter, "SCMP_ACT_ALLOW");
        for name in ["read", "execve", "clone", "socket", "futex", "statx", "epoll_pwait2"] {
            assert!(allowed.contains(&name.to_owned()), "{name}");
        }
        for name in ["mount", "bpf", "reboot", "kexec_load", "unshare", "io_uring_setup", "clone3"]
        {
            assert!(!allowed.contains(&name.to_owned()), "{name}");
        }
        assert_eq!(names(&filter, "SCMP_ACT_ERRNO"), ["clone3"]);
    }

    #[test]
    fn a_capability_brings_its_calls() {
        let filter = default_filter(&BTreeSet::from(["CAP_SYS_ADMIN"])).unwrap();
        let allowed = names(&filter, "SCMP_ACT_ALLOW");
        assert!(allowed.contains(&"mount".to_owned()) && allowed.contains(&"clone3".to_owned()));
        assert!(names(&filter, "SCMP_ACT_ERRNO").is_empty());
    }

    #[test]
    fn profiles_of_clients() {
        let caps = BTreeSet::new();
        let filter = resolve(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
                {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
                "syscalls":[{"name":"chmod","action":"SCMP_ACT_ERRNO","args":null}]}"#,
            &caps,
        )
        .unwrap();
        assert_eq!(names(&filter, "SCMP_ACT_ERRNO"), ["chmod"]);
        let error = resolve("{\"defaultAction\": 3}", &caps).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }

    #[test]
    fn the_result_is_an_oci_seccomp_object() {
        let filter = default_filter(&BTreeSet::from(["CAP_SYS_ADMIN"])).unwrap();
        serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(filter).unwrap();
    }
}
