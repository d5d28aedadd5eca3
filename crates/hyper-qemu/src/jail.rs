//! QEMU's jail: what is in its root, what it may call.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use hyper_hypervisor::VmConfig;
use hyper_jail::{Bind, JailSpec, Limits, Program};

use crate::calls;
use crate::machine;

/// QEMU's firmware and data, inside the jail.
pub const DATA: &str = "/usr/share/qemu";
/// The guest's kernel and initramfs, inside the jail.
pub const KERNEL: &str = "/kernel";
pub const INITRAMFS: &str = "/initramfs";

/// What QEMU itself needs beside guest memory and translated code: heap, thread stacks, and room
/// for page cache of the disks, without which every block read would go to the host's disk.
const OVERHEAD: u64 = 192 << 20;
/// QEMU's threads: vCPUs, main, RCU, and up to 64 block workers.
const THREADS: u64 = 96;

/// Builds the jail for `program`, which must be executable.
pub fn spec(program: &Path, config: &VmConfig, kvm: bool, args: Vec<String>) -> JailSpec {
    let translations = if kvm { 0 } else { machine::TRANSLATIONS_MIB << 20 };
    let limits = Limits {
        memory_bytes: Some(config.memory_bytes + translations + OVERHEAD),
        pids: Some(THREADS + u64::from(config.vcpus)),
        ..Limits::default()
    };
    let mut spec = JailSpec::new(config.id.clone(), Program::Path(program.to_owned()))
        .arg("qemu")
        .args(args)
        // QEMU's modules (TCG is one of them) are looked for below the program's directory.
        .bind(Bind::same(program).executable())
        .bind(Bind::new(&config.kernel.kernel, KERNEL))
        .bind(Bind::new(&config.kernel.initramfs, INITRAMFS))
        // QEMU opens it to see which kind of file locks there is.
        .device("/dev/null")
        .limits(limits)
        .seccomp(calls::list(kvm, config.share.is_some()));
    spec = spec.system_libraries();
    for (source, target) in data(program) {
        spec = spec.bind(Bind::new(source, target).optional());
    }
    if kvm {
        spec = spec.device(hyper_kvm_probe::DEVICE);
    }
    if let Some(parent) = &config.cgroup {
        spec = spec.cgroup(parent.clone());
    }
    spec
}

/// QEMU's data: beside the program (`../share/qemu`), and the firmware that Debian's links name.
fn data(program: &Path) -> Vec<(PathBuf, PathBuf)> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let usr = Path::new("/usr");
    let own = if prefix.file_name() == Some(OsStr::new("")) { usr } else { prefix };
    vec![
        (own.join("share/qemu"), DATA.into()),
        (own.join("share/seabios"), "/usr/share/seabios".into()),
    ]
}
