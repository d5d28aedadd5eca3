//! One form for all trees, so that they can be compared: what the crate means, what another reader of the image
//! sees, what the kernel sees.

use erofs_rs::{EroFS, backend::Image};
use hyper_erofs::{BlobRef, Follow, ImageLayout, ImageOptions, LayerIndex, NodeKind, Tree, merge};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

pub type Listing = BTreeMap<String, Record>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub links: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first name of the same file.
    pub same_as: String,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => formatter.write_str("directory"),
            Self::File(content) => write!(formatter, "file of {} bytes", content.len()),
            Self::Symlink(target) => write!(formatter, "link to {}", target.escape_ascii()),
            Self::Char(major, minor) => write!(formatter, "char {major}:{minor}"),
            Self::Block(major, minor) => write!(formatter, "block {major}:{minor}"),
            Self::Fifo => formatter.write_str("fifo"),
        }
    }
}

/// A layer with its blob.
pub type Layer = (LayerIndex, Vec<u8>);

/// What the merged tree says.
pub fn of_layers(layers: &[Layer]) -> Listing {
    let tree = merge(layers.iter().map(|(index, _)| index)).unwrap();
    let mut listing = Listing::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let node = tree.lookup(&path, Follow::No).unwrap();
        let shown = path.escape_ascii().to_string();
        let kind = match node.kind {
            NodeKind::Directory => {
                let names = tree.read_directory(&path).unwrap();
                pending
                    .extend(names.iter().rev().map(|(name, _)| [&path, &b"/"[..], name].concat()));
                Kind::Directory
            }
            NodeKind::File { layer, data } => {
                let start = usize::try_from(data.offset()).unwrap();
                Kind::File(
                    layers[layer].1[start..start + usize::try_from(data.size).unwrap()].to_vec(),
                )
            }
            NodeKind::Symlink { target } => Kind::Symlink(target.to_vec()),
            NodeKind::CharDevice { major, minor } => Kind::Char(major, minor),
            NodeKind::BlockDevice { major, minor } => Kind::Block(major, minor),
            NodeKind::Fifo => Kind::Fifo,
        };
        let attributes = node.attributes;
        let record = Record {
            kind,
            mode: u32::from(attributes.mode),
            owner: (attributes.uid, attributes.gid),
            mtime: (attributes.mtime.seconds, attributes.mtime.nanoseconds),
            links: node.links,
            xattrs: attributes
                .xattrs
                .iter()
                .map(|xattr| (xattr.name.clone(), xattr.value.clone()))
                .collect(),
            same_as: first.entry(node.inode).or_insert_with(|| shown.clone()).clone(),
        };
        listing.insert(shown, record);
    }
    listing
}

/// Metadata, and all of it stitched to one disk.
pub struct Written {
    pub meta: Vec<u8>,
    pub disk: Vec<u8>,
    pub layout: ImageLayout,
}

pub fn write(layers: &[Layer], device_table: bool) -> Written {
    let tree: Tree<'_> = merge(layers.iter().map(|(index, _)| index)).unwrap();
    let blobs: Vec<BlobRef> = layers
        .iter()
        .enumerate()
        .map(|(number, (_, blob))| BlobRef { id: format!("blob {number}"), len: blob.len() as u64 })
        .collect();
    let mut meta = Vec::new();
    let layout = tree.write_metadata(&mut meta, &blobs, &ImageOptions { device_table }).unwrap();
    assert_eq!(meta.len() as u64, layout.meta_len);
    let mut disk = meta.clone();
    for placed in &layout.blobs {
        assert_eq!(disk.len() as u64, placed.offset);
        disk.extend_from_slice(&layers[placed.layer].1);
    }
    assert_eq!(disk.len() as u64, layout.total_len());
    Written { meta, disk, layout }
}

/// What `erofs-rs`, written by others after the format's description, reads from an image.
pub fn of_image<I: Image>(image: &EroFS<I>) -> Listing {
    let mut listing = Listing::new();
    let mut first = BTreeMap::new();
    let root = image.super_block().root_inode_id();
    let mut pending = vec![(Vec::new(), root)];
    while let Some((path, nid)) = pending.pop() {
        let inode = image.get_inode(nid).unwrap();
        let shown = path.escape_ascii().to_string();
        let kind = if inode.is_dir() {
            let mut children = Vec::new();
            for entry in image.read_dir(if path.is_empty() { &b"/"[..] } else { &path }).unwrap() {
                let entry = entry.unwrap().dir_entry;
                if ![&b"."[..], b".."].contains(&entry.file_name()) {
                    let child = [&path[..], b"/", entry.file_name()].concat();
                    // Found by the binary search as well.
                    assert!(
                        image.xattrs(&child[..]).is_ok(),
                        "{} cannot be looked up",
                        child.escape_ascii()
                    );
                    children.push((child, entry.nid()));
                }
            }
            assert!(children.is_sorted());
            pending.extend(children.into_iter().rev());
            Kind::Directory
        } else if inode.is_file() {
            let mut content = vec![0; usize::try_from(inode.data_size()).unwrap()];
            let file = image.open_inode_file(inode).unwrap();
            let mut read = 0;
            while read < content.len() {
                let count = file.read_at(&mut content[read..], read as u64).unwrap();
                assert!(count > 0);
                read += count;
            }
            Kind::File(content)
        } else if inode.is_symlink() {
            Kind::Symlink(image.read_link_inode(inode).unwrap().into_vec())
        } else {
            match (format!("{:?}", inode.file_type()).to_lowercase(), inode.device()) {
                (name, Some((major, minor))) if name.contains("char") => Kind::Char(major, minor),
                (_, Some((major, minor))) => Kind::Block(major, minor),
                (_, None) => Kind::Fifo,
            }
        };
        let record = Record {
            kind,
            mode: inode_mode(&inode),
            owner: (inode.uid(), inode.gid()),
            mtime: inode.modified_unix(),
            links: inode.nlink(),
            xattrs: image.xattrs_inode(inode).unwrap(),
            same_as: first.entry(nid).or_insert_with(|| shown.clone()).clone(),
        };
        listing.insert(shown, record);
    }
    listing
}

fn inode_mode(inode: &erofs_rs::types::Inode) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    inode.permissions().mode() & 0o7777
}

/// What the kernel shows below a directory.
pub fn of_directory(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![(String::new(), root.to_owned())];
    while let Some((shown, path)) = pending.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let kind = if metadata.is_dir() {
            let mut names: Vec<_> =
                path.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            for name in names.iter().rev() {
                let shown = format!("{shown}/{}", name.as_bytes().escape_ascii());
                pending.push((shown, path.join(name)));
            }
            Kind::Directory
        } else if metadata.is_file() {
            Kind::File(std::fs::read(&path).unwrap())
        } else if metadata.is_symlink() {
            Kind::Symlink(path.read_link().unwrap().as_os_str().as_bytes().to_vec())
        } else if metadata.file_type().is_char_device() {
            Kind::Char(device.0, device.1)
        } else if metadata.file_type().is_block_device() {
            Kind::Block(device.0, device.1)
        } else {
            Kind::Fifo
        };
        let record = Record {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap()),
            links: u32::try_from(metadata.nlink()).unwrap(),
            xattrs: xattrs(&path),
            same_as: first.entry(metadata.ino()).or_insert_with(|| shown.clone()).clone(),
        };
        listing.insert(shown, record);
    }
    listing
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// Fails with the first few differences instead of two whole trees.
#[track_caller]
pub fn assert_same(expected: &Listing, found: &Listing) {
    let names = expected.keys().chain(found.keys()).collect::<std::collections::BTreeSet<_>>();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| expected.get(*name) != found.get(*name))
        .map(|name| {
            format!(
                "{name:?}:\n  expected {:?}\n  found    {:?}",
                expected.get(name),
                found.get(name)
            )
        })
        .take(5)
        .collect();
    assert!(differences.is_empty(), "trees differ:\n{}", differences.join("\n"));
}
