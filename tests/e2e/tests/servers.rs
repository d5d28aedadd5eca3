//! The servers that people run: nginx and MariaDB of Debian, in pods of their own.

use std::process::Stdio;
use std::time::Duration;

use hyper_e2e::{Engine, eventually, image};

const UP: Duration = Duration::from_secs(120);

fn engine() -> Engine {
    let engine = Engine::apart();
    engine.hyper(&["load", "-q", "-i", &image("bench").display().to_string()]).succeeded();
    engine.docker(&["network", "create", "shop"]).succeeded();
    engine
}

#[test]
fn nginx_is_fetched_from_the_host_from_another_pod_and_by_name() {
    let engine = engine();
    let serve = "echo 'served by nginx' >/var/www/html/index.html; exec nginx -g 'daemon off;'";
    for runtime in ["uml", "qemu"] {
        let flags = ["--runtime", runtime, "--network", "shop", "-p", "8090:80"];
        let run =
            [&["run", "-d", "--name", "web"], &flags[..], &["bench", "sh", "-c", serve]].concat();
        engine.docker(&run).succeeded();
        let address = engine.inspect("web", "{{.NetworkSettings.Networks.shop.IPAddress}}");
        for at in ["127.0.0.1:8090", &address] {
            eventually("nginx serves the host", UP, || {
                let url = format!("http://{at}/");
                engine.beside(&["curl", "-s", "-m", "5", &url]).text() == "served by nginx"
            });
        }
        for host in [address.as_str(), "web"] {
            let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} 80");
            let run = ["run", "--rm", "--network", "shop", "busybox", "sh", "-c", &ask];
            let said = engine.docker(&run).succeeded().text();
            assert!(said.contains("Server: nginx") && said.contains("served by"), "{host}: {said}");
        }
        engine.docker(&["rm", "-f", "web"]).succeeded();
    }
}

#[test]
fn mariadb_on_a_disk_volume_has_its_data_after_it_was_killed() {
    let engine = engine();
    engine.docker(&["volume", "create", "-d", "disk", "-o", "size=1g", "data"]).succeeded();
    let serve = "mkdir -p /run/mysqld && chown -R mysql /run/mysqld /var/lib/mysql && \
                 exec mariadbd --no-defaults --user=mysql --datadir=/var/lib/mysql --bind-address=0.0.0.0 \
                 --skip-grant-tables --skip-name-resolve --innodb-buffer-pool-size=64M \
                 --ignore-db-dir=lost+found";
    let run = ["run", "-d", "--name", "db", "--network", "shop", "-m", "512m"];
    let volume = ["-v", "data:/var/lib/mysql", "bench", "sh", "-c", serve];
    engine.docker(&[&run[..], &volume[..]].concat()).succeeded();
    // Its client, in another pod, finds it by name.
    let run = ["run", "-d", "--name", "client", "--network", "shop", "bench", "sleep", "1000"];
    engine.docker(&run).succeeded();
    let sql = |text: &str| {
        engine.docker(&["exec", "client", "mariadb", "--no-defaults", "-h", "db", "-N", "-e", text])
    };
    let up = || eventually("MariaDB answers", UP, || sql("select 1").code == 0);
    up();
    let make = "create database shop; create table shop.bought (id int primary key) engine=innodb";
    sql(make).succeeded();
    for round in 0..2 {
        // One row after the other, each told when it is kept.
        let first = round * 100_000;
        let script = format!(
            "i={first}; while i=$((i+1)); do echo \"insert into shop.bought values ($i); select $i;\"; done | \
             mariadb --no-defaults -h db -N -n"
        );
        let mut buyer = engine.docker_command(&["exec", "client", "sh", "-c", &script]);
        let buyer = buyer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("docker");
        std::thread::sleep(Duration::from_secs(3));
        // Power is cut: neither server nor guest has time to say anything.
        engine.docker(&["kill", "db"]).succeeded();
        let told = buyer.wait_with_output().expect("docker");
        let told = String::from_utf8_lossy(&told.stdout).lines().count();
        assert!(told > 10, "round {round}: {told} rows in three seconds");
        engine.docker(&["start", "db"]).succeeded();
        up();
        let count = format!("select count(*) from shop.bought where id > {first}");
        let kept: usize = sql(&count).succeeded().text().parse().expect("a number");
        assert!(kept >= told, "round {round}: {told} were told to be kept, {kept} are");
        let check = sql("check table shop.bought extended").succeeded().text();
        assert!(check.ends_with("OK"), "{check}");
    }
    engine.docker(&["rm", "-f", "db", "client"]).succeeded();
}
