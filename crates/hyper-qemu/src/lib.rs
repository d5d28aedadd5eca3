//! Port adapter: QEMU, with KVM where it works, else TCG.
#![forbid(unsafe_code)]
