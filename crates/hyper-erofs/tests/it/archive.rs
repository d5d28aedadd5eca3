//! Makes tar archives byte by byte, the wrong ones too.

use hyper_erofs::{LayerError, LayerIndex, Limits, convert_layer};

/// An archive being made.
#[derive(Clone, Default)]
pub struct Archive(pub Vec<u8>);

/// A header block that can be bent before it is sealed with its checksum.
#[derive(Clone)]
pub struct Head(pub [u8; 512]);

impl Head {
    pub fn new(name: &str, flag: u8, size: u64) -> Self {
        let mut head = Self([0; 512]);
        assert!(name.len() <= 100, "use a PAX path");
        head.put(0, name.as_bytes());
        head.put(100, b"0000644\0").put(108, b"0000000\0").put(116, b"0000000\0");
        head.put(124, format!("{size:011o}\0").as_bytes());
        head.put(136, b"00000000000\0");
        head.0[156] = flag;
        head.put(257, b"ustar\x0000");
        head
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub fn mode(mut self, mode: u32) -> Self {
        self.put(100, format!("{mode:07o}\0").as_bytes());
        self
    }

    pub fn link(mut self, target: &str) -> Self {
        self.put(157, target.as_bytes());
        self
    }

    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.put(329, format!("{major:07o}\0").as_bytes());
        self.put(337, format!("{minor:07o}\0").as_bytes());
        self
    }

    pub fn sealed(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

impl Archive {
    pub fn head(mut self, head: Head) -> Self {
        self.0.extend_from_slice(&head.sealed());
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn padded(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.head(Head::new(name, b'0', content.len() as u64)).padded(content)
    }

    pub fn directory(self, name: &str) -> Self {
        self.head(Head::new(name, b'5', 0).mode(0o755))
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.head(Head::new(name, b'2', 0).link(target))
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.head(Head::new(name, b'1', 0).link(target))
    }

    pub fn whiteout(self, name: &str) -> Self {
        self.file(name, b"")
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(
            b'x',
            &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<u8>>(),
        )
    }

    pub fn extended(self, flag: u8, content: &[u8]) -> Self {
        self.head(Head::new("././@PaxHeader", flag, content.len() as u64)).padded(content)
    }

    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    pub fn convert(self) -> Result<(LayerIndex, Vec<u8>), LayerError> {
        convert(&self.end())
    }
}

/// One PAX record.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len += 1;
    }
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

pub fn convert(archive: &[u8]) -> Result<(LayerIndex, Vec<u8>), LayerError> {
    let mut blob = Vec::new();
    convert_layer(archive, &mut blob, &Limits::default()).map(|index| (index, blob))
}
