//! Extended attributes: those of one inode behind it, those of several once, in the shared area.
//!
//! ```text
//!  behind an inode: │ filter │ n │ 7 unused │ n numbers of shared entries │ entry │ entry …
//!  entry:           │ name length │ prefix │ value size │ name without prefix │ value │ zeros to 4 bytes
//! ```
//! A shared entry's number is its offset in the shared area in units of 4 bytes.

use crate::index::Xattr;
use crate::tree::{InodeId, Tree};
use std::collections::HashMap;

const HEADER: u64 = 12;
/// Larger ones are put into the shared area even if only one inode has them, to keep inodes close together.
const LARGE: u64 = 512;
/// The count is a byte.
const MAX_SHARED_PER_INODE: usize = 255;

/// An xattr as stored: number of its prefix, the rest of its name, its value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Stored<'a> {
    prefix: u8,
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Stored<'a> {
    /// `None` for name spaces that EROFS cannot store; no Linux file system without the matching module shows them.
    fn new(xattr: &'a Xattr) -> Option<Self> {
        let name = &xattr.name[..];
        let (prefix, name) = match name {
            b"system.posix_acl_access" => (2, &b""[..]),
            b"system.posix_acl_default" => (3, &b""[..]),
            _ => [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                .into_iter()
                .find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))
                .filter(|(_, name)| !name.is_empty())?,
        };
        Some(Self { prefix, name, value: &xattr.value })
    }

    fn size(&self) -> u64 {
        (4 + self.name.len() as u64 + self.value.len() as u64).next_multiple_of(4)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "names of at most 255, values of at most 65535 bytes"
        )]
        let (name_len, value_len) = (self.name.len() as u8, self.value.len() as u16);
        out.extend_from_slice(&[name_len, self.prefix]);
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(self.name);
        out.extend_from_slice(self.value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The shared area, and which xattrs are in it.
#[derive(Default)]
pub(super) struct SharedXattrs<'a> {
    /// In order of their first use by inodes in the order of the image.
    area: Vec<Stored<'a>>,
    numbers: HashMap<Stored<'a>, u32>,
    size: u64,
}

impl<'a> SharedXattrs<'a> {
    /// Finds the xattrs worth sharing among the inodes of `order`.
    pub(super) fn new(tree: &'a Tree<'_>, order: &[InodeId]) -> Self {
        let of = |id: &InodeId| tree.attributes(*id).xattrs.iter().filter_map(Stored::new);
        let mut uses: HashMap<Stored<'a>, u32> = HashMap::new();
        for stored in order.iter().flat_map(of) {
            *uses.entry(stored).or_default() += 1;
        }
        let mut shared = Self::default();
        for stored in order.iter().flat_map(of) {
            let is_worth = uses[&stored] > 1 || stored.size() > LARGE;
            // Numbers have 32 bits: 16 GiB of xattrs, far above what limits allow; what is beyond stays with its inode.
            if let (true, Ok(number)) = (is_worth, u32::try_from(shared.size / 4))
                && let std::collections::hash_map::Entry::Vacant(vacant) =
                    shared.numbers.entry(stored)
            {
                vacant.insert(number);
                shared.area.push(stored);
                shared.size += stored.size();
            }
        }
        shared
    }

    /// Bytes of the area.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn encode(
        &self,
        mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for stored in &self.area {
            bytes.clear();
            stored.encode(&mut bytes);
            each(&bytes)?;
        }
        Ok(())
    }

    /// Bytes behind an inode with these xattrs: 0, or a header and what follows.
    pub(super) fn inode_size(&self, xattrs: &'a [Xattr]) -> u64 {
        let mut shared = 0;
        let mut inline = 0;
        let mut any = false;
        for stored in xattrs.iter().filter_map(Stored::new) {
            any = true;
            if shared < MAX_SHARED_PER_INODE && self.numbers.contains_key(&stored) {
                shared += 1;
            } else {
                inline += stored.size();
            }
        }
        if any { HEADER + 4 * shared as u64 + inline } else { 0 }
    }

    /// Appends those bytes.
    pub(super) fn encode_inode(&self, xattrs: &'a [Xattr], out: &mut Vec<u8>) {
        let mut shared = Vec::new();
        let mut inline = Vec::new();
        for stored in xattrs.iter().filter_map(Stored::new) {
            match self.numbers.get(&stored) {
                Some(number) if shared.len() < MAX_SHARED_PER_INODE => shared.push(*number),
                _ => stored.encode(&mut inline),
            }
        }
        if shared.is_empty() && inline.is_empty() {
            return;
        }
        let mut header = [0; HEADER as usize];
        #[expect(clippy::cast_possible_truncation, reason = "at most 255")]
        {
            header[4] = shared.len() as u8;
        }
        out.extend_from_slice(&header);
        out.extend(shared.iter().flat_map(|number| number.to_le_bytes()));
        out.extend_from_slice(&inline);
    }
}

/// The size as the inode stores it: one for the header, and one for each 4 bytes.
pub(super) fn units(inode_size: u64) -> u16 {
    if inode_size == 0 {
        return 0;
    }
    // Limits on an entry's xattrs (240 KiB, 1024 of them) keep it below 2^16.
    u16::try_from(1 + (inode_size - HEADER) / 4).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_spaces() {
        let stored = |name: &str| {
            let xattr = Xattr { name: name.into(), value: vec![1] };
            Stored::new(&xattr).map(|stored| (stored.prefix, stored.name.to_vec()))
        };
        assert_eq!(stored("user.a"), Some((1, b"a".to_vec())));
        assert_eq!(stored("system.posix_acl_access"), Some((2, Vec::new())));
        assert_eq!(stored("system.posix_acl_default"), Some((3, Vec::new())));
        assert_eq!(stored("trusted.b"), Some((4, b"b".to_vec())));
        assert_eq!(stored("security.capability"), Some((6, b"capability".to_vec())));
        for other in ["user.", "system.nfs4_acl", "com.apple.quarantine", "x"] {
            assert_eq!(stored(other), None, "{other}");
        }
    }

    #[test]
    fn the_largest_allowed_set_fits_the_inode() {
        use crate::limits::{MAX_INODE_XATTR_BYTES, MAX_XATTRS};
        let shared = SharedXattrs::default();
        let each = MAX_INODE_XATTR_BYTES / MAX_XATTRS;
        let xattrs: Vec<Xattr> = (0..MAX_XATTRS)
            .map(|number| {
                let name = format!("user.{number:04}").into_bytes();
                Xattr { value: vec![1; each - name.len()], name }
            })
            .collect();
        let size = shared.inode_size(&xattrs);
        let mut out = Vec::new();
        shared.encode_inode(&xattrs, &mut out);
        assert_eq!(out.len() as u64, size);
        assert!(units(size) < u16::MAX);
    }
}
