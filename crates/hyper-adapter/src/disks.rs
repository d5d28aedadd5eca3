//! Disks of a guest: their names in it, their shape, and places for those that come later. Pure.

use hyper_hypervisor::{Disk, VmError};

/// Device node of disk `index`, as Linux counts: after `/dev/vdz` comes `/dev/vdaa`. `stem` is the
/// driver's: `vd` (drivers/block/virtio_blk.c), `ubd` (with Hyper's patches).
pub fn node(stem: &str, index: usize) -> String {
    let letter = |at: usize| char::from(b'a' + u8::try_from(at % 26).unwrap_or(0));
    match index / 26 {
        0 => format!("/dev/{stem}{}", letter(index)),
        more => format!("/dev/{stem}{}{}", letter(more - 1), letter(index)),
    }
}

/// Refuses a disk that cannot be one device of at most `most` extents.
pub fn check_stitched(hypervisor: &'static str, disk: &Disk, most: usize) -> Result<(), VmError> {
    let what = match disk.extents.len() {
        0 => "attach a disk without extents".to_owned(),
        count if count > most => {
            format!("attach a disk of {count} extents, at most {most}")
        }
        2.. if !disk.read_only => "attach a writable disk of several extents".to_owned(),
        _ => return Ok(()),
    };
    Err(VmError::Unsupported { hypervisor, what })
}

/// Places of a guest for disks that come later. Those for read-only disks and for writable ones
/// alternate: image, then writable layer, as containers come.
#[derive(Debug)]
pub struct Places {
    hypervisor: &'static str,
    free: Vec<bool>,
}

impl Places {
    /// So many, all free.
    pub fn new(hypervisor: &'static str, count: usize) -> Self {
        Self { hypervisor, free: vec![true; count] }
    }

    /// Whether a place takes read-only disks, or else writable ones.
    pub fn is_read_only(place: usize) -> bool {
        place.is_multiple_of(2)
    }

    /// Takes a place for such a disk: its number, from 0 on.
    pub fn take(&mut self, read_only: bool) -> Result<usize, VmError> {
        let mut free = self.free.iter().enumerate();
        let fits = |(at, free): (usize, &bool)| *free && Self::is_read_only(at) == read_only;
        let Some(at) = free.position(fits) else {
            let kind = if read_only { "read-only" } else { "writable" };
            let what = format!("add another {kind} disk to this guest: its places are used up");
            return Err(VmError::Unsupported { hypervisor: self.hypervisor, what });
        };
        self.free[at] = false;
        Ok(at)
    }

    /// How many have a disk.
    pub fn taken(&self) -> usize {
        self.free.iter().filter(|free| !**free).count()
    }

    /// The place of the disk with these nodes, of which it has one; `node` says which a place has.
    pub fn of(&self, devices: &[String], node: impl Fn(usize) -> String) -> Result<usize, VmError> {
        let mut free = self.free.iter().enumerate();
        let its = |(at, free): (usize, &bool)| !*free && devices == [node(at)];
        free.position(its).ok_or_else(|| VmError::Unsupported {
            hypervisor: self.hypervisor,
            what: format!("remove disk {devices:?}: it was not added to the running guest"),
        })
    }

    /// Frees a place whose disk could not be added, or is gone.
    pub fn give_back(&mut self, place: usize) {
        self.free[place] = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_hypervisor::Extent;

    #[test]
    fn disks_are_named_as_linux_does() {
        let names = [0, 25, 26, 52, 255].map(|index| node("vd", index));
        assert_eq!(names, ["/dev/vda", "/dev/vdz", "/dev/vdaa", "/dev/vdba", "/dev/vdiv"]);
    }

    #[test]
    fn places_are_taken_by_kind_and_given_back() {
        let mut places = Places::new("test", 3);
        assert_eq!(places.take(false).unwrap(), 1);
        assert!(places.take(false).unwrap_err().to_string().contains("another writable disk"));
        assert_eq!(places.take(true).unwrap(), 0);
        assert_eq!(places.take(true).unwrap(), 2);
        assert!(places.take(true).is_err());
        places.give_back(0);
        let of =
            |places: &Places, name: &str| places.of(&[name.to_owned()], |at| node("vd", at + 1));
        assert_eq!(of(&places, "/dev/vdd").unwrap(), 2);
        for other in ["/dev/vda", "/dev/vdb", "/dev/vde", ""] {
            assert!(of(&places, other).unwrap_err().to_string().contains("not added"), "{other}");
        }
        assert_eq!(places.take(true).unwrap(), 0);
    }

    #[test]
    fn only_images_have_several_extents_and_not_too_many() {
        let refused = |count: usize, read_only: bool| {
            let extent = Extent { path: "/x".into(), bytes: 4096 };
            let disk =
                Disk { extents: vec![extent; count], read_only, ephemeral: false, mapped: false };
            check_stitched("test", &disk, 3).err().map(|error| error.to_string())
        };
        assert_eq!((refused(1, false), refused(3, true)), (None, None));
        assert!(refused(0, true).unwrap().contains("without extents"));
        assert!(refused(4, true).unwrap().contains("4 extents, at most 3"));
        assert!(refused(2, false).unwrap().contains("writable"));
    }
}
