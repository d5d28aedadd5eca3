//! References, and what registries say of themselves in headers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        hyper_image::fuzzing::text(text);
    }
});
