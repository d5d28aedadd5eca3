//! What tests of networks share: what a container has and sees of them, and that nothing is left.

use std::time::Duration;

use crate::engine::Engine;
use crate::{eventually, runtimes};

const SOON: Duration = Duration::from_secs(60);

/// Every guest, and a process that has the interface itself.
pub fn runtimes_and_runc() -> Vec<&'static str> {
    [runtimes(), vec!["runc"]].concat()
}

/// What a script in a container prints.
#[track_caller]
pub fn shell(engine: &Engine, container: &str, script: &str) -> String {
    engine.docker(&["exec", container, "sh", "-c", script]).succeeded().text()
}

/// One field of a container's endpoint (`IPAddress`); empty where it is not in the network.
pub fn field(engine: &Engine, container: &str, network: &str, field: &str) -> String {
    let path = format!("{{{{with index .NetworkSettings.Networks \"{network}\"}}}}");
    engine.inspect(container, &format!("{path}{{{{.{field}}}}}{{{{end}}}}"))
}

/// All containers go, and nothing of them and of networks on `parent` is on the host.
pub fn nothing_left(engine: &Engine, parent: &str) {
    let names = engine.docker(&["ps", "-aq"]).succeeded().text();
    for name in names.lines() {
        engine.docker(&["rm", "-f", name]).succeeded();
    }
    let directory = engine.dir().join("exec/netns");
    eventually("namespaces are gone", SOON, || {
        std::fs::read_dir(&directory).map_or(0, Iterator::count) == 0
    });
    let links = engine.beside(&["ip", "-d", "-o", "link"]).succeeded().text();
    let ours = ["macvlan", "ipvlan", "hv"];
    assert!(!ours.iter().any(|word| links.contains(word)), "{links}");
    // A parent that still hears for somebody would say so.
    let shown = engine.beside(&["ip", "-d", "link", "show", parent]).succeeded().text();
    assert!(shown.contains("promiscuity 0") && shown.contains("allmulti 0"), "{shown}");
}
