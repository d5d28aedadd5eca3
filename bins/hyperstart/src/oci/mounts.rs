//! Mount options in words, as in `config-linux.md` and `mount(8)`.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options of one mount, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options<'a> {
    pub(crate) flags: MountFlags,
    pub(crate) propagation: MountPropagationFlags,
    /// Of a bind mount: with what is mounted below.
    pub(crate) recursive: bool,
    /// Left for the file system.
    pub(crate) data: &'a str,
}

/// Takes `options` apart; `data` receives what is left for the file system, comma-separated.
pub(crate) fn parse<'a>(options: &[String], data: &'a mut String) -> Options<'a> {
    let mut flags = MountFlags::empty();
    let mut propagation = MountPropagationFlags::empty();
    let mut recursive = false;
    for option in options {
        let (set, flag) = match option.as_str() {
            "ro" => (true, MountFlags::RDONLY),
            "rw" => (false, MountFlags::RDONLY),
            "nosuid" => (true, MountFlags::NOSUID),
            "suid" => (false, MountFlags::NOSUID),
            "nodev" => (true, MountFlags::NODEV),
            "dev" => (false, MountFlags::NODEV),
            "noexec" => (true, MountFlags::NOEXEC),
            "exec" => (false, MountFlags::NOEXEC),
            "sync" => (true, MountFlags::SYNCHRONOUS),
            "async" => (false, MountFlags::SYNCHRONOUS),
            "dirsync" => (true, MountFlags::DIRSYNC),
            "noatime" => (true, MountFlags::NOATIME),
            "atime" => (false, MountFlags::NOATIME),
            "nodiratime" => (true, MountFlags::NODIRATIME),
            "diratime" => (false, MountFlags::NODIRATIME),
            "relatime" => (true, MountFlags::RELATIME),
            "norelatime" => (false, MountFlags::RELATIME),
            "strictatime" => (true, MountFlags::STRICTATIME),
            "nostrictatime" => (false, MountFlags::STRICTATIME),
            "silent" => (true, MountFlags::SILENT),
            "loud" => (false, MountFlags::SILENT),
            "defaults" | "bind" => continue,
            "rbind" => {
                recursive = true;
                continue;
            }
            word => {
                if let Some(flags) = propagation_flags(word) {
                    propagation |= flags;
                } else {
                    if !data.is_empty() {
                        data.push(',');
                    }
                    data.push_str(word);
                }
                continue;
            }
        };
        flags.set(flag, set);
    }
    Options { flags, propagation, recursive, data }
}

fn propagation_flags(word: &str) -> Option<MountPropagationFlags> {
    let (word, recursive) = match word.strip_prefix('r') {
        Some(rest) if ["shared", "slave", "private", "unbindable"].contains(&rest) => {
            (rest, MountPropagationFlags::REC)
        }
        _ => (word, MountPropagationFlags::empty()),
    };
    let flags = match word {
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "private" => MountPropagationFlags::PRIVATE,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(flags | recursive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_data_and_propagation_are_told_apart() {
        let words = ["nosuid", "mode=755", "ro", "rw", "rslave", "size=65536k", "rprivate"];
        let words = words.map(str::to_owned);
        let mut data = String::new();
        let options = parse(&words, &mut data);
        assert_eq!(options.flags, MountFlags::NOSUID);
        assert_eq!(options.data, "mode=755,size=65536k");
        assert!(options.propagation.contains(MountPropagationFlags::REC));
        assert!(options.propagation.contains(MountPropagationFlags::PRIVATE));
    }
}
