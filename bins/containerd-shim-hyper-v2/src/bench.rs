//! `bench`: bare guests of each hypervisor that works here, for `hyper bench vmm`: kernel and agent,
//! one CPU, 128 MiB, no disk. Prints JSON.
//!
//! Rounds go over all hypervisors in turn, after one that does not count. Where a guest can be
//! saved, one is, at the point where its agent waits to be answered, and copies of it are measured
//! as well: that is what a template will be. Monitors of others are measured beside `kvm`.

mod others;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper_hypervisor::{Carrier, GuestKernel, Hypervisor, Vm, VmConfig};
use hyper_link::message::Request;
use hyper_link::{Greeting, Link};
use hyper_pod::Flavour;
use serde::Serialize;

use crate::args::Args;
use crate::config::Config;
use crate::hypervisors;

/// Emulated guests in emulated machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY: u64 = 128 << 20;

/// One hypervisor's figures; times in microseconds, a value for each round.
#[derive(Debug, Default, Serialize)]
struct Figures {
    name: String,
    /// Launch to the agent's first word.
    launch_to_agent: Vec<u64>,
    /// Returns from the guest to its monitor until then, where they are counted.
    exits_to_agent: Vec<u64>,
    /// The order to shut down until the process is gone.
    shutdown_to_gone: Vec<u64>,
    /// Bytes of the hypervisor process that no other shares, the guest's memory among them.
    private_bytes: Vec<u64>,
    /// Restore to the agent's first answer, and what such a copy has of its own.
    restore_to_answer: Vec<u64>,
    copy_private_bytes: Vec<u64>,
    /// Why rounds are missing, or the hypervisor is.
    failures: Vec<String>,
}

/// Measures as many rounds as `-runs` says, in the directory `-bundle`, whose owner removes it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let directory = args.bundle.as_deref().context("bench: -bundle DIRECTORY is missing")?;
    let config = Config::load()?;
    let (hypervisors, flavours) = hypervisors::unremembered(&config);
    let runtime = crate::one_thread()?;
    let figures = runtime.block_on(async {
        let mut subjects = Vec::new();
        let mut others = Vec::new();
        let mut missing = Vec::new();
        for hypervisor in hypervisors {
            let name = hypervisor.name().to_owned();
            let probe = hypervisor.probe().await;
            if probe.usable {
                if name == hyper_kvm::NAME {
                    others = others::found(&flavours[&name], directory)?;
                }
                let flavour = flavours[&name].clone();
                let directory = directory.join(&name);
                subjects.push(Subject::new(hypervisor, flavour, directory)?);
            } else {
                let why = probe.findings.into_iter().filter(|finding| !finding.ok);
                let failures = why.map(|one| format!("{}: {}", one.what, one.detail)).collect();
                missing.push(Figures { name, failures, ..Figures::default() });
            }
        }
        for round in 0..=args.runs {
            for subject in &mut subjects {
                subject.round(round > 0).await;
            }
            for other in &mut others {
                other.round(round > 0).await;
            }
        }
        let measured = subjects.into_iter().map(|subject| subject.figures);
        let measured = measured.chain(others.into_iter().map(|other| other.figures));
        anyhow::Ok(measured.chain(missing).collect::<Vec<_>>())
    })?;
    println!("{}", serde_json::to_string_pretty(&figures).context("encode the figures")?);
    Ok(())
}

struct Subject {
    hypervisor: Arc<dyn Hypervisor>,
    flavour: Flavour,
    directory: PathBuf,
    saved: Option<Greeting>,
    figures: Figures,
    guests: u32,
}

impl Subject {
    fn new(
        hypervisor: Arc<dyn Hypervisor>,
        flavour: Flavour,
        directory: PathBuf,
    ) -> anyhow::Result<Self> {
        let saved = directory.join("saved");
        std::fs::create_dir_all(&saved).with_context(|| format!("make `{}`", saved.display()))?;
        let figures = Figures { name: hypervisor.name().to_owned(), ..Figures::default() };
        Ok(Self { hypervisor, flavour, directory, saved: None, figures, guests: 0 })
    }

    async fn round(&mut self, counts: bool) {
        let mut failures = Vec::new();
        match self.boot().await {
            Ok(life) if counts => {
                self.figures.launch_to_agent.push(life.ready);
                self.figures.exits_to_agent.extend(life.exits);
                self.figures.shutdown_to_gone.push(life.gone);
                self.figures.private_bytes.push(life.bytes);
            }
            Ok(_) => {}
            Err(error) => failures.push(format!("{error:#}")),
        }
        if self.hypervisor.capabilities().save {
            match self.copy().await {
                Ok((answer, bytes)) if counts => {
                    self.figures.restore_to_answer.push(answer);
                    self.figures.copy_private_bytes.push(bytes);
                }
                Ok(_) => {}
                Err(error) => failures.push(format!("copy: {error:#}")),
            }
        }
        self.figures.failures.extend(failures);
    }

    /// A guest's whole life.
    async fn boot(&mut self) -> anyhow::Result<Life> {
        let config = self.config()?;
        let started = Instant::now();
        let mut vm = self.hypervisor.launch(config).await.context("launch")?;
        let (greeting, carrier) = hear(&mut *vm).await?;
        let ready = micros(started);
        let exits = vm.counters().await.context("read its counters")?.get("exits").copied();
        let link = meet(carrier, &greeting).await?;
        let bytes = vm.usage().await.context("read its usage")?.private_bytes;
        let ordered = Instant::now();
        link.call(Request::Shutdown, PATIENCE).await.context("shut it down")?;
        let ended = tokio::time::timeout(PATIENCE, vm.wait()).await;
        ended.context("it did not end")?;
        Ok(Life { ready, exits, gone: micros(ordered), bytes })
    }

    /// The life of a copy, until it is killed.
    async fn copy(&mut self) -> anyhow::Result<(u64, u64)> {
        let greeting = match &self.saved {
            Some(greeting) => greeting.clone(),
            None => self.save().await?,
        };
        let config = self.config()?;
        let started = Instant::now();
        let saved = self.directory.join("saved");
        let mut vm = self.hypervisor.restore(&saved, config).await.context("restore")?;
        let carrier = vm.take_link().context("it has no link")?;
        let link = meet(carrier, &greeting).await?;
        let answer = micros(started);
        let bytes = vm.usage().await.context("read its usage")?.private_bytes;
        drop(link);
        vm.kill().await;
        Ok((answer, bytes))
    }

    async fn save(&mut self) -> anyhow::Result<Greeting> {
        let config = self.config()?;
        let mut vm = self.hypervisor.launch(config).await.context("launch")?;
        let (greeting, carrier) = hear(&mut *vm).await?;
        vm.pause().await.context("pause it")?;
        vm.save(&self.directory.join("saved")).await.context("save it")?;
        vm.kill().await;
        drop(carrier);
        self.saved = Some(greeting.clone());
        Ok(greeting)
    }

    fn config(&mut self) -> anyhow::Result<VmConfig> {
        self.guests += 1;
        let run_dir = self.directory.join(format!("run{}", self.guests));
        std::fs::create_dir(&run_dir).with_context(|| format!("make `{}`", run_dir.display()))?;
        let Flavour { kernel, initramfs, extra_cmdline, .. } = self.flavour.clone();
        Ok(VmConfig {
            id: format!("bench-{}-{}", std::process::id(), self.guests),
            kernel: GuestKernel { kernel, initramfs, extra_cmdline },
            vcpus: 1,
            memory_bytes: MEMORY,
            disks: Vec::new(),
            nics: Vec::new(),
            late_disks: false,
            share: None,
            run_dir,
            cgroup: None,
        })
    }
}

/// What was seen of one guest.
struct Life {
    ready: u64,
    exits: Option<u64>,
    gone: u64,
    bytes: u64,
}

async fn hear(vm: &mut dyn Vm) -> anyhow::Result<(Greeting, Box<dyn Carrier>)> {
    let mut carrier = vm.take_link().context("it has no link")?;
    match hyper_link::hear(&mut carrier, PATIENCE).await {
        Ok(greeting) => Ok((greeting, carrier)),
        Err(error) => bail!("its agent: {error}; its console ends: {:?}", vm.console()),
    }
}

/// Answers the agent and waits for its first answer.
async fn meet(carrier: Box<dyn Carrier>, greeting: &Greeting) -> anyhow::Result<Link> {
    let met = hyper_link::connect_to(carrier, greeting, PATIENCE).await;
    // Its events are not looked at; none comes from a guest without containers.
    let (link, _events) = met.context("meet its agent")?;
    link.call(Request::Ping, PATIENCE).await.context("ask its agent")?;
    Ok(link)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
