//! The contract over the in-memory hypervisor, in both of its disk models.
#![cfg(feature = "contract")]

use std::time::Duration;

use hyper_hypervisor::contract::{self, Fixture};
use hyper_hypervisor::fake::{Fake, KERNEL};
use hyper_hypervisor::{DiskModel, Hypervisor as _, VmError};

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    for model in [DiskModel::Stitched, DiskModel::DevicePerExtent] {
        let work = tempfile::tempdir().unwrap();
        let kernel = work.path().join("kernel");
        std::fs::write(&kernel, KERNEL).unwrap();
        let fixture = Fixture {
            kernel,
            initramfs: contract::initramfs(work.path()).unwrap(),
            work: work.path().to_owned(),
            memory_bytes: 64 << 20,
            boot: Duration::from_secs(5),
            net: None,
        };
        let (fake, mut guests) = Fake::new(model);
        let fake = if model == DiskModel::Stitched { fake.sharing() } else { fake };
        let players = tokio::spawn(async move {
            while let Some(guest) = guests.next().await {
                tokio::spawn(contract::play(guest));
            }
        });
        contract::run(&fake, &fixture).await.unwrap();
        fake.refuse(VmError::Launch { hypervisor: "fake", detail: "on cue".to_owned() });
        let config = hyper_hypervisor::VmConfig {
            id: "cue".to_owned(),
            kernel: hyper_hypervisor::GuestKernel {
                kernel: fixture.kernel.clone(),
                initramfs: fixture.initramfs.clone(),
                extra_cmdline: vec![],
            },
            vcpus: 1,
            memory_bytes: 64 << 20,
            disks: vec![],
            nics: vec![],
            late_disks: true,
            share: None,
            run_dir: work.path().to_owned(),
            cgroup: None,
        };
        let refused = fake.launch(config.clone()).await.err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("start hypervisor `fake`: on cue"));
        assert!(fake.launch(config).await.is_ok());
        drop(fake);
        players.await.unwrap();
    }
}
