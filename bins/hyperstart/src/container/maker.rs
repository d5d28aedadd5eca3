//! The children of the agent: processes of containers before they become their programs, and
//! other work that may block.
//!
//! A child does what may wait for disks or fail in odd ways. If it dies, the agent sees a closed
//! socket and goes on. One fork for each: under user-mode Linux a fork costs a millisecond and more.
//!
//! The first process of a container is born in its namespaces and puts its root together there.
//! The mounts of that are shared with the agent, see [`crate::boot::STATE`], until the process
//! makes its own mounts private and leaves the guest's root.

use std::{
    convert::Infallible,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use hyper_link::message::{CreateContainer, Failure, FailureKind};
use rustix::{
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    system::{setdomainname, sethostname},
    thread::{ThreadNameSpaceType, move_into_thread_name_spaces},
};

use super::{
    inside::Inside,
    mounts,
    program::Launch,
    rootfs::Directories,
    talk::{Ear, Mouth, Word, pair},
};
use crate::{
    cgroup::{self, Cgroup},
    failure::{Doing as _, Outcome, failure, invalid},
    kernel_file,
    oci::spec::{FILES_ONLY, INIT, Process, Seccomp, Spec, USER_NAME},
    sys::{self, Forked},
};

/// How long a child may take: disks may be slow, hosts overloaded.
const DEADLINE: Duration = Duration::from_secs(60);

/// A process that is set up and waits to be told to go.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) pid: Pid,
    /// The master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    ear: Ear,
}

impl Waiting {
    /// Lets it become its program.
    ///
    /// # Errors
    /// It did not, in the words of [`Launch::run`].
    pub(crate) async fn go(&self) -> Outcome<()> {
        // If the process is gone, what is heard next says why.
        let _gone = self.ear.go();
        match self.ear.hear().await.doing(|| "listen to the process".to_owned())? {
            None => Ok(()),
            Some(Word::Failed(failure)) => Err(failure),
            Some(_) => Err(failure(FailureKind::Internal, "the process spoke out of turn")),
        }
    }
}

/// Forks a child with its own end of a socket pair; `work` says its words itself.
///
/// `tool` is a descriptor that `work` needs; all others are closed by then.
pub(super) fn fork_child(
    stdio: &[OwnedFd; 3],
    tool: BorrowedFd<'_>,
    birth: impl FnOnce() -> io::Result<Forked>,
    work: impl FnOnce(&Mouth, OwnedFd) -> Outcome<()>,
) -> Outcome<(Pid, Ear)> {
    let (ear, mouth) = pair().doing(|| "make a socket pair".to_owned())?;
    match birth().doing(|| "fork".to_owned())? {
        Forked::Parent(pid) => Ok((pid, ear)),
        Forked::Child => {
            let Ok([speech, tool]) = sys::adopt(stdio, [mouth.as_fd(), tool]) else { sys::exit(1) };
            let mouth = Mouth::from_fd(speech);
            sys::default_signals();
            let code = match work(&mouth, tool) {
                Ok(()) => 0,
                Err(failure) => {
                    let code = match failure.kind {
                        FailureKind::CommandNotFound => 127,
                        FailureKind::NotExecutable => 126,
                        _ => 1,
                    };
                    mouth.say(&Word::Failed(failure));
                    code
                }
            };
            sys::exit(code)
        }
    }
}

/// Carries `work` out in a child, so that it may block.
pub(crate) async fn aside(work: impl FnOnce() -> Outcome<()>) -> Outcome<()> {
    let streams = no_streams()?;
    let [tool, ..] = &streams;
    let (child, ear) = fork_child(
        &streams,
        tool.as_fd(),
        || sys::fork(0, None),
        |mouth, _tool| {
            work()?;
            mouth.say(&Word::Done);
            Ok(())
        },
    )?;
    match hear(child, &ear).await? {
        Word::Done => Ok(()),
        Word::Failed(failure) => Err(failure),
        Word::Ready(_) => Err(failure(FailureKind::Internal, "a child spoke out of turn")),
    }
}

/// A child that works for as long as its standard streams keep it busy.
#[derive(Debug)]
pub(crate) struct Helper {
    ear: Ear,
}

impl Helper {
    /// Starts `work` in a child with these standard streams and no other descriptors.
    pub(crate) fn start(stdio: [OwnedFd; 3], work: impl FnOnce() -> Outcome<()>) -> Outcome<Self> {
        let [tool, ..] = &stdio;
        let (_, ear) = fork_child(
            &stdio,
            tool.as_fd(),
            || sys::fork(0, None),
            |mouth, tool| {
                // It may be a pipe, whose other copies keep it open.
                drop(tool);
                set_oom_score(None)?;
                work()?;
                mouth.say(&Word::Done);
                Ok(())
            },
        )?;
        // The ends of its pipes are the child's alone now.
        drop(stdio);
        Ok(Self { ear })
    }

    /// Resolves when the work is done. Its streams bound how long that takes.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) async fn finished(self) -> Outcome<()> {
        let gone =
            |why: &str| failure(FailureKind::Internal, format!("a child of the agent {why}"));
        match self.ear.hear().await {
            Ok(Some(Word::Done)) => Ok(()),
            Ok(Some(Word::Failed(failure))) => Err(failure),
            Ok(Some(Word::Ready(_))) => Err(gone("spoke out of turn")),
            Ok(None) => Err(gone("died before it was done")),
            Err(error) => Err(gone(&error.to_string())),
        }
    }
}

/// `/dev/null` thrice.
pub(crate) fn no_streams() -> Outcome<[OwnedFd; 3]> {
    let open = || -> io::Result<OwnedFd> {
        Ok(fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into())
    };
    let all = || Ok::<_, io::Error>([open()?, open()?, open()?]);
    all().doing(|| "open /dev/null".to_owned())
}

/// Makes a container's root and its first process.
pub(crate) async fn make_container(
    request: &CreateContainer,
    spec: &Spec,
    cgroup: &Cgroup,
    stdio: &[OwnedFd; 3],
) -> Outcome<Waiting> {
    let own = cgroup.directory()?;
    let birth = || sys::fork(namespaces(spec), Some(own.as_fd()));
    let wants_init = spec.annotations.get(INIT).is_some_and(|wanted| wanted == "true");
    // Opened here: from inside the container's root it cannot be named.
    let program = wants_init
        .then(|| fs::File::open("/proc/self/exe"))
        .transpose()
        .doing(|| "open the agent's own program".to_owned())?;
    let tool = program.as_ref().map_or(own.as_fd(), |program| program.as_fd());
    let (pid, ear) = fork_child(stdio, tool, birth, |mouth, tool| {
        match become_first(request, spec, mouth, wants_init.then_some(tool))? {}
    })?;
    wait_ready(pid, ear).await
}

/// Makes one more process in the container of `first`.
pub(crate) async fn make_exec(
    first: Pid,
    process: &Process,
    seccomp: Option<&Seccomp>,
    stdio: &[OwnedFd; 3],
) -> Outcome<Waiting> {
    let own = cgroup_of(first)?;
    let target = pidfd_open(first, PidfdFlags::empty());
    let target = target.doing(|| format!("find the first process, {first}"))?;
    let birth = || sys::fork_beside(target.as_fd(), own.as_fd());
    let (pid, ear) = fork_child(stdio, target.as_fd(), birth, |mouth, target| {
        set_oom_score(process.oom_score_adj)?;
        let others = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::CONTROL_GROUP;
        move_into_thread_name_spaces(target.as_fd(), others)
            .doing(|| "join the container's namespaces".to_owned())?;
        let user_name = process.user_name.as_deref();
        let launch = Launch { process, seccomp, user_name, first: false, init: None };
        match launch.run(mouth, || Ok(()))? {}
    })?;
    wait_ready(pid, ear).await
}

fn become_first(
    request: &CreateContainer,
    spec: &Spec,
    mouth: &Mouth,
    init: Option<OwnedFd>,
) -> Outcome<Infallible> {
    set_oom_score(spec.process.oom_score_adj)?;
    let directories = Directories::of(&request.container);
    directories.assemble(&request.rootfs)?;
    if spec.has_own("cgroup") {
        // Born in its cgroup, so that is the root it sees.
        sys::own_cgroup_namespace().doing(|| "make a cgroup namespace".to_owned())?;
    }
    if spec.has_own("uts") {
        if !spec.hostname.is_empty() {
            sethostname(spec.hostname.as_bytes())
                .doing(|| format!("set hostname {:?}", spec.hostname))?;
        }
        if !spec.domainname.is_empty() {
            setdomainname(spec.domainname.as_bytes())
                .doing(|| format!("set domain name {:?}", spec.domainname))?;
        }
    }
    mounts::keep_private()?;
    let inside = Inside::open(&directories.root())?;
    mounts::mount_all(&inside, &spec.mounts)?;
    mounts::make_devices(&inside, &spec.linux.devices)?;
    mounts::inject(&inside, &request.files, &directories.files())?;
    mounts::put_sockets(&inside, &request.container, &request.sockets)?;
    mounts::enter(&inside)?;
    drop(inside);
    for (name, value) in &spec.linux.sysctl {
        crate::pod::set_sysctl(name, value)?;
    }
    let read_only = spec.root.readonly || request.rootfs.read_only;
    if spec.annotations.contains_key(FILES_ONLY) {
        if read_only {
            mounts::make_root_read_only()?;
        }
        mouth.say(&Word::Ready(None));
        // Only its root is wanted: it waits to be killed, and ends with the agent.
        while mouth.wait() {
            mouth.say(&Word::Failed(invalid("this container is for its files only")));
        }
        sys::exit(1);
    }
    let user_name = spec.process.user_name.as_deref();
    let launch = Launch {
        process: &spec.process,
        seccomp: spec.linux.seccomp.as_ref(),
        user_name: user_name.or(spec.annotations.get(USER_NAME).map(String::as_str)),
        first: true,
        init,
    };
    launch.run(mouth, || {
        if read_only {
            mounts::make_root_read_only()?;
        }
        spec.linux.readonly_paths.iter().try_for_each(|path| mounts::make_read_only(path))?;
        spec.linux.masked_paths.iter().try_for_each(|path| mounts::mask(path))
    })
}

fn namespaces(spec: &Spec) -> libc::c_int {
    let own =
        [("pid", libc::CLONE_NEWPID), ("ipc", libc::CLONE_NEWIPC), ("uts", libc::CLONE_NEWUTS)];
    let wanted = own.into_iter().filter(|(kind, _)| spec.has_own(kind));
    wanted.fold(libc::CLONE_NEWNS, |all, (_, flag)| all | flag)
}

/// The agent's own score protects it; its children start from zero.
pub(super) fn set_oom_score(score: Option<i32>) -> Outcome<()> {
    let score = score.unwrap_or(0);
    kernel_file::put("/proc/self/oom_score_adj", &score.to_string())
        .doing(|| format!("set oom_score_adj {score}"))
}

/// The cgroup a container's first process is in: the container may have moved it further down.
fn cgroup_of(first: Pid) -> Outcome<OwnedFd> {
    let file = format!("/proc/{first}/cgroup");
    let text = fs::read_to_string(&file).doing(|| format!("read {file}"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    cgroup::directory(&Path::new(cgroup::ROOT).join(path)).doing(|| format!("open cgroup /{path}"))
}

pub(super) async fn wait_ready(pid: Pid, ear: Ear) -> Outcome<Waiting> {
    let failed = match hear(pid, &ear).await {
        Ok(Word::Ready(terminal)) => return Ok(Waiting { pid, terminal, ear }),
        Ok(Word::Failed(failure)) | Err(failure) => failure,
        Ok(Word::Done) => failure(FailureKind::Internal, "a child spoke out of turn"),
    };
    let _ended = kill_process(pid, Signal::KILL);
    Err(failed)
}

async fn hear(child: Pid, ear: &Ear) -> Outcome<Word> {
    let gone =
        |why: &str| -> Failure { failure(FailureKind::Internal, format!("child {child}: {why}")) };
    match tokio::time::timeout(DEADLINE, ear.hear()).await {
        Ok(Ok(Some(word))) => Ok(word),
        Ok(Ok(None)) => Err(gone("it died before it was done")),
        Ok(Err(error)) => Err(gone(&error.to_string())),
        Err(_elapsed) => {
            let _ended = kill_process(child, Signal::KILL);
            Err(gone(&format!("not done after {DEADLINE:?}")))
        }
    }
}
