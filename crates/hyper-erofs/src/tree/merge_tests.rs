//! Merging against a model that is nothing but a map from paths: slow, obvious, without links as parents.

use super::*;
use crate::index::FileData;
use crate::tree::Follow;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Path → (identity of the file, its distinguishing mark, whether it is a directory).
type Model = BTreeMap<Vec<u8>, File>;
type File = (usize, u32, bool);

fn below(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty() && !path.is_empty()
        || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

fn remove(model: &mut Model, path: &[u8]) {
    model.retain(|name, _| name != path && !below(name, path));
}

fn make_parents(model: &mut Model, path: &[u8], next: &mut usize) {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let parent = &path[..at];
        if model.get(parent).is_none_or(|(_, _, is_directory)| !is_directory) {
            remove(model, parent);
            *next += 1;
            model.insert(parent.to_vec(), (*next, 0, true));
        }
    }
}

/// `None` if a hard link of the layer names nothing, or a directory.
fn apply(model: &mut Model, layer: &LayerIndex, next: &mut usize) -> Option<()> {
    for entry in &layer.entries {
        match entry.kind {
            Kind::Whiteout => remove(model, &entry.path),
            Kind::Opaque => model.retain(|name, _| !below(name, &entry.path)),
            _ => {}
        }
    }
    for Entry { path, kind } in &layer.entries {
        let new = match kind {
            Kind::Whiteout | Kind::Opaque => continue,
            Kind::Directory { attributes } => {
                make_parents(model, path, next);
                if let Some((_, mark, true)) = model.get_mut(path) {
                    *mark = attributes.uid;
                    continue;
                }
                *next += 1;
                (*next, attributes.uid, true)
            }
            Kind::HardLink { target } => {
                let target = *model.get(target).filter(|(_, _, is_directory)| !is_directory)?;
                make_parents(model, path, next);
                target
            }
            other => {
                make_parents(model, path, next);
                *next += 1;
                (*next, other.attributes()?.uid, false)
            }
        };
        remove(model, path);
        model.insert(path.clone(), new);
    }
    Some(())
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    "[a-c](/[a-c]){0,3}".prop_map(String::into_bytes)
}

fn entry() -> impl Strategy<Value = Entry> {
    // The owner is the mark by which files are told apart.
    let attributes = || (1..1000u32).prop_map(|uid| Attributes { uid, ..Attributes::default() });
    let kind = prop_oneof![
        3 => attributes().prop_map(|attributes| Kind::Directory { attributes }),
        4 => attributes().prop_map(|attributes| Kind::File { attributes, data: FileData::default() }),
        1 => attributes().prop_map(|attributes| Kind::Fifo { attributes }),
        2 => path().prop_map(|target| Kind::HardLink { target }),
        2 => Just(Kind::Whiteout),
        1 => Just(Kind::Opaque),
    ];
    (path(), kind).prop_map(|(path, kind)| Entry { path, kind })
}

fn layers() -> impl Strategy<Value = Vec<LayerIndex>> {
    let layer = prop::collection::vec(entry(), 0..12)
        .prop_map(|entries| LayerIndex { entries, blob_blocks: 0 });
    prop::collection::vec(layer, 0..5)
}

/// Identity is compared by the first path of each file, the count of names by counting.
fn canonical(listing: &[(Vec<u8>, File)]) -> Vec<(Vec<u8>, Vec<u8>, u32, bool)> {
    let mut first: BTreeMap<usize, &[u8]> = BTreeMap::new();
    listing
        .iter()
        .map(|(path, (id, mark, is_directory))| {
            (path.clone(), first.entry(*id).or_insert(path).to_vec(), *mark, *is_directory)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn merging_is_what_the_model_says(layers in layers()) {
        let mut model = Model::new();
        let mut next = 0;
        let all = layers.iter().all(|layer| apply(&mut model, layer, &mut next).is_some());
        let merged = merge(&layers);
        prop_assert_eq!(merged.is_ok(), all);
        let Ok(tree) = merged else { return Ok(()) };
        let mut found = Vec::new();
        let mut pending = vec![Vec::new()];
        while let Some(directory) = pending.pop() {
            for (name, node) in tree.read_directory(&directory).unwrap() {
                let path = if directory.is_empty() { name.to_vec() } else { [&directory, &b"/"[..], name].concat() };
                let is_directory = node.kind == NodeKind::Directory;
                if is_directory {
                    pending.push(path.clone());
                }
                prop_assert_eq!(tree.lookup(&path, Follow::No).unwrap().inode, node.inode);
                found.push((path, (node.inode as usize, node.attributes.uid, is_directory)));
            }
        }
        found.sort();
        for (path, (id, _, is_directory)) in &found {
            let names = found.iter().filter(|(_, (other, ..))| other == id).count();
            let subdirectories = found.iter().filter(|(name, (_, _, directory))| {
                *directory && below(name, path) && !name[path.len() + 1..].contains(&b'/')
            });
            let links = if *is_directory { 2 + subdirectories.count() } else { names };
            prop_assert_eq!(tree.lookup(path, Follow::No).unwrap().links as usize, links);
        }
        let model: Vec<_> = model.into_iter().collect();
        prop_assert_eq!(canonical(&found), canonical(&model));
    }
}
