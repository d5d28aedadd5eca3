//! The launcher: makes one jail, as told over the socket on its standard input, and stays as the
//! jail's keeper. See the library's head for the processes. Started by the supervisor only.
//!
//! Single-threaded throughout: `fork` and `clone` are safe here as nowhere else in Hyper. It reads
//! nothing that the hypervisor or a guest could have written.

mod confine;
mod fail;
mod hypervisor;
mod init;
mod keeper;
mod late;
mod root;
mod sys;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use hyper_jail::wire::{self, Order, Report};

use fail::Fail;

fn main() -> ExitCode {
    // Whatever else the supervisor (or who started it) let us inherit is none of the jail's.
    if sys::close_from(3).is_err() {
        return ExitCode::from(2);
    }
    // Standard input moves up so that the jailed program can have 0.
    let Ok(control) = sys::duplicate_high(sys::stdin()) else { return ExitCode::from(2) };
    let (order, fds) = match wire::receive::<Order>(&control) {
        Ok(Some(order)) => order,
        Ok(None) => return ExitCode::from(2),
        Err(error) => {
            eprintln!("hyper-jail is started by Hyper's supervisor, not by hand: {error}");
            return ExitCode::from(2);
        }
    };
    match order {
        Order::Jail(plan) => keeper::run(control, *plan, fds),
        Order::Bind { bind, uid } => tell(&control, late::bind(&bind, uid, &fds)),
        Order::Unbind { targets } => tell(&control, late::unbind(&targets, &fds)),
    }
}

/// What became of an order to a jail that runs.
fn tell(control: &OwnedFd, done: Result<(), Fail>) -> ExitCode {
    let report = done.map_or_else(Fail::report, |()| Report::Bound);
    // The supervisor may be gone; then nobody is there to be told.
    match wire::send(control, &report, &[]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
