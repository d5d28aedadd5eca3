//! Writes cpio archives in the form "newc", `initramfs-buffer-format` of the kernel's
//! documentation. Directories come before what is in them; the same calls give the same bytes. Also
//! a module of xtask: it is too little for a crate.

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// A directory that everybody may enter.
    pub fn directory(&mut self, name: &str) {
        self.add(name, 0o040_755, (0, 0), &[]);
    }

    /// A character device for root.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.add(name, 0o020_600, (major, minor), &[]);
    }

    /// A file that everybody may execute.
    pub fn program(&mut self, name: &str, content: &[u8]) {
        self.add(name, 0o100_755, (0, 0), content);
    }

    /// A file that everybody may read.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.add(name, 0o100_644, (0, 0), content);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device, rdevice, name size, checksum.
        let fields = [
            self.inode,
            mode,
            0,
            0,
            links,
            0,
            size(content.len()),
            0,
            0,
            major,
            minor,
            size(name.len() + 1),
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
