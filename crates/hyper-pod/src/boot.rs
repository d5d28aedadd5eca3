//! A guest comes up: booted, or cloned from a template of its shape.
//!
//! ```text
//! template? ─yes─► restore ─► answered? ─► disks added ─┐
//!     │ no, or it failed                                ├─► ConfigurePod ─► up
//!     └──────────► launch ─► agent's hello ─────────────┘
//! ```
//! Invariant: an error leaves nothing; a template that does not work costs time and nothing else.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper_hypervisor::{Disk, GuestKernel, Hypervisor, Vm, VmConfig};
use hyper_link::message::{PodConfig, Request};
use hyper_link::{EventReceiver, Link};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::create::blocking;
use crate::disks::Given;
use crate::guest::{Guest, end_of, tail};
use crate::network::Network;
use crate::resize::GuestMemory;
use crate::settings::Flavour;
use crate::share::Sharer;
use crate::spec::Spec;
use crate::template::{self, Met, NoClone, Shape, Template};
use crate::{PodError, Settings, chain};

/// Longest image that is mapped, in lengths of the guest's memory: it costs a 64th of that.
const MAPPED: u64 = 2;
const CONFIGURE: Duration = Duration::from_secs(30);

/// Starts a guest with the disks of `container`, its first one.
pub(crate) async fn boot(
    settings: &Settings,
    container: &str,
    hypervisor: Arc<dyn Hypervisor>,
    spec: &Spec,
    disks: Vec<Disk>,
    mut network: Network,
) -> Result<(Guest, EventReceiver), PodError> {
    let name = hypervisor.name();
    let can = hypervisor.capabilities();
    let flavour = flavour(settings, name, spec)?;
    if network.nics.len() > can.max_nics {
        return Err(PodError::Unsupported(format!(
            "{} network interfaces: a guest of hypervisor `{name}` has at most {}",
            network.nics.len(),
            can.max_nics
        )));
    }
    let memory_bytes = spec.wishes.memory(settings, can.min_memory_bytes);
    // First of all: what another guest writes to must not be given to this one.
    let mut given = Given::default();
    for (_, disk) in &spec.disks {
        let locks = crate::volume::hold(disk).await?;
        given.hold(disk, locks);
    }
    let shares = !spec.shared.is_empty() || (spec.sandbox && can.share);
    let mut sharer = if shares {
        let cgroup = spec.cgroup_parent.as_deref();
        Some(Sharer::start(settings, cgroup, memory_bytes, &spec.shared).await?)
    } else {
        None
    };
    let mut config = VmConfig {
        id: settings.vm_id.clone(),
        kernel: GuestKernel {
            kernel: flavour.kernel.clone(),
            initramfs: flavour.initramfs.clone(),
            extra_cmdline: flavour.extra_cmdline.clone(),
        },
        vcpus: spec.wishes.cpus(settings, can.max_vcpus),
        memory_bytes,
        disks: disks.clone(),
        nics: std::mem::take(&mut network.nics),
        late_disks: true,
        share: sharer.as_ref().map(Sharer::share),
        run_dir: settings.run_dir.clone(),
        cgroup: spec.cgroup_parent.clone(),
    };
    let vcpus = config.vcpus;
    let started_ns = hyper_stdio::now_ns();
    let (mut origin, clone) = cloned(settings, &*hypervisor, spec, &flavour, &config).await;
    // A clone gets its disks while it runs.
    let late = clone.is_some();
    if late {
        for (at, interface) in network.interfaces.iter_mut().enumerate() {
            interface.found_by = Some(template::card(at));
        }
    }
    let mut image = if config.disks.is_empty() { "" } else { "disk" };
    let Met { vm, link, events, devices } = match clone {
        Some(clone) => clone,
        None => {
            if origin.is_empty() {
                "booted".clone_into(&mut origin);
            }
            if can.disk_map {
                image = map_image(&mut config, spec.wishes.kernel.is_none());
            }
            launched(settings, &*hypervisor, &flavour, config).await?
        }
    };
    let ready_ns = hyper_stdio::now_ns();
    if let Some(sharer) = &mut sharer {
        sharer.stay_with(vm.pid());
    }
    let mut identity = pod_config(settings, spec)?;
    identity.share = sharer.as_ref().map(|sharer| sharer.share().tag).unwrap_or_default();
    identity.interfaces = network.interfaces;
    identity.routes = network.routes;
    identity.names = spec.network.names.clone().map(|file| crate::names::serve(&link, file));
    let configure = Request::ConfigurePod(identity);
    link.call(configure, CONFIGURE).await.map_err(|error| failed(name, &*vm, chain(&error)))?;
    for (disk, devices) in disks.into_iter().zip(devices) {
        given.push(disk, devices, late, container);
    }
    // hyperd's pods have no namespace that others enter.
    let theirs = spec.network.namespace.clone().filter(|_| !spec.network.manner.removed);
    let mut localhost = JoinSet::new();
    if let Some(path) = theirs {
        localhost.spawn(crate::localhost::serve(link.clone(), path));
    }
    let guest = Guest {
        hypervisor,
        vm,
        link,
        vcpus,
        memory: GuestMemory::new(memory_bytes),
        started_ns,
        ready_ns,
        origin,
        image: image.to_owned(),
        disks: Mutex::new(given),
        paused: AtomicBool::new(false),
        sharer,
        shared: Mutex::new(spec.shared.clone()),
        wiring: Mutex::new(network.wiring),
        _localhost: localhost,
    };
    Ok((guest, events))
}

/// A clone, where templates are wanted and there is one; and how the guest comes to be, in words.
async fn cloned(
    settings: &Settings,
    hypervisor: &dyn Hypervisor,
    spec: &Spec,
    flavour: &Flavour,
    config: &VmConfig,
) -> (String, Option<Met>) {
    if !spec.wishes.template.unwrap_or(settings.templates.on) {
        return (String::new(), None);
    }
    let booted = |why: &str| (format!("booted: {why}"), None);
    if !hypervisor.capabilities().save {
        return booted(&format!("hypervisor `{}` cannot save guests", hypervisor.name()));
    }
    if config.share.is_some() {
        return booted("a guest with shared directories has no template");
    }
    let (templates, name) = (settings.templates.clone(), hypervisor.name());
    let (flavour, wanted) = (flavour.clone(), config.clone());
    let found = blocking(move || {
        let Some(shape) = Shape::of(name, &flavour, &wanted) else { return Ok(None) };
        match Template::find(&templates, &shape) {
            Some(template) => Ok(Some(template)),
            None => template::order(&templates, &shape).map(|()| None),
        }
    });
    let template = match found.await {
        Ok(Some(template)) => Arc::new(template),
        Ok(None) => return booted("its template is being made"),
        Err(error) => {
            tracing::warn!(error = chain(&error), "no template is made");
            return booted(&format!("no template can be made: {}", chain(&error)));
        }
    };
    match template.go_on(hypervisor, config, &config.disks).await {
        Ok(clone) => (format!("cloned from template {}", template.name()), Some(clone)),
        Err(NoClone::Unsuited(why)) => booted(&why),
        Err(NoClone::Broken(why)) => {
            let name = template.name().to_owned();
            tracing::warn!(template = name, why, "template removed");
            // What it says it has logged.
            let _ = blocking(move || {
                template.remove();
                Ok(())
            })
            .await;
            booted(&format!("template {name}: {why}"))
        }
    }
}

async fn launched(
    settings: &Settings,
    hypervisor: &dyn Hypervisor,
    flavour: &Flavour,
    config: VmConfig,
) -> Result<Met, PodError> {
    let name = hypervisor.name();
    let disks = config.disks.clone();
    let mut vm = hypervisor.launch(config).await.map_err(|source| PodError::Vm {
        action: format!("launch guest `{}`", settings.id),
        source,
    })?;
    let carrier = vm.take_link();
    let vm: Arc<dyn Vm> = vm.into();
    let failed = |detail: String| failed(name, &*vm, detail);
    let carrier = carrier.ok_or_else(|| failed("it has no link".to_owned()))?;
    let greeted = tokio::select! {
        greeted = hyper_link::connect(carrier, flavour.boot_timeout) => greeted,
        exit = vm.wait() => return Err(failed(end_of(&exit).reason)),
    };
    let (link, events): (Link, EventReceiver) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            // Its exit, if there is one, says more than the link's end.
            let exit = tokio::time::timeout(Duration::from_millis(300), vm.wait()).await;
            return Err(failed(exit.map_or_else(|_| chain(&error), |exit| end_of(&exit).reason)));
        }
    };
    let devices = (0..disks.len()).map(|at| hypervisor.guest_devices(&disks, at)).collect();
    Ok(Met { vm, link, events, devices })
}

/// Has the image mapped, where that costs the guest little: 64 bytes for each page. A kernel of the user's
/// need not have what that takes. Says what was done.
fn map_image(config: &mut VmConfig, own_kernel: bool) -> &'static str {
    let most = config.memory_bytes.saturating_mul(MAPPED);
    let Some(image) = config.disks.first_mut().filter(|disk| disk.read_only) else { return "" };
    let bytes = image.extents.iter().map(|extent| extent.bytes).sum::<u64>();
    image.mapped = own_kernel && bytes <= most;
    match own_kernel {
        _ if image.mapped => "mapped",
        true => "disk: the image is longer than twice the guest's memory",
        false => "disk: the kernel is one of the user's",
    }
}

fn failed(hypervisor: &'static str, vm: &dyn Vm, detail: String) -> PodError {
    PodError::Boot { hypervisor, detail, console: tail(vm) }
}

fn flavour(settings: &Settings, name: &str, spec: &Spec) -> Result<Flavour, PodError> {
    let mut flavour = settings.flavours.get(name).cloned().ok_or_else(|| {
        PodError::Invalid(format!("no guest kernel is configured for hypervisor `{name}`"))
    })?;
    if let Some(kernel) = &spec.wishes.kernel {
        flavour.kernel.clone_from(kernel);
    }
    if let Some(initramfs) = &spec.wishes.initramfs {
        flavour.initramfs.clone_from(initramfs);
    }
    flavour.extra_cmdline.extend(spec.wishes.kernel_args.iter().cloned());
    Ok(flavour)
}

fn pod_config(settings: &Settings, spec: &Spec) -> Result<PodConfig, PodError> {
    let mut entropy = [0; 64];
    rustix::rand::getrandom(&mut entropy[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|error| PodError::Internal(format!("no random bytes for the guest: {error}")))?;
    Ok(PodConfig {
        hostname: spec.hostname.clone().unwrap_or_else(|| settings.id.chars().take(12).collect()),
        unix_ns: hyper_stdio::now_ns(),
        entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
        sysctls: spec.sysctls.iter().cloned().collect(),
        ..PodConfig::default()
    })
}
