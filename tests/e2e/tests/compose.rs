//! Debian's docker-compose against hyperd: a project built, started, changed, scaled and taken down.

use std::path::PathBuf;
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, eventually};

const PROJECT: &str = r#"
version: "2.4"
services:
  db:
    image: busybox
    command:
    - sh
    - -c
    - "[ -f /data/n ] || echo kept-$$(cat /proc/sys/kernel/random/uuid) >/data/n; while true; do nc -l -p 5000 -e cat /data/n; done"
    volumes: ["data:/data"]
    stop_grace_period: 1s
    networks: [back]
    healthcheck: {test: ["CMD", "test", "-f", "/data/n"], interval: 1s, retries: 30}
  web:
    build: ./web
    stop_grace_period: 1s
    ports: ["8077:80"]
    networks: [front, back]
    links: ["db:store"]
    depends_on: {db: {condition: service_healthy}}
    environment: {COLOR: "${COLOR}"}
    ulimits: {nofile: {soft: 2048, hard: 4096}}
    mem_limit: 256m
networks:
  front: {}
  back: {internal: true}
volumes: {data: {}}
"#;

struct Project<'e> {
    engine: &'e Engine,
    directory: PathBuf,
}

impl Project<'_> {
    fn compose(&self, color: &str, words: &[&str]) -> Outcome {
        let directory = self.directory.display().to_string();
        let (host, color) =
            (format!("DOCKER_HOST={}", self.engine.host()), format!("COLOR={color}"));
        let command =
            ["env", &host, &color, "docker-compose", "--project-directory", &directory, "-f"];
        let file = self.directory.join("docker-compose.yml").display().to_string();
        self.engine.beside(&[&command[..], &[&file, "-p", "shop"], words].concat())
    }

    fn inside(&self, script: &str) -> String {
        self.compose("", &["exec", "-T", "web", "sh", "-c", script]).succeeded().text()
    }
}

#[test]
fn a_compose_project_comes_up_changes_and_goes() {
    let engine = Engine::apart();
    let directory = engine.dir().join("project");
    std::fs::create_dir_all(directory.join("web")).expect("directory");
    std::fs::write(directory.join("docker-compose.yml"), PROJECT).expect("project");
    let recipe = "FROM busybox\nRUN mkdir /www && echo composed > /www/index.html\n\
                  VOLUME /cache\nCMD [\"httpd\",\"-f\",\"-p\",\"80\",\"-h\",\"/www\"]\n";
    std::fs::write(directory.join("web/Dockerfile"), recipe).expect("Dockerfile");
    let project = Project { engine: &engine, directory };
    project.compose("blue", &["up", "-d"]).succeeded();
    let page = || engine.beside(&["curl", "-s", "-m", "5", "http://127.0.0.1:8077/"]).text();
    eventually("the service", Duration::from_secs(30), || page() == "composed");
    let listed = project.compose("", &["ps"]).succeeded().text();
    assert!(listed.contains("Up (healthy)") && listed.contains("0.0.0.0:8077->80/tcp"), "{listed}");
    let first = project.inside("nc -w 3 db 5000 </dev/null");
    assert!(first.starts_with("kept-"), "{first}");
    // By its link, which nobody else knows.
    assert_eq!(project.inside("nc -w 3 store 5000 </dev/null"), first);
    let db = project.compose("", &["exec", "-T", "db", "nslookup", "store"]).text();
    assert!(!db.contains("Address 1: 172") && !db.contains("Address: 172"), "{db}");
    assert_eq!(project.inside("ulimit -n; ulimit -Hn"), "2048\n4096", "of an exec");

    // A change makes the container anew; what it depends on goes on.
    project.compose("red", &["up", "-d"]).succeeded();
    assert_eq!(project.inside("echo $COLOR"), "red");
    assert_eq!(project.inside("nc -w 3 db 5000 </dev/null"), first);
    project.compose("red", &["up", "-d", "--scale", "db=3"]).succeeded();
    let all = project.inside("nslookup db");
    assert!(all.matches("172.").count() >= 3, "{all}");
    let ran = project.compose("red", &["run", "--rm", "web", "cat", "/www/index.html"]);
    assert!(ran.succeeded().text().ends_with("composed"));
    project.compose("red", &["restart", "web"]).succeeded();
    eventually("it is back", Duration::from_secs(30), || page() == "composed");
    project.compose("red", &["down", "-v", "--rmi", "local"]).succeeded();
    assert_eq!(engine.docker(&["ps", "-aq"]).succeeded().text(), "");
    // It names the image's own volume when it makes a container anew, which keeps it: as with Docker.
    let volumes = engine.docker(&["volume", "ls", "-q"]).succeeded().text();
    assert!(!volumes.contains("shop_data"), "{volumes}");
    let networks = engine.docker(&["network", "ls", "--format", "{{.Name}}"]).succeeded().text();
    assert_eq!(networks, "bridge\nnone");
}

#[test]
fn links_of_the_default_network_are_in_etc_hosts() {
    let engine = Engine::apart();
    let serve = "while true; do nc -l -p 5000 -e echo hi; done";
    let run = ["run", "-d", "--name", "db", "busybox", "sh", "-c", serve];
    engine.docker(&run).succeeded();
    let ip = engine.inspect("db", "{{.NetworkSettings.IPAddress}}");
    let script = "grep store /etc/hosts; nc -w 3 store 5000 </dev/null";
    let run = ["run", "--rm", "--link", "db:store", "busybox", "sh", "-c", script];
    for said in [engine.docker(&run), engine.hyper(&run)] {
        let said = said.succeeded().text();
        assert!(said.starts_with(&format!("{ip}\tstore ")) && said.ends_with("hi"), "{said}");
    }
    engine.docker(&["stop", "-t", "0", "db"]).succeeded();
    engine.docker(&run).exited(125).says(&["cannot link to a non running container", "db"]);
    let bad = ["run", "--rm", "--link", "nobody:x", "busybox", "true"];
    engine.docker(&bad).exited(125).says(&["nobody"]);
    let none = ["run", "--rm", "--network", "none", "--link", "db:x", "busybox", "true"];
    engine.hyper(&none).exited(125).says(&["links can't be used", "none"]);
}
