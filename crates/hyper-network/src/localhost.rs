//! All TCP ports of a namespace's localhost, by two sockets: who connects to any of them is given to us,
//! and which port it was the connection's own address says.
//!
//! containerd's `port-forward` connects to localhost in the pod's namespace on the host, where the
//! guest is not. A BPF program in place of the lookup of who listens (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9:
//! Documentation/bpf/prog_sk_lookup.rst) needs no packet filter, no connection tracking and no other program.
#![expect(unsafe_code, reason = "bpf(2); the crates that wrap it bring a loader of ELF files")]

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use crate::error::{NetworkError, Result, file};
use crate::namespace;

/// Commands and types of `linux/bpf.h`.
const MAP_CREATE: u32 = 0;
const MAP_UPDATE: u32 = 2;
const PROGRAM_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const SOCKMAP: u32 = 15;
const SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

/// What listens on localhost of a namespace, until it is dropped. Neither socket blocks.
#[derive(Debug)]
pub struct Localhost {
    pub v4: TcpListener,
    /// Absent where there is no IPv6.
    pub v6: Option<TcpListener>,
    _program: OwnedFd,
}

/// Takes all TCP ports of localhost of the namespace at `path`. Blocking, for about a millisecond.
///
/// # Errors
/// [`NetworkError::File`]: no such namespace, no right to (`CAP_NET_ADMIN` and `CAP_BPF`), or a kernel
/// without such programs.
pub fn take(path: &Path) -> Result<Localhost> {
    let place = path.to_owned();
    namespace::within(path, move || {
        let failed = || file("take localhost of network namespace", &place);
        let namespace = File::open(&place).map_err(failed())?;
        let listen = |listener: TcpListener| listener.set_nonblocking(true).map(|()| listener);
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(listen).map_err(failed())?;
        let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).and_then(listen).ok();
        let sockets = [Some(v4.as_raw_fd()), v6.as_ref().map(TcpListener::as_raw_fd)];
        let program = attach(namespace.as_raw_fd(), &sockets).map_err(failed())?;
        Ok::<_, NetworkError>(Localhost { v4, v6, _program: program })
    })
}

/// Puts the sockets in a map and the program that chooses among them before the namespace's lookups; it goes with the
/// descriptor.
fn attach(namespace: RawFd, sockets: &[Option<RawFd>; 2]) -> io::Result<OwnedFd> {
    let map = bpf(MAP_CREATE, &Attributes::new().u32(0, SOCKMAP).u32(4, 4).u32(8, 4).u32(12, 2))?;
    for (key, socket) in (0u32..).zip(sockets) {
        let Some(socket) = socket else { continue };
        let (key, value) = (key.to_ne_bytes(), socket.to_ne_bytes());
        let update = Attributes::new().fd(0, map.as_raw_fd()).at(8, &key).at(16, &value);
        call(MAP_UPDATE, &update)?;
    }
    let program = chooser(map.as_raw_fd());
    let code: Vec<u8> = program.iter().flat_map(Instruction::bytes).collect();
    let count = u32::try_from(program.len()).unwrap_or(u32::MAX);
    let licence = b"Apache-2.0\0";
    let load = Attributes::new().u32(0, SK_LOOKUP).u32(4, count).at(8, &code).at(16, licence);
    let program = bpf(PROGRAM_LOAD, &load.u32(68, ATTACH_SK_LOOKUP))?;
    let link = Attributes::new().fd(0, program.as_raw_fd()).fd(4, namespace);
    bpf(LINK_CREATE, &link.u32(8, ATTACH_SK_LOOKUP))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    to: u8,
    from: u8,
    offset: i16,
    value: i32,
}

impl Instruction {
    fn bytes(&self) -> [u8; 8] {
        let mut bytes = [self.code, self.from << 4 | self.to, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.value.to_ne_bytes());
        bytes
    }
}

/// Connections by TCP to 127.0.0.0/8 go to the map's first socket, those to `::1` to its second; all
/// others are looked up as ever. What it reads is `struct bpf_sk_lookup`.
fn chooser(map: RawFd) -> Vec<Instruction> {
    const LOAD_WORD: u8 = 0x61;
    const STORE_WORD: u8 = 0x63;
    const LOAD_MAP: u8 = 0x18;
    const AND: u8 = 0x54;
    const ADD: u8 = 0x07;
    const MOVE: u8 = 0xb7;
    const MOVE_REGISTER: u8 = 0xbf;
    const JUMP: u8 = 0x05;
    const IF_EQUAL: u8 = 0x15;
    const UNLESS_EQUAL: u8 = 0x55;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const LOOK_UP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    /// An offset: to the end, where nothing was chosen.
    const END: i16 = i16::MAX;
    let i = |code, to, from, offset, value| Instruction { code, to, from, offset, value };
    // Words of the network's order, as they read here.
    let first_byte = i32::from_ne_bytes([0xff, 0, 0, 0]);
    let local = i32::from_ne_bytes([127, 0, 0, 0]);
    let one = i32::from_ne_bytes([0, 0, 0, 1]);
    let mut program = vec![
        i(MOVE_REGISTER, 6, 1, 0, 0),
        i(MOVE, 7, 0, 0, 0),
        i(LOAD_WORD, 2, 6, 12, 0),
        i(UNLESS_EQUAL, 2, 0, END, libc::IPPROTO_TCP),
        i(LOAD_WORD, 2, 6, 8, 0),
        i(UNLESS_EQUAL, 2, 0, 4, libc::AF_INET),
        i(LOAD_WORD, 2, 6, 40, 0),
        i(AND, 2, 0, 0, first_byte),
        i(UNLESS_EQUAL, 2, 0, END, local),
        i(JUMP, 0, 0, 9, 0),
        // IPv6: its four words.
        i(LOAD_WORD, 2, 6, 44, 0),
        i(UNLESS_EQUAL, 2, 0, END, 0),
        i(LOAD_WORD, 2, 6, 48, 0),
        i(UNLESS_EQUAL, 2, 0, END, 0),
        i(LOAD_WORD, 2, 6, 52, 0),
        i(UNLESS_EQUAL, 2, 0, END, 0),
        i(LOAD_WORD, 2, 6, 56, 0),
        i(UNLESS_EQUAL, 2, 0, END, one),
        i(MOVE, 7, 0, 0, 1),
        // The key is on the stack. A map's descriptor takes two instructions.
        i(STORE_WORD, 10, 7, -4, 0),
        i(LOAD_MAP, 1, 1, 0, map),
        i(0, 0, 0, 0, 0),
        i(MOVE_REGISTER, 2, 10, 0, 0),
        i(ADD, 2, 0, 0, -4),
        i(CALL, 0, 0, 0, LOOK_UP),
        i(IF_EQUAL, 0, 0, END, 0),
        i(MOVE_REGISTER, 7, 0, 0, 0),
        i(MOVE_REGISTER, 1, 6, 0, 0),
        i(MOVE_REGISTER, 2, 7, 0, 0),
        i(MOVE, 3, 0, 0, 0),
        i(CALL, 0, 0, 0, ASSIGN),
        i(MOVE_REGISTER, 1, 7, 0, 0),
        i(CALL, 0, 0, 0, RELEASE),
    ];
    let end = program.len();
    for (at, instruction) in program.iter_mut().enumerate() {
        if instruction.offset == END {
            instruction.offset = i16::try_from(end - at - 1).unwrap_or(END);
        }
    }
    // SK_PASS: with what was chosen, if anything was.
    program.extend([i(MOVE, 0, 0, 0, 1), i(EXIT, 0, 0, 0, 0)]);
    program
}

/// A `union bpf_attr`, and what it points to.
#[derive(Debug, Clone, Copy)]
struct Attributes<'a> {
    bytes: Bytes,
    pointed_to: PhantomData<&'a [u8]>,
}

/// As long as the longest that is used, and aligned as the kernel's.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Bytes([u8; 72]);

impl<'a> Attributes<'a> {
    fn new() -> Self {
        Self { bytes: Bytes([0; 72]), pointed_to: PhantomData }
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.bytes.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn fd(self, offset: usize, descriptor: RawFd) -> Self {
        self.u32(offset, descriptor.cast_unsigned())
    }

    fn at(mut self, offset: usize, memory: &'a [u8]) -> Self {
        let address = memory.as_ptr() as u64;
        self.bytes.0[offset..offset + 8].copy_from_slice(&address.to_ne_bytes());
        self
    }
}

/// A command whose result is a new descriptor.
fn bpf(command: u32, attributes: &Attributes<'_>) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the kernel made it for this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call(command: u32, attributes: &Attributes<'_>) -> io::Result<RawFd> {
    let bytes = &attributes.bytes;
    // SAFETY: the kernel reads `size` bytes of attributes, which are all there, and behind the addresses in
    // them what the commands used here name the length of, which `Attributes` borrows; it writes to none.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *bytes, size_of::<Bytes>()) };
    match RawFd::try_from(result) {
        Ok(descriptor) if descriptor >= 0 => Ok(descriptor),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod test {
    use std::io::{Read as _, Write as _};
    use std::net::{IpAddr, SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Runs `work` in a network namespace of its own, with localhost; nothing where that may not be made.
    fn apart(work: impl FnOnce(&Path) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        if let Err(error) = namespace::create(&path) {
            assert!(std::env::var_os("HYPER_REQUIRE_GUESTS").is_none(), "{error}");
            eprintln!("no network namespace can be made here: {error}");
            return;
        }
        let up = namespace::within(&path, || {
            let mut netlink = crate::Netlink::open().map_err(file("open", "rtnetlink"))?;
            let lo = netlink.link("lo")?.expect("each namespace has one");
            netlink.add_address(lo.index, "10.9.9.9/32".parse().expect("an address"))?;
            netlink.up(lo.index)
        });
        up.unwrap();
        work(&path);
        namespace::remove(&path);
    }

    #[test]
    fn every_port_of_localhost_is_ours_and_no_other() {
        apart(|path| {
            let taken = take(path).unwrap();
            taken.v4.set_nonblocking(false).unwrap();
            let own = taken.v4.local_addr().unwrap();
            let connect = |ip: &str, port: u16| {
                let at = SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port);
                namespace::within(path, move || {
                    TcpStream::connect_timeout(&at, Duration::from_secs(5))
                        .map_err(file("connect", at.to_string()))
                })
            };
            for port in [1, 80, 65535, own.port()] {
                let mut client = connect("127.0.0.1", port).unwrap();
                let (mut server, _) = taken.v4.accept().unwrap();
                assert_eq!(server.local_addr().unwrap().port(), port);
                client.write_all(b"hello").unwrap();
                let mut said = [0; 5];
                server.read_exact(&mut said).unwrap();
                assert_eq!(&said, b"hello");
            }
            if let Some(v6) = &taken.v6 {
                v6.set_nonblocking(false).unwrap();
                let _client = connect("::1", 443).unwrap();
                let (server, _) = v6.accept().unwrap();
                assert_eq!(server.local_addr().unwrap().port(), 443);
            }
            connect("10.9.9.9", 80).unwrap_err();
            drop(taken);
            connect("127.0.0.1", 80).unwrap_err();
        });
    }

    #[test]
    fn without_a_namespace_it_is_named() {
        let error = take(Path::new("/nowhere/ns")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/ns"), "{error}");
    }
}
