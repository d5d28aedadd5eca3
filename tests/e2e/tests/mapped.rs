//! Images that guests of `kvm` use where the host has them. `HYPER_E2E_RUNTIMES=kvm` on a host with
//! a KVM that runs Linux, or in the laboratory; skipped elsewhere.

use hyper_e2e::{Engine, root, runtimes, text, tool};
use sha2::{Digest as _, Sha256};

const BYTES: u64 = 24 << 20;
/// Reads all of a file of the image, then tells how much more the guest has cached since, in KiB.
const READ: &str = "cached() { awk '/^(Cached|Buffers):/ { all += $2 } END { print all }' \
                    /proc/meminfo; }
before=$(cached); sha256sum </large; echo $(($(cached) - before))";

/// A direct write hands the pages of its buffer to the server of the share, which has the guest's memory
/// and no image: the pod ended with it.
#[test]
fn what_is_mapped_of_an_image_is_written_to_a_share_past_the_page_cache() {
    if !runtimes().contains(&"kvm") {
        println!("SKIPPED: no `kvm` among the runtimes");
        return;
    }
    let engine = Engine::with_busybox();
    let context = tempfile::tempdir().expect("a directory");
    let (program, share) = (context.path().join("direct"), context.path().join("share"));
    let source = text(&root().join("tests/e2e/guests/direct.c"));
    tool("cc", &["-O2", "-Wall", "-Werror", "-static", "-o", &text(&program), &source]);
    let piece: Vec<u8> = (0..65536_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(context.path().join("piece"), &piece).expect("room");
    std::fs::write(context.path().join("Dockerfile"), "FROM busybox\nCOPY direct piece /\n")
        .expect("room");
    std::fs::create_dir(&share).expect("room");
    engine.hyper(&["build", "-q", "-t", "direct", &text(context.path())]).succeeded();
    let volume = format!("{}:/share", share.display());
    let arguments = ["run", "-d", "--name", "direct", "--runtime", "kvm", "--network", "none"];
    let command = ["-v", &volume, "direct", "sleep", "600"];
    engine.docker(&[&arguments[..], &command].concat()).succeeded();
    assert_eq!(engine.pod_report("direct")["image"], "mapped");
    let command = "/direct /piece /share/out && echo after >/share/more";
    engine.docker(&["exec", "direct", "sh", "-c", command]).succeeded();
    let first = &piece[..65536];
    let wanted = [&piece[..], first, first, first].concat();
    assert!(std::fs::read(share.join("out")).expect("written") == wanted, "it is not the same");
    assert_eq!(std::fs::read(share.join("more")).expect("written"), b"after\n");
}

#[test]
fn an_image_is_not_copied_into_guests() {
    if !runtimes().contains(&"kvm") {
        println!("SKIPPED: no `kvm` among the runtimes");
        return;
    }
    let engine = Engine::with_busybox();
    let context = tempfile::tempdir().expect("a directory");
    let large: Vec<u8> = (0..BYTES / 8).flat_map(|word| (word * 0x9e37).to_le_bytes()).collect();
    let wanted: String = Sha256::digest(&large).iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(context.path().join("large"), large).expect("room");
    std::fs::write(context.path().join("Dockerfile"), "FROM busybox\nCOPY large /\n")
        .expect("room");
    engine.hyper(&["build", "-q", "-t", "large", &text(context.path())]).succeeded();
    let arguments = ["run", "--rm", "--runtime", "kvm", "--network", "none", "large"];
    let printed = engine.docker(&[&arguments[..], &["sh", "-c", READ]].concat());
    let printed = printed.succeeded().text();
    let (sum, cached) = printed.split_once('\n').unwrap_or_else(|| panic!("{printed}"));
    assert_eq!(sum.split_whitespace().next(), Some(&*wanted));
    let cached: i64 = cached.trim().parse().expect("a number");
    assert!(cached < 4 << 10, "{cached} KiB more are in the guest's cache");
}
