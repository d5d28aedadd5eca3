//! `hyper apply -f` and `delete -f`: Kubernetes' v1/Pod, and UserPod of the first Hyper.

use std::time::Duration;

use hyper_e2e::{Engine, eventually, runtimes};

const SOON: Duration = Duration::from_secs(60);

fn pod(runtime: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: words}}
data: {{GREETING: hello}}
---
apiVersion: v1
kind: Pod
metadata:
  name: site-{runtime}
  labels: {{app: site}}
spec:
  runtimeClassName: {runtime}
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  volumes:
    - name: pages
      emptyDir: {{}}
    - name: scratch
      emptyDir: {{medium: Memory, sizeLimit: 1Mi}}
  initContainers:
    - name: write
      image: busybox
      imagePullPolicy: Never
      command: [sh, -c, 'echo "$(GREETING) from $POD" > /pages/index.html; echo kept > /scratch/word']
      envFrom: [{{configMapRef: {{name: words}}}}]
      env: [{{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]
      volumeMounts: [{{name: pages, mountPath: /pages}}, {{name: scratch, mountPath: /scratch}}]
  containers:
    - name: web
      image: busybox
      command: [sh, -c, 'exec httpd -f -p 127.0.0.1:8080 -h /pages']
      resources: {{limits: {{memory: 32Mi, cpu: 500m}}}}
      volumeMounts:
        - {{name: pages, mountPath: /pages, readOnly: true}}
        - {{name: scratch, mountPath: /shared, readOnly: true}}
      readinessProbe:
        tcpSocket: {{port: 8080}}
        periodSeconds: 1
    - name: client
      image: busybox
      command: [sh, -c]
      args:
        - |
          until printf 'GET /index.html HTTP/1.0\r\n\r\n' | nc 127.0.0.1 8080 | grep hello; do
            sleep 0.2
          done
          exec sleep 600
      resources: {{limits: {{memory: 32Mi, cpu: 500m}}}}
      volumeMounts: [{{name: scratch, mountPath: /mine}}]
"#
    )
}

#[test]
fn a_kubernetes_pod_of_two_containers_and_an_init_container_runs_and_goes() {
    let engine = Engine::with_busybox();
    for runtime in runtimes() {
        let (name, manifest) = (format!("site-{runtime}"), pod(runtime).into_bytes());
        let said = engine.hyper_with_input(&["apply", "-f", "-"], manifest.clone()).succeeded();
        assert_eq!(said.text(), format!("pod/{name}"));
        eventually("the client has fetched the page", SOON, || {
            let log = engine.hyper(&["logs", &format!("{name}-client")]).succeeded().text();
            log.contains(&format!("hello from {name}"))
        });
        let listed = engine.hyper(&["pod", "ps", "--format", "{{.Name}} {{.Running}}"]).succeeded();
        assert_eq!(listed.text(), format!("{name} 2/3"));
        let code = engine.inspect(&format!("{name}-write"), "{{.State.ExitCode}}");
        assert_eq!(code, "0");
        let web = format!("{name}-web");
        eventually("its probe is well", SOON, || {
            engine.inspect(&web, "{{.State.Health.Status}}") == "healthy"
        });
        let limit = engine.inspect(&web, "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}");
        assert_eq!(limit, format!("{} 500000000", 32 << 20));
        let refused = engine.hyper(&["exec", &web, "sh", "-c", "echo x > /pages/x"]);
        assert_ne!(refused.code, 0, "it is mounted read-only");
        let inside = |container: &str, script: &str| {
            let container = format!("{name}-{container}");
            engine.hyper(&["exec", &container, "sh", "-c", script])
        };
        let script = "printf '#!/bin/sh\necho runs' > /mine/x; chmod +x /mine/x; cat /mine/word";
        assert_eq!(inside("client", script).succeeded().text(), "kept", "{runtime}");
        let script = "/shared/x; df -k /shared | awk 'NR>1 {print $2}'; echo x > /shared/y";
        let outcome = inside("web", script);
        assert_eq!(outcome.text(), "runs\n1024", "memory that both containers see");
        assert!(outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
        let again = engine.hyper_with_input(&["apply", "-f", "-"], manifest.clone());
        assert!(again.stderr.contains("in use by pod"), "{}", again.stderr);

        engine.hyper_with_input(&["delete", "-f", "-"], manifest.clone()).succeeded();
        for (what, arguments) in [
            ("pods", &["pod", "ps", "-q"][..]),
            ("containers", &["ps", "-aq"]),
            ("volumes", &["volume", "ls", "-q"]),
        ] {
            assert_eq!(engine.hyper(arguments).succeeded().text(), "", "{what} are left");
        }
        engine.hyper_with_input(&["delete", "-f", "-"], manifest).succeeded();
    }
}

#[test]
fn a_user_pod_of_the_first_hyper_runs() {
    let engine = Engine::with_busybox();
    let host = tempfile::tempdir().expect("directory");
    std::fs::write(host.path().join("word"), "from the host\n").expect("write");
    let manifest = serde_json::json!({
        "id": "old", "hostname": "ancient", "resource": {"vcpu": 1, "memory": 128},
        "labels": {"age": "ten"},
        "containers": [
            {"name": "one", "image": "busybox", "command": ["sleep", "600"],
             "envs": [{"env": "A", "value": "b"}], "workdir": "/tmp",
             "user": {"name": "nobody"},
             "volumes": [{"path": "/given", "volume": "given", "readOnly": true}]},
            {"image": "busybox", "command": ["sleep", "600"], "restartPolicy": "always"},
            {"name": "web", "image": "busybox", "command": ["sh", "-c",
                "mkdir /www; echo from its neighbour > /www/index.html; \
                 exec httpd -f -p 127.0.0.1:8080 -h /www"]},
            {"name": "client", "image": "busybox", "command": ["sh", "-c",
                "until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 8080 | grep neighbour; do \
                 sleep 0.2; done; exec sleep 600"]},
        ],
        "volumes": [{"name": "given", "source": host.path(), "format": "vfs"}],
    });
    let file = host.path().join("pod.json");
    std::fs::write(&file, manifest.to_string()).expect("write");
    engine.hyper(&["apply", "-f", &file.display().to_string()]).succeeded();
    let ask = "hostname; pwd; echo $A; cat /given/word; id -un; touch /given/x 2>&1";
    let said = engine.hyper(&["exec", "one", "sh", "-c", ask]).stdout;
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("ancient\n/tmp\nb\nfrom the host\nnobody\n"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    eventually("the client has fetched the page", SOON, || {
        engine.hyper(&["logs", "client"]).succeeded().text() == "from its neighbour"
    });
    let policy = engine.inspect("old-busybox-1", "{{.HostConfig.RestartPolicy.Name}}");
    assert_eq!(policy, "always");
    engine.hyper(&["delete", "-f", &file.display().to_string()]).succeeded();
}

#[test]
fn a_failing_liveness_probe_starts_the_container_again() {
    let engine = Engine::with_busybox();
    let pod = r#"
apiVersion: v1
kind: Pod
metadata: {name: alive}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: sick
      image: busybox
      imagePullPolicy: Never
      command: [sh, -c, 'echo up; touch /ok; sleep 2; rm /ok; sleep 600']
      livenessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1, failureThreshold: 1}
    - name: well
      image: busybox
      imagePullPolicy: Never
      command: [sleep, '600']
"#;
    engine.hyper_with_input(&["apply", "-f", "-"], pod.as_bytes().to_vec()).succeeded();
    eventually("it was started again", SOON, || {
        engine.docker(&["logs", "alive-sick"]).succeeded().text().lines().count() >= 2
    });
    let restarts = engine.inspect("alive-well", "{{.RestartCount}} {{.State.Status}}");
    assert_eq!(restarts, "0 running", "the other one of the pod is left alone");
    engine.hyper_with_input(&["delete", "-f", "-"], pod.as_bytes().to_vec()).succeeded();
}

#[test]
fn what_a_manifest_cannot_have_is_refused_by_name_and_nothing_is_left() {
    let engine = Engine::with_busybox();
    let kube = |spec: &str| {
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: bad}}, spec: {{{spec}}}}}")
    };
    let one = "name: c, image: busybox, imagePullPolicy: Never";
    for (manifest, words) in [
        (kube("containers: []"), "one container or more"),
        (
            kube(&format!(
                "containers: [{{{one}, volumeMounts: [{{name: v, mountPath: /v}}]}}], \
                 volumes: [{{name: v, hostPath: {{path: /no/such/place, type: Directory}}}}]"
            )),
            "/no/such/place",
        ),
        (kube(&format!("dnsPolicy: None, containers: [{{{one}}}]")), "dnsConfig"),
        (kube("containers: [], hostNetwork: true"), "hostNetwork"),
        (kube(&format!("containers: [{{{one}}}], nodeName: x")), "nodeName"),
        (kube(&format!("containers: [{{{one}, lifecycle: {{}}}}]")), "lifecycle"),
        (kube(&format!("containers: [{{{one}}}, {{{one}}}]")), "two containers are called"),
        (kube(&format!("containers: [{{{one}, resources: {{limits: {{memory: 1X}}}}}}]")), "`1X`"),
        (kube(&format!("containers: [{{{one}, resources: {{limits: {{gpu: 1}}}}}}]")), "gpu"),
        (
            kube(&format!("containers: [{{{one}, volumeMounts: [{{name: v, mountPath: /v}}]}}]")),
            "`v`",
        ),
        (kube(&format!("restartPolicy: Maybe, containers: [{{{one}}}]")), "`Maybe`"),
        (kube("containers: [{name: c, image: nosuch, imagePullPolicy: Never}]"), "nosuch"),
        ("{kind: Deployment}".to_owned(), "`Deployment`"),
        ("a: [".to_owned(), "line"),
        (String::new(), "no pod in it"),
        (
            r#"{"id": "bad", "containers": [{"image": "busybox"}], "services": [{"serviceIP": "10.254.0.24", "servicePort": 80, "hosts": []}]}"#.to_owned(),
            "services[0].hosts",
        ),
        (
            r#"{"id": "bad", "containers": [{"image": "busybox", "colour": 1}]}"#.to_owned(),
            "colour",
        ),
    ] {
        let outcome = engine.hyper_with_input(&["apply", "-f", "-"], manifest.clone().into_bytes());
        assert_ne!(outcome.code, 0, "{manifest}");
        assert!(outcome.stderr.contains(words), "{manifest}: {}", outcome.stderr);
    }
    assert_eq!(engine.hyper(&["pod", "ps", "-q"]).succeeded().text(), "");
    assert_eq!(engine.hyper(&["ps", "-aq"]).succeeded().text(), "");
}
