//! The main thread: reads the configuration, makes the guest, answers requests until its end.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::VmmError;
use crate::config::{Config, MAX_EXTENTS, fd};
use crate::event::Event;
use crate::machine::{self, Given, Machine};
use crate::metrics::Clock;
use crate::wire::{Answer, End, MAX_LINE, Request};

const SHRANK: &str = "the file of a mapped disk became shorter";

/// Runs one guest on the descriptors of [`crate::config::fd`]; returns when it has ended. The error
/// has been told on the control socket, too.
pub fn run() -> Result<(), VmmError> {
    let mut given = Given::default();
    let socket = UnixStream::from(given.take(fd::CONTROL)?);
    let mut lines = Lines::new(socket.try_clone().map_err(VmmError::io("use the socket"))?);
    let answers = Arc::new(Mutex::new(socket));
    let Some(line) = lines.next().map_err(VmmError::io("read the configuration"))? else {
        return Ok(());
    };
    let clock = Clock::start();
    let (tell, events) = mpsc::channel();
    let made =
        parse(&line).and_then(|config: Config| Machine::make(&config, &mut given, &tell, clock));
    let machine = match made {
        Ok(machine) => Arc::new(machine),
        Err(error) => {
            say(&answers, &Answer::Refused { why: error.chain() });
            return Err(error);
        }
    };
    machine.go_on();
    say(&answers, &Answer::Ready);

    // The end is told by a thread of its own, which also makes threads for others, as requests are waited for without a limit.
    let (kept, told) = (Arc::clone(&machine), Arc::clone(&answers));
    let named = std::thread::Builder::new().name("end".to_owned()).stack_size(128 << 10);
    named
        .spawn(move || {
            let how = loop {
                let event = match kept.images.look() {
                    None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                    Some(look) => events.recv_timeout(look),
                };
                match event {
                    Ok(Event::Make(order)) => order(),
                    Ok(Event::Ended(how)) => break how,
                    Err(RecvTimeoutError::Timeout) if kept.images.shrank() => {
                        break End::Failed { why: SHRANK.to_owned() };
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break End::Quit,
                }
            };
            // Other CPUs may still run: they must not write behind the disks' last flush.
            kept.cpus.pause();
            kept.finish();
            say(&told, &Answer::Ended { how });
            std::process::exit(0);
        })
        .map_err(VmmError::io("start a thread"))?;
    let asked = converse(&machine, &mut lines, &answers);
    // No more requests: the adapter is gone or wants the guest gone.
    let _ = tell.send(Event::Ended(End::Quit));
    asked?;
    loop {
        std::thread::park();
    }
}

fn converse(
    machine: &Machine,
    lines: &mut Lines,
    answers: &Mutex<UnixStream>,
) -> Result<(), VmmError> {
    while let Some(line) = lines.next().map_err(VmmError::io("read a request"))? {
        let files = lines.take_files();
        let answer = match parse(&line) {
            Ok(Request::Quit) => return Ok(()),
            Ok(request) => carry_out(machine, request, files),
            Err(error) => Err(error),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Refused { why: error.chain() });
        say(answers, &answer);
    }
    Ok(())
}

fn carry_out(machine: &Machine, request: Request, files: Vec<OwnedFd>) -> Result<Answer, VmmError> {
    match request {
        Request::Pause => machine.cpus.pause(),
        Request::Resume => machine.cpus.resume(),
        Request::AddDisk { place, disk } => {
            machine.add_disk(place, machine::open_disk(&disk, files)?)?;
        }
        Request::RemoveDisk { place } => machine.remove_disk(place)?,
        Request::Limit { devices, rates } => machine.limit(devices, rates),
        Request::SetMemory { bytes } => machine.set_memory(bytes)?,
        Request::Memory => {
            let (wanted, has) = machine.memory();
            return Ok(Answer::Memory { wanted, has });
        }
        Request::Save => {
            let [state, memory] = <[OwnedFd; 2]>::try_from(files).map_err(|files| {
                let why = format!("{} descriptors came with it, not 2", files.len());
                VmmError::Config { what: "files to save to", why }
            })?;
            machine.save(&mut state.into(), &memory.into())?;
        }
        Request::Metrics => return Ok(Answer::Metrics { metrics: machine.metrics() }),
        Request::Quit => {}
    }
    Ok(Answer::Done)
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, VmmError> {
    serde_json::from_slice(line)
        .map_err(|error| VmmError::Config { what: "a message", why: error.to_string() })
}

/// Says something; an adapter that does not listen any more closes its end, which is seen
/// elsewhere.
fn say(answers: &Mutex<UnixStream>, answer: &Answer) {
    let Ok(mut line) = serde_json::to_vec(answer) else { return };
    line.push(b'\n');
    let mut socket = answers.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = socket.write_all(&line);
}

/// Whole lines, and the descriptors that came with them.
#[derive(Debug)]
struct Lines {
    socket: UnixStream,
    read: VecDeque<u8>,
    files: Vec<OwnedFd>,
}

impl Lines {
    fn new(socket: UnixStream) -> Self {
        Self { socket, read: VecDeque::new(), files: Vec::new() }
    }

    fn take_files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.read.len() > MAX_LINE {
                return Err(io::Error::other("a line is longer than 64 KiB"));
            }
            if !self.receive()? {
                return Ok(None);
            }
        }
    }

    fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_EXTENTS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [IoSliceMut::new(&mut chunk)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(&self.socket, &mut vectors, &mut control, flags) {
            Err(rustix::io::Errno::INTR) => return Ok(true),
            other => other?,
        };
        for said in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = said {
                self.files.extend(files);
            }
        }
        self.read.extend(&chunk[..message.bytes]);
        Ok(message.bytes > 0)
    }
}
