//! The comparative study as a command: what it leaves, what it refuses, how it ends and goes on; and its page in a browser.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, eventually, program, root, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MINUTES: Duration = Duration::from_secs(180);

/// A bench of this engine's, whose lock is the engine's own, so that other tests of this machine do not wait for it.
fn words(engine: &Engine, out: &Path, more: &[&str]) -> Vec<String> {
    let lock = engine.dir().join("bench.lock").display().to_string();
    let work = engine.dir().display().to_string();
    let own = ["bench", "run", "--quick", "--docker", "unix:///nowhere.sock"];
    let image = if more.contains(&"--image") { &[][..] } else { &["--image", "busybox"] };
    let places = ["--lock", &lock, "--work", &work, "--out", &out.display().to_string()];
    [&own[..], &places, image, more].concat().into_iter().map(str::to_owned).collect()
}

#[track_caller]
fn bench(engine: &Engine, out: &Path, more: &[&str]) -> Outcome {
    let words = words(engine, out, more);
    engine.hyper(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

fn spawn(engine: &Engine, out: &Path, more: &[&str]) -> Child {
    let mut command = engine.hyper_command(&[]);
    command.args(words(engine, out, more)).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start a bench")
}

fn results(out: &Path) -> Value {
    let text = std::fs::read_to_string(out.join("results.json")).expect("results");
    serde_json::from_str(&text).expect("JSON")
}

fn samples(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("samples.jsonl")).unwrap_or_default();
    let whole = text.rsplit_once('\n').map(|(whole, _)| whole.to_owned()).unwrap_or_default();
    whole.lines().map(|line| serde_json::from_str(line).expect("a sample")).collect()
}

fn median(results: &Value, measure: &str, subject: &str) -> Option<f64> {
    let cells = results["summary"].as_array().expect("cells");
    let cell = cells.iter().find(|c| c["measure"] == measure && c["subject"] == subject)?;
    cell["median"].as_f64()
}

/// Neither containers nor files of a bench.
#[track_caller]
fn nothing_left(engine: &Engine) {
    assert_eq!(engine.hyper(&["ps", "-aq"]).succeeded().text(), "");
    let left = std::fs::read_dir(engine.dir()).expect("directory").flatten();
    let left: Vec<PathBuf> = left.map(|entry| entry.path()).collect();
    let trees = left.iter().filter(|path| path.to_string_lossy().contains("hyper-bench-"));
    assert_eq!(trees.count(), 0, "{left:?}");
    for base in ["", "cpu", "memory"] {
        let groups = std::fs::read_dir(Path::new("/sys/fs/cgroup").join(base));
        let groups = groups.into_iter().flatten().flatten();
        // Those of a bench that runs meanwhile are its own.
        let ours = groups.filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let maker = name.strip_prefix("hyper-bench-");
            maker.is_some_and(|maker| !Path::new("/proc").join(maker).exists())
        });
        assert_eq!(ours.count(), 0);
    }
}

#[test]
fn a_study_of_starts_has_figures_of_all_and_names_what_is_missing() {
    let engine = Engine::with_busybox();
    let out = engine.dir().join("study");
    let said = bench(
        &engine,
        &out,
        &["--axis", "startup", "--runs", "2", "--runtime", "uml,runc,host,docker"],
    )
    .succeeded();
    let all = results(&out);
    assert_eq!(all["study"]["state"]["is"], "complete");
    let of = |measure, subject| median(&all, measure, subject);
    let (uml, runc, host) =
        (of("start.wall", "uml"), of("start.wall", "runc"), of("start.wall", "host"));
    assert!(uml > Some(5.0) && runc > Some(5.0), "{uml:?} {runc:?}");
    assert!(host > Some(0.1) && host < uml && host < runc, "{host:?}");
    assert_eq!(of("crowd10.failed", "uml"), Some(0.0));
    assert!(of("crowd10.pss", "uml") > Some(1.0), "{:?}", of("crowd10.pss", "uml"));
    assert_eq!(of("crowd10.all", "host"), None);
    let mut cell = all["summary"].as_array().expect("cells").iter();
    let cell = cell.find(|c| c["measure"] == "start.wall" && c["subject"] == "uml");
    assert_eq!(cell.expect("a cell")["n"], 6, "three of each round, the warm-up left out");
    for (name, why) in [("docker", "/nowhere.sock"), ("uml, cloned", "booted")] {
        let missing = all["study"]["missing"].as_array().expect("what is missing");
        let one = missing.iter().find(|one| one["name"] == name).expect(name);
        assert!(one["why"].as_str().expect("why").contains(why), "{one}");
    }
    assert!(said.text().contains("missing: docker"), "{}", said.text());
    let csv = std::fs::read_to_string(out.join("results.csv")).expect("CSV");
    assert!(csv.contains("startup,start.wall,"), "{csv}");
    nothing_left(&engine);

    // Its report is made from what is on disk, and compared, without any hyperd.
    std::fs::remove_file(out.join("report.html")).expect("the page");
    let hyper = program("hyper").display().to_string();
    let dir = out.display().to_string();
    run(&hyper, &["bench", "report", &dir], MINUTES).succeeded();
    assert!(out.join("report.html").exists());
    let same = run(&hyper, &["bench", "compare", &dir, &dir], MINUTES).succeeded().text();
    assert!(same.contains(" 0 better, 0 worse"), "{same}");
    bench(
        &engine,
        &out,
        &["--axis", "startup", "--runs", "2", "--runtime", "uml,runc,host,docker"],
    )
    .exited(1)
    .says(&["is complete", "another --out"]);
}

#[test]
fn what_cannot_be_measured_is_refused_by_name() {
    let engine = Engine::with_busybox();
    let out = engine.dir().join("study");
    let refused = |more: &[&str], words: &[&str]| {
        drop(bench(&engine, &out, more).exited(1).says(words));
        assert!(!out.join("study.json").exists(), "{more:?}");
    };
    refused(&["--runtime", "nothing"], &["unknown runtime `nothing`", "runc", "uml", "host"]);
    refused(&["--axis", "speed"], &["unknown axis `speed`", "syscalls"]);
    refused(&["--axis", "startup", "--runtime", "docker"], &["nothing to measure"]);
    refused(
        &["--axis", "cpu", "--runtime", "runc"],
        &["`busybox` lacks sysbench (for cpu)", "images/build bench"],
    );
    refused(&["--image", "none-such"], &["`none-such`", "images/build bench", "hyper load"]);
    refused(&["--memory", "10000g"], &["too little memory", "--memory 10000g"]);
    refused(&["--cpus", "1000"], &["--cpus 1000", "this host has"]);
    std::fs::create_dir(&out).expect("directory");
    std::fs::write(out.join("thesis.txt"), "mine").expect("file");
    refused(&["--axis", "startup"], &["neither empty nor a study"]);
    let hyper = program("hyper").display().to_string();
    run(&hyper, &["bench", "report", &out.display().to_string()], MINUTES)
        .exited(1)
        .says(&["no study"]);
    nothing_left(&engine);
}

#[test]
fn an_interrupted_study_leaves_nothing_running_and_goes_on() {
    let engine = Engine::with_busybox();
    let out = engine.dir().join("study");
    let asked = ["--axis", "startup", "--runs", "2", "--runtime", "uml,runc,host"];
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::KILL, 137)] {
        let before = samples(&out).len();
        let mut child = spawn(&engine, &out, &asked);
        eventually("some runs are done", MINUTES, || {
            assert_eq!(child.try_wait().expect("wait"), None, "it ended by itself");
            samples(&out).len() > before + 2
        });
        bench(&engine, &engine.dir().join("second"), &asked)
            .exited(1)
            .says(&["another bench runs on this machine", &child.id().to_string()]);
        kill_process(Pid::from_child(&child), signal).expect("signal");
        let status = child.wait().expect("wait");
        if signal == Signal::KILL {
            // Nobody could clean up; the next one does.
            continue;
        }
        assert_eq!(status.code(), Some(code));
        let state = &results(&out)["study"]["state"];
        assert_eq!(state["is"], "partial", "{state}");
        assert!(
            std::fs::read_to_string(out.join("report.html")).expect("page").contains("partial")
        );
        nothing_left(&engine);
    }
    bench(&engine, &out, &["--axis", "startup", "--runs", "3", "--runtime", "uml,runc,host"])
        .exited(1)
        .says(&["other settings"]);
    let kept = samples(&out);
    bench(&engine, &out, &asked).succeeded();
    let all = samples(&out);
    assert_eq!(all[..kept.len()], kept[..], "what was measured is not measured again");
    let mut keys: Vec<String> = all
        .iter()
        .map(|s| format!("{} {} {} {}", s["round"], s["repeat"], s["job"], s["subject"]))
        .collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "no run twice");
    assert_eq!(results(&out)["study"]["state"]["is"], "complete");
    nothing_left(&engine);
}

/// Collects what goes wrong from the first script on; runs before all others.
const WATCH: &str = "<script>window.wrong = []; addEventListener('error', e => wrong.push(String(e.message)), true); \
     addEventListener('unhandledrejection', e => wrong.push(String(e.reason))); \
     for (const level of ['error', 'warn']) console[level] = (...all) => wrong.push(all.join(' '));</script>";
/// Reads the charts' values back as the library has them.
const READ: &str = "<pre id=\"seen\"></pre><script>document.getElementById('seen').textContent = JSON.stringify({ wrong, \
     wide: document.documentElement.scrollWidth > innerWidth, \
     charts: [...document.querySelectorAll('canvas')].map(c => { const chart = Chart.getChart(c); return { id: c.id, \
       labels: chart.data.labels, drawn: chart.width > 0 && chart.height > 0, \
       values: chart.data.datasets.map(set => set.data.map(p => p && p.x !== undefined ? p.x : p)) }; }) });</script>";

/// What headless Chromium sees of a page.
fn opened(dir: &Path, page: &Path, width: u32, dark: bool) -> Value {
    let html = std::fs::read_to_string(page).expect("page");
    let html = html.replacen("<head>", &format!("<head>{WATCH}"), 1);
    let html = html.replacen("</body>", &format!("{READ}</body>"), 1);
    let watched = dir.join("watched.html");
    std::fs::write(&watched, html).expect("page");
    let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
    let size = format!("--window-size={width},1000");
    let data = format!("--user-data-dir={}", dir.join("chromium").display());
    let url = format!("file://{}", watched.display());
    #[rustfmt::skip]
    let words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", &data, &scheme, &size,
        "--virtual-time-budget=5000", "--dump-dom", &url];
    let browser = run("chromium", &words, MINUTES).succeeded();
    let told: Vec<_> = browser.stderr.lines().filter(|line| line.contains("CONSOLE")).collect();
    assert!(told.is_empty(), "the console has: {told:?}");
    let dom = browser.text();
    let seen = dom.split_once("<pre id=\"seen\">").expect("the page ran to its end").1;
    let seen =
        seen.split_once("</pre>").expect("its end").0.replace("&lt;", "<").replace("&gt;", ">");
    serde_json::from_str(&seen.replace("&amp;", "&")).expect("JSON")
}

#[test]
fn a_browser_draws_the_committed_report_as_its_figures_say() {
    let dir = tempfile::tempdir().expect("directory");
    let out = dir.path().join("study");
    std::fs::create_dir(&out).expect("directory");
    let committed = root().join("docs/bench/2026-11");
    for name in ["study.json", "samples.jsonl"] {
        std::fs::copy(committed.join(name), out.join(name)).expect("the committed study");
    }
    let hyper = program("hyper").display().to_string();
    run(&hyper, &["bench", "report", &out.display().to_string()], MINUTES).succeeded();
    let all = results(&out);
    for (width, dark) in [(400, false), (1200, true)] {
        let seen = opened(dir.path(), &out.join("report.html"), width, dark);
        assert_eq!(seen["wrong"], serde_json::json!([]));
        assert_eq!(seen["wide"], false, "the page scrolls sideways at {width}");
        let charts = seen["charts"].as_array().expect("charts");
        assert!(charts.len() >= 10, "{} charts", charts.len());
        let mut compared = 0;
        for chart in charts {
            assert_eq!(chart["drawn"], true, "{chart}");
            let id = chart["id"].as_str().expect("id").trim_start_matches("chart-");
            let measures = all["study"]["measures"].as_array().expect("measures").iter();
            let mut named = measures.filter_map(|m| m["id"].as_str());
            let Some(measure) = named.find(|m| m.replace('.', "-") == id) else { continue };
            for (place, subject) in chart["labels"].as_array().expect("labels").iter().enumerate() {
                let wanted = median(&all, measure, subject.as_str().expect("name"));
                assert_eq!(chart["values"][0][place].as_f64(), wanted, "{measure} {subject}");
                compared += 1;
            }
        }
        assert!(compared > 30, "{compared} bars were compared");
    }
}
