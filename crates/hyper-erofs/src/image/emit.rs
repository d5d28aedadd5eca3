//! Writes the planned image, front to back.

use super::format::{
    self, BLOCK, DEVICE_TABLE_OFFSET, DataLayout, InodeRecord, SUPER_OFFSET, Superblock,
};
use super::plan::{Placed, Plan};
use super::{ImageError, ImageLayout, ImageOptions, directory, xattr};
use crate::tree::{NodeKind, ROOT};
use sha2::{Digest, Sha256};
use std::io::{self, Write};

/// Bytes collected before they are written.
const BUFFER: usize = 256 << 10;

pub(super) fn emit<W: Write>(
    plan: &Plan<'_, '_>,
    layout: &ImageLayout,
    options: &ImageOptions,
    out: W,
) -> Result<(), ImageError> {
    let mut out =
        Sequence { out, buffer: Vec::with_capacity(BUFFER + 8192), position: 0, sealed: false };
    head(plan, layout, options, &mut out)?;
    let mut bytes = Vec::new();
    for (number, placed) in plan.inodes.iter().enumerate() {
        bytes.clear();
        inode(plan, layout, placed, number, &mut bytes)?;
        out.pad_to(placed.position)?;
        out.put(&bytes)?;
    }
    out.pad_to(plan.xattr_block() * BLOCK)?;
    plan.shared.encode(|bytes| out.put(bytes))?;
    out.pad_to(plan.first_data_block() * BLOCK)?;
    for placed in &plan.inodes {
        outside(plan, placed, &mut out)?;
    }
    out.pad_to(layout.meta_len)?;
    out.finish()?;
    Ok(())
}

fn head<W: Write>(
    plan: &Plan<'_, '_>,
    layout: &ImageLayout,
    options: &ImageOptions,
    out: &mut Sequence<W>,
) -> Result<(), ImageError> {
    let has_table = options.device_table && !layout.blobs.is_empty();
    let primary = if has_table { layout.meta_len } else { layout.total_len() };
    let devices =
        u16::try_from(layout.blobs.len()).map_err(|_| ImageError::TooLarge { what: "layers" })?;
    let has_shared = plan.shared.size() > 0;
    let superblock = Superblock {
        root: u16::try_from(plan.nid(ROOT)).map_err(|_| ImageError::TooLarge { what: "layers" })?,
        inodes: plan.inodes.len() as u64,
        blocks: block_number(primary / BLOCK)?,
        xattr_block: if has_shared { block_number(plan.xattr_block())? } else { 0 },
        uuid: layout.uuid,
        devices: has_table.then_some(devices),
    };
    out.pad_to(SUPER_OFFSET)?;
    out.put(&superblock.encode())?;
    debug_assert_eq!(out.position, DEVICE_TABLE_OFFSET);
    if has_table {
        for blob in &layout.blobs {
            let blocks = block_number(blob.len / BLOCK)?;
            out.put(&format::device_slot(
                &tag(&blob.id),
                blocks,
                block_number(blob.offset / BLOCK)?,
            ))?;
        }
    }
    Ok(())
}

/// 64 characters that tell blobs apart: the digest, if the blob is named by one.
fn tag(id: &str) -> Vec<u8> {
    match id.strip_prefix("sha256:") {
        Some(digest) if digest.len() == 64 => digest.as_bytes().to_vec(),
        _ => {
            Sha256::digest(id).iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
        }
    }
}

/// The inode, its xattrs and its tail.
fn inode(
    plan: &Plan<'_, '_>,
    layout: &ImageLayout,
    placed: &Placed,
    number: usize,
    bytes: &mut Vec<u8>,
) -> Result<(), ImageError> {
    let node = plan.tree.node(placed.id);
    let outside = plan.first_data_block() + placed.data_block;
    let (file_type, address) = match node.kind {
        NodeKind::Directory => (0o040_000, block_number(outside)?),
        NodeKind::Symlink { .. } => (0o120_000, block_number(outside)?),
        NodeKind::File { layer, data } => (0o100_000, file_address(layout, layer, data)?),
        NodeKind::CharDevice { major, minor } => (0o020_000, format::device_number(major, minor)),
        NodeKind::BlockDevice { major, minor } => (0o060_000, format::device_number(major, minor)),
        NodeKind::Fifo => (0o010_000, 0),
    };
    let record = InodeRecord {
        layout: placed.layout,
        xattr_units: xattr::units(placed.xattr_size),
        mode: file_type | node.attributes.mode,
        size: placed.size,
        address,
        number: u32::try_from(number + 1).map_err(|_| ImageError::TooLarge { what: "files" })?,
        uid: node.attributes.uid,
        gid: node.attributes.gid,
        mtime: node.attributes.mtime,
        links: node.links,
    };
    bytes.extend_from_slice(&record.encode());
    plan.shared.encode_inode(&node.attributes.xattrs, bytes);
    if placed.layout == DataLayout::Inline {
        match node.kind {
            NodeKind::Symlink { target } => bytes.extend_from_slice(target),
            _ => {
                if let Some(block) = directory::blocks(&plan.dirents(placed)).last() {
                    encode_block(plan, block, bytes);
                }
            }
        }
    }
    Ok(())
}

fn file_address(
    layout: &ImageLayout,
    layer: usize,
    data: crate::index::FileData,
) -> Result<u32, ImageError> {
    if data.size == 0 {
        return Ok(0);
    }
    // Layers with visible content are in the layout, in order.
    let place = layout.blobs.binary_search_by_key(&layer, |blob| blob.layer);
    let place = place.map_err(|_| ImageError::TooLarge { what: "layers" })?;
    block_number(layout.blobs[place].offset / BLOCK + data.block)
}

/// The blocks of a directory or link that do not lie with its inode.
fn outside<W: Write>(
    plan: &Plan<'_, '_>,
    placed: &Placed,
    out: &mut Sequence<W>,
) -> io::Result<()> {
    let kind = plan.tree.kind(placed.id);
    match kind {
        NodeKind::Symlink { target } if placed.layout == DataLayout::Plain => {
            out.put(target)?;
            out.pad_to(out.position.next_multiple_of(BLOCK))
        }
        NodeKind::Directory if placed.size > BLOCK || placed.layout == DataLayout::Plain => {
            let dirents = plan.dirents(placed);
            let mut blocks = directory::blocks(&dirents).peekable();
            let mut bytes = Vec::new();
            while let Some(block) = blocks.next() {
                if blocks.peek().is_none() && placed.layout == DataLayout::Inline {
                    break;
                }
                bytes.clear();
                encode_block(plan, block, &mut bytes);
                out.put(&bytes)?;
                out.pad_to(out.position.next_multiple_of(BLOCK))?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn encode_block(plan: &Plan<'_, '_>, block: &[directory::Dirent<'_>], bytes: &mut Vec<u8>) {
    directory::encode(bytes, block, |id| (plan.nid(id), plan.tree.kind(id).into()));
}

fn block_number(block: u64) -> Result<u32, ImageError> {
    u32::try_from(block).map_err(|_| ImageError::TooLarge { what: "blocks" })
}

/// A writer that knows its position and holds the first block back until its checksum is known.
struct Sequence<W> {
    out: W,
    buffer: Vec<u8>,
    position: u64,
    sealed: bool,
}

impl<W: Write> Sequence<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Zeros up to `position`, which is less than two blocks away or the first one's head.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        while self.position < position {
            let count = (position - self.position).min(BLOCK);
            self.put(&ZEROS[..count as usize])?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !std::mem::replace(&mut self.sealed, true) {
            format::seal(&mut self.buffer[..BLOCK as usize]);
        }
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// The image is at least one block, so the first flush has all of it.
    fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.out.flush()
    }
}
