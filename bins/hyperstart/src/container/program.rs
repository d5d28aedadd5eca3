//! The last steps of a process before it becomes its program: terminal, limits, user, privileges.
//!
//! Runs inside the container, in a child of the agent. The order matters: what needs privileges
//! comes before they are given up, and the seccomp filter as late as privileges allow.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use hyper_files::user;
use hyper_link::message::FailureKind;
use rustix::{
    fs::{Access, AtFlags, Gid, Mode, OFlags, Uid, accessat, fchown, stat},
    mount::mount_bind,
    process::{Pid, Resource, Rlimit, chdir, ioctl_tiocsctty, prlimit, setsid, umask},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout},
    termios::{Winsize, tcsetwinsize},
    thread::{
        set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use super::{
    inside::Inside,
    talk::{Mouth, Word},
};
use crate::{
    failure::{Doing as _, Outcome, failure, invalid, unknown_user},
    oci::{
        capability,
        seccomp::Filter,
        spec::{ConsoleSize, Process, Seccomp},
    },
};

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process about to become its program.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) process: &'a Process,
    pub(super) seccomp: Option<&'a Seccomp>,
    /// The user by name, if the image is to say who that is.
    pub(super) user_name: Option<&'a str>,
    /// The container's first process: its working directory is made, its terminal is the console.
    pub(super) first: bool,
    /// The agent's program, if it is to become [`crate::init`] and run the program below itself.
    pub(super) init: Option<OwnedFd>,
}

impl Launch<'_> {
    /// Sets this process up, waits to be told to go, and becomes the program; returns why not.
    ///
    /// `before_user` runs when the terminal exists and before privileges are given up.
    pub(super) fn run(
        &self,
        mouth: &Mouth,
        before_user: impl FnOnce() -> Outcome<()>,
    ) -> Outcome<std::convert::Infallible> {
        let process = self.process;
        let passwd = user::read(Path::new("/"), "etc/passwd");
        let who = self.who(&passwd)?;
        setsid().doing(|| "start a session".to_owned())?;
        let terminal = if process.terminal { Some(self.terminal(who.uid)?) } else { None };
        if terminal.is_none() {
            own_stdio(who.uid)?;
        }
        if self.first {
            Inside::open(Path::new("/"))?.directory(working_directory(process))?;
        }
        before_user()?;

        let capabilities =
            process.capabilities.as_ref().map(capability::Sets::parse).transpose()?;
        let filter = self.seccomp.map(Filter::compile).transpose()?;
        set_limits(process)?;
        umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
        let early_directory = chdir(working_directory(process));
        if process.no_new_privileges {
            set_no_new_privs(true).doing(|| "set no_new_privs".to_owned())?;
        } else if let Some(filter) = &filter {
            // Later there may be no privilege left to load it.
            filter.load()?;
        }
        if let Some(capabilities) = &capabilities {
            capabilities.bound()?;
        }
        become_user(&who)?;
        if let Some(capabilities) = &capabilities {
            capabilities.apply()?;
        }
        // A directory only the user may enter, or only root: either way will do.
        if early_directory.is_err() {
            let directory = working_directory(process);
            chdir(directory).doing_as(FailureKind::InvalidArgument, || {
                format!("change to working directory {directory}")
            })?;
        }
        let (program, arguments, environment) = self.words(who.home)?;
        if let Some(filter) = filter.filter(|_| process.no_new_privileges) {
            filter.load()?;
        }
        mouth.say(&Word::Ready(terminal));
        if !mouth.wait() {
            crate::sys::exit(1);
        }
        let error = match &self.init {
            None => crate::sys::execute(&program, &arguments, &environment),
            Some(init) => {
                let name = CString::new(crate::init::NAME).doing(|| "process.args".to_owned())?;
                let words: Vec<CString> =
                    [name, program.clone()].into_iter().chain(arguments).collect();
                crate::sys::execute_file(init.as_fd(), &words, &environment)
            }
        };
        Err(refusal(&program, &error))
    }

    fn who(&self, passwd: &str) -> Outcome<user::Identity> {
        let user = &self.process.user;
        let mut who = match self.user_name {
            Some(name) => user::resolve(name, passwd, &user::read(Path::new("/"), "etc/group"))
                .map_err(|error| unknown_user(&error))?,
            None => user::Identity {
                uid: user.uid,
                gid: user.gid,
                groups: Vec::new(),
                home: user::home(user.uid, passwd),
            },
        };
        who.groups.extend(&user.additional_gids);
        if !self.process.group_names.is_empty() {
            let group = user::read(Path::new("/"), "etc/group");
            for name in &self.process.group_names {
                who.groups.push(user::group(name, &group).map_err(|error| unknown_user(&error))?);
            }
        }
        Ok(who)
    }

    /// Makes a terminal of the container's own, this process's controlling one; returns the
    /// master.
    fn terminal(&self, uid: u32) -> Outcome<OwnedFd> {
        let make = || -> io::Result<OwnedFd> {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty())?;
            unlockpt(&master)?;
            let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let slave = ioctl_tiocgptpeer(&master, peer)?;
            tcsetwinsize(&master, first_size(self.process.console_size))?;
            fchown(&slave, Some(Uid::from_raw(uid)), None)?;
            ioctl_tiocsctty(&slave)?;
            if self.first {
                let name = rustix::pty::ptsname(&master, Vec::new())?;
                let console = OFlags::CREATE | OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::open("/dev/console", console, Mode::from_raw_mode(0o666))?;
                mount_bind(name.as_c_str(), c"/dev/console")?;
            }
            dup2_stdin(&slave)?;
            dup2_stdout(&slave)?;
            dup2_stderr(&slave)?;
            Ok(master)
        };
        make().doing(|| "make a terminal from /dev/pts/ptmx".to_owned())
    }

    /// Program, arguments and environment, as `execve` takes them.
    fn words(&self, home: Option<String>) -> Outcome<(CString, Vec<CString>, Vec<CString>)> {
        let process = self.process;
        let name = process.args.first().ok_or_else(|| invalid("process.args is empty"))?;
        let strings = |what: &str, words: &[String]| -> Outcome<Vec<CString>> {
            let convert = |word: &String| CString::new(word.as_str());
            let converted: Result<_, _> = words.iter().map(convert).collect();
            converted.doing_as(FailureKind::InvalidArgument, || format!("process.{what}"))
        };
        let path = process.env.iter().find_map(|word| word.strip_prefix("PATH="));
        let program = find_program(name, path.unwrap_or(DEFAULT_PATH))?;
        let mut environment = strings("env", &process.env)?;
        if !process.env.iter().any(|word| word.starts_with("HOME=")) {
            let home = format!("HOME={}", home.unwrap_or_else(|| "/".to_owned()));
            environment.extend(CString::new(home));
        }
        Ok((program, strings("args", &process.args)?, environment))
    }
}

/// The kernel's form of a terminal size.
pub(crate) fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A terminal's size until its client says. Some programs take 0 by 0 for an error.
fn first_size(wanted: Option<ConsoleSize>) -> Winsize {
    match wanted {
        Some(ConsoleSize { height: height @ 1.., width: width @ 1.. }) => winsize(height, width),
        _ => winsize(24, 80),
    }
}

fn working_directory(process: &Process) -> &str {
    if process.cwd.is_empty() { "/" } else { &process.cwd }
}

/// Lets the process's user open /dev/stdout and its like again: pipes belong to who made them.
fn own_stdio(uid: u32) -> Outcome<()> {
    for fd in [stdin(), stdout(), stderr()] {
        let kind = rustix::fs::fstat(fd).doing(|| "look at standard streams".to_owned())?;
        // /dev/null stays everybody's.
        if rustix::fs::FileType::from_raw_mode(kind.st_mode).is_fifo() {
            fchown(fd.as_fd(), Some(Uid::from_raw(uid)), None)
                .doing(|| format!("give standard streams to user {uid}"))?;
        }
    }
    Ok(())
}

fn set_limits(process: &Process) -> Outcome<()> {
    for limit in &process.rlimits {
        let resource = match limit.kind.as_str() {
            "RLIMIT_AS" => Resource::As,
            "RLIMIT_CORE" => Resource::Core,
            "RLIMIT_CPU" => Resource::Cpu,
            "RLIMIT_DATA" => Resource::Data,
            "RLIMIT_FSIZE" => Resource::Fsize,
            "RLIMIT_LOCKS" => Resource::Locks,
            "RLIMIT_MEMLOCK" => Resource::Memlock,
            "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
            "RLIMIT_NICE" => Resource::Nice,
            "RLIMIT_NOFILE" => Resource::Nofile,
            "RLIMIT_NPROC" => Resource::Nproc,
            "RLIMIT_RSS" => Resource::Rss,
            "RLIMIT_RTPRIO" => Resource::Rtprio,
            "RLIMIT_RTTIME" => Resource::Rttime,
            "RLIMIT_SIGPENDING" => Resource::Sigpending,
            "RLIMIT_STACK" => Resource::Stack,
            other => return Err(invalid(format!("process.rlimits: {other} is unknown"))),
        };
        let number = |value: u64| (value != u64::MAX).then_some(value);
        let new = Rlimit { current: number(limit.soft), maximum: number(limit.hard) };
        prlimit(None::<Pid>, resource, new).doing_as(FailureKind::InvalidArgument, || {
            format!("set {} to {}:{}", limit.kind, limit.soft, limit.hard)
        })?;
    }
    Ok(())
}

/// Takes on the user's ids and groups; capabilities stay until they are set.
fn become_user(who: &user::Identity) -> Outcome<()> {
    let groups: Vec<Gid> = who.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    let change = || {
        set_keep_capabilities(true)?;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        set_keep_capabilities(false)
    };
    change().doing(|| format!("become user {}:{}", who.uid, who.gid))
}

/// The file that `name` means, as a shell would find it.
///
/// # Errors
/// `CommandNotFound` or `NotExecutable`, in the words of runc.
fn find_program(name: &str, path: &str) -> Outcome<CString> {
    let convert = |file: String| CString::new(file).doing(|| "process.args[0]".to_owned());
    if name.contains('/') {
        return match usable(name) {
            Ok(()) => convert(name.to_owned()),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(failure(
                FailureKind::CommandNotFound,
                format!("exec: {name:?}: stat {name}: no such file or directory"),
            )),
            Err(_) => Err(not_executable(name)),
        };
    }
    let mut there = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let file = format!("{directory}/{name}");
        match usable(&file) {
            Ok(()) if !name.is_empty() => return convert(file),
            Err(rustix::io::Errno::ACCESS) => there = true,
            _ => {}
        }
    }
    if there {
        return Err(not_executable(name));
    }
    let message = format!("exec: {name:?}: executable file not found in $PATH");
    Err(failure(FailureKind::CommandNotFound, message))
}

fn not_executable(name: &str) -> hyper_link::message::Failure {
    failure(FailureKind::NotExecutable, format!("exec: {name:?}: permission denied"))
}

fn usable(file: &str) -> rustix::io::Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(stat(file)?.st_mode);
    if !kind.is_file() {
        return Err(rustix::io::Errno::ACCESS);
    }
    accessat(rustix::fs::CWD, file, Access::EXEC_OK, AtFlags::EACCESS)
}

fn refusal(program: &CStr, error: &io::Error) -> hyper_link::message::Failure {
    let kind = match error.raw_os_error() {
        // The file was found, so it is its interpreter that is missing.
        Some(libc::ENOENT) => FailureKind::CommandNotFound,
        _ => FailureKind::NotExecutable,
    };
    failure(kind, format!("exec {}: {error}", program.to_string_lossy()))
}
