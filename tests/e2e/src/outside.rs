//! A machine outside of an engine's host: a network namespace behind a link, with a web server.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::command::{Outcome, run};
use crate::engine::Engine;

const DEADLINE: Duration = Duration::from_secs(30);

/// Serves a page on port 80 of all its addresses. Gone when dropped.
#[derive(Debug)]
pub struct Outside {
    name: String,
    server: Child,
}

impl Outside {
    /// Behind the link `link` of the engine's namespace, which is called so on both sides. `here` and
    /// `there`: addresses with their prefix lengths, of the host and of the machine.
    pub fn of(engine: &Engine, link: &str, here: &[&str], there: &[&str], page: &str) -> Self {
        let inside = engine.namespace().expect("a namespace of its own").to_owned();
        let name = format!("{inside}-{link}");
        // A leftover of a test that was killed.
        drop(run("ip", &["netns", "del", &name], DEADLINE));
        run("ip", &["netns", "add", &name], DEADLINE).succeeded();
        let directory = engine.dir().join("outside");
        std::fs::create_dir(&directory).expect("directory");
        std::fs::write(directory.join("index.html"), page).expect("page");
        let ip = |words: &str| {
            run("ip", &words.split(' ').collect::<Vec<_>>(), DEADLINE).succeeded();
        };
        ip(&format!("-n {inside} link add {link} type veth peer name {link} netns {name}"));
        for (namespace, addresses) in [(&inside, here), (&name, there)] {
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                ip(&format!("-n {namespace} addr add {address} dev {link}{nodad}"));
            }
            ip(&format!("-n {namespace} link set {link} up"));
        }
        ip(&format!("-n {name} link set lo up"));
        let server = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{name}"))
            .args(["busybox", "httpd", "-f", "-p", "80", "-h"])
            .arg(directory)
            .stdin(Stdio::null())
            .spawn()
            .expect("busybox httpd");
        Self { name, server }
    }

    /// Its network namespace, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program in it, with its arguments still to come.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// Runs a program in it.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Outcome {
        let namespace = format!("--net=/run/netns/{}", self.name);
        run("nsenter", &[&[namespace.as_str()], words].concat(), DEADLINE)
    }

    /// What it gets at a URL within so many seconds.
    pub fn fetched(&self, url: &str, seconds: u32) -> String {
        self.run(&["curl", "-s", "-m", &seconds.to_string(), url]).text()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        drop(run("ip", &["netns", "del", &self.name], DEADLINE));
    }
}
