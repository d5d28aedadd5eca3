//! Registers, rings and descriptors of every device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hyper_vmm::fuzzing::devices(bytes));
