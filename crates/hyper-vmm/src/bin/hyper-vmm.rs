//! Runs one guest on the descriptors it was started with: see the library.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match hyper_vmm::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hyper-vmm: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}
