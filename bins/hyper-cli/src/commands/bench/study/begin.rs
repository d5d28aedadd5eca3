//! Before the first run: the lock, what is asked for, what is here, room for it, and the study's directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, bail};
use hyper_bench::plan::{self, Axis, Job, Kind, Scope};
use hyper_bench::results::{self, Missing, Sample, Settings, State, Study};
use hyper_bench::store::{self, Store};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::limits::Limits;
use super::machine::{self, Room, machine};
use super::subject::{self, Engine, Subject};
use super::tree::Tree;
use super::{find, now};
use crate::arguments::BenchRunFlags;
use crate::client::{Client, quote};

/// All that the runs need.
pub struct Begun {
    pub dir: PathBuf,
    pub store: Store,
    pub study: Study,
    pub samples: Vec<Sample>,
    pub subjects: Vec<Subject>,
    pub tree: Option<Tree>,
}

/// The lock of this machine's benches; ends with the file.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644);
    let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).context("a flag")?;
    let file = options.custom_flags(nofollow).open(path);
    let mut file = file.with_context(|| format!("open the lock `{}`", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        let _ = (&mut file).take(20).read_to_string(&mut holder);
        bail!(
            "another bench runs on this machine (process {}): two at once would measure each other; wait until it ends",
            holder.trim()
        );
    }
    file.set_len(0).and_then(|()| file.rewind()).context("write the lock")?;
    writeln!(file, "{}", std::process::id()).context("write the lock")?;
    Ok(file)
}

/// Where the study goes; the same answer every time.
pub fn chosen(flags: &BenchRunFlags) -> PathBuf {
    static DEFAULT: OnceLock<PathBuf> = OnceLock::new();
    let fresh = || {
        let name: String = now().chars().filter(char::is_ascii_alphanumeric).collect();
        PathBuf::from(format!("bench-{name}"))
    };
    flags.out.clone().unwrap_or_else(|| DEFAULT.get_or_init(fresh).clone())
}

pub async fn begin(client: &Client, flags: &BenchRunFlags) -> anyhow::Result<Begun> {
    let settings = settings(client, flags).await?;
    let dir = chosen(flags);
    let earlier = match store::exists(&dir) {
        true => Some(resumed(&dir, &settings)?),
        false if dir.read_dir().is_ok_and(|mut entries| entries.next().is_some()) => {
            bail!("`{}` is neither empty nor a study: name another --out", dir.display())
        }
        false => None,
    };
    let scope = Scope { quick: settings.quick, axes: settings.axes.clone(), cpus: settings.cpus };
    let jobs = plan::jobs(&scope);
    check_room(client, flags, &settings).await?;
    let (candidates, mut missing) =
        find::candidates(client, &settings.runtimes, &flags.docker).await?;
    let mut subjects = Vec::new();
    for candidate in candidates {
        eprintln!("bench: is {} here?", candidate.name);
        match find::works(&candidate, &settings).await {
            Ok(()) => subjects.push(candidate),
            Err(why) => missing.push(Missing { name: candidate.name, why }),
        }
    }
    if jobs.iter().any(|job| matches!(job.kind, Kind::Start { cloned: true, .. })) {
        for subject in subjects.iter_mut().filter(|one| one.has_kernel()) {
            match find::clones(client, subject, &settings).await {
                Ok(()) => subject.clones = true,
                Err(why) => {
                    missing.push(Missing { name: format!("{}, cloned", subject.name), why });
                }
            }
        }
    }
    for one in &missing {
        eprintln!("bench: missing: {}: {}", one.name, one.why);
    }
    // The one with the thinnest wall is the quickest.
    let ours = subjects.iter().rfind(|one| matches!(one.engine, Engine::Hyper { .. })).cloned();
    let Some(ours) = ours else {
        bail!(
            "nothing to measure: at least one of hyperd's runtimes has to be asked for and to work (see above)"
        );
    };
    let tools = tools(&ours, &settings, &jobs).await?;
    let tree = match wants_tree(&jobs, &subjects) {
        true => tree(client, &ours, &settings, flags, &mut subjects, &mut missing).await?,
        false => None,
    };
    let study = Study {
        format: results::FORMAT,
        started: now(),
        finished: None,
        state: State::Running,
        machine: machine(&flags.work, &server_version(client).await),
        tools,
        subjects: subjects.iter().map(told).collect(),
        missing,
        measures: jobs.iter().flat_map(|job| job.measures().cloned()).collect(),
        settings,
    };
    let (store, study, samples) = match earlier {
        None => (Store::create(&dir, &study)?, study, Vec::new()),
        Some((store, earlier, samples)) => {
            let (store, study) = go_on(store, earlier, &study)?;
            subjects.retain(|one| study.subjects.iter().any(|other| other.name == one.name));
            // In the study's order, so that the rounds are as they would have been.
            subjects.sort_by_key(|one| study.subjects.iter().position(|s| s.name == one.name));
            eprintln!("bench: goes on after {} runs", samples.len());
            (store, study, samples)
        }
    };
    Ok(Begun { dir, store, study, samples, subjects, tree })
}

async fn settings(client: &Client, flags: &BenchRunFlags) -> anyhow::Result<Settings> {
    let axes = match flags.axis.as_slice() {
        [] => Axis::ALL.to_vec(),
        names => {
            let axes = names.iter().map(|name| Axis::parse(name).map_err(anyhow::Error::msg));
            let mut axes = axes.collect::<anyhow::Result<Vec<_>>>()?;
            axes.sort();
            axes.dedup();
            axes
        }
    };
    if flags.cpus > machine::cpus() {
        bail!("--cpus {}: this host has {}", flags.cpus, machine::cpus());
    }
    let image = client.get(&format!("/images/{}/json", quote(&flags.image))).await;
    let image = image.with_context(|| {
        format!(
            "image `{0}` with the tools is wanted; make it with `images/build bench bench.tar`, then `hyper load -i bench.tar`, \
             or name another with --image",
            flags.image
        )
    })?;
    let mut runtimes = flags.runtime.clone();
    runtimes.sort();
    runtimes.dedup();
    Ok(Settings {
        quick: flags.quick,
        runs: flags.runs.unwrap_or(if flags.quick { 2 } else { 5 }),
        axes,
        runtimes,
        cpus: flags.cpus,
        memory: flags.memory.clone(),
        image: flags.image.clone(),
        image_id: image["Id"].as_str().unwrap_or_default().to_owned(),
    })
}

fn resumed(dir: &Path, settings: &Settings) -> anyhow::Result<(Store, Study, Vec<Sample>)> {
    let (store, study, samples) = Store::resume(dir)?;
    if study.state == State::Complete {
        bail!(
            "the study in `{0}` is complete: `hyper bench report {0}` shows it; name another --out",
            dir.display()
        );
    }
    if study.settings != *settings {
        bail!(
            "the study in `{}` was begun with other settings: {}\nnow: {}\nuse the same to go on, or another --out",
            dir.display(),
            serde_json::to_string(&study.settings)?,
            serde_json::to_string(settings)?
        );
    }
    Ok((store, study, samples))
}

/// Goes on only where it began.
fn go_on(mut store: Store, mut earlier: Study, now: &Study) -> anyhow::Result<(Store, Study)> {
    if earlier.machine != now.machine || earlier.tools != now.tools {
        bail!(
            "the study was begun on another machine, or by other versions: {}\nnow: {}\nname another --out",
            serde_json::to_string(&(&earlier.machine, &earlier.tools))?,
            serde_json::to_string(&(&now.machine, &now.tools))?
        );
    }
    for subject in &earlier.subjects {
        if !now.subjects.iter().any(|one| one.name == subject.name) {
            bail!("`{}` of the study does not work any more (see above)", subject.name);
        }
    }
    earlier.state = State::Running;
    store.head(&earlier)?;
    Ok((store, earlier))
}

/// Refuses an image without what the plan calls for.
async fn tools(
    subject: &Subject,
    settings: &Settings,
    jobs: &[Job],
) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let mut wanted: Vec<_> = jobs.iter().flat_map(Job::tools).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(std::collections::BTreeMap::new());
    }
    let found = find::tools(subject, settings, &wanted).await?;
    let lacking: Vec<_> = found.iter().filter(|(_, found)| found.is_none()).collect();
    if !lacking.is_empty() {
        let words: Vec<_> = lacking
            .iter()
            .map(|(tool, _)| {
                let uses = |axis: &&Axis| {
                    jobs.iter()
                        .filter(|job| job.tools().contains(tool))
                        .any(|job| job.measures().any(|measure| measure.axis == **axis))
                };
                let axes: Vec<_> =
                    settings.axes.iter().filter(uses).map(|axis| axis.name()).collect();
                format!("{tool} (for {})", axes.join(", "))
            })
            .collect();
        bail!(
            "image `{}` lacks {}: use the image that `images/build bench` makes, or fewer axes by --axis",
            settings.image,
            words.join(", ")
        );
    }
    Ok(found.into_iter().filter_map(|(tool, version)| Some((tool.to_owned(), version?))).collect())
}

fn wants_tree(jobs: &[Job], subjects: &[Subject]) -> bool {
    let host = subjects.iter().any(|one| matches!(one.engine, Engine::Host));
    host || jobs.iter().any(|job| matches!(job.kind, Kind::Served { .. } | Kind::Between { .. }))
}

/// The image's tree on the host. Without it neither the host nor servers can be measured, which is told.
async fn tree(
    client: &Client,
    ours: &Subject,
    settings: &Settings,
    flags: &BenchRunFlags,
    subjects: &mut Vec<Subject>,
    missing: &mut Vec<Missing>,
) -> anyhow::Result<Option<Tree>> {
    eprintln!("bench: the image's files for the host itself");
    let Engine::Hyper { runtime, .. } = &ours.engine else { return Ok(None) };
    let own = subject::own_client(client)?;
    match Tree::export(&own, runtime, &settings.image, &flags.work).await {
        Ok(mut tree) => {
            let host = |one: &Subject| matches!(one.engine, Engine::Host);
            if subjects.iter().any(host) {
                match Limits::new(settings.cpus, memory(settings)?) {
                    Ok(limits) => tree.limits = Some(limits),
                    Err(error) => {
                        let why = format!("cannot be limited as containers are: {error:#}");
                        eprintln!("bench: missing: host: {why}");
                        missing.push(Missing { name: "host".into(), why });
                        subjects.retain(|one| !host(one));
                    }
                }
            }
            Ok(Some(tree))
        }
        Err(error) => {
            let why = format!("{error:#}");
            for name in ["host", "network, nginx: their clients on the host"] {
                eprintln!("bench: missing: {name}: {why}");
                missing.push(Missing { name: name.into(), why: why.clone() });
            }
            subjects.retain(|one| !matches!(one.engine, Engine::Host));
            Ok(None)
        }
    }
}

fn memory(settings: &Settings) -> anyhow::Result<u64> {
    let bytes = crate::arguments::bytes(&settings.memory);
    let bytes = bytes.with_context(|| format!("--memory {}", settings.memory))?;
    u64::try_from(bytes).with_context(|| format!("--memory {}", settings.memory))
}

/// Fails before anything is measured, rather than in the middle.
async fn check_room(
    client: &Client,
    flags: &BenchRunFlags,
    settings: &Settings,
) -> anyhow::Result<()> {
    let memory = memory(settings)?;
    // Ten containers of 128 MiB at once, or one and what its emulator needs.
    let needed = Room { memory: (memory + (512 << 20)).max(1536 << 20), disk: 3 << 30 };
    let available = machine::available();
    let mib = |bytes: u64| bytes >> 20;
    if available < needed.memory {
        bail!(
            "too little memory: {} MiB are available, {} MiB are needed with --memory {}",
            mib(available),
            mib(needed.memory),
            settings.memory
        );
    }
    let info = client.get("/info").await?;
    let root = info["DockerRootDir"].as_str().unwrap_or("/").to_owned();
    for path in [flags.work.clone(), PathBuf::from(root)] {
        let free =
            machine::free(&path).with_context(|| format!("free space of `{}`", path.display()))?;
        if free < needed.disk {
            bail!(
                "too little disk: {} MiB are free at `{}`, {} MiB are needed",
                mib(free),
                path.display(),
                mib(needed.disk)
            );
        }
    }
    Ok(())
}

async fn server_version(client: &Client) -> String {
    let version = client.get("/version").await.unwrap_or_default();
    version["Version"].as_str().unwrap_or("unknown").to_owned()
}

fn told(subject: &Subject) -> results::Subject {
    results::Subject {
        name: subject.name.clone(),
        wall: subject.wall.clone(),
        version: subject.version.clone(),
    }
}
