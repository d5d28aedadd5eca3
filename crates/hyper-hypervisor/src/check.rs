//! For adapters: looks at what a guest is to be made of, before anything is started.

use std::fs::{File, OpenOptions};
use std::io;

use crate::{Disk, Extent, VmConfig, VmError};

/// Longest kernel command line of x86 is 2048 bytes; a hypervisor's own words take a part.
const MAX_EXTRA: usize = 1024;

/// What a hypervisor cannot go beyond.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub hypervisor: &'static str,
    pub min_memory_bytes: u64,
    pub max_vcpus: u32,
    pub max_nics: usize,
    pub nic_queues: usize,
    pub max_disks: usize,
    pub disk_map: bool,
}

impl Limits {
    /// Refuses what is beyond, and words that would break out of their place.
    pub fn check(&self, config: &VmConfig) -> Result<(), VmError> {
        let unsupported =
            |what: String| Err(VmError::Unsupported { hypervisor: self.hypervisor, what });
        if config.memory_bytes < self.min_memory_bytes {
            let (bytes, least) = (config.memory_bytes, self.min_memory_bytes);
            return Err(VmError::MemoryTooSmall { bytes, least });
        }
        if !(1..=self.max_vcpus).contains(&config.vcpus) {
            let (vcpus, most) = (config.vcpus, self.max_vcpus);
            return unsupported(format!("give a guest {vcpus} vCPUs, 1 to {most}"));
        }
        if config.nics.len() > self.max_nics {
            let (count, most) = (config.nics.len(), self.max_nics);
            return unsupported(format!("give a guest {count} network devices, at most {most}"));
        }
        let queues = config.nics.iter().map(|nic| nic.tap.len());
        if let Some(odd) = queues.into_iter().find(|count| !(1..=self.nic_queues).contains(count)) {
            let most = self.nic_queues;
            return unsupported(format!(
                "give a network device {odd} pairs of queues, 1 to {most}"
            ));
        }
        if config.disks.len() > self.max_disks {
            let (count, most) = (config.disks.len(), self.max_disks);
            return unsupported(format!("give a guest {count} disks, at most {most}"));
        }
        let cannot_map = |disk: &&Disk| disk.mapped && !(self.disk_map && disk.read_only);
        if config.disks.iter().any(|disk| cannot_map(&disk)) {
            return unsupported("map this disk into a guest".to_owned());
        }
        if let Some(nic) = config.nics.iter().find(|nic| mac(&nic.mac).is_none()) {
            return unsupported(format!("use the MAC address `{}`", nic.mac));
        }
        let words = &config.kernel.extra_cmdline;
        // A blank would make two words of one, a quote would swallow those behind it.
        let odd = |word: &&String| !word.chars().all(|c| c.is_ascii_graphic() && c != '"');
        if let Some(word) = words.iter().find(odd) {
            return unsupported(format!("put `{}` on a kernel command line", word.escape_debug()));
        }
        let length: usize = words.iter().map(|word| word.len() + 1).sum();
        if length > MAX_EXTRA {
            let what = format!("append {length} bytes to the command line, at most {MAX_EXTRA}");
            return unsupported(what);
        }
        Ok(())
    }
}

/// Opens an extent's file and looks whether it can be one. Blocks.
pub fn open_extent(extent: &Extent, read_only: bool) -> Result<File, VmError> {
    let wrong = |what, source| VmError::File { what, path: extent.path.clone(), source };
    let open = || {
        let file = OpenOptions::new().read(true).write(!read_only).open(&extent.path)?;
        let kind = file.metadata()?.file_type();
        if kind.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
    };
    let file = open().map_err(|error| wrong("open disk", error))?;
    let length = file.metadata().map_err(|error| wrong("look at disk", error))?.len();
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    if extent.bytes == 0 || !extent.bytes.is_multiple_of(4096) {
        let text = format!("length {} is no multiple of 4096", extent.bytes);
        return Err(wrong("use disk", invalid(text)));
    }
    if length < extent.bytes {
        let text = format!("it has {length} bytes, should have {}", extent.bytes);
        return Err(wrong("use disk", invalid(text)));
    }
    Ok(file)
}

/// The six bytes of `02:…`; `None` when it is no MAC address.
pub(crate) fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        let hex = part.bytes().all(|digit| digit.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| hex)?;
    }
    parts.next().is_none().then_some(bytes)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::{GuestKernel, Nic};

    const LIMITS: Limits = Limits {
        hypervisor: "test",
        min_memory_bytes: 64 << 20,
        max_vcpus: 4,
        max_nics: 1,
        nic_queues: 2,
        max_disks: 1,
        disk_map: true,
    };

    fn says(change: impl FnOnce(&mut VmConfig)) -> String {
        let mut config = VmConfig {
            id: "p1".into(),
            kernel: GuestKernel {
                kernel: "/k".into(),
                initramfs: "/i".into(),
                extra_cmdline: vec![],
            },
            vcpus: 1,
            memory_bytes: 64 << 20,
            disks: vec![],
            nics: vec![],
            late_disks: true,
            share: None,
            run_dir: "/r".into(),
            cgroup: None,
        };
        change(&mut config);
        LIMITS.check(&config).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn with_card(queues: usize, mac: &str) -> String {
        let tap = || std::sync::Arc::new(File::open("/dev/null").unwrap().into());
        let tap = (0..queues).map(|_| tap()).collect();
        says(|config| config.nics = vec![Nic { tap, mac: mac.into(), mtu: 1500 }])
    }

    #[test]
    fn words_cannot_break_out_of_the_command_line() {
        assert_eq!(says(|_| {}), "");
        for word in ["a b", "a\nb", "\"", "é", ""] {
            let said = says(|config| config.kernel.extra_cmdline = vec![word.into()]);
            assert_eq!(said.is_empty(), word.is_empty(), "{word:?}: {said}");
        }
        let long = says(|config| config.kernel.extra_cmdline = vec!["x".repeat(1024)]);
        assert!(long.contains("1025 bytes"));
    }

    #[test]
    fn a_mac_is_six_bytes_and_nothing_else() {
        assert_eq!(mac("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
        for text in ["02:00:00:00:00:0a,x=y", "02:00:00:00:00,0a", "", "02:00:00:00:00:+a"] {
            assert_eq!(mac(text), None, "{text}");
        }
        let said = with_card(1, "02:00");
        assert!(said.contains("`02:00`"), "{said}");
    }

    #[test]
    fn a_card_has_no_more_queues_than_the_hypervisor_can() {
        for queues in [0, 3] {
            let said = with_card(queues, "02:00:00:00:00:0a");
            assert!(said.contains(&format!("{queues} pairs of queues, 1 to 2")), "{said}");
        }
        assert_eq!(with_card(2, "02:00:00:00:00:0a"), "");
    }
}
