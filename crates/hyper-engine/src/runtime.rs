//! The runtimes of an engine: hypervisors by name, and those of others, which a supervisor drives
//! by their shims. Words only: what is behind a name is the supervisor's to know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use hyper_task::annotation;
use hyper_task::foreign::{Runtime, strength};

use crate::container::spec::{HostSpec, Spec};
use crate::core::Core;
use crate::network::spec::{DEFAULT, NONE};
use crate::{Error, Result};

/// Names of shims' types, as containerd has them.
const TYPE: &str = "io.containerd.";
/// The shim of hypervisors, ours.
const OWN_TYPE: &str = "io.containerd.hyper.v2";

/// What containers may be created with.
#[derive(Debug, Default)]
pub struct Runtimes {
    /// Used when a container names none.
    pub default: String,
    /// `auto` and the hypervisors.
    pub hypervisors: Vec<String>,
    /// Of others, by name.
    pub foreign: BTreeMap<String, Runtime>,
    /// Known ones that this host does not have: why, and how to get them.
    pub missing: BTreeMap<String, String>,
    /// The weakest wall that is allowed, a word of `hyper_task::foreign::WALLS`; empty: any.
    pub min_isolation: String,
    /// Walls of hypervisors, once the host has been looked at.
    pub walls: RwLock<BTreeMap<String, String>>,
}

impl Runtimes {
    /// All names, hypervisors first.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.hypervisors.iter().chain(self.foreign.keys()).map(String::as_str).collect()
    }

    /// The runtime of somebody else that a name means: configured, found, or a shim's type.
    #[must_use]
    pub fn foreign(&self, name: &str) -> Option<Runtime> {
        let name = if name.is_empty() { &self.default } else { name };
        self.foreign.get(name).cloned().or_else(|| by_type(name))
    }

    /// How strong a runtime's wall is; `None` while nobody has looked.
    #[must_use]
    pub fn wall(&self, name: &str) -> Option<String> {
        let name = if name.is_empty() { &self.default } else { name };
        self.foreign(name).map(|runtime| runtime.wall).or_else(|| {
            self.walls.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
        })
    }

    /// Notes what a look at the host has shown.
    pub fn set_walls(&self, walls: BTreeMap<String, String>) {
        *self.walls.write().unwrap_or_else(PoisonError::into_inner) = walls;
    }

    pub(crate) fn check(&self, name: &str) -> Result<()> {
        if name.is_empty()
            || self.hypervisors.iter().any(|known| known == name)
            || self.foreign(name).is_some()
        {
            return Ok(());
        }
        let why = match self.missing.get(name) {
            Some(why) => why.clone(),
            None if name.starts_with(TYPE) => match shim_name(name) {
                Some(shim) => format!("its shim, {shim}, is not on hyperd's PATH"),
                None => "a shim's type is io.containerd.NAME.vN".to_owned(),
            },
            None => format!("this engine has {}", self.names().join(", ")),
        };
        Err(Error::Invalid(format!("unknown or invalid runtime name: {name}: {why}")))
    }
}

/// `io.containerd.NAME.vN`, whose shim is on the PATH.
fn by_type(name: &str) -> Option<Runtime> {
    let shim = shim_name(name).filter(|_| name != OWN_TYPE)?;
    let shim = find_program(&shim)?;
    Some(Runtime {
        name: name.to_owned(),
        kind: name.to_owned(),
        shim,
        wall: wall_of(name).to_owned(),
        ..Runtime::default()
    })
}

/// The program of a shim's type: `io.containerd.runc.v2` → `containerd-shim-runc-v2`.
#[must_use]
pub fn shim_name(kind: &str) -> Option<String> {
    let (name, version) = kind.strip_prefix(TYPE)?.rsplit_once('.')?;
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (word(name) && word(version)).then(|| format!("containerd-shim-{name}-{version}"))
}

/// A program on the PATH, or where systems keep those of root.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|path| {
            path.metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
}

/// The wall of a runtime by the name of its program or type; the weakest where that says nothing.
#[must_use]
pub fn wall_of(name: &str) -> &'static str {
    let name = name.rsplit('/').next().unwrap_or(name);
    let has = |word: &str| name.split(['.', '-', '_']).any(|part| part == word);
    if has("runsc") {
        hyper_task::foreign::APPLICATION_KERNEL
    } else if has("kata") {
        "hardware"
    } else {
        hyper_task::foreign::SHARED_KERNEL
    }
}

/// The runtime of somebody else that a container is of.
pub(crate) fn of(core: &Core, spec: &Spec) -> Option<Runtime> {
    core.config.runtimes.foreign(&spec.host.runtime)
}

/// The same as this container needs it.
pub(crate) fn for_start(core: &Core, spec: &Spec) -> Option<Runtime> {
    let mut runtime = of(core, spec)?;
    if !runtime.offline.as_os_str().is_empty() && matches!(spec.host.network.as_str(), "" | NONE) {
        runtime.program.clone_from(&runtime.offline);
    }
    Some(runtime)
}

/// Refuses what a runtime is too weak for, and what those of others cannot do.
pub(crate) fn check(core: &Core, host: &HostSpec) -> Result<()> {
    let runtimes = &core.config.runtimes;
    runtimes.check(&host.runtime)?;
    check_policies(core, host)?;
    let Some(runtime) = runtimes.foreign(&host.runtime) else { return Ok(()) };
    let name = &runtime.name;
    let refuse = |what: String| {
        Err(Error::Invalid(format!(
            "runtime {name} cannot honour {what} (or take another --runtime)"
        )))
    };
    if !host.pod.is_empty() || host.network.starts_with("container:") {
        return refuse("a pod that containers share: only guests are shared".to_owned());
    }
    if host.security.privileged {
        return refuse(
            "--privileged: outside of a guest that is the host itself: add the capabilities that \
             are needed with --cap-add"
                .to_owned(),
        );
    }
    if host.init {
        return refuse(
            "--init: a guest's agent is that init: take an image with its own".to_owned(),
        );
    }
    if host.disk_bytes > 0 {
        return refuse(
            "--storage-opt size: its writes go to a directory of the host: use a tmpfs of a size"
                .to_owned(),
        );
    }
    let own = [
        annotation::KERNEL,
        annotation::INITRAMFS,
        annotation::KERNEL_ARGS,
        annotation::VCPUS,
        annotation::MEMORY,
    ];
    if let Some(key) = own.iter().find(|key| host.annotations.contains_key(**key)) {
        return refuse(format!("annotation {key}: there is no guest of ours: leave it out"));
    }
    if host.annotations.get(annotation::TEMPLATE).is_some_and(|wish| wish != "off") {
        let key = annotation::TEMPLATE;
        return refuse(format!("annotation {key}: there is no guest to clone: leave it out"));
    }
    let user_network = !matches!(host.network.as_str(), "" | NONE | DEFAULT | "default");
    if user_network && !runtime.shares_kernel() && host.dns.is_empty() {
        return refuse(format!(
            "the names of network {}: it has a network stack of its own, which does not reach the \
             resolver at 127.0.0.11: give servers with --dns",
            host.network
        ));
    }
    Ok(())
}

/// Whether the wall is strong enough for what is asked of it. Policies may be other ones when the
/// container starts than when it was made.
pub(crate) fn check_policies(core: &Core, host: &HostSpec) -> Result<()> {
    check_wall(core, host)?;
    let Some(runtime) = core.config.runtimes.foreign(&host.runtime) else { return Ok(()) };
    let of_networks = crate::network::wanted(host).into_iter().find_map(|(name, _)| {
        // Networks that are not there are reported by who attaches to them.
        let policy = core.networks.find(&name).ok()?.egress()?;
        Some(format!("the egress policy `{policy}` of network {name}"))
    });
    let own = host.annotations.get(annotation::EGRESS).map(|own| format!("egress policy `{own}`"));
    let Some(policy) = own.or(of_networks) else { return Ok(()) };
    Err(Error::Invalid(format!(
        "runtime {} cannot honour {policy}: outside of a guest a process can send from any \
         address: take a hypervisor as --runtime, or a network without a policy",
        runtime.name
    )))
}

/// That of a hypervisor is its supervisor's to judge.
fn check_wall(core: &Core, host: &HostSpec) -> Result<()> {
    let least = least(core, host)?;
    let runtimes = &core.config.runtimes;
    let (Some(least), Some(wall)) = (least, runtimes.wall(&host.runtime)) else { return Ok(()) };
    if strength(&wall) < strength(&least) {
        return Err(Error::Forbidden(format!(
            "runtime {} is a wall of kind {wall}, min-isolation is {least}: take a runtime with a \
             stronger wall",
            core.runtime(&host.runtime)
        )));
    }
    Ok(())
}

/// The stronger of what hyperd and the container want at least.
pub(crate) fn least(core: &Core, host: &HostSpec) -> Result<Option<String>> {
    let own = host.annotations.get(annotation::MIN_ISOLATION).cloned().unwrap_or_default();
    if !own.is_empty() && strength(&own).is_none() {
        return Err(Error::Invalid(format!(
            "annotation {}: `{own}` is no wall: {}",
            annotation::MIN_ISOLATION,
            hyper_task::foreign::WALLS.join(", ")
        )));
    }
    let general = core.config.runtimes.min_isolation.clone();
    let most = if strength(&own) > strength(&general) { own } else { general };
    Ok(Some(most).filter(|wall| !wall.is_empty()))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn types_name_programs() {
        assert_eq!(shim_name("io.containerd.runc.v2").as_deref(), Some("containerd-shim-runc-v2"));
        for bad in ["runc", "io.containerd.runc", "io.containerd.../x.v1", "io.containerd..v1"] {
            assert_eq!(shim_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn walls_by_name() {
        assert_eq!(wall_of("/usr/bin/runsc"), "application-kernel");
        assert_eq!(wall_of("io.containerd.kata.v2"), "hardware");
        assert_eq!(wall_of("/opt/my-runc"), "shared-kernel");
    }

    #[test]
    fn unknown_ones_are_named_with_a_hint() {
        let runtimes = Runtimes {
            hypervisors: vec!["auto".into()],
            missing: BTreeMap::from([("crun".into(), "apt-get install crun".into())]),
            ..Runtimes::default()
        };
        runtimes.check("auto").unwrap();
        for (name, hint) in [
            ("crun", "apt-get"),
            ("nope", "auto"),
            ("io.containerd.nope.v1", "containerd-shim-nope-v1"),
        ] {
            let error = runtimes.check(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(hint), "{error}");
        }
    }
}
