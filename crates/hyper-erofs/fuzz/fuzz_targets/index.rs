//! Any bytes as the payload of an index file: no panic, bounded memory, one encoding of each index.
#![no_main]

use hyper_erofs::{BlobRef, ImageOptions, LayerIndex, Limits, merge};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|payload: &[u8]| {
    let mut file = b"HYPERLX1\x01\0\0\0".to_vec();
    file.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    file.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    file.extend_from_slice(payload);
    let limits = Limits { max_index_bytes: 1 << 20, ..Limits::default() };
    let Ok(index) = LayerIndex::decode(&file, &limits) else { return };
    let again = LayerIndex::decode(&index.encode(), &limits).expect("reads what it wrote");
    assert_eq!(again, index);
    let Ok(tree) = merge([&index]) else { return };
    let blob = BlobRef { id: String::new(), len: index.blob_len() };
    let mut image = Vec::new();
    if let Ok(layout) = tree.write_metadata(&mut image, &[blob], &ImageOptions::default()) {
        assert_eq!(layout.meta_len, image.len() as u64);
    }
});
