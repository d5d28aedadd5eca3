//! `hyper`: the command line. It speaks the Docker Engine API to hyperd and knows nothing else.
//!
//! Exit codes are Docker's: the container's own, 125 when the engine refused, 126 when the command
//! cannot be executed, 127 when it is not there; 1 for other errors, 2 for wrong arguments.
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod commands;
mod daemon;
mod output;
mod streams;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = arguments::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("hyper: start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::run(cli));
    // A thread may still be blocked reading the terminal: nothing waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)),
        Err(error) => {
            eprintln!("hyper: {error:#}");
            if let Some(hint) = commands::hint(&error) {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(commands::failure_code(&error))
        }
    }
}
