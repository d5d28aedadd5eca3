//! What is said between the process that wants a stream taken apart and the one that does it.
//!
//! The order is an argument; the report a line of JSON, followed by as many bytes of index as it says. Both programs
//! are the same file, so nothing here needs to be stable.

use hyper_erofs::Limits;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What is to be done with the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Task {
    /// Convert it to a layer; the blob goes to standard output.
    Convert,
    /// Convert it and compare with the blob that standard output is.
    Compare,
    /// Decompress it to standard output.
    Decompress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub task: Task,
    limits: [u64; 8],
}

impl Order {
    pub(super) fn new(task: Task, limits: &Limits) -> Self {
        let size = |value: usize| value as u64;
        let Limits {
            max_entries,
            max_depth,
            max_extension_bytes,
            max_xattr_bytes,
            max_index_bytes,
            max_data_bytes,
            max_hole_bytes,
            max_stream_bytes,
        } = *limits;
        let limits = [
            max_entries,
            size(max_depth),
            max_extension_bytes,
            size(max_xattr_bytes),
            max_index_bytes,
            max_data_bytes,
            max_hole_bytes,
            max_stream_bytes,
        ];
        Self { task, limits }
    }

    pub(super) fn limits(&self) -> Limits {
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let [entries, depth, extension, xattrs, index, data, holes, stream] = self.limits;
        Limits {
            max_entries: entries,
            max_depth: size(depth),
            max_extension_bytes: extension,
            max_xattr_bytes: size(xattrs),
            max_index_bytes: index,
            max_data_bytes: data,
            max_hole_bytes: holes,
            max_stream_bytes: stream,
        }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    Done {
        /// Of the uncompressed stream.
        digest: Digest,
        /// Its length.
        bytes: u64,
        /// Bytes of index that follow.
        index: u64,
        /// The blob is what it was compared with.
        same: bool,
    },
    /// The blob could not be written.
    Output { errno: Option<i32>, text: String },
    /// The stream is at fault.
    Stream { text: String },
}

/// Longest line of a report, in bytes.
pub(super) const MAX_LINE: u64 = 64 << 10;

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn limits_arrive_as_they_are() {
        let limits = Limits {
            max_entries: 1,
            max_depth: 2,
            max_extension_bytes: 3,
            max_xattr_bytes: 4,
            max_index_bytes: 5,
            max_data_bytes: 6,
            max_hole_bytes: 7,
            max_stream_bytes: 8,
        };
        let text = serde_json::to_string(&Order::new(Task::Convert, &limits)).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap().limits(), limits);
    }
}
