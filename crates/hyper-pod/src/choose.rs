//! Which hypervisor a pod gets.

use std::sync::Arc;

use hyper_hypervisor::{Capabilities, Hypervisor, Wall};

use crate::create::blocking;
use crate::wishes::Wishes;
use crate::{PodError, Settings};

/// The named hypervisor, or the first that is usable and strong enough.
///
/// A name is taken at its word: whether it works shows at launch. `auto` probes.
pub(crate) async fn choose(
    settings: &Settings,
    wishes: &Wishes,
) -> Result<Arc<dyn Hypervisor>, PodError> {
    let name = wishes.hypervisor.as_deref().unwrap_or(&settings.default_hypervisor);
    let least = wishes.min_isolation.unwrap_or(settings.min_isolation).max(settings.min_isolation);
    if name != "auto" {
        let found = settings.hypervisors.iter().find(|hypervisor| hypervisor.name() == name);
        let Some(found) = found else {
            let known: Vec<_> = settings.hypervisors.iter().map(|known| known.name()).collect();
            return Err(PodError::Invalid(format!(
                "hypervisor `{name}` is not known: auto, {}",
                known.join(", ")
            )));
        };
        let wall = capabilities(found).await?.wall;
        if wall < least {
            return Err(PodError::Invalid(format!(
                "hypervisor `{name}` is a wall of kind {}, min-isolation is {}",
                wall_name(wall),
                wall_name(least)
            )));
        }
        return Ok(Arc::clone(found));
    }
    let mut why = Vec::new();
    for hypervisor in &settings.hypervisors {
        let name = hypervisor.name();
        let wall = capabilities(hypervisor).await?.wall;
        if wall < least {
            why.push(format!("{name} is only {}", wall_name(wall)));
            continue;
        }
        let probe = hypervisor.probe().await;
        if probe.usable {
            return Ok(Arc::clone(hypervisor));
        }
        let bad = probe.findings.iter().filter(|finding| !finding.ok);
        let bad: Vec<_> = bad.map(|bad| format!("{}: {}", bad.what, bad.detail)).collect();
        why.push(format!("{name} is not usable ({})", bad.join("; ")));
    }
    Err(PodError::Unsupported(format!(
        "no hypervisor of at least {} works on this host: {}",
        wall_name(least),
        why.join(", ")
    )))
}

/// Some hypervisors look at the host to know, for up to a second.
async fn capabilities(hypervisor: &Arc<dyn Hypervisor>) -> Result<Capabilities, PodError> {
    let hypervisor = Arc::clone(hypervisor);
    blocking(move || Ok(hypervisor.capabilities())).await
}

/// Kebab-case name, as in annotations.
pub(crate) fn wall_name(wall: Wall) -> String {
    // A unit variant is always a JSON string.
    serde_json::to_value(wall)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
