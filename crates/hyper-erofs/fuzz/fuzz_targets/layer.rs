//! Any bytes as a layer archive: no panic, no limit passed, and what is accepted survives every later step.
#![no_main]

use hyper_erofs::{BlobRef, ImageOptions, LayerIndex, Limits, convert_layer, merge};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    max_entries: 1000,
    max_depth: 64,
    max_extension_bytes: 1 << 16,
    max_xattr_bytes: 1 << 16,
    max_index_bytes: 1 << 20,
    max_data_bytes: 1 << 20,
    max_hole_bytes: 1 << 20,
    max_stream_bytes: 1 << 21,
};

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    // Right checksums, which no mutation would find.
    for block in archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    }
    let mut blob = Vec::new();
    let Ok(index) = convert_layer(&archive[..], &mut blob, &LIMITS) else { return };
    assert_eq!(blob.len() as u64, index.blob_len());
    assert!(index.content_bytes() <= LIMITS.max_data_bytes);
    let encoded = index.encode();
    assert_eq!(LayerIndex::decode(&encoded, &LIMITS).as_ref(), Ok(&index));
    // Applied over itself as well: all kinds of replacements.
    let Ok(tree) = merge([&index, &index]) else { return };
    let blobs = [0, 1].map(|number| BlobRef { id: format!("{number}"), len: index.blob_len() });
    let mut image = Vec::new();
    let layout = tree.write_metadata(&mut image, &blobs, &ImageOptions::default()).expect("writes");
    assert_eq!(layout.meta_len, image.len() as u64);
});
