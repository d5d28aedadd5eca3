//! From a request to a stored container: checks first, then one insert.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hyper_task::cpus;
use tokio::sync::{mpsc, watch};

use super::actor::{Actor, Begin, QUEUE, attributes};
use super::spec::HealthCheck;
use super::spec::{CreateRequest, HostSpec, Limits, Log, Spec};
use super::state::State;
use super::{View, given, health, journal, mounts, restart, secrets, spec, throttle};
use crate::attach::Slot;
use crate::core::{Core, Handle, image_error};
use crate::engine::pods::KERNELS_NAME;
use crate::event::Kind;
use crate::network::spec::{Rates, Wish};
use crate::phases::{self, Record};
use crate::store;
use crate::supervisor::Pod;
use crate::{Error, Result, id, layout, oci, runtime, signal};

/// Docker's smallest limit.
const MIN_MEMORY: i64 = 6 << 20;
const MAX_HOSTNAME: usize = 63;

/// A container that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    pub id: String,
    /// What is done otherwise than one might think, a sentence each.
    pub warnings: Vec<String>,
}

pub(crate) async fn create(core: &Arc<Core>, mut request: CreateRequest) -> Result<Created> {
    let accepted = phases::now();
    if let Some(name) = &request.name
        && !id::is_name(name)
    {
        return Err(Error::Invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    let image = resolve_image(core, &request)?;
    join(core, &mut request.host)?;
    check_host(core, &request.host)?;
    resolve_links(core, request.host.endpoints.values_mut())?;
    bound_transfers(core, &mut request.host).await?;
    given::check(&mut request.host, &request.env)?;
    let name = request.name.clone();
    let (mut spec, warnings) = merge(request, &image)?;
    check_spec(&spec)?;
    restart::check(spec.host.restart, spec.host.auto_remove)?;
    let id = spec.id.clone();
    let name = reserve(core, name, &id)?;
    // Held until the container is known, so that nobody removes a volume of it before.
    let mut volumes = core.volumes.all.lock().await;
    let made = match mounts::resolve(core, &mut volumes, &mut spec).await {
        Ok(made) => made,
        Err(error) => {
            core.release(&name);
            return Err(error);
        }
    };
    let contents = given::take_secrets(&mut spec.host);
    let record = store::Record { name: name.clone(), spec, state: State::default() };
    let stored = async {
        given::check_places(&record.spec.host)?;
        secrets::keep(core, &id, contents).await?;
        insert(core, &record).await
    };
    if let Err(error) = stored.await {
        secrets::forget(core, &id).await;
        core.release(&name);
        mounts::discard(core, &mut volumes, &made).await;
        return Err(error);
    }
    let phases =
        Record { create_accepted: accepted, create_done: phases::now(), ..Record::default() };
    let spec = Arc::new(record.spec);
    let labels = attributes(&spec, &name);
    enlist(core, spec, name, record.state, None, phases);
    drop(volumes);
    core.events.publish(Kind::Container, "create", &id, labels);
    Ok(Created { id, warnings })
}

/// Fills in the ids of containers that are linked.
pub(crate) fn resolve_links<'w>(
    core: &Core,
    wishes: impl Iterator<Item = &'w mut Wish>,
) -> Result<()> {
    for link in wishes.flat_map(|wish| &mut wish.links) {
        // Not "no such container": clients would take it for the image's.
        let found = core.find(&link.container).map_err(|error| {
            Error::Invalid(format!("could not get container for {}: {error}", link.container))
        })?;
        link.container = found.view.borrow().spec.id.clone();
    }
    Ok(())
}

async fn bound_transfers(core: &Core, host: &mut HostSpec) -> Result<()> {
    if host.throttles.is_empty() {
        return Ok(());
    }
    let mut throttles = std::mem::take(&mut host.throttles);
    let directory = core.layout.containers();
    host.throttles = crate::core::blocking(move || {
        throttle::resolve(&mut throttles, &directory)?;
        Ok(throttles)
    })
    .await?;
    Ok(())
}

/// Starts the task of a container and makes it known.
pub(crate) fn enlist(
    core: &Arc<Core>,
    spec: Arc<Spec>,
    name: String,
    state: State,
    pod: Option<Arc<Pod>>,
    phases: Record,
) -> Handle {
    let id = spec.id.clone();
    let (commands, queue) = mpsc::channel(QUEUE);
    let slot = Arc::new(Slot::default());
    let first = View {
        spec: spec.clone(),
        name: name.clone(),
        state: state.clone(),
        removed: false,
        pod: pod.clone(),
    };
    let (publish, view) = watch::channel(first);
    let handle = Handle { commands, view, slot: slot.clone() };
    let mut registry = core.registry.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    registry.names.insert(name.clone(), id.clone());
    registry.by_id.insert(id, handle.clone());
    drop(registry);
    let actor = Actor::new(Begin {
        core: core.clone(),
        spec,
        name,
        state,
        commands: queue,
        view: publish,
        slot,
        pod,
        phases,
    });
    tokio::spawn(actor.run());
    handle
}

/// Resolves the pod that the container is to join: one that was made as such (`host.pod` is its
/// name), or another container's (`--network container:X`).
fn join(core: &Core, host: &mut HostSpec) -> Result<()> {
    let runtime = if let Some(owner) = host.network.strip_prefix("container:") {
        if !host.ports.is_empty() || host.publish_all {
            return Err(Error::Invalid(
                "conflicting options: port publishing and the container type network mode"
                    .to_owned(),
            ));
        }
        if !host.pod.is_empty() {
            return Err(Error::Invalid(
                "conflicting options: a container joins a pod, or another container's, not both"
                    .to_owned(),
            ));
        }
        let owner = core.find(owner)?.view.borrow().clone();
        host.pod = match owner.spec.host.pod.as_str() {
            "" => owner.spec.id.clone(),
            joined => joined.to_owned(),
        };
        if host.hostname.is_empty() {
            oci::hostname(&owner.spec).clone_into(&mut host.hostname);
        }
        owner.spec.host.runtime.clone()
    } else if host.pod.is_empty() {
        return Ok(());
    } else {
        let pod = core.pods.find(&host.pod)?.view.borrow().clone();
        host.pod.clone_from(&pod.spec.id);
        if !host.ports.is_empty() && pod.state.status.is_up() {
            return Err(Error::Conflict(format!(
                "pod {} is running and its ports are published: stop it before it gets a \
                 container with more",
                pod.name
            )));
        }
        let own = matches!(host.network.as_str(), "" | "default");
        if !own && host.network != pod.spec.network {
            return Err(Error::Invalid(format!(
                "conflicting options: network {} for a container of pod {}, whose network is {}",
                host.network, pod.name, pod.spec.network
            )));
        }
        host.network.clone_from(&pod.spec.network);
        if !host.hostname.is_empty() && host.hostname != pod.spec.hostname {
            return Err(Error::Invalid(format!(
                "conflicting options: the hostname is that of pod {}, `{}`",
                pod.name, pod.spec.hostname
            )));
        }
        host.hostname.clone_from(&pod.spec.hostname);
        pod.spec.runtime.clone()
    };
    if !host.runtime.is_empty() && core.runtime(&host.runtime) != core.runtime(&runtime) {
        return Err(Error::Invalid(format!(
            "conflicting options: runtime {} for a container of a pod on {}",
            host.runtime,
            core.runtime(&runtime)
        )));
    }
    if let Some(foreign) = core.config.runtimes.foreign(&runtime) {
        return Err(Error::Invalid(format!(
            "a container of runtime {} cannot be joined: only guests are shared",
            foreign.name
        )));
    }
    host.runtime = runtime;
    if let Some(key) = host.sysctls.keys().find(|key| key.starts_with("net.")) {
        return Err(Error::Invalid(format!(
            "sysctl `{key}` belongs to the pod: give it when the pod is made"
        )));
    }
    Ok(())
}

async fn insert(core: &Arc<Core>, record: &store::Record) -> Result<()> {
    let directory = core.layout.container(&record.spec.id);
    let made = directory.clone();
    crate::core::blocking(move || layout::private_directory(&made)).await?;
    if let Err(error) = core.store.insert(record).await {
        // Best effort: the next start of hyperd removes directories without record.
        let _ = tokio::fs::remove_dir(&directory).await;
        return Err(error);
    }
    Ok(())
}

fn reserve(core: &Core, asked: Option<String>, id: &str) -> Result<String> {
    if let Some(name) = asked {
        core.reserve(&name, id)?;
        return Ok(name);
    }
    for attempt in 0.. {
        let name = id::random_name(attempt);
        if core.reserve(&name, id).is_ok() {
            return Ok(name);
        }
        if attempt > 100 {
            break;
        }
    }
    // Every made-up name is taken: the id is free.
    let name = id::short(id).to_owned();
    core.reserve(&name, id)?;
    Ok(name)
}

fn resolve_image(core: &Core, request: &CreateRequest) -> Result<hyper_image::Image> {
    if request.image.is_empty() {
        return Err(Error::Invalid("no image specified".to_owned()));
    }
    let image = core
        .images
        .resolve(&request.image)
        .map_err(|error| image_error(&with_tag(&request.image), error))?;
    let has = image.platform().normalised();
    let wanted = match &request.platform {
        Some(text) => text
            .parse::<hyper_image::Platform>()
            .map_err(|e| image_error(&request.image, e.into()))?
            .normalised(),
        None => hyper_image::Platform::host(),
    };
    if (&has.os, &has.architecture) == (&wanted.os, &wanted.architecture) {
        return Ok(image);
    }
    if request.platform.is_some() {
        // The client pulls for the platform it wants.
        return Err(Error::NoSuchImage(format!(
            "{}: image was found but does not match the specified platform: wanted {wanted}, \
             actual: {has}",
            with_tag(&request.image)
        )));
    }
    Err(Error::Invalid(format!(
        "image {} is for {has}, the guests of this host are {wanted}: pull the image for {wanted} \
         (--platform {wanted})",
        request.image
    )))
}

/// As Docker writes it: the client pulls on exactly these words.
fn with_tag(image: &str) -> String {
    match image.parse::<hyper_image::Reference>() {
        Ok(reference) => reference.or_latest().familiar(),
        Err(_) => image.to_owned(),
    }
}

fn merge(request: CreateRequest, image: &hyper_image::Image) -> Result<(Spec, Vec<String>)> {
    let defaults = &image.config.config;
    // As Docker: a new entrypoint drops the image's command.
    let (entrypoint, cmd) = match (request.entrypoint, request.cmd) {
        (Some(entrypoint), cmd) => (entrypoint, cmd.unwrap_or_default()),
        (None, Some(cmd)) if !cmd.is_empty() => (defaults.entrypoint.clone(), cmd),
        (None, _) => (defaults.entrypoint.clone(), defaults.cmd.clone()),
    };
    let entrypoint = if entrypoint == [""] { Vec::new() } else { entrypoint };
    oci::check_environment(&request.env)?;
    let or = |given: Option<String>, image: &str| {
        given.filter(|text| !text.is_empty()).unwrap_or_else(|| image.to_owned())
    };
    let mut labels: BTreeMap<String, String> = defaults.labels.clone();
    labels.extend(request.labels);
    let of_image = defaults.healthcheck.as_ref().map(|check| HealthCheck {
        test: check.test.clone(),
        interval_ns: check.interval,
        timeout_ns: check.timeout,
        start_period_ns: check.start_period,
        start_interval_ns: check.start_interval,
        retries: check.retries,
        shell: defaults.shell.clone(),
    });
    let shell = || HealthCheck { shell: defaults.shell.clone(), ..HealthCheck::default() };
    let checked = match (request.health, of_image) {
        (Some(asked), image) => Some(asked.over(Some(&image.unwrap_or_else(shell)))),
        (None, image) => image,
    };
    let mut volumes: Vec<String> = defaults.volumes.keys().cloned().collect();
    volumes.extend(request.volumes);
    let mut ports: Vec<String> = defaults.exposed_ports.keys().cloned().collect();
    ports.extend(request.exposed_ports);
    for list in [&mut volumes, &mut ports] {
        list.sort();
        list.dedup();
    }
    let stop_signal = or(request.stop_signal, defaults.stop_signal.as_deref().unwrap_or(""));
    let spec = Spec {
        id: id::fresh(),
        created_ns: hyper_stdio::now_ns(),
        image: request.image,
        image_id: image.id.to_string(),
        platform: image.platform().to_string(),
        entrypoint,
        cmd,
        env: oci::merge_environment(&defaults.env, &request.env),
        working_dir: or(request.working_dir, &defaults.working_dir),
        user: or(request.user, &defaults.user),
        stop_signal,
        labels,
        exposed_ports: ports,
        volumes,
        health: checked.filter(|check| !check.test.is_empty()),
        host: request.host,
    };
    Ok((spec, Vec::new()))
}

fn check_spec(spec: &Spec) -> Result<()> {
    match spec.args().first() {
        None => return Err(Error::Invalid("no command specified".to_owned())),
        Some(program) if program.is_empty() => {
            return Err(Error::Invalid("the command to run is an empty string".to_owned()));
        }
        Some(_) => {}
    }
    if spec.args().iter().any(|argument| argument.contains('\0')) {
        return Err(Error::Invalid("an argument contains a NUL character".to_owned()));
    }
    if !spec.working_dir.is_empty() && !spec.working_dir.starts_with('/') {
        return Err(Error::Invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            spec.working_dir
        )));
    }
    if let Some(check) = &spec.health {
        health::check(check)?;
    }
    health::check_wish(spec)?;
    if !spec.stop_signal.is_empty() {
        signal::parse(&spec.stop_signal)?;
    }
    if spec.user.contains(|c: char| c.is_whitespace() || c == '\0' || c == '/') {
        return Err(Error::Invalid(format!("invalid user `{}`", spec.user)));
    }
    oci::check(spec)
}

fn check_host(core: &Core, host: &HostSpec) -> Result<()> {
    runtime::check(core, host)?;
    if let Some(policy) = crate::network::egress(host)?
        && !host.pod.is_empty()
    {
        return Err(Error::Invalid(format!(
            "egress policy `{policy}`: a container in another's pod has that one's network: give \
             the policy to the pod, or to the container that it was made with"
        )));
    }
    let rates = crate::network::rates(host)?;
    if rates != Rates::default() && !host.pod.is_empty() {
        return Err(Error::Invalid(format!(
            "network rate `{rates}`: a container in another's pod has that one's network: give it \
             to the pod, or to the container that it was made with"
        )));
    }
    for (option, name) in [("hostname", &host.hostname), ("domainname", &host.domainname)] {
        let label = |label: &str| {
            (name.is_empty() || !label.is_empty())
                && label.len() <= MAX_HOSTNAME
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.len() > KERNELS_NAME || !name.split('.').all(label) {
            return Err(Error::Invalid(format!(
                "invalid {option} `{name}`: letters, digits, `-` and `_`, at most {MAX_HOSTNAME} \
                 between dots and {KERNELS_NAME} in all"
            )));
        }
    }
    check_limits(&host.limits)?;
    check_log(&host.log)?;
    for (path, options) in &host.tmpfs {
        oci::check_tmpfs(path, options)?;
    }
    for entry in &host.extra_hosts {
        let address = entry.split_once([':', '=']).map(|(_, address)| {
            address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>()
        });
        let gateway = entry.split_once([':', '=']).is_some_and(|(_, to)| to == "host-gateway");
        if !gateway && !matches!(address, Some(Ok(_))) {
            return Err(Error::Invalid(format!(
                "invalid extra host `{entry}`: NAME:ADDRESS or NAME:host-gateway is wanted"
            )));
        }
    }
    for server in &host.dns {
        if server.parse::<IpAddr>().is_err() {
            return Err(Error::Invalid(format!("invalid DNS server `{server}`: not an address")));
        }
    }
    for limit in &host.ulimits {
        check_ulimit(limit)?;
    }
    if host.stop_timeout.is_some_and(|seconds| seconds < -1) {
        return Err(Error::Invalid("the stop timeout must be -1 or more seconds".to_owned()));
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(Error::Invalid(format!(
            "invalid OOM score adjustment {}: -1000 to 1000 is the range",
            host.oom_score_adj
        )));
    }
    Ok(())
}

/// Docker's rules for limits.
pub(crate) fn check_limits(limits: &Limits) -> Result<()> {
    let invalid = |why: String| Err(Error::Invalid(why));
    if limits.memory_bytes < 0 || (limits.memory_bytes > 0 && limits.memory_bytes < MIN_MEMORY) {
        return invalid(format!(
            "Minimum memory limit allowed is 6MB, not {} bytes",
            limits.memory_bytes
        ));
    }
    if limits.memory_swap_bytes > 0 && limits.memory_bytes == 0 {
        return invalid(
            "You should always set the Memory limit when using Memoryswap limit".to_owned(),
        );
    }
    if limits.memory_swap_bytes > 0 && limits.memory_swap_bytes < limits.memory_bytes {
        return invalid("Minimum memoryswap limit should be larger than memory limit".to_owned());
    }
    if limits.memory_bytes > 0 && limits.memory_reservation_bytes > limits.memory_bytes {
        return invalid(
            "Minimum memory limit can not be less than memory reservation limit".into(),
        );
    }
    if limits.nano_cpus < 0 || (limits.nano_cpus > 0 && limits.nano_cpus < 10_000_000) {
        return invalid("NanoCPUs must be 0.01 CPUs (10000000) or more".to_owned());
    }
    if limits.nano_cpus > 0 && (limits.cpu_period_us > 0 || limits.cpu_quota_us != 0) {
        return invalid(
            "Conflicting options: Nano CPUs and CPU period or quota cannot both be set".to_owned(),
        );
    }
    if limits.cpu_period_us != 0 && !(1_000..=1_000_000).contains(&limits.cpu_period_us) {
        return invalid("CPU cfs period can not be less than 1ms or larger than 1s".to_owned());
    }
    if limits.cpu_quota_us > 0 && limits.cpu_quota_us < 1_000 {
        return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)".to_owned());
    }
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if i128::from(limits.nano_cpus) > (cpus as i128) * 1_000_000_000 {
        return invalid(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        ));
    }
    check_cpuset(&limits.cpuset_cpus)
}

/// In Docker's words.
fn check_cpuset(wanted: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let Some(cpus) = cpus::parse(wanted) else {
        return Err(Error::Invalid(format!(
            "Invalid value {wanted} for cpuset cpus: numbers and ranges like 0-2,7 are wanted"
        )));
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let own = own.unwrap_or_default().trim();
    match cpus::parse(own) {
        Some(own_cpus) if !cpus.is_subset(&own_cpus) => Err(Error::Invalid(format!(
            "Requested CPUs are not available - requested {wanted}, available: {own}"
        ))),
        _ => Ok(()),
    }
}

fn check_log(log: &Log) -> Result<()> {
    match log.driver.as_str() {
        Log::JSON_FILE | Log::LOCAL | Log::NONE => Ok(()),
        Log::JOURNALD => journal::check(log),
        other => Err(Error::Invalid(format!(
            "logger: no log driver named '{other}' is registered: {} are",
            Log::DRIVERS.join(", ")
        ))),
    }
}

fn check_ulimit(limit: &spec::Ulimit) -> Result<()> {
    const KNOWN: [&str; 16] = [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    if !KNOWN.contains(&limit.name.as_str()) {
        return Err(Error::Invalid(format!("invalid ulimit type: {}", limit.name)));
    }
    if limit.hard >= 0 && (limit.soft > limit.hard || limit.soft < 0) {
        return Err(Error::Invalid(format!(
            "ulimit {}: soft limit {} is above the hard limit {}",
            limit.name, limit.soft, limit.hard
        )));
    }
    Ok(())
}
