//! Files and secrets that containers are given: `--secret`, `--config`, volumes of ConfigMaps and
//! Secrets, a UserPod's files. No secret is on a disk of the host or on a command line.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, run_with, runtimes};

/// In base64, too, nothing else looks like them.
const FILE: &str = "Xyzzy-Plugh-of-a-file-90125";
const VALUE: &str = "Xyzzy-Plugh-of-a-value-5150";

/// Where any of the words is, as it is or as base64: files below `root` by name, and processes of
/// the host by what they were called with. On the host's kernel a container's own processes are not
/// counted: they have what they are to have.
fn traces(root: &Path, runtime: &str) -> Vec<String> {
    let mut needles = Vec::new();
    for word in [FILE, VALUE] {
        needles.push(word.as_bytes().to_vec());
        // Base64 of a text in the middle of others begins at one of three places.
        for skipped in 0..3 {
            let encoded = base64(&word.as_bytes()[skipped..]);
            needles.push(encoded.as_bytes()[..24].to_vec());
        }
    }
    let holds = |bytes: &[u8]| {
        needles.iter().any(|needle| bytes.windows(needle.len()).any(|part| part == needle))
    };
    let mut found = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("list").flatten() {
            let kind = entry.file_type().expect("kind");
            // Images are many bytes, and were there before.
            if kind.is_dir() && entry.file_name() != "images" {
                directories.push(entry.path());
            } else if kind.is_file() && holds(&data(&entry.path())) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    for process in std::fs::read_dir("/proc").expect("processes").flatten() {
        if process.file_name().to_string_lossy().parse() == Ok(std::process::id()) {
            continue;
        }
        let space = |path: &Path| std::fs::read_link(path.join("ns/pid")).ok();
        if runtime == "runc" && space(&process.path()) != space(Path::new("/proc/self")) {
            continue;
        }
        for name in ["cmdline", "environ"] {
            let file = process.path().join(name);
            if std::fs::read(&file).is_ok_and(|bytes| holds(&bytes)) {
                found.push(file.display().to_string());
            }
        }
    }
    found
}

/// A file without its holes: writable disks are sparse.
fn data(path: &Path) -> Vec<u8> {
    use rustix::fs::{SeekFrom, seek};
    let mut all = Vec::new();
    let Ok(mut file) = std::fs::File::open(path) else { return all };
    let mut at = 0;
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        let end = seek(&file, SeekFrom::Hole(start)).expect("hole");
        seek(&file, SeekFrom::Start(start)).expect("seek");
        (&mut file).take(end - start).read_to_end(&mut all).expect("read");
        at = end;
    }
    all
}

fn base64(bytes: &[u8]) -> String {
    let mut command = std::process::Command::new("base64");
    command.arg("-w0");
    run_with(command, bytes.to_vec(), Duration::from_secs(10)).succeeded().text()
}

fn md5(path: &Path) -> String {
    let said = hyper_e2e::tool("md5sum", &[&path.display().to_string()]);
    said.split_whitespace().next().expect("a sum").to_owned()
}

/// The names of a directory.
fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn said(outcome: &Outcome) -> String {
    format!("{}{}", String::from_utf8_lossy(&outcome.stdout), outcome.stderr)
}

fn and_runc() -> Vec<&'static str> {
    let mut all = runtimes();
    all.push("runc");
    all
}

#[test]
fn secrets_are_seen_in_the_container_and_nowhere_else() {
    let mut engine = Engine::in_memory();
    let dir = tempfile::tempdir().expect("directory");
    // Beside the data root, which is searched.
    let (secret, big) = (dir.path().join("secret"), dir.path().join("big"));
    std::fs::write(&secret, FILE).expect("write");
    let bytes: Vec<u8> =
        (0..1_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&big, bytes).expect("write");
    let sum = md5(&big);
    // With it as much is given as can be.
    let rest = dir.path().join("rest");
    std::fs::write(&rest, vec![b'\\'; (1 << 20) - 1000]).expect("write");
    let rest = format!("id=rest,src={}", rest.display());
    assert_eq!(traces(dir.path(), "uml").len(), 1, "what there is to be found is found");
    let file = format!("id=db,src={},mode=0440,uid=5,gid=7", secret.display());
    let value = "id=token,env=A_TOKEN,type=env,target=TOKEN";
    let other = format!("id=plain,src={}", secret.display());
    let big = format!("id=big,src={},target=/etc/app/big", big.display());
    for runtime in and_runc() {
        let mut command = engine.hyper_command(&[
            "create",
            "--name",
            "one",
            "--runtime",
            runtime,
            "--secret",
            &file,
            "--secret",
            value,
            "--secret",
            &other,
            "--config",
            &big,
            "--config",
            &rest,
            "--health-cmd",
            r#"test "$TOKEN" && echo well"#,
            "--health-interval",
            "1s",
            "--env",
            "A=1",
            "busybox",
            "sleep",
            "1000",
        ]);
        command.env("A_TOKEN", VALUE);
        run_with(command, Vec::new(), Duration::from_secs(60)).succeeded();
        engine.hyper(&["start", "one"]).succeeded();
        let ask = "cat /run/secrets/db; echo; stat -c '%a %u %g' /run/secrets/db /run/secrets/plain; \
                   echo $TOKEN $A; md5sum </etc/app/big; (echo x >/run/secrets/db) 2>&1; \
                   tr '\\0' '\\n' </proc/1/environ | grep -c ^TOKEN=; wc -c </rest";
        let seen = |engine: &Engine| {
            let said = engine.hyper(&["exec", "one", "sh", "-c", ask]);
            let text = said.text();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[..3], [FILE, "440 5 7", "400 0 0"], "{runtime}");
            assert_eq!(lines[3], format!("{VALUE} 1"), "{runtime}");
            assert!(lines[4].starts_with(&sum), "{runtime}: {text}");
            assert!(lines[5].contains("Read-only file system"), "{runtime}: {text}");
            assert_eq!(lines[6..], ["1", "1047576"], "{runtime}");
        };
        seen(&engine);
        hyper_e2e::eventually("its check sees the variable", Duration::from_secs(30), || {
            engine.inspect("one", "{{.State.Health.Status}}") == "healthy"
        });
        for words in [&["inspect", "one"][..], &["logs", "one"], &["container", "inspect", "one"]] {
            let text = said(&engine.docker(words));
            assert!(!text.contains(VALUE) && !text.contains(FILE), "{words:?}: {text}");
        }
        assert!(engine.inspect("one", "{{json .Config.Env}}").contains("TOKEN=[secret]"));

        // Nothing is lost with hyperd, nor with an end of the container.
        engine.kill_daemon();
        engine.restart();
        seen(&engine);
        engine.hyper(&["restart", "-t", "0", "one"]).succeeded();
        seen(&engine);
        engine.docker(&["cp", "one:/etc/hostname", "-"]).succeeded();
        assert_eq!(traces(engine.dir(), runtime), Vec::<String>::new(), "{runtime}");
        let kept = engine.exec_root().join("secrets");
        let id = engine.inspect("one", "{{.Id}}");
        let mode =
            |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&kept), mode(&kept.join(&id))), (0o700, 0o700));
        assert_eq!(mode(&kept.join(&id).join("0")), 0o600);
        assert_eq!(mode(&engine.exec_root().join("pods").join(&id).join("config.json")), 0o600);

        engine.hyper(&["stop", "-t", "0", "one"]).succeeded();
        engine.hyper(&["cp", "one:/etc/passwd", "-"]).succeeded();
        assert_eq!(traces(engine.dir(), runtime), Vec::<String>::new(), "{runtime}");
        engine.docker(&["commit", "one", "made"]).succeeded();
        assert!(!said(&engine.docker(&["image", "inspect", "made"])).contains(VALUE));
        engine.docker(&["rmi", "made"]).succeeded();
        engine.hyper(&["rm", "one"]).succeeded();
        assert_eq!(names(&kept), Vec::<String>::new(), "{runtime}: they go with the container");
        let log = engine.log();
        assert!(!log.contains(FILE) && !log.contains(VALUE), "{runtime}");
    }
}

#[test]
fn secrets_that_are_gone_and_places_that_are_none_are_refused() {
    let mut engine = Engine::in_memory();
    let secret = ["--secret", "id=db,env=HOME"];
    engine
        .hyper(&[
            "create",
            "--name",
            "one",
            secret[0],
            secret[1],
            "busybox",
            "cat",
            "/run/secrets/db",
        ])
        .succeeded();
    // As a restart of the host leaves it.
    engine.kill_daemon();
    std::fs::remove_dir_all(engine.exec_root().join("secrets")).expect("remove");
    engine.restart();
    let refused = engine.hyper(&["start", "-a", "one"]);
    assert_ne!(refused.code, 0);
    for words in ["secret `db`", "is gone", "hyper apply"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    // Its files are reached all the same.
    engine.docker(&["cp", "one:/etc/passwd", "-"]).succeeded();
    // What no container has is swept.
    engine.kill_daemon();
    let stray = engine.exec_root().join("secrets/stray");
    std::fs::create_dir_all(&stray).expect("make");
    std::fs::write(stray.join("0"), "x").expect("write");
    engine.restart();
    assert!(!stray.exists(), "what belongs to nothing is removed");

    let dir = tempfile::tempdir().expect("directory");
    let big = dir.path().join("big");
    std::fs::write(&big, vec![0; (1 << 20) + 1]).expect("write");
    let most = dir.path().join("most");
    std::fs::write(&most, vec![0; 1 << 20]).expect("write");
    let (big, most) = (format!("id=a,src={}", big.display()), most.display().to_string());
    let (two, three) = (format!("id=b,src={most}"), format!("id=c,src={most}"));
    let all = [two.as_str(), "--secret", &three];
    for (given, words) in [
        (&[big.as_str()][..], "more than 1048576 bytes"),
        (&all, "more than 2048 files or 2097152"),
        (&["id=a,src=/no/such"], "/no/such"),
        (&["id=a,env=NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (&["id=a,env=HOME,target=/proc/x"], "/proc"),
        (&["id=a,env=HOME", "-v", "/tmp:/run/secrets/a"], "Duplicate mount point"),
        (&["id=a,env=HOME", "-v", "/tmp:/run/secrets/a/b"], "below"),
        (&["id=a,env=HOME,type=env,target=X", "-e", "X=1"], "`X` is given twice"),
    ] {
        let mut command = vec!["create", "--name", "refused", "--secret"];
        command.extend(given);
        command.extend(["busybox", "true"]);
        let outcome = engine.hyper(&command);
        assert!(
            outcome.code != 0 && outcome.stderr.contains(words),
            "{given:?}: {}",
            outcome.stderr
        );
    }
    assert_eq!(engine.hyper(&["ps", "-a", "--format", "{{.Names}}"]).succeeded().text(), "one");
    let id = engine.inspect("one", "{{.Id}}");
    assert!(names(&engine.exec_root().join("secrets")).iter().all(|name| *name == id));
}

#[test]
fn an_exec_root_on_a_disk_takes_configs_and_no_secrets() {
    let engine = Engine::with_busybox();
    let kind = rustix::fs::statfs(engine.dir()).expect("statfs").f_type;
    if kind == 0x0102_1994 {
        eprintln!("skipped: the directory for temporary files is in memory");
        return;
    }
    let create = ["create", "--secret", "id=db,env=HOME", "busybox", "true"];
    let refused = engine.hyper(&create);
    let exec_root = engine.exec_root().display().to_string();
    for words in ["on a disk", exec_root.as_str(), "--exec-root", "tmpfs"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert_eq!(engine.hyper(&["ps", "-aq"]).succeeded().text(), "");
    let dir = tempfile::tempdir().expect("directory");
    let conf = dir.path().join("conf");
    std::fs::write(&conf, "plain").expect("write");
    let config = format!("id=app.conf,src={}", conf.display());
    for runtime in and_runc() {
        let run = ["run", "--rm", "--runtime", runtime, "--config", &config, "busybox"];
        let said = engine.hyper(&[&run[..], &["cat", "/app.conf"]].concat()).succeeded();
        assert_eq!(said.text(), "plain", "{runtime}");
    }
}

fn manifest(runtime: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: conf}}
data: {{app.conf: "mode = fast\n", GREETING: hello}}
binaryData: {{bin: AAEC/w==}}
---
apiVersion: v1
kind: Secret
metadata: {{name: db}}
data: {{pw: {}}}
stringData: {{token: {VALUE}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: given-{runtime}}}
spec:
  runtimeClassName: {runtime}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes:
  - name: conf
    configMap: {{name: conf}}
  - name: pw
    secret: {{secretName: db, defaultMode: 0400, items: [{{key: pw, path: db/pw}}]}}
  - name: both
    projected:
      sources:
      - configMap: {{name: conf, items: [{{key: GREETING, path: greeting, mode: 0444}}]}}
      - secret: {{name: db, items: [{{key: token, path: token}}]}}
  containers:
  - name: main
    image: busybox
    imagePullPolicy: Never
    command: [sleep, '1000']
    volumeMounts:
    - {{name: conf, mountPath: /etc/conf}}
    - {{name: conf, mountPath: /etc/one.conf, subPath: app.conf}}
    - {{name: pw, mountPath: /etc/pw}}
    - {{name: both, mountPath: /both, readOnly: true}}
    env:
    - {{name: TOKEN, valueFrom: {{secretKeyRef: {{name: db, key: token}}}}}}
    - {{name: URL, value: 'db://$(TOKEN)@host'}}
    - {{name: GREETING, valueFrom: {{configMapKeyRef: {{name: conf, key: GREETING}}}}}}
"#,
        base64(FILE.as_bytes())
    )
}

#[test]
fn volumes_of_config_maps_and_secrets_are_directories_with_exactly_their_files() {
    let engine = Engine::in_memory();
    for runtime in runtimes() {
        let text = manifest(runtime).into_bytes();
        engine.hyper_with_input(&["apply", "-f", "-"], text.clone()).succeeded();
        let main = format!("given-{runtime}-main");
        let ask = "cd /etc/conf; ls; od -An -tx1 bin; cat /etc/one.conf /etc/pw/db/pw; echo; \
                   stat -c %a /etc/conf /etc/pw/db/pw app.conf /both/greeting; ls /both; cat /both/token; \
                   echo; echo $TOKEN $URL $GREETING; (echo x >/etc/conf/new) 2>&1";
        let said = engine.hyper(&["exec", &main, "sh", "-c", ask]);
        let expected = format!(
            "GREETING\napp.conf\nbin\n 00 01 02 ff\nmode = fast\n{FILE}\n755\n400\n644\n444\n\
             greeting\ntoken\n{VALUE}\n{VALUE} db://{VALUE}@host hello\n\
             sh: can't create /etc/conf/new: Read-only file system"
        );
        assert_eq!(said.text(), expected, "{runtime}");
        let shown = self::said(&engine.hyper(&["inspect", &main]));
        assert!(
            shown.contains("db/pw") && !shown.contains(VALUE) && !shown.contains(FILE),
            "{shown}"
        );
        assert_eq!(traces(engine.dir(), runtime), Vec::<String>::new(), "{runtime}");
        engine.hyper(&["pod", "stop", &format!("given-{runtime}")]).succeeded();
        engine.hyper(&["pod", "start", &format!("given-{runtime}")]).succeeded();
        let said = engine.hyper(&["exec", &main, "cat", "/etc/pw/db/pw"]).succeeded();
        assert_eq!(said.text(), FILE, "{runtime}");
        engine.hyper_with_input(&["delete", "-f", "-"], text).succeeded();
        assert_eq!(names(&engine.exec_root().join("secrets")), Vec::<String>::new());
    }
    // A member that joins by itself.
    engine.hyper(&["pod", "create", "joined"]).succeeded();
    let member = ["run", "--rm", "--pod", "joined", "--secret", "id=h,env=HOME", "busybox"];
    let said = engine.hyper(&[&member[..], &["cat", "/run/secrets/h"]].concat()).succeeded();
    assert_eq!(said.text(), std::env::var("HOME").expect("HOME"));
}

/// Serves one body for as long as the test runs.
fn serve(body: Vec<u8>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body));
        }
    });
    format!("http://{address}/file")
}

#[test]
fn files_of_a_user_pod_are_put_into_its_containers() {
    let engine = Engine::with_busybox();
    let dir = tempfile::tempdir().expect("directory");
    let local = dir.path().join("local");
    std::fs::write(&local, [&[0, 1, 255][..], FILE.as_bytes()].concat()).expect("write");
    let served = serve(std::fs::read(&local).expect("read"));
    let pod = serde_json::json!({
        "id": "files",
        "files": [
            {"name": "raw", "content": "#!/bin/sh\necho it runs\n"},
            {"name": "encoded", "encoding": "base64", "content": base64(&std::fs::read(&local).expect("read"))},
            {"name": "local", "uri": format!("file://{}", local.display())},
            {"name": "served", "uri": served},
        ],
        "containers": [{
            "name": "main", "image": "busybox", "command": ["sleep", "1000"],
            "files": [
                {"path": "/usr/bin/tool", "filename": "raw"},
                {"path": "/srv/encoded", "filename": "encoded", "perm": "0640", "user": "5", "group": "7"},
                {"path": "/srv/local", "filename": "local", "user": "nobody", "group": "staff"},
                {"path": "/srv/served", "filename": "served"},
                {"path": "/srv/own", "detail": {"content": "own"}},
            ],
        }],
    });
    let file = dir.path().join("pod.json");
    std::fs::write(&file, pod.to_string()).expect("write");
    let file = file.display().to_string();
    engine.hyper(&["apply", "-f", &file]).succeeded();
    let ask = "tool; cd /srv; stat -c '%a %u %g' encoded; stat -c '%a %U %G' local; md5sum encoded local served | cut -d' ' -f1; \
               cat own; echo more >>own; cat own";
    let said = engine.hyper(&["exec", "main", "sh", "-c", ask]).succeeded();
    let sum = md5(&local);
    let expected = format!("it runs\n640 5 7\n755 nobody staff\n{sum}\n{sum}\n{sum}\nownownmore");
    assert_eq!(said.text(), expected);
    // What is in the files is of no matter to the removal.
    let moved = dir.path().join("moved");
    std::fs::rename(&local, &moved).expect("move");
    engine.hyper(&["delete", "-f", &file]).succeeded();
    std::fs::rename(&moved, &local).expect("move");
    let large = serve(vec![0; (1 << 20) + 1]);
    for (detail, words) in [
        (serde_json::json!({"encoding": "base64", "content": "aGk?"}), "not base64"),
        (serde_json::json!({"uri": "file:///no/such"}), "/no/such"),
        (serde_json::json!({"uri": "file://other/x"}), "of another host"),
        (serde_json::json!({"uri": "ftp://h/x"}), "none of file://"),
        (serde_json::json!({"uri": "http://127.0.0.1:1/x"}), "127.0.0.1:1"),
        (serde_json::json!({"uri": large}), "more than 1048576 bytes"),
    ] {
        let pod = serde_json::json!({"id": "bad", "containers": [
            {"image": "busybox", "files": [{"path": "/a", "detail": detail}]}]});
        let refused = engine.hyper_with_input(&["apply", "-f", "-"], pod.to_string().into_bytes());
        assert!(refused.code != 0 && refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    assert_eq!(engine.hyper(&["pod", "ps", "-q"]).succeeded().text(), "");
}
