//! The hypervisors of this program, in the order `auto` tries them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use hyper_hypervisor::{Capabilities, Disk, Hypervisor, Probe, Vm, VmConfig, VmError};
use hyper_pod::Flavour;

use crate::config::{Accelerator, Config, HugePages, Separation};
use crate::remembered::Remembered;

/// What guests can be run by, and what they boot. Probes are remembered.
pub fn hypervisors(config: &Config) -> (Vec<Arc<dyn Hypervisor>>, BTreeMap<String, Flavour>) {
    let (kvm, uml, qemu, flavours) = adapters(config);
    let dir = &config.run_dir;
    // A host without a KVM that works shall not be asked at every start.
    let kvm = Remembered::new(kvm, flavours["kvm"].kernel.clone(), dir).failures_too();
    let uml = Remembered::new(uml, flavours["uml"].kernel.clone(), dir);
    let qemu = Remembered::new(qemu, flavours["qemu"].kernel.clone(), dir);
    (vec![Arc::new(kvm), Arc::new(uml), Arc::new(qemu)], flavours)
}

/// The same hypervisors for a look at the host as it is now.
pub fn unremembered(config: &Config) -> (Vec<Arc<dyn Hypervisor>>, BTreeMap<String, Flavour>) {
    let (kvm, uml, qemu, flavours) = adapters(config);
    (vec![Arc::new(kvm), Arc::new(uml), Arc::new(qemu)], flavours)
}

type Adapters = (hyper_kvm::Kvm, hyper_uml::Uml, Late, BTreeMap<String, Flavour>);

fn adapters(config: &Config) -> Adapters {
    let kvm_flavour = config.kvm_flavour();
    let (uml_flavour, qemu_flavour) = (config.uml_flavour(), config.qemu_flavour());
    let kvm = hyper_kvm::Kvm::new(hyper_kvm::Options {
        program: config.kvm.program.clone(),
        kernel: Some(kvm_flavour.kernel.clone()),
        huge_pages: match config.kvm.huge_pages {
            HugePages::Off => hyper_kvm::HugePages::Off,
            HugePages::Transparent => hyper_kvm::HugePages::Transparent,
            HugePages::Reserved => hyper_kvm::HugePages::Reserved,
        },
        prefault: config.kvm.prefault,
        map_images: config.kvm.map_images,
        io_uring: config.kvm.io_uring,
    });
    let uml = hyper_uml::Uml::new(hyper_uml::Options {
        separation: match config.uml.separation {
            Separation::Ptrace => hyper_uml::Separation::Ptrace,
            Separation::Seccomp => hyper_uml::Separation::Seccomp,
        },
        kernel: Some(uml_flavour.kernel.clone()),
        ..hyper_uml::Options::default()
    });
    let qemu = hyper_qemu::Options {
        program: config.qemu.program.clone(),
        accelerator: match config.qemu.accelerator {
            Accelerator::Auto => hyper_qemu::Accelerator::Auto,
            Accelerator::Kvm => hyper_qemu::Accelerator::Kvm,
            Accelerator::Tcg => hyper_qemu::Accelerator::Tcg,
        },
        kernel: Some(qemu_flavour.kernel.clone()),
        ..hyper_qemu::Options::default()
    };
    let flavours = [
        (hyper_kvm::NAME, kvm_flavour),
        (hyper_uml::NAME, uml_flavour),
        (hyper_qemu::NAME, qemu_flavour),
    ];
    let flavours = flavours.map(|(name, flavour)| (name.to_owned(), flavour)).into();
    let qemu = Late { name: hyper_qemu::NAME, options: qemu, made: OnceLock::new() };
    (kvm, uml, qemu, flavours)
}

/// QEMU, made at its first use: it runs code under KVM to see whether that works, which takes up
/// to a second that pods of other hypervisors need not wait.
struct Late {
    name: &'static str,
    options: hyper_qemu::Options,
    made: OnceLock<hyper_qemu::Qemu>,
}

impl Late {
    fn made(&self) -> &hyper_qemu::Qemu {
        self.made.get_or_init(|| hyper_qemu::Qemu::new(self.options.clone()))
    }
}

#[async_trait]
impl Hypervisor for Late {
    fn name(&self) -> &'static str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.made().capabilities()
    }

    async fn probe(&self) -> Probe {
        self.made().probe().await
    }

    async fn launch(&self, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        self.made().launch(config).await
    }

    async fn restore(&self, directory: &Path, config: VmConfig) -> Result<Box<dyn Vm>, VmError> {
        self.made().restore(directory, config).await
    }

    fn guest_devices(&self, disks: &[Disk], disk: usize) -> Vec<String> {
        self.made().guest_devices(disks, disk)
    }
}
