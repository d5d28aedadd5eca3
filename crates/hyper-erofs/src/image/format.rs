//! The on-disk structures, little endian, as fs/erofs/erofs_fs.h of Linux 6.1 to 7.3 has them.

use crate::index::Timestamp;

pub(super) const BLOCK: u64 = crate::BLOCK_SIZE;
/// Where the superblock starts.
pub(super) const SUPER_OFFSET: u64 = 1024;
pub(super) const SUPER_SIZE: u64 = 128;
pub(super) const DEVICE_SLOT_SIZE: u64 = 128;
/// The device table follows the superblock.
pub(super) const DEVICE_TABLE_OFFSET: u64 = SUPER_OFFSET + SUPER_SIZE;
/// Inodes are numbered by their position in units of this.
pub(super) const INODE_SLOT: u64 = 32;
pub(super) const INODE_SIZE: u64 = 64;
pub(super) const DIRENT_SIZE: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SUPER_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// What of the superblock is not the same in all our images.
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// Blocks of the primary device: with a device table those of the metadata, else of the whole disk.
    pub(super) blocks: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
    /// `None` without a device table.
    pub(super) devices: Option<u16>,
}

impl Superblock {
    /// With a zero in place of the checksum.
    pub(super) fn encode(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_SUPER_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[12]); // log2 of the block size
        put(14, &self.root.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        // Inode numbers count from the start of the disk: the metadata area is block 0.
        put(44, &self.xattr_block.to_le_bytes());
        put(48, &self.uuid);
        if let Some(devices) = self.devices {
            put(80, &INCOMPAT_DEVICE_TABLE.to_le_bytes());
            put(86, &devices.to_le_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "9")]
            put(88, &((DEVICE_TABLE_OFFSET / DEVICE_SLOT_SIZE) as u16).to_le_bytes());
        }
        bytes
    }
}

/// Puts the checksum into a whole first block: CRC-32C from the superblock to the block's end, not inverted at the end.
pub(super) fn seal(block: &mut [u8]) {
    let start = SUPER_OFFSET as usize;
    let checksum = !crc32c::crc32c(&block[start..]);
    block[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// One slot of the device table; `tag` must not be empty.
pub(super) fn device_slot(tag: &[u8], blocks: u32, address: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    let len = tag.len().min(64);
    bytes[..len].copy_from_slice(&tag[..len]);
    bytes[64..68].copy_from_slice(&blocks.to_le_bytes());
    bytes[68..72].copy_from_slice(&address.to_le_bytes());
    bytes
}

/// Where an inode's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// In whole blocks somewhere.
    Plain,
    /// All but the last block somewhere, the rest behind the inode.
    Inline,
}

/// A 64-byte inode.
pub(super) struct InodeRecord {
    pub(super) layout: DataLayout,
    /// Bytes of xattrs that follow, as [`super::xattr`] counts them.
    pub(super) xattr_units: u16,
    /// File type and permissions.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block of the data, or the device number.
    pub(super) address: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timestamp,
    pub(super) links: u32,
}

impl InodeRecord {
    pub(super) fn encode(&self) -> [u8; 64] {
        let layout = match self.layout {
            DataLayout::Plain => 0u16,
            DataLayout::Inline => 2,
        };
        let mut bytes = [0; 64];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(1 | layout << 1).to_le_bytes());
        put(2, &self.xattr_units.to_le_bytes());
        put(4, &self.mode.to_le_bytes());
        put(8, &self.size.to_le_bytes());
        put(16, &self.address.to_le_bytes());
        put(20, &self.number.to_le_bytes());
        put(24, &self.uid.to_le_bytes());
        put(28, &self.gid.to_le_bytes());
        put(32, &self.mtime.seconds.to_le_bytes());
        put(40, &self.mtime.nanoseconds.to_le_bytes());
        put(44, &self.links.to_le_bytes());
        bytes
    }
}

/// A device number as Linux's `new_encode_dev` packs it.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and Linux's habit of leaving out the last inversion.
    #[test]
    fn checksum() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let mut block = vec![0; 4096];
        block[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
        seal(&mut block);
        let stored = u32::from_le_bytes(block[1028..1032].try_into().unwrap());
        block[1028..1032].fill(0);
        assert_eq!(!stored, crc32c::crc32c(&block[1024..]));
    }

    #[test]
    fn device_numbers() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(0xfff, 0xf_ffff), 0xffff_ffff);
        assert_eq!(device_number(259, 0x1_2345), 0x1231_0345);
    }
}
