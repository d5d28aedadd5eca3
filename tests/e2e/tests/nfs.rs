//! Volumes of NFS servers: mounted by guests themselves. The server is nfs-ganesha with a directory
//! of the test's own, in the network namespace of its hyperd.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_e2e::{Engine, eventually, runtimes};

const SOON: Duration = Duration::from_secs(30);

/// A server of version 4 that shows `/shared`; gone when dropped.
struct Server(Child);

impl Server {
    fn beside(engine: &Engine) -> Self {
        let directory = engine.dir().join("nfs");
        for name in ["state", "files"] {
            std::fs::create_dir_all(directory.join(name)).expect("directory");
        }
        let configuration = format!(
            "NFS_CORE_PARAM {{ Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false;
                Enable_UDP = false; allow_set_io_flusher_fail = true; }}
             NFSv4 {{ Graceless = true; Only_Numeric_Owners = true; RecoveryRoot = \"{}\"; }}
             EXPORT_DEFAULTS {{ SecType = sys; Squash = No_Root_Squash; Access_Type = RW;
                Protocols = 4; Transports = TCP; }}
             EXPORT {{ Export_Id = 1; Path = \"{}\"; Pseudo = \"/shared\";
                FSAL {{ Name = VFS; }} }}",
            directory.join("state").display(),
            directory.join("files").display()
        );
        std::fs::write(directory.join("conf"), configuration).expect("configuration");
        let namespace = format!("--net=/run/netns/{}", engine.namespace().expect("a namespace"));
        let mut server = Command::new("nsenter");
        server.arg(namespace).args(["ganesha.nfsd", "-F", "-f"]).arg(directory.join("conf"));
        server.arg("-L").arg(directory.join("log")).arg("-p").arg(directory.join("pid"));
        let server = server.stdin(Stdio::null()).spawn().expect("start ganesha.nfsd");
        let server = Self(server);
        eventually("the server listens", SOON, || {
            engine.beside(&["ss", "-Hltn", "sport", "=", "2049"]).text().contains("2049")
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host's address in the pods' network.
fn gateway(engine: &Engine) -> String {
    let template = "{{(index .IPAM.Config 0).Gateway}}";
    engine.docker(&["network", "inspect", "-f", template, "bridge"]).succeeded().text()
}

#[test]
fn pods_share_a_directory_of_an_nfs_server() {
    let engine = Engine::apart();
    // The network is there with its first pod.
    engine.hyper(&["run", "-d", "--name", "first", "busybox", "sleep", "600"]).succeeded();
    let address = gateway(&engine);
    let server = Server::beside(&engine);
    for (name, options) in [("rw", "vers=4"), ("ro", "nfsvers=4.1,ro")] {
        let options = format!("o=addr={address},{options}");
        let args = ["volume", "create", "-d", "local", "-o", "type=nfs", "-o", &options, "-o"];
        engine.docker(&[&args[..], &["device=:/shared", name]].concat()).succeeded();
    }
    for runtime in runtimes() {
        let busybox = ["busybox", "sh", "-c"];
        let run = |volume: &str, script: &str| {
            let args = ["run", "--rm", "--runtime", runtime, "-v", volume];
            engine.docker(&[&args[..], &busybox, &[script]].concat())
        };
        run("rw:/data", &format!("echo {runtime} >/data/{runtime}; sync")).succeeded();
        let seen = run("ro:/data", &format!("cat /data/{runtime}; echo x >/data/new"));
        assert_eq!(seen.text(), runtime, "{seen:?}");
        assert!(seen.stderr.contains("Read-only file system"), "{seen:?}");
        let served = engine.dir().join("nfs/files").join(runtime);
        assert_eq!(std::fs::read_to_string(served).expect("on the server").trim(), runtime);
        let mounted = run("rw:/data", "grep ' /data ' /proc/mounts").succeeded().text();
        assert!(mounted.contains("nfs4") && mounted.contains("softerr"), "{mounted}");

        // UserPod's word for it.
        let pod = format!("nas-{runtime}");
        let manifest = format!(
            r#"{{"id": "{pod}", "containers": [{{"image": "busybox", "name": "{pod}-c",
                "command": ["sleep", "600"], "volumes": [{{"path": "/share", "volume": "files"}}]}}],
                "volumes": [{{"name": "files", "format": "nas", "source": "{address}:/shared"}}]}}"#
        );
        engine.hyper_with_input(&["apply", "-f", "-"], manifest.into()).succeeded();
        let member = format!("{pod}-c");
        let seen = engine.hyper(&["exec", &member, "cat", &format!("/share/{runtime}")]);
        assert_eq!(seen.succeeded().text(), runtime);
        if runtime != "uml" {
            engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
        }
    }

    // What cannot be mounted is told, soon.
    for (name, options, device, said) in [
        ("deaf", format!("addr={address},port=1"), ":/shared", "refused"),
        ("nobody", "addr=10.254.254.254".to_owned(), ":/shared", "10.254.254.254"),
        ("missing", format!("addr={address}"), ":/elsewhere", "no such directory"),
    ] {
        let (o, device) = (format!("o={options}"), format!("device={device}"));
        let args = ["volume", "create", "-o", "type=nfs", "-o", &o, "-o", &device, name];
        engine.hyper(&args).succeeded();
        let started = Instant::now();
        let mount = format!("{name}:/data");
        let failed = engine.hyper(&["run", "--rm", "-v", &mount, "busybox", "true"]);
        assert!(failed.code == 125 && failed.stderr.contains(said), "{name}: {failed:?}");
        assert!(started.elapsed() < SOON, "{name}: {:?}", started.elapsed());
    }
    // Nor does one that takes connections and says nothing hold it up for good.
    let namespace = engine.namespace().expect("a namespace");
    let mut mute = Command::new("ip");
    mute.args(["netns", "exec", namespace, "busybox", "nc", "-ll", "-p", "2050", "-e", "sleep"]);
    let mut mute = mute.arg("120").stdin(Stdio::null()).spawn().expect("a mute server");
    let options = format!("o=addr={address},port=2050,timeo=10,retrans=1");
    let args = ["volume", "create", "-o", "type=nfs", "-o", &options, "-o", "device=:/shared"];
    engine.hyper(&[&args[..], &["mute"]].concat()).succeeded();
    let started = Instant::now();
    let failed = engine.hyper(&["run", "--rm", "-v", "mute:/data", "busybox", "true"]);
    assert!(failed.code == 125 && failed.stderr.contains("does not answer"), "{failed:?}");
    assert!(started.elapsed() < 3 * SOON, "{:?}", started.elapsed());
    mute.kill().and_then(|()| mute.wait()).expect("end it");
    // Where there is no guest to mount it.
    let refused = engine.hyper(&["run", "--rm", "--runtime", "runc", "-v", "rw:/data", "busybox"]);
    assert!(refused.code != 0 && refused.stderr.contains("NFS server"), "{refused:?}");
    // Files of a container that does not run are not those of the server.
    engine.hyper(&["create", "--name", "still", "-v", "rw:/data", "busybox", "true"]).succeeded();
    let copied = engine.hyper(&["cp", "/etc/hostname", "still:/data/x"]);
    assert!(copied.code != 0, "{copied:?}");

    // A server that dies hangs nobody for good.
    let options = format!("o=addr={address},timeo=10,retrans=1");
    let args = ["volume", "create", "-o", "type=nfs", "-o", &options, "-o", "device=:/shared"];
    engine.hyper(&[&args[..], &["hasty"]].concat()).succeeded();
    let args = ["run", "-d", "--name", "writes", "-v", "hasty:/share", "busybox", "sleep", "600"];
    engine.hyper(&args).succeeded();
    drop(server);
    let started = Instant::now();
    let write = "echo lost >/share/lost || echo failed";
    let said = engine.hyper(&["exec", "writes", "sh", "-c", write]);
    assert!(started.elapsed() < SOON, "{said:?} after {:?}", started.elapsed());
    assert!(said.text().contains("failed"), "{said:?}");
    let started = Instant::now();
    engine.hyper(&["rm", "-f", "writes"]).succeeded();
    engine.hyper(&["pod", "rm", "-f", "nas-uml"]).succeeded();
    assert!(started.elapsed() < SOON, "removal took {:?}", started.elapsed());
}
