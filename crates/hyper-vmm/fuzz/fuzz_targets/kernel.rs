//! Kernels, as the loader sees them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyper_vmm::fuzzing::kernel(bytes));
