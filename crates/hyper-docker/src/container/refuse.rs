//! What a create request may ask for and this engine has no word for, by name.
//!
//! Docker's clients send every field; only a value that asks for something is refused.

use bollard_stubs::models::{HostConfig, HostConfigCgroupnsModeEnum};

use crate::error::{ApiError, ApiResult};

/// 501 with option, value and reason.
fn no(option: &str, value: impl std::fmt::Display, why: &str) -> ApiResult<()> {
    Err(ApiError::unsupported(format!("{option} \"{value}\" is not supported: {why}")))
}

fn some<T>(list: Option<&Vec<T>>) -> Option<&T> {
    list.and_then(|list| list.first())
}

fn set(text: Option<&String>) -> Option<&String> {
    text.filter(|text| !text.is_empty())
}

const NO_DEVICES: &str = "devices of the host are not given to guests";

/// Everything but networks, mounts and namespaces.
pub(crate) fn check(host: &HostConfig) -> ApiResult<()> {
    networks(host)?;
    namespaces(host)?;
    devices(host)?;
    if let Some(parent) = set(host.cgroup_parent.as_ref()) {
        no("HostConfig.CgroupParent", parent, "cgroups are the guest's own")?;
    }
    if let Some(value) = set(host.cpuset_mems.as_ref()) {
        no("HostConfig.CpusetMems", value, "where a guest's memory lies is the host's choice")?;
    }
    for (option, value) in [
        ("CpuRealtimePeriod", host.cpu_realtime_period),
        ("CpuRealtimeRuntime", host.cpu_realtime_runtime),
        ("CpuCount", host.cpu_count),
        ("CpuPercent", host.cpu_percent),
        ("IOMaximumIOps", host.io_maximum_iops),
        ("IOMaximumBandwidth", host.io_maximum_bandwidth),
    ] {
        if let Some(value) = value.filter(|value| *value != 0) {
            no(&format!("HostConfig.{option}"), value, "there is no such limit here")?;
        }
    }
    let storage = host.storage_opt.iter().flatten().find(|(key, _)| *key != "size");
    if let Some((key, value)) = storage {
        no("HostConfig.StorageOpt", format!("{key}={value}"), "only size=BYTES is")?;
    }
    Ok(())
}

fn networks(host: &HostConfig) -> ApiResult<()> {
    let mode = host.network_mode.as_deref().unwrap_or_default();
    if mode == "host" {
        no("HostConfig.NetworkMode", mode, "a guest has a network stack of its own: use -p")?;
    }
    Ok(())
}

fn namespaces(host: &HostConfig) -> ApiResult<()> {
    const OWN: &str = "every container has namespaces and a kernel of its own";
    for (option, value, harmless) in [
        ("IpcMode", &host.ipc_mode, &["", "private", "shareable", "none"][..]),
        ("PidMode", &host.pid_mode, &["", "private"][..]),
        ("UTSMode", &host.uts_mode, &["", "private"][..]),
        // Users of the guest are those of the image: there is nothing to map.
        ("UsernsMode", &host.userns_mode, &["", "private", "host"][..]),
        ("Cgroup", &host.cgroup, &[""][..]),
    ] {
        if let Some(value) = value
            && !harmless.contains(&value.as_str())
        {
            no(&format!("HostConfig.{option}"), value, OWN)?;
        }
    }
    if host.cgroupns_mode == Some(HostConfigCgroupnsModeEnum::HOST) {
        no("HostConfig.CgroupnsMode", "host", OWN)?;
    }
    Ok(())
}

fn devices(host: &HostConfig) -> ApiResult<()> {
    if let Some(device) = some(host.devices.as_ref()) {
        let path = device.path_on_host.as_deref().unwrap_or_default();
        no("HostConfig.Devices", path, NO_DEVICES)?;
    }
    if let Some(rule) = some(host.device_cgroup_rules.as_ref()) {
        no("HostConfig.DeviceCgroupRules", rule, NO_DEVICES)?;
    }
    if let Some(request) = some(host.device_requests.as_ref()) {
        let driver = request.driver.as_deref().unwrap_or_default();
        no("HostConfig.DeviceRequests", driver, NO_DEVICES)?;
    }
    let weights = [
        ("BlkioWeight", host.blkio_weight.unwrap_or_default() != 0),
        ("BlkioWeightDevice", some(host.blkio_weight_device.as_ref()).is_some()),
    ];
    match weights.into_iter().find(|(_, asked)| *asked) {
        Some((option, _)) => no(
            &format!("HostConfig.{option}"),
            "…",
            "a guest's disks have no scheduler that weighs: bound them with --device-read-bps, \
             --device-write-bps, --device-read-iops, --device-write-iops",
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn refused(host: &str) -> String {
        let host: HostConfig = serde_json::from_str(host).unwrap();
        check(&host).unwrap_err().message
    }

    #[test]
    fn each_is_named_with_its_value() {
        for (host, names) in [
            (r#"{"NetworkMode":"host"}"#, ["NetworkMode", "host"]),
            (r#"{"PidMode":"host"}"#, ["PidMode", "host"]),
            (r#"{"Devices":[{"PathOnHost":"/dev/kvm"}]}"#, ["Devices", "/dev/kvm"]),
            (r#"{"CpusetMems":"0"}"#, ["CpusetMems", "\"0\""]),
        ] {
            let message = refused(host);
            assert!(names.iter().all(|name| message.contains(name)), "{message}");
        }
    }

    #[test]
    fn what_the_cli_always_sends_is_fine() {
        let host = r#"{"Binds":null,"NetworkMode":"default","PortBindings":{},
            "RestartPolicy":{"Name":"no","MaximumRetryCount":0},"VolumesFrom":null,"CapAdd":null,
            "CgroupnsMode":"","IpcMode":"","Links":null,"PidMode":"","UTSMode":"","UsernsMode":"",
            "Isolation":"","BlkioWeight":0,"BlkioWeightDevice":[],"Devices":[],"CpusetCpus":"",
            "MemorySwappiness":-1,"ConsoleSize":[0,0],"MaskedPaths":null}"#;
        let host: HostConfig = serde_json::from_str(host).unwrap();
        check(&host).unwrap();
    }
}
