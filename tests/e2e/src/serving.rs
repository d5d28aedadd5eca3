//! Containers that serve their name on port 80, and others that ask for it.

use crate::engine::Engine;

/// Starts one.
pub fn serve(engine: &Engine, name: &str, flags: &[&str]) {
    let script = format!("mkdir /w; echo I am {name} > /w/index.html; exec httpd -f -p 80 -h /w");
    let run = [&["run", "-d", "--name", name], flags, &["busybox", "sh", "-c", &script]].concat();
    engine.docker(&run).succeeded();
}

/// Whether `container` reaches the server `name` at `host`. Not by wget: a static one looks for
/// libraries.
pub fn reaches(engine: &Engine, container: &str, host: &str, name: &str) -> bool {
    let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {host} 80");
    let said = engine.docker(&["exec", container, "sh", "-c", &script]).text();
    said.contains(&format!("I am {name}"))
}
