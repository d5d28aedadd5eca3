//! Disks of the host as descriptors and block nodes of QEMU.
//!
//! One extent is a raw file of exactly its length. Several are stitched by QEMU's VMDK driver: a
//! text that lists extents (VMware, "Virtual Disk Format 5.0", the descriptor file), of which
//! QEMU reads `createType` and the extent lines. The text lives in a memfd and names descriptor
//! sets, never paths, so no name of a file can be mistaken for syntax.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use hyper_adapter::check_stitched;
use hyper_hypervisor::{Disk, Extent, VmError, open_extent};
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use crate::NAME;

/// Descriptors of one disk at most; the jail passes 127 in all.
pub const MAX_EXTENTS: usize = 100;
/// QEMU's flat extents of this type end at 2^31 sectors each.
const MAX_EXTENT_SECTORS: u64 = 1 << 31;

/// A disk whose files are open.
#[derive(Debug)]
pub struct Opened {
    /// The VMDK text first, when there is one, then the extents.
    pub files: Vec<OwnedFd>,
    pub bytes: u64,
    read_only: bool,
    ephemeral: bool,
    stitched: bool,
}

/// Opens the files of a disk and checks them. Blocks. The VMDK text names the sets
/// `first_set + 1`, `first_set + 2`, …; the set `first_set` is for the text itself.
pub fn open(disk: &Disk, first_set: u32) -> Result<Opened, VmError> {
    check_stitched(NAME, disk, MAX_EXTENTS)?;
    if disk.mapped {
        let what = "map a disk into a guest".to_owned();
        return Err(VmError::Unsupported { hypervisor: NAME, what });
    }
    let stitched = disk.extents.len() > 1;
    let mut files = Vec::with_capacity(disk.extents.len() + 1);
    for extent in &disk.extents {
        if extent.bytes / 512 > MAX_EXTENT_SECTORS {
            let source = io::Error::other("it is longer than 1 TiB");
            let (what, path) = ("use disk", extent.path.clone());
            return Err(VmError::File { what, path, source });
        }
        files.push(open_extent(extent, disk.read_only)?.into());
    }
    let bytes = disk.extents.iter().map(|extent| extent.bytes).sum();
    if stitched {
        let text = descriptor(&disk.extents, first_set + 1);
        let memory = memory_file(&text)
            .map_err(|source| VmError::Io { what: "write the list of a disk's extents", source })?;
        files.insert(0, memory);
    }
    let (read_only, ephemeral) = (disk.read_only, disk.ephemeral);
    Ok(Opened { files, bytes, read_only, ephemeral, stitched })
}

impl Opened {
    /// The block node `name` over the sets from `first_set` on.
    pub fn node(&self, name: &str, first_set: u32) -> Value {
        let file = json!({
            "driver": "file",
            "filename": format!("/dev/fdset/{first_set}"),
            "read-only": self.read_only,
        });
        if self.stitched {
            return json!({
                "driver": "vmdk",
                "node-name": name,
                "read-only": true,
                "file": file,
            });
        }
        json!({
            "driver": "raw",
            "node-name": name,
            "size": self.bytes,
            "read-only": self.read_only,
            "discard": "unmap",
            "cache": {"direct": false, "no-flush": self.ephemeral},
            "file": file,
        })
    }
}

/// The VMDK descriptor. The comment before the first extent is needed: after a blank line QEMU 7.2
/// takes the first extent twice.
fn descriptor(extents: &[Extent], first_set: u32) -> String {
    let mut text = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
                    createType=\"twoGbMaxExtentFlat\"\n# Extent description\n"
        .to_owned();
    for (set, extent) in (first_set..).zip(extents) {
        text.push_str(&format!("RW {} FLAT \"/dev/fdset/{set}\" 0\n", extent.bytes / 512));
    }
    text
}

fn memory_file(text: &str) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("extents", MemfdFlags::CLOEXEC)?;
    File::from(file.try_clone()?).write_all(text.as_bytes())?;
    // Read-only from here on, so that the descriptor's mode is what QEMU asks for.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(File::open(path)?.into())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::path::Path;

    fn extent(dir: &Path, name: &str, bytes: u64) -> Extent {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        Extent { path, bytes }
    }

    #[test]
    fn the_list_has_an_extent_a_line_and_no_blank_line() {
        let dir = tempfile::tempdir().unwrap();
        let extents = [extent(dir.path(), "a", 4096), extent(dir.path(), "b", 8192)];
        let text = descriptor(&extents, 7);
        assert!(text.ends_with(
            "# Extent description\nRW 8 FLAT \"/dev/fdset/7\" 0\nRW 16 FLAT \"/dev/fdset/8\" 0\n"
        ));
        assert!(!text.contains("\n\n"));
    }

    #[test]
    fn odd_disks_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let disk =
            |extents, read_only| Disk { extents, read_only, ephemeral: false, mapped: false };
        let says = |disk: Disk| match open(&disk, 1).unwrap_err() {
            VmError::File { path, source, .. } => format!("{} {source}", path.display()),
            other => other.to_string(),
        };
        let good = extent(dir.path(), "good", 4096);
        assert!(says(disk(vec![], true)).contains("without extents"));
        assert!(says(disk(vec![good.clone(); 2], false)).contains("writable disk of several"));
        assert!(says(disk(vec![good.clone(); 101], true)).contains("101 extents"));
        let odd = Extent { bytes: 100, ..good.clone() };
        assert!(says(disk(vec![odd], true)).contains("no multiple of 4096"));
        let short = Extent { bytes: 8192, ..good.clone() };
        assert!(says(disk(vec![short], true)).contains("good it has 4096 bytes"));
        let folder = Extent { path: dir.path().to_owned(), bytes: 4096 };
        assert!(says(disk(vec![folder], true)).contains("no regular file"));
        assert_eq!(open(&disk(vec![good.clone(), good], true), 1).unwrap().files.len(), 3);
    }
}
