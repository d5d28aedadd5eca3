//! Images put together byte by byte, so that any part of them can be wrong.

use std::io::Write as _;

use hyper_image::Digest;
use serde_json::json;

/// An entry of a tar archive.
pub struct Entry<'a> {
    pub name: &'a str,
    /// `0` file, `2` symlink, `5` directory …
    pub kind: u8,
    pub link: &'a str,
    pub data: &'a [u8],
}

pub fn file<'a>(name: &'a str, data: &'a [u8]) -> Entry<'a> {
    Entry { name, kind: b'0', link: "", data }
}

pub fn symlink<'a>(name: &'a str, link: &'a str) -> Entry<'a> {
    Entry { name, kind: b'2', link, data: b"" }
}

/// A ustar archive.
pub fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = [0u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, entry.name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{:011o}\0", entry.data.len()).as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[entry.kind]);
        put(157, entry.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(entry.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Bytes that do not compress, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

/// A layer as it is distributed, and its diff id.
#[derive(Clone)]
pub struct Layer {
    pub blob: Vec<u8>,
    pub diff_id: Digest,
    pub media_type: String,
}

impl Layer {
    pub fn gzip(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
        Self { blob: gzip(tar), diff_id: Digest::of(tar), media_type }
    }
}

/// An image: config and manifest for some layers.
pub struct Image {
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
    pub layers: Vec<Layer>,
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Image {
    pub fn of(layers: Vec<Layer>) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self::with_config(layers, serde_json::to_vec(&config).unwrap())
    }

    pub fn with_config(layers: Vec<Layer>, config: Vec<u8>) -> Self {
        let descriptor = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()});
        let of_layers: Vec<_> =
            layers.iter().map(|layer| descriptor(&layer.media_type, &layer.blob)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": of_layers});
        Self { config, manifest: serde_json::to_vec(&manifest).unwrap(), layers }
    }

    pub fn id(&self) -> Digest {
        Digest::of(&self.config)
    }
}
