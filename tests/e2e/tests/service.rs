//! Services of pods: an address that only one pod sees, and its backends in turn.

use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, run, runtimes};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SOON: Duration = Duration::from_secs(30);
const VIP: &str = "10.254.0.24:2834";
const FILES: &str = "10.254.0.24:69/udp";

/// A container that answers with its name; its address.
fn backend(engine: &Engine, name: &str) -> String {
    let serve = format!("echo {name} >/index.html; exec httpd -f -h /");
    engine.hyper(&["run", "-d", "--name", name, "busybox", "sh", "-c", &serve]).succeeded();
    engine.inspect(name, "{{.NetworkSettings.Networks.bridge.IPAddress}}")
}

/// What four connections to the service are answered by; nothing after the first that is not.
fn asked(engine: &Engine, container: &str, at: &str) -> String {
    let ask = format!("for i in 1 2 3 4; do timeout 1 wget -qO- http://{at}/ || break; done");
    engine.hyper(&["exec", container, "sh", "-c", &ask]).text().replace('\n', " ")
}

/// Answers questions of TFTP with `name`, on a port of the host of the test, until the test ends.
fn tftp(engine: &Engine, name: &'static str) -> u16 {
    let namespace = format!("/run/netns/{}", engine.namespace().expect("a namespace"));
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(namespace).expect("the namespace");
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).expect("enter the namespace");
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        tell.send(socket.local_addr().expect("its port").port()).expect("the test waits");
        let mut question = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut question) {
            // The first and last block, or an end to those who go on.
            if question[..2] == [0, 1] {
                let block = [&[0, 3, 0, 1], name.as_bytes()].concat();
                socket.send_to(&block, from).expect("answer");
            }
        }
    });
    told.recv().expect("a port")
}

fn service(engine: &Engine, verb: &str, words: &[&str]) -> hyper_e2e::Outcome {
    engine.hyper(&[&["pod", "service", verb], words].concat())
}

#[test]
fn a_pod_reaches_its_backends_in_turn_and_nobody_else_does() {
    let mut engine = Engine::apart();
    let (one, two) = (backend(&engine, "one"), backend(&engine, "two"));
    let (web_one, web_two) = (format!("{one}:80"), format!("{two}:80"));
    eventually("the backends answer", SOON, || {
        asked(&engine, "one", &web_two).starts_with("two")
            && asked(&engine, "two", &web_one).starts_with("one")
    });
    let template = "{{(index .IPAM.Config 0).Gateway}}";
    let host = engine.docker(&["network", "inspect", "-f", template, "bridge"]).succeeded().text();
    let (first, second) = (tftp(&engine, "one"), tftp(&engine, "two"));
    for runtime in runtimes() {
        let (pod, client) = (format!("pod-{runtime}"), format!("client-{runtime}"));
        engine.hyper(&["pod", "create", "--runtime", runtime, &pod]).succeeded();
        // Before it runs, and while it does.
        service(&engine, "add", &[&pod, VIP, &web_one, &web_two]).succeeded();
        let args = ["run", "-d", "--pod", &pod, "--name", &client, "busybox", "sleep", "600"];
        engine.hyper(&args).succeeded();
        let turns = asked(&engine, &client, VIP);
        let fine = ["one two one two", "two one two one"];
        assert!(fine.contains(&turns.trim()), "{runtime}: {turns}");
        assert_eq!(asked(&engine, "one", VIP), "", "only its pod's");

        let (here_one, here_two) = (format!("{host}:{first}"), format!("{host}:{second}"));
        service(&engine, "add", &[&pod, FILES, &here_one, &here_two]).succeeded();
        let ask = "for i in 1 2 3 4; do tftp -g -r x -l - 10.254.0.24 69; echo; done";
        let answers = engine.hyper(&["exec", &client, "sh", "-c", ask]).text().replace('\n', " ");
        assert!(fine.contains(&answers.trim()), "{runtime}, UDP: {answers}");

        let listed = service(&engine, "ls", &[&pod]).succeeded().text();
        assert!(listed.contains(&format!("{VIP}/tcp")) && listed.contains(&web_two), "{listed}");
        assert!(listed.contains(FILES), "{listed}");
        let again = service(&engine, "add", &[&pod, VIP, &web_one]);
        assert!(again.code == 1 && again.stderr.contains("is there already"), "{}", again.stderr);
        let unknown = service(&engine, "update", &[&pod, "10.254.0.25:80", &web_one]);
        assert!(unknown.stderr.contains("no such service: 10.254.0.25:80/tcp"), "{unknown:?}");

        // New connections go elsewhere at once.
        service(&engine, "update", &[&pod, VIP, &web_two]).succeeded();
        assert_eq!(asked(&engine, &client, VIP).trim(), "two two two two");
        if runtime == "uml" {
            engine.kill_daemon();
            engine.restart();
            assert_eq!(asked(&engine, &client, VIP).trim(), "two two two two", "after kill -9");
        }
        service(&engine, "rm", &[&pod, VIP]).succeeded();
        assert_eq!(asked(&engine, &client, VIP), "");
        assert_ne!(service(&engine, "rm", &[&pod, VIP]).code, 0);
        // The other one stays, over the pod's end as well, and goes with the pod.
        engine.hyper(&["pod", "stop", "-t", "0", &pod]).succeeded();
        assert!(!engine.beside(&["nft", "list", "ruleset"]).text().contains("10.254.0.24"));
        engine.hyper(&["pod", "start", &pod]).succeeded();
        assert!(engine.beside(&["nft", "list", "ruleset"]).text().contains("10.254.0.24"));
        engine.hyper(&["pod", "rm", "-f", &pod]).succeeded();
        assert!(!engine.beside(&["nft", "list", "ruleset"]).text().contains("10.254.0.24"));
    }
}

#[test]
fn rules_are_what_is_listed_wherever_hyperd_is_killed() {
    let mut engine = Engine::apart();
    engine.hyper(&["pod", "create", "kept"]).succeeded();
    engine.hyper(&["run", "-d", "--pod", "kept", "--name", "in", "busybox", "sleep", "600"]);
    for at in 0..6_u32 {
        let vip = format!("10.254.1.{at}:80");
        let words = ["pod", "service", "add", "kept", &vip, "10.254.2.1:80"];
        let mut add = engine.hyper_command(&words).spawn().expect("add");
        std::thread::sleep(Duration::from_millis((at * 7).into()));
        engine.kill_daemon();
        add.wait().expect("the client ends");
        engine.restart();
        let listed = service(&engine, "ls", &["kept"]).succeeded().text();
        let rules = engine.beside(&["nft", "list", "ruleset"]).text();
        for before in 0..=at {
            let vip = format!("10.254.1.{before}");
            let (told, held) = (listed.contains(&vip), rules.contains(&vip));
            assert_eq!(told, held, "{vip} after {at}:\n{listed}\n{rules}");
        }
    }
}

#[test]
fn services_that_cannot_be_are_refused_with_their_value() {
    let engine = Engine::apart();
    engine.hyper(&["pod", "create", "some"]).succeeded();
    engine.hyper(&["pod", "create", "--network", "none", "lonely"]).succeeded();
    engine.hyper(&["network", "create", "--internal", "inner"]).succeeded();
    engine.hyper(&["pod", "create", "--network", "inner", "inside"]).succeeded();
    let template = "{{(index .IPAM.Config 0).Gateway}}";
    let own = engine.docker(&["network", "inspect", "-f", template, "bridge"]).succeeded().text();
    let own = format!("{own}:80");
    for (pod, at, backend, said) in [
        ("some", "127.0.0.1:80", "10.1.1.2:80", "127.0.0.1:80/tcp"),
        ("some", "10.254.0.1:80/icmp", "10.1.1.2:80", "icmp"),
        ("some", "10.254.0.1:0", "10.1.1.2:80", "port is 0"),
        ("some", "name:80", "10.1.1.2:80", "`name:80`"),
        ("some", "10.254.0.1:80", "0.0.0.0:80", "backend 0.0.0.0:80"),
        ("some", "10.254.0.1:80", "backend:80", "`backend:80`"),
        ("some", "[fd00::1]:80", "[fd00::2]:80", "no IPv6"),
        ("some", &own, "10.1.1.2:80", "the pod's own network"),
        ("lonely", "10.254.0.1:80", "10.1.1.2:80", "without network"),
        ("inside", "10.254.0.1:80", "10.1.1.2:80", "internal"),
        ("nowhere", "10.254.0.1:80", "10.1.1.2:80", "no such pod"),
    ] {
        let refused = service(&engine, "add", &[pod, at, backend]);
        assert!(refused.code != 0 && refused.stderr.contains(said), "{at}: {}", refused.stderr);
    }
    assert_eq!(service(&engine, "ls", &["some"]).succeeded().text().lines().count(), 1);
    // All at once, over REST.
    let socket = engine.socket().display().to_string();
    let put = |body: &str| {
        let words = ["-s", "--unix-socket", &socket, "-X", "PUT", "-d", body, "-w", "%{http_code}"];
        let words = [&words[..], &["http://d/hyper/v1/pods/some/services"]].concat();
        run("curl", &words, SOON).text()
    };
    let one = r#"{"ip": "10.254.0.1", "port": 80, "backends": [{"ip": "10.1.1.2", "port": 8080}]}"#;
    let two = one.replace("80,", "81,");
    assert_eq!(put(&format!("[{one}, {two}]")), "204");
    assert!(put(&format!("[{one}, {one}]")).ends_with("409"));
    assert!(put(r#"[{"ip": "10.254.0.1", "ports": 80}]"#).contains("unknown field `ports`"));
    assert!(put(&one.replace("10.1.1.2", "backend")).contains("400"));
    let listed = service(&engine, "ls", &["some"]).succeeded().text();
    assert!(listed.contains("10.254.0.1:80/tcp") && listed.contains("10.254.0.1:81/tcp"));
    let told = engine.hyper(&["pod", "inspect", "--format", "{{json .services}}", "some"]).text();
    assert!(told.contains(r#""port":81"#), "{told}");
    assert_eq!(put("[]"), "204");
    assert_eq!(service(&engine, "ls", &["some"]).succeeded().text().lines().count(), 1);
    // UserPod's words for it.
    let pod = r#"{"id": "listed", "containers": [], "services": [{"serviceIP": "10.254.0.24",
        "servicePort": 2834, "protocol": "TCP", "hosts": [{"hostIP": "10.254.0.8",
        "hostPort": 2345}]}]}"#;
    engine.hyper_with_input(&["apply", "-f", "-"], pod.into()).succeeded();
    let listed = service(&engine, "ls", &["listed"]).succeeded().text();
    assert!(listed.contains("10.254.0.24:2834/tcp") && listed.contains("10.254.0.8:2345"));
}
