//! Manifests, indexes and configs of registries and archives.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    hyper_image::fuzzing::document(bytes);
    hyper_image::fuzzing::config(bytes);
});
