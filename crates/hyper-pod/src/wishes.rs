//! What a container's annotations and limits ask of its pod.

use std::path::PathBuf;

use hyper_hypervisor::Wall;
use hyper_task::annotation;
use serde_json::Value;

use crate::{PodError, Settings};

const MIB: u64 = 1 << 20;

/// Parsed annotations and limits of a pod's first container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub hypervisor: Option<String>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub kernel_args: Vec<String>,
    pub vcpus: Option<u32>,
    pub memory_bytes: Option<u64>,
    pub min_isolation: Option<Wall>,
    /// To be cloned from a template, or not.
    pub template: Option<bool>,
    /// The container's own memory limit.
    pub memory_limit: Option<u64>,
    /// What the containers that are to come are limited to together.
    pub pod_limit: Option<u64>,
    /// CPUs that the quota of the container, or of its pod, amounts to, rounded up.
    pub quota_cpus: Option<u32>,
}

impl Wishes {
    /// From a `config.json`.
    pub fn from_spec(spec: &Value) -> Result<Self, PodError> {
        let text = |key: &str| spec["annotations"].get(key).and_then(Value::as_str);
        let number = |key: &str| match text(key) {
            None => Ok(None),
            Some(value) => value.parse::<u64>().map(Some).map_err(|_| {
                PodError::Invalid(format!("annotation `{key}` is `{value}`, which is not a number"))
            }),
        };
        let wall = |value: &str| {
            serde_json::from_value(Value::from(value)).map_err(|_| {
                PodError::Invalid(format!(
                    "annotation `{}` is `{value}`, which is no wall: shared-kernel, \
                     application-kernel, user-mode-kernel, emulated, hardware",
                    annotation::MIN_ISOLATION
                ))
            })
        };
        let template = match text(annotation::TEMPLATE) {
            None => None,
            Some("on") => Some(true),
            Some("off") => Some(false),
            Some(other) => {
                return Err(PodError::Invalid(format!(
                    "annotation `{}` is `{other}`: on or off",
                    annotation::TEMPLATE
                )));
            }
        };
        let cpu = &spec["linux"]["resources"]["cpu"];
        let positive = |key: &str| text(key)?.parse().ok().filter(|value: &u64| *value > 0);
        // A sandbox has no quota of its own that bounds its containers.
        let (quota, period) = match positive(annotation::CRI_SANDBOX_CPU_QUOTA) {
            Some(quota) => (Some(quota), positive(annotation::CRI_SANDBOX_CPU_PERIOD)),
            None => (cpu["quota"].as_u64(), cpu["period"].as_u64()),
        };
        let quota = quota.filter(|quota| *quota > 0);
        let period = period.filter(|period| *period > 0).unwrap_or(100_000);
        Ok(Self {
            hypervisor: text(annotation::HYPERVISOR).map(str::to_owned),
            kernel: text(annotation::KERNEL).map(PathBuf::from),
            initramfs: text(annotation::INITRAMFS).map(PathBuf::from),
            kernel_args: text(annotation::KERNEL_ARGS)
                .map(|words| words.split_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
            vcpus: number(annotation::VCPUS)?.map(|vcpus| u32::try_from(vcpus).unwrap_or(u32::MAX)),
            memory_bytes: number(annotation::MEMORY)?,
            min_isolation: text(annotation::MIN_ISOLATION).map(wall).transpose()?,
            template,
            memory_limit: spec["linux"]["resources"]["memory"]["limit"]
                .as_u64()
                .filter(|limit| *limit > 0),
            pod_limit: positive(annotation::CRI_SANDBOX_MEMORY),
            quota_cpus: quota
                .map(|quota| u32::try_from(quota.div_ceil(period)).unwrap_or(u32::MAX)),
        })
    }

    /// Guest memory in bytes, a multiple of 1 MiB.
    pub fn memory(&self, settings: &Settings, least: u64) -> u64 {
        let default = settings.default_memory_bytes;
        let with_overhead = |limit: u64| limit.saturating_add(settings.memory_overhead_bytes);
        // Some of a pod's containers may have no limit, and count as nothing.
        let pod = self.pod_limit.map(|limit| with_overhead(limit).max(default));
        let own = self.memory_limit.map(with_overhead);
        let wanted = self.memory_bytes.or(pod).or(own).unwrap_or(default);
        wanted.max(least).min(u64::MAX - MIB).next_multiple_of(MIB)
    }

    /// Virtual CPUs. A wish by name is taken as it is, so that the hypervisor can refuse it.
    pub fn cpus(&self, settings: &Settings, most: u32) -> u32 {
        let implied = self.quota_cpus.unwrap_or(settings.default_vcpus).min(most).max(1);
        self.vcpus.unwrap_or(implied)
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_are_read_and_bad_ones_named() {
        let wishes = Wishes::from_spec(&json!({
            "annotations": {
                "io.hyper.hypervisor": "uml", "io.hyper.vcpus": "2", "io.hyper.memory": "1000",
                "io.hyper.kernel-args": " a  b=c ", "io.hyper.min-isolation": "emulated",
            },
            "linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": 150_000}}}
        }))
        .unwrap();
        assert_eq!(wishes.kernel_args, ["a", "b=c"]);
        assert_eq!(
            (wishes.vcpus, wishes.memory_bytes, wishes.memory_limit),
            (Some(2), Some(1000), None)
        );
        assert_eq!(wishes.min_isolation, Some(Wall::Emulated));
        assert_eq!(wishes.quota_cpus, Some(2));
        let pod = |memory: &str, quota: &str| {
            Wishes::from_spec(&json!({
                "annotations": {
                    "io.kubernetes.cri.sandbox-memory": memory,
                    "io.kubernetes.cri.sandbox-cpu-quota": quota,
                    "io.kubernetes.cri.sandbox-cpu-period": "100000",
                },
                "linux": {"resources": {"cpu": {"shares": 2}}}
            }))
            .unwrap()
        };
        assert_eq!(
            (pod("268435456", "250000").pod_limit, pod("268435456", "250000").quota_cpus),
            (Some(256 << 20), Some(3))
        );
        assert_eq!((pod("0", "0").pod_limit, pod("0", "-1").quota_cpus), (None, None));
        for (key, value) in [("io.hyper.vcpus", "two"), ("io.hyper.min-isolation", "brick")] {
            let error = Wishes::from_spec(&json!({"annotations": {key: value}})).unwrap_err();
            assert!(error.to_string().contains(key) && error.to_string().contains(value));
        }
    }
}
