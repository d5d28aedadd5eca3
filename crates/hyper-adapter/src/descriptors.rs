//! Descriptors on their way into a jail: sockets to the hypervisor, and what a guest is made of.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use hyper_hypervisor::{Nic, Share, VmError};
use hyper_jail::JailSpec;
use tokio::net::{UnixStream, unix::pipe};

const STDERR: i32 = 2;

/// What a process in a jail is given, with the numbers it has there.
#[derive(Debug)]
pub struct Descriptors {
    given: Vec<(OwnedFd, i32)>,
    free: i32,
}

impl Descriptors {
    /// None yet; those without a number of their own are counted from `free` on.
    pub fn new(free: i32) -> Self {
        Self { given: Vec::new(), free }
    }

    /// Gives one as `number`, which is below the first free one.
    pub fn put(&mut self, file: impl Into<OwnedFd>, number: i32) {
        self.given.push((file.into(), number));
    }

    /// Gives one as the next free number, and says which.
    pub fn pass(&mut self, file: impl Into<OwnedFd>) -> i32 {
        let number = self.free;
        self.free += 1;
        self.put(file, number);
        number
    }

    /// Gives one end of a new pair of sockets as `number`, and returns the other.
    pub fn socket(&mut self, number: i32) -> Result<UnixStream, VmError> {
        let (ours, theirs) = pair()?;
        self.put(theirs, number);
        Ok(ours)
    }

    /// Gives the writing end of a new pipe as standard error, and returns the other.
    pub fn errors(&mut self) -> Result<pipe::Receiver, VmError> {
        let make = || {
            let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            Ok((pipe::Receiver::from_owned_fd(ours)?, theirs))
        };
        let made = make().map_err(|source| VmError::Io { what: "make a pipe", source });
        let (ours, theirs) = made?;
        self.put(theirs, STDERR);
        Ok(ours)
    }

    /// Hands all to a jail.
    pub fn give(self, spec: JailSpec) -> JailSpec {
        self.given.into_iter().fold(spec, |spec, (file, number)| spec.fd(file, number))
    }
}

/// A pair of sockets: ours, and one for the process, which blocks.
pub fn pair() -> Result<(UnixStream, OwnedFd), VmError> {
    let make = || {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((UnixStream::from_std(ours)?, theirs.into()))
    };
    make().map_err(|source| VmError::Io { what: "make a pair of sockets", source })
}

/// Descriptors of a network device's tap, one for each of its queues, for the process to keep.
pub fn taps(nic: &Nic) -> Result<Vec<OwnedFd>, VmError> {
    let taps = nic.tap.iter().map(|queue| queue.try_clone()).collect::<Result<_, _>>();
    taps.map_err(|source| VmError::Io { what: "duplicate a tap's descriptor", source })
}

/// As [`taps`], of one with one queue.
pub fn tap(nic: &Nic) -> Result<OwnedFd, VmError> {
    let mut taps = taps(nic)?;
    match (taps.pop(), taps.len()) {
        (Some(tap), 0) => Ok(tap),
        (_, more) => {
            let source = std::io::Error::other(format!("it has {} queues, not one", more + 1));
            Err(VmError::Io { what: "use a tap", source })
        }
    }
}

/// What lets the host's kernel serve a network device; hosts without the module do without. Blocks.
pub fn vhost_net() -> Option<OwnedFd> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-net");
    opened.ok().map(OwnedFd::from)
}

/// A connection to the device of shared directories: the only one it takes. Blocks.
pub fn connect(share: &Share) -> Result<OwnedFd, VmError> {
    let connected = StdStream::connect(&share.socket);
    connected.map(OwnedFd::from).map_err(|source| VmError::File {
        what: "connect to the device of shared directories",
        path: share.socket.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[tokio::test]
    async fn numbers_are_given_once_and_from_the_first_free_one_on() {
        let mut given = Descriptors::new(6);
        let null = || File::open("/dev/null").unwrap();
        assert_eq!(given.pass(null()), 6);
        let _ours = given.socket(4).unwrap();
        let _errors = given.errors().unwrap();
        given.put(null(), 3);
        assert_eq!(given.pass(null()), 7);
        let numbers: Vec<_> = given.given.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers, [6, 4, 2, 3, 7]);
    }
}
