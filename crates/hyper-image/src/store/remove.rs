//! Removing names and images, by Docker's rules.
//!
//! Source: moby `daemon/images/image_delete.go`. In short: a name goes alone while the image has another tag; with its
//! last tag the image goes, unless a container uses it; an id goes if all its tags are of one repository.

use std::collections::BTreeSet;

use super::catalog::Catalog;
use crate::error::Error;
use crate::image::{ImageUser, Removed};
use crate::reference::Reference;

/// Takes away what `name_or_id` means; the caller then releases what is no longer needed.
pub(crate) fn remove(
    catalog: &mut Catalog,
    name_or_id: &str,
    force: bool,
    users: &[ImageUser],
) -> Result<Vec<Removed>, Error> {
    let id = catalog.resolve(name_or_id)?;
    let refused = |reason: String| Error::InUse { name: name_or_id.to_owned(), reason };
    let names: Vec<Reference> =
        catalog.entries_of(&id).filter_map(|entry| entry.name.clone()).collect();
    let named = as_name(name_or_id, &names);
    let all_users = users;
    let users: Vec<&ImageUser> = users.iter().filter(|user| user.image == id).collect();
    let running = users.iter().find(|user| user.running);

    if let Some(name) = &named {
        let other_tags = names.iter().any(|other| other != name && other.tag().is_some());
        let other_digests = names.iter().any(|other| other != name && other.tag().is_none());
        let only_digests_left = !other_tags && other_digests;
        // A tag goes alone while there are others; a digest while there is any other name.
        if other_tags || (name.tag().is_none() && only_digests_left) {
            return Ok(untag(catalog, std::slice::from_ref(name), &names));
        }
    } else {
        let tags = names.iter().filter(|name| name.tag().is_some());
        let repositories: BTreeSet<String> = names.iter().map(Reference::name).collect();
        if !force && tags.count() > 1 && repositories.len() > 1 {
            return Err(refused(
                "the image has names in several repositories; remove them one by one, or use force"
                    .to_owned(),
            ));
        }
    }
    if catalog.has_children(&id) {
        // What was built from it shows it as its parent: the names go and the image stays.
        if named.is_some() {
            return Ok(untag(catalog, &names, &names));
        }
        return Err(refused(
            "images were built from it; remove those first (`docker images -a` lists them)"
                .to_owned(),
        ));
    }
    if let Some(user) = running {
        // By name and by force, the name goes and the image stays with the container.
        if named.is_some() && force {
            return Ok(untag(catalog, &names, &names));
        }
        return Err(refused(format!(
            "running container {} uses it; stop the container first",
            user.container
        )));
    }
    if let Some(user) = users.first() {
        if !force {
            return Err(refused(format!(
                "container {} uses it; remove the container first, or use force to remove only the names",
                user.container
            )));
        }
        return Ok(untag(catalog, &names, &names));
    }
    let mut done: Vec<Removed> =
        names.iter().map(|name| Removed::Untagged(name.familiar())).collect();
    let mut next = Some(id);
    while let Some(id) = next {
        let parent = catalog.entries_of(&id).find_map(|entry| entry.stored.origin.parent);
        catalog.forget(&id);
        done.push(Removed::Deleted(id));
        // Steps of the build that nothing else was built from, named or runs go with it.
        next = parent.filter(|parent| {
            catalog.image(parent).is_some_and(|image| {
                image.repo_tags.is_empty()
                    && image.repo_digests.is_empty()
                    && !catalog.has_children(parent)
                    && all_users.iter().all(|user| user.image != *parent)
            })
        });
    }
    Ok(done)
}

/// The name of the image that the user wrote; `None` if it was an id.
fn as_name(name_or_id: &str, names: &[Reference]) -> Option<Reference> {
    let parsed: Reference = name_or_id.parse().ok()?;
    let parsed = match parsed.digest() {
        Some(digest) => parsed.at_digest(digest),
        None => parsed.or_latest(),
    };
    names.contains(&parsed).then_some(parsed)
}

/// Takes names away. Digests of a repository without any tag left go with its last tag.
fn untag(catalog: &mut Catalog, doomed: &[Reference], names: &[Reference]) -> Vec<Removed> {
    let mut doomed = doomed.to_vec();
    let orphans: Vec<Reference> = names
        .iter()
        .filter(|name| name.tag().is_none() && !doomed.contains(name))
        .filter(|name| doomed.iter().any(|gone| gone.name() == name.name()))
        .filter(|name| {
            !names.iter().any(|other| {
                other.tag().is_some() && other.name() == name.name() && !doomed.contains(other)
            })
        })
        .cloned()
        .collect();
    doomed.extend(orphans);
    doomed
        .iter()
        .map(|name| {
            catalog.take(name);
            Removed::Untagged(name.familiar())
        })
        .collect()
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::config::ImageConfig;
    use crate::digest::Digest;
    use crate::spec::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST};
    use crate::store::catalog::{Origin, Stored};
    use std::sync::Arc;

    fn stored(seed: &str) -> Arc<Stored> {
        Arc::new(Stored {
            digest: Digest::of(format!("manifest {seed}").as_bytes()),
            manifest: Manifest {
                schema_version: 2,
                media_type: None,
                artifact_type: None,
                subject: None,
                annotations: Default::default(),
                config: Descriptor::of(OCI_CONFIG, seed.as_bytes()),
                layers: Vec::new(),
            },
            config: Arc::new(ImageConfig::default()),
            raw_config: seed.as_bytes().into(),
            size: 0,
            origin: Origin::default(),
        })
    }

    fn made_from(seed: &str, parent: &Arc<Stored>) -> Arc<Stored> {
        let mut made = Arc::into_inner(stored(seed)).unwrap();
        made.origin.parent = Some(parent.id());
        Arc::new(made)
    }

    /// `a:1`, `a:2`, `b:1` and `a@sha256:…` for one image.
    fn catalog() -> (Catalog, Digest) {
        let (mut catalog, image) = (Catalog::default(), stored("x"));
        let digest = format!("a@{}", image.digest);
        for name in ["a:1", "a:2", "b:1", &digest] {
            catalog.set(Some(&name.parse().unwrap()), OCI_MANIFEST, &image, 1);
        }
        (catalog, image.id())
    }

    fn user(image: Digest, running: bool) -> ImageUser {
        ImageUser { image, container: "web".into(), running }
    }

    fn tags(catalog: &Catalog, id: &Digest) -> Vec<String> {
        catalog.image(id).unwrap().repo_tags
    }

    #[test]
    fn a_tag_goes_alone() {
        let (mut catalog, id) = catalog();
        let done = remove(&mut catalog, "a:1", false, &[user(id, true)]).unwrap();
        assert_eq!(done, [Removed::Untagged("a:1".into())]);
        assert_eq!(tags(&catalog, &id), ["a:2", "b:1"]);
        // The last tag of a repository takes the repository's digest with it.
        let done = remove(&mut catalog, "a:2", false, &[]).unwrap();
        assert_eq!(done.len(), 2);
        assert_eq!(catalog.image(&id).unwrap().repo_digests, [""; 0]);
        let done = remove(&mut catalog, "b:1", false, &[]).unwrap();
        assert_eq!(done, [Removed::Untagged("b:1".into()), Removed::Deleted(id)]);
        assert!(catalog.entries.is_empty());
    }

    #[test]
    fn an_id_in_several_repositories_needs_force() {
        let (mut catalog, id) = catalog();
        let error = remove(&mut catalog, &id.short(), false, &[]).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert_eq!(tags(&catalog, &id).len(), 3);
        let done = remove(&mut catalog, &id.to_string(), true, &[]).unwrap();
        assert_eq!(done.last(), Some(&Removed::Deleted(id)));
    }

    #[test]
    fn used_images_stay() {
        let (mut catalog, id) = catalog();
        catalog.take(&"b:1".parse().unwrap());
        for running in [true, false] {
            let error = remove(&mut catalog, &id.short(), false, &[user(id, running)])
                .unwrap_err()
                .to_string();
            assert!(error.contains("web"), "{error}");
        }
        assert!(remove(&mut catalog, &id.short(), true, &[user(id, true)]).is_err());
        let done = remove(&mut catalog, &id.short(), true, &[user(id, false)]).unwrap();
        assert!(done.iter().all(|done| matches!(done, Removed::Untagged(_))), "{done:?}");
        assert!(catalog.image(&id).unwrap().is_dangling());
        // Without its container, the dangling image can go by id.
        assert_eq!(remove(&mut catalog, &id.short(), false, &[]).unwrap(), [Removed::Deleted(id)]);
    }

    #[test]
    fn moved_tag_leaves_a_dangling_image() {
        let (mut catalog, old, new) = (Catalog::default(), stored("old"), stored("new"));
        let name: Reference = "a:1".parse().unwrap();
        catalog.set(Some(&name), OCI_MANIFEST, &old, 1);
        catalog.set(Some(&name), OCI_MANIFEST, &new, 1);
        assert_eq!(catalog.resolve("a:1").unwrap(), new.id());
        assert!(catalog.image(&old.id()).unwrap().is_dangling());
        catalog.set(Some(&"c:1".parse().unwrap()), OCI_MANIFEST, &old, 1);
        assert_eq!(catalog.entries_of(&old.id()).count(), 1);
    }

    #[test]
    fn resolution() {
        let (catalog, id) = catalog();
        for name in [
            "a:1",
            "docker.io/library/a:2",
            &id.to_string(),
            &id.hex(),
            &id.short(),
            &id.hex()[..1],
        ] {
            assert_eq!(catalog.resolve(name).unwrap(), id, "{name}");
        }
        let digest = format!("a:9@{}", Digest::of(b"manifest x"));
        assert_eq!(catalog.resolve(&digest).unwrap(), id);
        assert!(matches!(catalog.resolve("a"), Err(Error::NoSuchImage { .. })));
        assert!(matches!(catalog.resolve("sha256:"), Err(Error::Reference(_))));
        assert!(matches!(catalog.resolve("A b"), Err(Error::Reference(_))));
        assert!(matches!(catalog.resolve(""), Err(Error::Reference(_))));
    }

    #[test]
    fn steps_of_a_build_go_with_its_last_image() {
        let mut catalog = Catalog::default();
        let base = stored("base");
        let first = made_from("first", &base);
        let last = made_from("last", &first);
        let other = made_from("other", &base);
        catalog.set(Some(&"base:1".parse().unwrap()), OCI_MANIFEST, &base, 1);
        catalog.set(None, OCI_MANIFEST, &first, 1);
        catalog.set(Some(&"app:1".parse().unwrap()), OCI_MANIFEST, &last, 1);
        catalog.set(None, OCI_MANIFEST, &other, 1);
        assert!(catalog.image(&first.id()).unwrap().intermediate);
        assert!(!catalog.image(&other.id()).unwrap().intermediate);
        let refused = remove(&mut catalog, &first.id().to_string(), true, &[]).unwrap_err();
        assert!(refused.to_string().contains("built from it"), "{refused}");
        let done = remove(&mut catalog, "app:1", false, &[]).unwrap();
        let gone = |stored: &Arc<Stored>| Removed::Deleted(stored.id());
        assert_eq!(done, [Removed::Untagged("app:1".into()), gone(&last), gone(&first)]);
        // The base has a name, and another image made from it: its name goes alone.
        let done = remove(&mut catalog, "base:1", false, &[]).unwrap();
        assert_eq!(done, [Removed::Untagged("base:1".into())]);
        let done = remove(&mut catalog, &other.id().to_string(), false, &[]).unwrap();
        assert_eq!(done, [gone(&other), gone(&base)]);
        assert!(catalog.entries.is_empty());
    }
}
