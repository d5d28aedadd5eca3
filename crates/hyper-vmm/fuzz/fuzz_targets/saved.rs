//! States of saved guests, and devices that take them over.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyper_vmm::fuzzing::saved(bytes));
