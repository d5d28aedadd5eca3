//! Any bytes as frames: parsing must consume or refuse them, never more than there are.
#![no_main]

use hyper_link::{HEADER, MAX_PAYLOAD, parse_frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok(Some((frame, used))) = parse_frame(rest) {
        assert!(used >= HEADER && used <= HEADER + MAX_PAYLOAD);
        assert_eq!(frame.payload.len(), used - HEADER);
        rest = &rest[used..];
    }
});
