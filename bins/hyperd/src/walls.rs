//! How strong the walls of this host's hypervisors are: asked of the supervisor program once, beside
//! all else, because a look at KVM takes up to a second.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use hyper_engine::Engine;
use serde_json::Value;

const WITHIN: Duration = Duration::from_secs(60);

/// Until it is known, or cannot be: then `info` shows none.
pub async fn look(engine: Engine, supervisor: PathBuf) {
    let asked = tokio::process::Command::new(&supervisor)
        .arg("walls")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(WITHIN, asked).await {
        Ok(Ok(output)) => output.stdout,
        Ok(Err(error)) => return tracing::warn!(%error, "look at the hypervisors' walls"),
        Err(_) => return tracing::warn!("no answer about the hypervisors' walls"),
    };
    engine.config().runtimes.set_walls(walls(&serde_json::from_slice(&output).unwrap_or_default()));
}

/// From the supervisor's report.
fn walls(report: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut walls: BTreeMap<String, String> = report["hypervisors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|hypervisor| (text(&hypervisor["name"]), text(&hypervisor["wall"])))
        .collect();
    if let Some(wall) = walls.get(&text(&report["auto"])).cloned() {
        walls.insert("auto".to_owned(), wall);
    }
    walls
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn auto_has_the_wall_of_what_it_takes() {
        let report = serde_json::json!({"auto": "uml", "hypervisors": [
            {"name": "uml", "wall": "user-mode-kernel"}, {"name": "qemu", "wall": "emulated"}]});
        let walls = walls(&report);
        assert_eq!((walls["auto"].as_str(), walls.len()), ("user-mode-kernel", 3));
    }
}
