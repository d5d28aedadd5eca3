//! The generation id of a guest (Microsoft, Virtual Machine Generation ID; Linux,
//! drivers/virt/vmgenid.c): 16 bytes in its memory that are others in every guest that goes on from the same saved
//! one, and an interrupt that says so. With that interrupt, before it does anything else, its kernel reseeds its
//! random numbers. It is told of both on its command line (kernel/patches/0020); a kernel that does not know the word
//! leaves them alone.

use kvm_ioctls::VmFd;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes as _, GuestAddress};

use crate::VmmError;
use crate::boot::GENERATION;
use crate::memory::Memory;

/// The second serial port's on a PC, which no guest has.
const LINE: u32 = 3;
const BYTES: usize = 16;

/// The word of the command line.
pub(crate) fn word() -> String {
    format!(" vmgenid.device={GENERATION:#x}:{LINE}")
}

/// Gives a guest an id of its own.
pub(crate) fn set(memory: &Memory) -> Result<(), VmmError> {
    let mut id = [0; BYTES];
    let got = getrandom(&mut id, GetRandomFlags::empty());
    if got != Ok(BYTES) {
        let why = format!("the host gave {got:?}, not {BYTES} random bytes");
        return Err(VmmError::Memory { doing: "fill the generation id in", why });
    }
    memory.write_slice(&id, GuestAddress(GENERATION)).map_err(|error| VmmError::Memory {
        doing: "write the generation id to",
        why: error.to_string(),
    })
}

/// Tells a guest whose CPUs and interrupt controllers are as they were saved, and do not run yet: an edge, as the MP
/// table says.
pub(crate) fn tell(vm: &VmFd) -> Result<(), VmmError> {
    for level in [true, false] {
        vm.set_irq_line(LINE, level).map_err(VmmError::kvm("tell a guest its generation"))?;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_two_guests_have_the_same() {
        let read =
            |memory: &Memory| memory.read_obj::<[u8; BYTES]>(GuestAddress(GENERATION)).unwrap();
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        set(&memory).unwrap();
        let first = read(&memory);
        set(&memory).unwrap();
        assert_ne!(first, read(&memory));
        assert!(first.iter().any(|byte| *byte != 0));
    }
}
