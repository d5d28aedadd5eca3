//! The control queue (virtio 1.2, 5.1.6.5): by it the driver says how many pairs of queues it uses. All else that
//! could be said by it was not offered, and is refused.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;

use super::tap::Tap;
use crate::memory::Memory;
use crate::virtio::Live;
use crate::virtio::buffers::{Buffers, gather, scatter};
use crate::virtio::requests::serve;
use crate::virtio::worker::Worker;

/// `VIRTIO_NET_CTRL_MQ`, `VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`.
const PAIRS_SET: [u8; 2] = [4, 0];
const OK: u8 = 0;
const ERR: u8 = 1;
/// A command, and the number of pairs.
const BYTES: usize = 4;

/// System calls of its thread: the tap's queues are attached and detached, not too often.
const CALLS: &[i64] = &[libc::SYS_clock_gettime, libc::SYS_clock_nanosleep, libc::SYS_ioctl];

/// Its thread.
#[derive(Debug)]
pub(super) struct Control(Worker<Live>);

impl Control {
    pub fn start(name: &str, tap: Arc<Tap>, live: Live) -> io::Result<Self> {
        let answer = move |memory: &Memory, buffers: Option<Buffers>| {
            let Some(buffers) = buffers else { return Ok(0) };
            let mut command = [0; BYTES];
            let told = gather(memory, &buffers.readable, &mut command)?;
            scatter(memory, &buffers.writable, &[obey(&tap, &command[..told])])
        };
        let work = move |live: &mut Live, stop: &_| {
            serve(live, stop, |memory, _, buffers| answer(memory, buffers))
        };
        Worker::start(&format!("{name}.control"), CALLS, live, work).map(Self)
    }

    /// Ends the thread; its queue, or `None` when it panicked.
    pub fn stop(self) -> Option<Vec<Queue>> {
        self.0.stop().map(|live| live.queues)
    }
}

fn obey(tap: &Tap, command: &[u8]) -> u8 {
    let [class, command, low, high] = *command else { return ERR };
    let pairs = usize::from(u16::from_le_bytes([low, high]));
    if [class, command] != PAIRS_SET || !(1..=tap.pairs()).contains(&pairs) {
        return ERR;
    }
    if tap.attach(pairs).is_ok() { OK } else { ERR }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_driver_gets_as_many_pairs_as_there_are() {
        let file = || std::fs::File::open("/dev/null").unwrap().into();
        let tap = Tap::new(vec![file(), file(), file()]).unwrap();
        let attached = || (0..3).map(|at| tap.is_attached(at)).collect::<Vec<_>>();
        assert_eq!(attached(), [true, false, false]);
        for (command, said, after) in [
            (&[4, 0, 2, 0][..], OK, [true, true, false]),
            (&[4, 0, 3, 0], OK, [true, true, true]),
            (&[4, 0, 0, 0], ERR, [true, true, true]),
            (&[4, 0, 4, 0], ERR, [true, true, true]),
            (&[4, 0, 1, 1], ERR, [true, true, true]),
            (&[4, 1, 1, 0], ERR, [true, true, true]),
            (&[0, 0, 1, 0], ERR, [true, true, true]),
            (&[4, 0, 1], ERR, [true, true, true]),
            (&[4, 0, 1, 0], OK, [true, false, false]),
        ] {
            assert_eq!((obey(&tap, command), attached()), (said, after.to_vec()), "{command:?}");
        }
        assert_eq!(tap.save().pairs, Some(1));
    }
}
