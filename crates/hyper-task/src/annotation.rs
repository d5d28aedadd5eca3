//! Keys in `config.json`'s `annotations` that steer a pod. Values are strings.

/// Hypervisor of the pod: `auto`, `kvm`, `uml`, `qemu`.
pub const HYPERVISOR: &str = "io.hyper.hypervisor";
/// Path of another guest kernel.
pub const KERNEL: &str = "io.hyper.kernel";
/// Path of another initramfs.
pub const INITRAMFS: &str = "io.hyper.initramfs";
/// Words appended to the guest kernel's command line.
pub const KERNEL_ARGS: &str = "io.hyper.kernel-args";
/// Virtual CPUs of the pod, a number.
pub const VCPUS: &str = "io.hyper.vcpus";
/// Memory of the guest in bytes, a number; default: the container's limit plus the overhead.
pub const MEMORY: &str = "io.hyper.memory";
/// `on`: the pod is cloned from a template of its shape, which is made when there is none yet;
/// `off`: it boots. Default: as the supervisor is configured.
pub const TEMPLATE: &str = "io.hyper.template";
/// The weakest acceptable wall, as in `hyper_hypervisor::Wall` (kebab-case).
pub const MIN_ISOLATION: &str = "io.hyper.min-isolation";

/// What the pod may reach, see `hyper_network::egress`: `none`, `public` or `all`, and lists.
pub const EGRESS: &str = "io.hyper.egress";
/// What a container may receive and send per second, see `hyper_network::rate`: `in=10m,out=5m`.
pub const NETWORK_RATE: &str = "io.hyper.network-rate";
/// `true`: frames of the guest pass only from its own addresses; else from its own MAC.
pub const NETWORK_STRICT: &str = "io.hyper.network-strict";
/// `true`: the network namespace is removed with the pod, with all that is in it.
pub const NETWORK_REMOVED: &str = "io.hyper.network-removed";
/// File with the names that the pod's resolver knows, see `hyper_task::names`; absent: the guest
/// has no resolver of ours.
pub const NAMES: &str = "io.hyper.names";
/// `restart`: a container whose health check says unhealthy is ended as by `stop`, and its restart
/// policy decides what is next; `leave`, as in Docker: it runs on.
pub const UNHEALTHY: &str = "io.hyper.unhealthy";
/// Present: the container is made for its files, nothing is to run in it.
pub const FILES_ONLY: &str = "io.hyper.files-only";

/// `sandbox` or `container`: containerd's CRI plugin.
pub const CRI_CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// What the containers of a pod are limited to together, by numbers as in `linux.resources`: bytes, and
/// microseconds of CPU time in each period; 0: nothing is known. containerd's CRI plugin, of the sandbox.
pub const CRI_SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
pub const CRI_SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
pub const CRI_SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// Namespace of the cluster that the pod is in: containerd's CRI plugin alone says it.
pub const CRI_SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// Pod that a `container` belongs to: containerd's CRI plugin. hyperd uses the same keys.
pub const CRI_SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
