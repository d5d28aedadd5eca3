//! Round trips, and damage of every sort.
use super::*;
use proptest::prelude::*;

fn attributes() -> impl Strategy<Value = Attributes> {
    let xattrs = proptest::collection::btree_map(
        proptest::collection::vec(1u8.., 1..20),
        proptest::collection::vec(any::<u8>(), 0..40),
        0..4,
    );
    (0..0o10000u16, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000u32, xattrs).prop_map(
        |(mode, uid, gid, seconds, nanoseconds, xattrs)| Attributes {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
            xattrs: xattrs.into_iter().map(|(name, value)| Xattr { name, value }).collect(),
        },
    )
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    "[a-c]{1,3}(/[a-c]{1,3}){0,3}".prop_map(String::into_bytes)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        attributes().prop_map(|attributes| Kind::Directory { attributes }),
        (attributes(), 1..100_000u64, 0..900u64).prop_map(|(attributes, size, block)| Kind::File {
            attributes,
            data: FileData { size, block }
        }),
        (attributes(), name())
            .prop_map(|(attributes, target)| Kind::Symlink { attributes, target }),
        name().prop_map(|target| Kind::HardLink { target }),
        (attributes(), 0..1u32 << 12, 0..1u32 << 20)
            .prop_map(|(attributes, major, minor)| Kind::CharDevice { attributes, major, minor }),
        (attributes(), 0..1u32 << 12, 0..1u32 << 20)
            .prop_map(|(attributes, major, minor)| Kind::BlockDevice { attributes, major, minor }),
        attributes().prop_map(|attributes| Kind::Fifo { attributes }),
        Just(Kind::Whiteout),
        Just(Kind::Opaque),
    ]
}

prop_compose! {
    fn index()(entries in proptest::collection::vec((name(), kind()), 0..30)) -> LayerIndex {
        let entries = entries.into_iter().map(|(path, kind)| Entry { path, kind }).collect();
        LayerIndex { entries, blob_blocks: 1000 }
    }
}

proptest! {
    #[test]
    fn round_trip(index in index()) {
        let bytes = index.encode();
        prop_assert_eq!(LayerIndex::decode(&bytes, &Limits::default()).unwrap(), index);
    }

    #[test]
    fn any_damage_is_noticed(index in index(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = index.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(LayerIndex::decode(&bytes, &Limits::default()).is_err());
    }

    /// What is accepted with a good checksum encodes to the very same bytes: no second spelling, no lost value.
    #[test]
    fn hostile_payloads_are_refused_or_canonical(
        index in index(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = index.encode();
        for (at, value) in edits {
            let at = HEAD + at.index(bytes.len() - HEAD);
            bytes[at] = value;
        }
        let checksum = crc32c::crc32c(&bytes[HEAD..]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        if let Ok(decoded) = LayerIndex::decode(&bytes, &Limits::default()) {
            let again = decoded.encode();
            prop_assert_eq!(LayerIndex::decode(&again, &Limits::default()).unwrap(), decoded);
        }
    }
}

#[test]
fn a_small_file_cannot_claim_much_memory() {
    let mut path = b"d".repeat(250);
    for _ in 0..14 {
        path.extend_from_slice(b"/");
        path.extend_from_slice(&b"d".repeat(250));
    }
    let entries = (0..1000).map(|_| Entry { path: path.clone(), kind: Kind::Whiteout }).collect();
    let bytes = LayerIndex { entries, blob_blocks: 0 }.encode();
    assert!(bytes.len() < 10_000);
    let limits = Limits { max_index_bytes: 1 << 20, ..Limits::default() };
    assert!(matches!(LayerIndex::decode(&bytes, &limits), Err(IndexError::Limit(_))));
}

#[test]
fn other_versions_and_other_files_are_named_as_such() {
    let mut bytes = LayerIndex::default().encode();
    bytes[8] = 2;
    let expected = IndexError::Version { found: 2, expected: 1 };
    assert_eq!(LayerIndex::decode(&bytes, &Limits::default()), Err(expected));
    assert_eq!(LayerIndex::decode(&[7; 100], &Limits::default()), Err(IndexError::Magic));
    assert!(LayerIndex::decode(b"", &Limits::default()).is_err());
}
