//! The signal that makes a thread leave `KVM_RUN`.

use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::thread::JoinHandle;

/// Nothing else here uses it.
fn number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn ignore(_: i32) {}

/// Installs a handler that does nothing: what counts is the interruption.
pub(super) fn prepare() -> io::Result<()> {
    // SAFETY: all of `sigaction` may be zero; the handler does nothing and so is safe at any time.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as extern "C" fn(i32) as usize;
        libc::sigaction(number(), &raw const action, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Interrupts a thread.
pub(super) fn send(thread: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, since we have its handle.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), number()) };
}
