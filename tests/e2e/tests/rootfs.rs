//! What a layer holds is what the guest sees: hard links, xattrs, whiteouts, opaque directories, device nodes, huge
//! directories, files over 4 GiB, sub-second times; and the same layers give the same bytes.

use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, image, run, run_with};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

#[track_caller]
fn shell(script: &str) {
    run("bash", &["-ec", script], 5 * MINUTE).succeeded();
}

/// The python image with two layers of everything, as an OCI archive.
fn everything(dir: &Path) -> String {
    let (at, python) = (dir.display(), image("python").display().to_string());
    shell(&format!(
        "cd {at}; skopeo --insecure-policy copy -q oci-archive:{python} oci:{at}/oci:x
         mkdir -p one/t/gone one/t/opaque one/t/huge two/t/gone two/t/opaque; cd one/t
         echo linked > a; ln a b; ln -s a link; chown 7:8 a; chmod 4755 a
         setfattr -n user.colour -v blue a; setfattr -n trusted.secret -v 0x00ff a
         mknod null c 1 3; mknod disk b 259 70000; mkfifo pipe
         seq 1 30000 | (cd huge; xargs touch)
         truncate -s 4294967296 large; printf end >> large
         touch -d '2001-02-03T04:05:06.123456789Z' times
         echo x > gone/x; echo y > gone/y; echo a > opaque/a; cd ../../two/t
         touch gone/.wh.x opaque/.wh..wh..opq; echo c > opaque/c
         cd {at}
         for l in one two; do
           tar --format=posix --sparse --xattrs --xattrs-include='*' -cf $l.tar -C $l t
           umoci raw add-layer --image oci:x $l.tar
         done
         tar -cf all.tar -C oci ."
    ));
    dir.join("all.tar").display().to_string()
}

const LOOK: &str = r#"
import os, stat
os.chdir('/t')
s = {n: os.lstat(n) for n in ['a','b','link','null','disk','pipe','large','times']}
dev = lambda n: [stat.S_IFMT(s[n].st_mode), os.major(s[n].st_rdev), os.minor(s[n].st_rdev)]
with open('large','rb') as f:
    f.seek(4294967296 - 5); end = f.read()
print(str({
 'linked': s['a'].st_ino == s['b'].st_ino and s['a'].st_nlink == 2,
 'mode': oct(s['a'].st_mode), 'owner': [s['a'].st_uid, s['a'].st_gid], 'link': os.readlink('link'),
 'xattrs': {n: os.getxattr('a', n).hex() for n in sorted(os.listxattr('a'))},
 'null': dev('null'), 'disk': dev('disk'), 'pipe': stat.S_ISFIFO(s['pipe'].st_mode),
 'huge': len(os.listdir('huge')), 'last': os.path.exists('huge/30000'),
 'large': s['large'].st_size, 'end': end.hex(), 'time': s['times'].st_mtime_ns,
 'gone': sorted(os.listdir('gone')), 'opaque': sorted(os.listdir('opaque')),
}).replace("'", '"').replace('True', 'true').replace('False', 'false'))
"#;

#[test]
fn guests_see_what_the_layers_hold() {
    let dir = tempfile::tempdir().expect("directory");
    let archive = everything(dir.path());
    let engine = Engine::start();
    let load = |engine: &Engine| {
        let loaded =
            run_with(engine.hyper_command(&["load", "-i", &archive]), Vec::new(), 5 * MINUTE);
        let said = loaded.succeeded().text();
        said.split("sha256:").nth(1).expect("an image without a name").trim().to_owned()
    };
    let id = load(&engine);
    let seen = engine.hyper(&[
        "run",
        "--rm",
        "--runtime",
        "uml",
        "--cap-add",
        "SYS_ADMIN",
        &id,
        "python3",
        "-c",
        LOOK,
    ]);
    let seen: Value = serde_json::from_str(&seen.succeeded().text()).expect("JSON");
    let wanted = json!({
        "linked": true, "mode": "0o104755", "owner": [7, 8], "link": "a",
        "xattrs": {"trusted.secret": "00ff", "user.colour": "626c7565"},
        "null": [0o020_000, 1, 3], "disk": [0o060_000, 259, 70000], "pipe": true,
        "huge": 30000, "last": true, "large": 4_294_967_299_u64, "end": "0000000000656e64",
        "time": 981_173_106_123_456_789_u64, "gone": ["y"], "opaque": ["c"],
    });
    assert_eq!(seen, wanted);

    // Made again by another engine: bit for bit the same.
    let sums = |engine: &Engine| {
        let root = engine.dir().join("data/images").display().to_string();
        let script = format!(
            "cd {root} && find layers rootfs -type f ! -name rootfs.json | sort | xargs sha256sum"
        );
        run("bash", &["-ec", &script], 5 * MINUTE).succeeded().text()
    };
    let first = sums(&engine);
    drop(engine);
    let again = Engine::start();
    load(&again);
    let second = sums(&again);
    assert!(first.lines().count() >= 5, "{first}");
    assert_eq!(first, second);
}
