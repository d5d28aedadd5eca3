//! Guests in the pages that were asked for, where KVM works; see `contract.rs`. The host's pool of
//! huge pages is changed for the time of the test.

mod host;

use std::fs;
use std::path::Path;

use hyper_hypervisor::Hypervisor as _;
use hyper_hypervisor::contract::{Session, Shape};
use hyper_kvm::{HugePages, Kvm, Options};

const MEMORY: u64 = 96 << 20;
const POOL: &str = "/proc/sys/vm/nr_hugepages";
/// Of 2 MiB.
const PAGES: u64 = MEMORY >> 21;

/// The size of the pool as it was.
struct Before(String);

impl Drop for Before {
    fn drop(&mut self) {
        fs::write(POOL, &self.0).expect("give the pool back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_have_the_pages_that_were_asked_for() {
    let Some(ready) = host::ready() else { return };
    let fixture = ready.fixture(MEMORY, None);
    let _before = Before(fs::read_to_string(POOL).expect("a kernel with huge pages"));
    let pool = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
    let left = |name: &str| -> u64 {
        fs::read_to_string(pool.join(name)).unwrap().trim().parse().unwrap()
    };
    for (huge_pages, prefault) in [
        (HugePages::Off, false),
        (HugePages::Off, true),
        (HugePages::Transparent, false),
        (HugePages::Reserved, false),
        (HugePages::Reserved, true),
    ] {
        let what = format!("{huge_pages:?}, prefault {prefault}");
        let kvm = Kvm::new(Options { huge_pages, prefault, ..ready.options.clone() });
        let reserved = huge_pages == HugePages::Reserved;
        assert_eq!(kvm.capabilities().save, !(reserved || prefault), "{what}");
        if reserved {
            fs::write(POOL, "0").unwrap();
            let refused = Session::boot(&kvm, &fixture, Shape::default()).await.map(drop);
            let why = refused.expect_err("a guest without its memory");
            assert!(why.contains(&format!("needs {PAGES} free huge pages")), "{why}");
            assert!(why.contains("sysctl vm.nr_hugepages"), "{why}");
            // Some more, for the pieces that others have.
            fs::write(POOL, (PAGES + 8).to_string()).unwrap();
            assert!(left("free_hugepages") >= PAGES, "the host has no room for the pool");
        }
        let free = left("free_hugepages") - left("resv_hugepages");
        let mut session = Session::boot(&kvm, &fixture, Shape::default()).await.expect(&what);
        assert_eq!(session.ask("echo well").await.as_deref(), Ok("well"), "{what}");
        let map = fs::read_to_string(format!("/proc/{}/smaps", session.vm.pid())).unwrap();
        let sum = |name: &str| -> u64 {
            let lines = map.lines().filter_map(|line| line.strip_prefix(name));
            let numbers = lines.map(|text| text.trim().trim_end_matches(" kB").parse::<u64>());
            numbers.map(|kib| kib.unwrap() << 10).sum()
        };
        let (huge, pooled) =
            (sum("AnonHugePages:"), sum("Shared_Hugetlb:") + sum("Private_Hugetlb:"));
        let resident = sum("Rss:") + pooled;
        println!(
            "{what}: {} MiB resident, {} MiB huge, {} MiB of the pool",
            resident >> 20,
            huge >> 20,
            pooled >> 20
        );
        assert_eq!(pooled > 0, reserved, "{what}");
        assert!(huge > 0 || huge_pages != HugePages::Transparent, "{what}: no huge page");
        // What is prefaulted stays, however much of it the guest reports as free.
        assert_eq!(resident >= MEMORY, prefault, "{what}: {resident} bytes");
        let taken = free - (left("free_hugepages") - left("resv_hugepages"));
        assert_eq!(taken, if reserved { PAGES } else { 0 }, "{what}");
        session.power_off().await.expect(&what);
        assert_eq!(left("free_hugepages") - left("resv_hugepages"), free, "{what}: all are back");
    }
}
