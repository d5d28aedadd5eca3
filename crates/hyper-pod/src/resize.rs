//! Resizing a pod while it runs, through the limits of its sandbox.
//!
//! A guest keeps the memory and the virtual CPUs that it booted with. Within them its containers
//! together can be given less, and again more: the agent holds the memory by the cgroup that they
//! are in, and what they do not use goes back to the host by free page reporting; the host holds
//! the CPU time of the whole guest, see [`crate::cpu`].

use hyper_link::message::Request;
use serde_json::Value;

use crate::guest::Guest;
use crate::{PodError, Settings};

/// What the agent is asked for `resources`, the OCI `linux.resources` of the sandbox. Its memory
/// limit is that of the guest with its kernel, as in the annotation `io.hyper.memory`.
pub(crate) fn request(
    guest: &Guest,
    settings: &Settings,
    resources: &Value,
) -> Result<Option<Request>, PodError> {
    let vcpus = vcpus(resources);
    if vcpus > u64::from(guest.vcpus) {
        return Err(refuse(&settings.id, &format!("{} virtual CPUs", guest.vcpus), vcpus));
    }
    let Some(wanted) = resources["memory"]["limit"].as_u64().filter(|limit| *limit > 0) else {
        return Ok(None);
    };
    let (booted, overhead) = (guest.memory_bytes, settings.memory_overhead_bytes);
    let memory_bytes = for_containers(&settings.id, wanted, booted, overhead)?;
    Ok(Some(Request::LimitContainers { memory_bytes }))
}

/// Whole CPUs that the quota stands for; 0: all.
fn vcpus(resources: &Value) -> u64 {
    let cpu = &resources["cpu"];
    let period = cpu["period"].as_u64().filter(|period| *period > 0).unwrap_or(100_000);
    cpu["quota"].as_u64().map_or(0, |quota| quota.div_ceil(period))
}

/// What of `wanted` bytes of a guest is left to its containers; 0: all there is.
fn for_containers(pod: &str, wanted: u64, booted: u64, overhead: u64) -> Result<u64, PodError> {
    match wanted.cmp(&booted) {
        std::cmp::Ordering::Greater => {
            Err(refuse(pod, &format!("{booted} bytes of memory"), wanted))
        }
        std::cmp::Ordering::Equal => Ok(0),
        std::cmp::Ordering::Less if wanted <= overhead => Err(PodError::Invalid(format!(
            "pod {pod}: its guest needs {overhead} of {wanted} bytes of memory for itself: give it \
             more"
        ))),
        std::cmp::Ordering::Less => Ok(wanted - overhead),
    }
}

fn refuse(pod: &str, has: &str, wanted: u64) -> PodError {
    PodError::Unsupported(format!(
        "pod {pod}: its guest booted with {has} and cannot grow to {wanted}: stop it, update it, \
         and start it"
    ))
}

#[cfg(test)]
mod test {
    use super::*;
    use serde_json::json;

    #[test]
    fn within_what_it_booted_with() {
        let of = |wanted| for_containers("p", wanted, 100 << 20, 16 << 20);
        assert_eq!(of(100 << 20).unwrap(), 0);
        assert_eq!(of(64 << 20).unwrap(), 48 << 20);
        assert!(of(101 << 20).unwrap_err().to_string().contains("stop it"));
        assert!(of(16 << 20).unwrap_err().to_string().contains("for itself"));
        assert_eq!(vcpus(&json!({ "cpu": { "quota": 150_000, "period": 100_000 } })), 2);
        assert_eq!(vcpus(&json!({ "cpu": { "quota": -1 } })), 0);
    }
}
