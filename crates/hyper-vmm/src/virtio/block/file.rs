//! Files of the host as one disk: back to back, in their order.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::FallocateFlags;
use vm_memory::{Address as _, Bytes as _};

use super::super::buffers::{Piece, Way, split, total, transfer};
use crate::memory::Memory;

const ZEROS: [u8; 4096] = [0; 4096];
/// Length of a disk that is still to come.
const EMPTY_BYTES: u64 = 1 << 40;

/// A disk's files.
#[derive(Debug)]
pub(crate) struct File {
    extents: Vec<Extent>,
    /// Devices of the host that its files are on.
    devices: Vec<u64>,
    bytes: u64,
    read_only: bool,
    ephemeral: bool,
    /// There is nothing behind it any more.
    gone: bool,
}

/// A place on a disk, and the guest's memory that goes with it.
#[derive(Debug)]
pub(super) struct Span {
    pub offset: u64,
    pub pieces: Vec<Piece>,
}

impl Span {
    /// Takes off its front what was moved.
    pub fn moved(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            // The file is shorter than it was.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        split(&mut self.pieces, bytes).ok_or(io::ErrorKind::InvalidInput)?;
        self.offset += bytes as u64;
        Ok(())
    }
}

#[derive(Debug)]
struct Extent {
    file: fs::File,
    /// Where it begins on the disk.
    start: u64,
    bytes: u64,
}

impl File {
    /// A disk of open files and how much of each belongs to it.
    pub fn new(
        files: Vec<(fs::File, u64)>,
        read_only: bool,
        ephemeral: bool,
    ) -> Result<Self, String> {
        if files.is_empty() {
            return Err("a disk without files".to_owned());
        }
        if files.len() > 1 && !read_only {
            return Err("a writable disk of several files".to_owned());
        }
        let mut extents = Vec::with_capacity(files.len());
        let mut start: u64 = 0;
        let mut devices = Vec::new();
        for (file, bytes) in files {
            if bytes == 0 || !bytes.is_multiple_of(512) {
                return Err(format!("{bytes} bytes are no whole sectors"));
            }
            let device = file.metadata().map_err(|error| error.to_string())?.dev();
            if !devices.contains(&device) {
                devices.push(device);
            }
            extents.push(Extent { file, start, bytes });
            start = start.checked_add(bytes).ok_or("the disk is too long")?;
        }
        Ok(Self { extents, devices, bytes: start, read_only, ephemeral, gone: false })
    }

    /// What is where a disk will be: zeros, as long as any disk may be.
    pub fn empty(read_only: bool) -> Self {
        let (extents, devices) = (Vec::new(), Vec::new());
        Self { extents, devices, bytes: EMPTY_BYTES, read_only, ephemeral: true, gone: false }
    }

    /// What is where a disk was: every request fails.
    pub fn gone(read_only: bool) -> Self {
        Self { gone: true, ..Self::empty(read_only) }
    }

    pub(super) fn devices(&self) -> &[u64] {
        &self.devices
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Moves all of a span, whose rest is what has not been moved when there is an error.
    pub(super) fn move_bytes(&self, memory: &Memory, way: Way, span: &mut Span) -> io::Result<()> {
        self.there()?;
        if way == Way::Out && self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.within(span.offset, total(&span.pieces) as u64)?;
        if self.extents.is_empty() {
            return match way {
                Way::In | Way::InNow => zero(memory, &span.pieces),
                Way::Out => Err(io::ErrorKind::WriteZero.into()),
            };
        }
        while let Some((file, at, pieces)) = self.part(span)? {
            span.moved(transfer(memory, file, way, Some(at), &pieces)?)?;
        }
        Ok(())
    }

    /// As much of a span as is in one file: that file, where it is in it, and its pieces. `None`: there is
    /// nothing left.
    #[expect(clippy::type_complexity, reason = "taken apart at once by all who ask")]
    pub(super) fn part<'a>(
        &self,
        span: &'a Span,
    ) -> io::Result<Option<(BorrowedFd<'_>, u64, Cow<'a, [Piece]>)>> {
        let bytes = total(&span.pieces);
        if bytes == 0 {
            return Ok(None);
        }
        self.there()?;
        self.within(span.offset, bytes as u64)?;
        let extent = self.extent_at(span.offset)?;
        let inside = span.offset - extent.start;
        let here = usize::try_from(extent.bytes - inside).unwrap_or(usize::MAX);
        let pieces = if here < bytes {
            let mut rest = span.pieces.clone();
            Cow::Owned(split(&mut rest, here).ok_or(io::ErrorKind::InvalidInput)?)
        } else {
            Cow::Borrowed(&span.pieces[..])
        };
        Ok(Some((extent.file.as_fd(), inside, pieces)))
    }

    /// The file that is made to last in step `step` of a flush; `None`: all are.
    pub(super) fn sync_step(&self, step: usize) -> io::Result<Option<BorrowedFd<'_>>> {
        self.there()?;
        Ok(self.extents.get(step).map(|extent| extent.file.as_fd()))
    }

    /// The file of a range that is to be cleared, and where in it that begins.
    pub(super) fn clear_step(&self, offset: u64, bytes: u64) -> io::Result<(BorrowedFd<'_>, u64)> {
        self.there()?;
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.within(offset, bytes)?;
        // A writable disk is one file.
        let extent = self.extent_at(offset)?;
        Ok((extent.file.as_fd(), offset - extent.start))
    }

    /// Whether [`Self::flush`] has anything to do.
    pub(super) fn flushes(&self) -> bool {
        !(self.gone || self.read_only || self.ephemeral)
    }

    /// Makes what was written last.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.there()?;
        if !self.flushes() {
            return Ok(());
        }
        self.extents.iter().try_for_each(|extent| extent.file.sync_data())
    }

    /// Zeros from `offset` on, by giving the room back where that can be.
    pub(super) fn clear(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let (file, at) = self.clear_step(offset, bytes)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(file, flags, at, bytes)?)
    }

    fn there(&self) -> io::Result<()> {
        if self.gone { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    fn within(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if inside { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    fn extent_at(&self, offset: u64) -> io::Result<&Extent> {
        let behind = self.extents.partition_point(|extent| extent.start <= offset);
        let extent = behind.checked_sub(1).and_then(|at| self.extents.get(at));
        extent
            .filter(|extent| offset - extent.start < extent.bytes)
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

fn zero(memory: &Memory, pieces: &[Piece]) -> io::Result<()> {
    for piece in pieces {
        let mut left = piece.bytes;
        let mut at = piece.at;
        while left > 0 {
            let now = left.min(ZEROS.len());
            memory.write_slice(&ZEROS[..now], at).map_err(io::Error::other)?;
            at = at.unchecked_add(now as u64);
            left -= now;
        }
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::io::{Read as _, Seek as _, Write as _};
    use vm_memory::GuestAddress;

    fn file(byte: u8, bytes: usize) -> (fs::File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![byte; bytes]).unwrap();
        (file, bytes as u64)
    }

    fn span(offset: u64, bytes: usize) -> Span {
        Span { offset, pieces: vec![Piece { at: GuestAddress(0x1000), bytes }] }
    }

    #[test]
    fn a_read_crosses_files() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let disk = File::new(vec![file(1, 512), file(2, 512), file(3, 1024)], true, false).unwrap();
        assert_eq!(disk.bytes(), 2048);
        disk.move_bytes(&memory, Way::In, &mut span(256, 1024)).unwrap();
        let mut seen = [0; 1024];
        memory.read_slice(&mut seen, GuestAddress(0x1000)).unwrap();
        assert_eq!((seen[255], seen[256], seen[767], seen[768]), (1, 2, 2, 3));
    }

    #[test]
    fn what_is_outside_or_read_only_fails() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let disk = File::new(vec![file(1, 512)], true, false).unwrap();
        assert!(disk.move_bytes(&memory, Way::In, &mut span(1, 512)).is_err());
        assert!(disk.move_bytes(&memory, Way::In, &mut span(u64::MAX, 512)).is_err());
        assert!(disk.move_bytes(&memory, Way::Out, &mut span(0, 512)).is_err());
        assert!(disk.clear(0, 512).is_err());
    }

    #[test]
    fn what_is_gone_neither_reads_nor_writes() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let disk = File::gone(false);
        assert!(disk.bytes() >= File::empty(false).bytes());
        assert!(disk.move_bytes(&memory, Way::In, &mut span(0, 512)).is_err());
        assert!(disk.move_bytes(&memory, Way::Out, &mut span(0, 512)).is_err());
        assert!(disk.clear(0, 512).is_err() && disk.flush().is_err());
        assert!(File::empty(false).move_bytes(&memory, Way::In, &mut span(0, 512)).is_ok());
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let (short, _) = file(1, 512);
        let disk = File::new(vec![(short, 1024)], false, false).unwrap();
        let error = disk.move_bytes(&memory, Way::In, &mut span(0, 1024)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn writes_last_and_cleared_ranges_are_zero() {
        let memory = crate::memory::take(1 << 20, false, Default::default()).unwrap();
        let (kept, bytes) = file(7, 8192);
        let disk = File::new(vec![(kept.try_clone().unwrap(), bytes)], false, false).unwrap();
        memory.write_slice(&[9; 512], GuestAddress(0x1000)).unwrap();
        disk.move_bytes(&memory, Way::Out, &mut span(512, 512)).unwrap();
        disk.clear(4096, 4096).unwrap();
        disk.flush().unwrap();
        let mut all = Vec::new();
        let mut kept = kept;
        kept.rewind().unwrap();
        kept.read_to_end(&mut all).unwrap();
        assert_eq!((all[511], all[512], all[1024], all[4096], all.len()), (7, 9, 7, 0, 8192));
    }

    #[test]
    fn odd_disks_are_refused() {
        assert!(File::new(vec![], true, false).unwrap_err().contains("without files"));
        assert!(File::new(vec![file(1, 100)], true, false).unwrap_err().contains("sectors"));
        let two = vec![file(1, 512), file(1, 512)];
        assert!(File::new(two, false, false).unwrap_err().contains("writable"));
    }
}
