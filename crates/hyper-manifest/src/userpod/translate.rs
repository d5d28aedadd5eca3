//! From a UserPod to requests.

use serde_json::{Map, Value, json};

use super::{Fetched, PortMapping, UserContainer, UserPod, UserVolume, files};
use crate::plan::{ContainerPlan, Plan, Pull, VolumePlan};
use crate::{FieldResult, ManifestError, wrong};

pub(crate) fn plan(place: &str, pod: &UserPod, fetched: &Fetched) -> Result<Plan, ManifestError> {
    translate(pod, fetched).map_err(|(field, why)| ManifestError::Field {
        place: format!("{place}: pod `{}`", pod.id),
        field,
        why,
    })
}

/// Bytes of a base64 text (RFC 4648), with or without padding and line ends.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(text).ok()
}

fn translate(pod: &UserPod, fetched: &Fetched) -> FieldResult<Plan> {
    files::check(pod)?;
    for (field, given, why) in [
        ("interfaces", !pod.interfaces.is_empty(), "the pod's network is the engine's to make"),
        (
            "portmappingWhiteLists",
            pod.port_white_lists.is_some(),
            "there is no filter in the guest",
        ),
    ] {
        if given {
            return wrong(field, format!("it cannot be honoured: {why}"));
        }
    }
    if pod.id.is_empty() {
        return wrong("id", "a name for the pod is wanted");
    }
    let services = super::service::all(&pod.services)?;
    let mut containers = Vec::new();
    for (at, container) in pod.containers.iter().enumerate() {
        let files = files::given(pod, container, fetched);
        let made = self::container(pod, container, at).and_then(|plan| Ok((plan, files?)));
        let (mut made, files) =
            made.map_err(|(field, why)| (format!("containers[{at}].{field}"), why))?;
        if !files.is_empty() {
            made.body["HostConfig"]["HyperFiles"] = files.into();
        }
        containers.push(made);
    }
    if let Some(first) = containers.first_mut() {
        let (exposed, bindings) = mappings(&pod.portmappings)?;
        merge(&mut first.body["ExposedPorts"], exposed);
        merge(&mut first.body["HostConfig"]["PortBindings"], bindings);
    } else if !pod.portmappings.is_empty() {
        return wrong("portmappings", "a pod without containers has no ports");
    }
    let memory = u64::from(pod.resource.memory) << 20;
    let body = json!({
        "name": pod.id,
        "hostname": if pod.hostname.is_empty() { Value::Null } else { json!(pod.hostname) },
        "labels": pod.labels,
        "vcpus": (pod.resource.vcpu > 0).then_some(pod.resource.vcpu),
        "memory_bytes": (memory > 0).then_some(memory),
        "services": services,
    });
    let details = pod.containers.iter().flat_map(|container| &container.volumes);
    let details = details.filter_map(|reference| reference.detail.as_ref());
    let own = pod
        .volumes
        .iter()
        .chain(details)
        .filter(|volume| volume.source.is_empty() && !super::nas::is_nas(volume));
    let volumes = own.map(|volume| {
        let name = format!("{}-{}", pod.id, volume.name);
        VolumePlan { name, ..VolumePlan::default() }
    });
    let volumes = volumes.collect();
    Ok(Plan { name: pod.id.clone(), pod: body, containers, volumes })
}

fn merge(into: &mut Value, more: Map<String, Value>) {
    if let Some(into) = into.as_object_mut() {
        into.extend(more);
    }
}

fn container(pod: &UserPod, given: &UserContainer, at: usize) -> FieldResult<ContainerPlan> {
    for (field, given, why) in [
        ("id", !given.id.is_empty(), "ids are made by the engine"),
        ("logPath", !given.log_path.is_empty(), "logs are kept by the engine"),
        ("cache", !given.cache.is_empty(), "the root disk's caching is the hypervisor's"),
    ] {
        if given {
            return wrong(field, format!("it cannot be honoured: {why}"));
        }
    }
    if given.image.is_empty() {
        return wrong("image", "it is missing");
    }
    let policy =
        if given.restart_policy.is_empty() { &pod.restart_policy } else { &given.restart_policy };
    let restart = match policy.as_str() {
        "" | "never" => "no",
        "onFailure" => "on-failure",
        "always" => "always",
        other => {
            return wrong(
                "restartPolicy",
                format!("`{other}` is none of never, onFailure, always"),
            );
        }
    };
    let mut env = Vec::new();
    for variable in &given.envs {
        if given.envs.iter().filter(|other| other.env == variable.env).count() > 1 {
            return wrong("envs", format!("`{}` is given twice", variable.env));
        }
        env.push(format!("{}={}", variable.env, variable.value));
    }
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for port in &given.ports {
        if port.service_port != 0 {
            return wrong("ports.servicePort", "it cannot be honoured: give the pod `services`");
        }
        let text = |number: u16| if number == 0 { String::new() } else { number.to_string() };
        let mapping = PortMapping {
            host_port: text(port.host_port),
            container_port: text(port.container_port),
            protocol: port.protocol.clone(),
        };
        let published = port.host_port != 0;
        let (more, bound) = mappings(std::slice::from_ref(&mapping))?;
        exposed.extend(more);
        if published {
            bindings.extend(bound);
        }
    }
    let user = given.user.as_ref();
    let list = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    let ulimits = given
        .ulimits
        .iter()
        .map(|limit| json!({ "Name": limit.name, "Soft": limit.soft, "Hard": limit.hard }));
    let body = json!({
        "Image": given.image,
        "Entrypoint": list(&given.entrypoint),
        "Cmd": list(&given.command),
        "WorkingDir": given.workdir,
        "Env": env,
        "Labels": given.labels,
        "Tty": given.tty || pod.tty,
        "StopSignal": if given.stop_signal.is_empty() { Value::Null } else { json!(given.stop_signal) },
        "User": user.map_or_else(String::new, |user| match user.group.as_str() {
            "" => user.name.clone(),
            group => format!("{}:{group}", user.name),
        }),
        "ExposedPorts": exposed,
        "HostConfig": {
            "Annotations": { "io.hyper.pod": pod.id },
            "RestartPolicy": { "Name": restart },
            "LogConfig": { "Type": pod.log.kind, "Config": pod.log.config },
            "Dns": pod.dns,
            "DnsSearch": pod.dns_search,
            "DnsOptions": pod.dns_options,
            "Sysctls": given.sysctl,
            "ReadonlyRootfs": given.read_only,
            "GroupAdd": user.map(|user| &user.additional_groups),
            "Ulimits": ulimits.collect::<Vec<_>>(),
            "Binds": binds(pod, given)?,
            "Mounts": super::nas::mounts(pod, given)?,
            "PortBindings": bindings,
        },
    });
    let name = match given.name.as_str() {
        "" => {
            let image = given.image.rsplit('/').next().unwrap_or_default();
            let image = image.split([':', '@']).next().unwrap_or_default();
            format!("{}-{image}-{at}", pod.id)
        }
        name => name.to_owned(),
    };
    Ok(ContainerPlan { name, image: given.image.clone(), pull: Pull::Missing, body })
}

fn binds(pod: &UserPod, given: &UserContainer) -> FieldResult<Vec<String>> {
    let mut binds = Vec::new();
    for reference in &given.volumes {
        let field = format!("volumes `{}`", reference.path);
        let Some(volume) = super::nas::meant(pod, reference) else {
            return wrong(field, format!("the pod has no volume `{}`", reference.volume));
        };
        if super::nas::is_nas(volume) {
            continue;
        }
        let source =
            source(pod, volume).map_err(|(inner, why)| (format!("{field}: {inner}"), why))?;
        if !reference.path.starts_with('/') || reference.path.contains(':') {
            return wrong(field, "it is no absolute path");
        }
        let suffix = if reference.read_only { ":ro" } else { "" };
        binds.push(format!("{source}:{}{suffix}", reference.path));
    }
    Ok(binds)
}

fn source(pod: &UserPod, volume: &UserVolume) -> FieldResult<String> {
    if !matches!(volume.format.as_str(), "" | "vfs") {
        return wrong("format", format!("`{}` cannot be had: only vfs and nas", volume.format));
    }
    for (field, given) in [
        ("fstype", !volume.fstype.is_empty()),
        ("cache", !volume.cache.is_empty()),
        ("option", volume.option.is_some()),
    ] {
        if given {
            return wrong(field, "it has no meaning for a directory of the host");
        }
    }
    match volume.source.as_str() {
        "" => Ok(format!("{}-{}", pod.id, volume.name)),
        path if path.starts_with('/') && !path.contains(':') => Ok(path.to_owned()),
        other => wrong("source", format!("`{other}` is no absolute path")),
    }
}

/// Exposed ports and bindings of Docker's form.
fn mappings(list: &[PortMapping]) -> FieldResult<(Map<String, Value>, Map<String, Value>)> {
    let (mut exposed, mut bindings) = (Map::new(), Map::new());
    for mapping in list {
        let protocol = match mapping.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => "tcp",
            "udp" => "udp",
            other => return wrong("protocol", format!("`{other}` is neither tcp nor udp")),
        };
        let inside = range("containerPort", &mapping.container_port)?;
        let outside = match mapping.host_port.as_str() {
            "" => None,
            text => Some(range("hostPort", text)?),
        };
        if outside.as_ref().is_some_and(|outside| outside.len() != inside.len()) {
            let why = format!(
                "`{}` and `{}` differ in length",
                mapping.host_port, mapping.container_port
            );
            return wrong("hostPort", why);
        }
        for (at, port) in inside.clone().enumerate() {
            let key = format!("{port}/{protocol}");
            exposed.insert(key.clone(), json!({}));
            let host = outside.as_ref().and_then(|outside| outside.clone().nth(at));
            let binding = json!({ "HostIp": "", "HostPort": host.map(|port| port.to_string()).unwrap_or_default() });
            let list = bindings.entry(key).or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut() {
                list.push(binding);
            }
        }
    }
    Ok((exposed, bindings))
}

fn range(field: &str, text: &str) -> FieldResult<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first > 0 && first <= last => Ok(first..=last),
        _ => wrong(field, format!("`{text}` is neither a port nor a range a-b of ports")),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn base64_is_read_and_what_is_none_is_refused() {
        for (text, bytes) in
            [("aGk=", &b"hi"[..]), ("aGk", b"hi"), ("", b""), ("Zm9v\nYmFy", b"foobar")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["a", "aG=k", "aGk===", "a?k="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    /// The first Hyper's table of port mappings, `types/spec_test.go`.
    #[test]
    fn ports_and_ranges_of_ports() {
        let of = |host: &str, container: &str, protocol: &str| {
            mappings(&[PortMapping {
                host_port: host.to_owned(),
                container_port: container.to_owned(),
                protocol: protocol.to_owned(),
            }])
        };
        for (host, container, protocol, expected) in [
            ("80", "80", "", &[("80/tcp", "80")][..]),
            ("8080", "80", "TCP", &[("80/tcp", "8080")]),
            ("53", "5353", "udp", &[("5353/udp", "53")]),
            ("3000-3001", "1300-1301", "tcp", &[("1300/tcp", "3000"), ("1301/tcp", "3001")]),
            ("7-7", "9", "tcp", &[("9/tcp", "7")]),
        ] {
            let (exposed, bindings) = of(host, container, protocol).unwrap();
            assert_eq!(exposed.len(), expected.len(), "{host}:{container}");
            for (inside, outside) in expected {
                assert_eq!(bindings[*inside][0]["HostPort"], *outside, "{host}:{container}");
            }
        }
        for (host, container, protocol, field) in [
            ("80-81", "80", "tcp", "hostPort"),
            ("80", "80-82", "tcp", "hostPort"),
            ("81-80", "80-81", "tcp", "hostPort"),
            ("0", "80", "tcp", "hostPort"),
            ("80", "65536", "tcp", "containerPort"),
            ("80", "", "tcp", "containerPort"),
            ("80", "a", "tcp", "containerPort"),
            ("80", "80", "sctp", "protocol"),
        ] {
            let (at, why) = of(host, container, protocol).unwrap_err();
            assert_eq!(at, field, "{host}:{container}/{protocol}: {why}");
        }
    }
}
