//! Credentials with the real thing: helpers, identity tokens, and questions on a terminal.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hyper_e2e::{Engine, Outcome, Registry, Terminal, TokenServer};
use serde_json::{Value, json};
use tempfile::TempDir;

const MINUTE: Duration = Duration::from_secs(60);
const USER: &str = "alice";
const PASSWORD: &str = "s3cret-of-alice";

/// A helper as Docker's protocol has it, which keeps each registry's entry in a file of `KEPT`.
const HELPER: &str = r#"#!/bin/sh
place() { printf %s "KEPT/$(printf %s "$1" | tr -c 'a-zA-Z0-9' _)"; }
input=$(cat)
case $1 in
store) printf %s "$input" >"$(place "$(printf %s "$input" | sed 's/.*"ServerURL":"\([^"]*\)".*/\1/')")" ;;
get) cat "$(place "$input")" 2>/dev/null || { echo credentials not found in native keychain; exit 1; } ;;
erase) rm "$(place "$input")" 2>/dev/null || { echo credentials not found in native keychain; exit 1; } ;;
*) exit 9 ;;
esac
"#;

/// A home of one user: Docker's configuration, helpers, and what they keep.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new(config: &Value) -> Self {
        let home = Self { dir: tempfile::tempdir().expect("directory") };
        for name in ["bin", "kept"] {
            fs::create_dir(home.dir.path().join(name)).expect("directory");
        }
        fs::write(home.config(), config.to_string()).expect("write");
        home
    }

    fn config(&self) -> std::path::PathBuf {
        self.dir.path().join("config.json")
    }

    /// A program `docker-credential-NAME`.
    fn helper(&self, name: &str, script: &str) {
        let path = self.dir.path().join("bin").join(format!("docker-credential-{name}"));
        let kept = self.dir.path().join("kept").display().to_string();
        fs::write(&path, script.replace("KEPT", &kept)).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn kept(&self) -> Vec<String> {
        let files = fs::read_dir(self.dir.path().join("kept")).expect("list").flatten();
        files.map(|file| fs::read_to_string(file.path()).expect("read")).collect()
    }

    fn command(&self, engine: &Engine, client: &str, arguments: &[&str]) -> Command {
        let mut command = match client {
            "docker" => engine.docker_command(arguments),
            _ => engine.hyper_command(arguments),
        };
        let path = std::env::var("PATH").expect("PATH");
        let bin = self.dir.path().join("bin");
        command.env("DOCKER_CONFIG", self.dir.path()).env("HYPER_CREDENTIAL_TIMEOUT", "2");
        command.env("PATH", format!("{}:{path}", bin.display()));
        command
    }

    #[track_caller]
    fn run(&self, engine: &Engine, client: &str, arguments: &[&str], input: &str) -> Outcome {
        let command = self.command(engine, client, arguments);
        hyper_e2e::run_with(command, input.as_bytes().to_vec(), 2 * MINUTE)
    }
}

/// `127.0.0.1:PORT`, and an image's name there.
fn names(registry: &Registry) -> (String, String) {
    let server = registry.reference("").trim_end_matches('/').to_owned();
    (server, registry.reference("private/app:1"))
}

#[test]
fn helpers_keep_what_login_has_checked() {
    let registry = Registry::start_for(USER, PASSWORD);
    let engine = Engine::with_busybox();
    let (server, name) = names(&registry);
    engine.docker(&["tag", "busybox", &name]).succeeded();
    for config in [
        json!({ "credHelpers": { &server: "kept" }, "credsStore": "absent", "odd": [1] }),
        json!({ "credsStore": "kept", "odd": [1] }),
    ] {
        for client in ["docker", "hyper"] {
            let home = Home::new(&config);
            home.helper("kept", HELPER);
            let run = |arguments: &[&str], input: &str| home.run(&engine, client, arguments, input);
            let login = ["login", "-u", USER, "--password-stdin", &server];
            run(&["push", &name], "").exited(1);
            run(&login, "wrong\n").exited(1);
            assert!(home.kept().is_empty(), "{client} kept wrong credentials");
            let said = run(&login, &format!("{PASSWORD}\n")).succeeded();
            assert!(said.text().contains("Login Succeeded"), "{}", said.text());
            assert!(!said.stderr.contains("unencrypted"), "{}", said.stderr);
            assert!(home.kept()[0].contains(PASSWORD), "the helper has it");
            let text = fs::read_to_string(home.config()).expect("read");
            let config: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(config["auths"][&server], json!({}), "{text}");
            run(&["push", &name], "").succeeded();
            run(&["pull", &name], "").succeeded();
            let said = run(&["logout", &server], "").succeeded().text();
            assert!(said.contains("Removing login credentials"), "{said}");
            assert!(home.kept().is_empty());
            run(&["pull", &name], "").exited(1);
            if client == "hyper" {
                let said = run(&["logout", &server], "").succeeded().text();
                assert!(said.contains("Not logged in"), "{said}");
                let text = fs::read_to_string(home.config()).expect("read");
                assert!(text.contains("odd"), "the rest of the file stays: {text}");
            }
        }
    }
    assert!(!engine.log().contains(PASSWORD));
}

#[test]
fn helpers_that_fail_are_told() {
    let registry = Registry::start_for(USER, PASSWORD);
    let engine = Engine::with_busybox();
    let (server, name) = names(&registry);
    let cases: [(&str, Option<&str>, &[&str]); 6] = [
        ("locked", Some("#!/bin/sh\necho the keyring is locked\nexit 1\n"), &["keyring is locked"]),
        ("quiet", Some("#!/bin/sh\nexit 7\n"), &["failed", "7"]),
        (
            "garbage",
            Some("#!/bin/sh\necho '{\"Username\":\"u\",\"Secret\":hunter2}'\n"),
            &["something else than credentials"],
        ),
        ("slow", Some("#!/bin/sh\nexec sleep 600\n"), &["2 s", "HYPER_CREDENTIAL_TIMEOUT"]),
        ("absent", None, &["config.json"]),
        ("../absent", None, &["is not the name"]),
    ];
    for (helper, script, words) in cases {
        let home = Home::new(&json!({ "credHelpers": { &server: helper } }));
        if let Some(script) = script {
            home.helper(helper, script);
        }
        let named = format!("docker-credential-{helper}");
        let refused = home.run(&engine, "hyper", &["pull", &name], "").exited(1);
        let refused = refused.says(words).says(&[&named]);
        assert!(!refused.stderr.contains("hunter2"), "{}", refused.stderr);
        if helper == "garbage" {
            continue;
        }
        // What cannot be kept is no login, and no secret goes where it was not to go.
        let login = ["login", "-u", USER, "--password-stdin", &server];
        let refused = home.run(&engine, "hyper", &login, &format!("{PASSWORD}\n")).exited(1);
        let refused = refused.says(words);
        assert!(!refused.text().contains("Succeeded") && !refused.stderr.contains(PASSWORD));
        let text = fs::read_to_string(home.config()).expect("read");
        assert!(!text.contains("auths"), "{text}");
    }
    // A registry that the helper is not for needs none.
    let other = Registry::start();
    other.push(&hyper_e2e::image("busybox"), "a:1");
    let home = Home::new(&json!({ "credHelpers": { &server: "absent" } }));
    home.run(&engine, "hyper", &["pull", "-q", &other.reference("a:1")], "").succeeded();
}

#[test]
fn identity_tokens_stand_for_the_password() {
    let identity = "identity-token-of-alice";
    let engine = Engine::with_busybox();
    for only_oauth in [false, true] {
        let tokens = TokenServer::start(USER, PASSWORD, identity, only_oauth);
        let registry = Registry::start_behind(&tokens);
        let (server, name) = names(&registry);
        engine.docker(&["tag", "busybox", &name]).succeeded();
        for client in ["docker", "hyper"] {
            let home = Home::new(&json!({}));
            let run = |arguments: &[&str], input: &str| home.run(&engine, client, arguments, input);
            let login = ["login", "-u", USER, "--password-stdin", &server];
            run(&["push", &name], "").exited(1);
            run(&login, "wrong\n").exited(1).says(&["who are you?"]);
            tokens.asked();
            run(&login, &format!("{PASSWORD}\n")).succeeded();
            let expected: &[&str] =
                if only_oauth { &["GET basic", "POST password"] } else { &["GET basic"] };
            assert_eq!(tokens.asked(), expected);
            let text = fs::read_to_string(home.config()).expect("read");
            let config: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(config["auths"][&server]["identitytoken"], identity, "{client}: {text}");
            assert!(!text.contains(&base64_of(&format!("{USER}:{PASSWORD}"))), "{text}");
            run(&["push", &name], "").succeeded();
            engine.docker(&["rmi", &name]).succeeded();
            run(&["pull", "-q", &name], "").succeeded();
            let asked = tokens.asked();
            assert!(!asked.is_empty(), "nobody asked for a token");
            assert!(asked.iter().all(|one| one == "POST refresh_token"), "{asked:?}");
            // In a helper it lies under the user `<token>`.
            let kept = Home::new(&json!({ "credsStore": "kept" }));
            kept.helper("kept", HELPER);
            kept.run(&engine, client, &login, &format!("{PASSWORD}\n")).succeeded();
            let entry: Value = serde_json::from_str(&kept.kept()[0]).expect("JSON");
            assert_eq!(
                (&entry["Username"], &entry["Secret"]),
                (&json!("<token>"), &json!(identity))
            );
            tokens.asked();
            kept.run(&engine, client, &["pull", "-q", &name], "").succeeded();
            assert!(tokens.asked().iter().all(|one| one == "POST refresh_token"));
            // One that is no longer good is told, and not answered by asking without.
            let stale = text.replace(identity, "withdrawn");
            fs::write(home.config(), stale).expect("write");
            run(&["pull", &name], "").exited(1).says(&["who are you?"]);
        }
    }
    let log = engine.log();
    assert!(!log.contains(PASSWORD) && !log.contains(identity), "secrets in hyperd's log");
}

fn base64_of(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn login_asks_on_a_terminal_and_hides_the_password() {
    let registry = Registry::start_for(USER, PASSWORD);
    let engine = Engine::start();
    let (server, _) = names(&registry);
    let home = Home::new(&json!({}));
    let start = |arguments: &[&str]| Terminal::start(home.command(&engine, "hyper", arguments));
    let known = |home: &Path| fs::read_to_string(home).expect("read").contains(&server);
    let mut terminal = start(&["login", &server]);
    terminal.answer("Username: ", "alice\n");
    terminal.answer("Password: ", "not this\n");
    assert_eq!(terminal.ended(), Some(1));
    let screen = terminal.screen();
    assert!(screen.contains("alice") && !screen.contains("not this"), "{screen}");
    assert!(screen.contains(&server) && !screen.contains("Succeeded"), "{screen}");
    assert!(terminal.echoes() && !known(&home.config()));

    let mut terminal = start(&["login", "-u", USER, &server]);
    terminal.answer("Password: ", &format!("{PASSWORD}\n"));
    assert_eq!(terminal.ended(), Some(0), "{}", terminal.screen());
    let screen = terminal.screen();
    assert!(screen.contains("Login Succeeded") && !screen.contains(PASSWORD), "{screen}");
    assert!(!screen.contains("Username: ") && terminal.echoes(), "{screen}");
    assert!(known(&home.config()));
    let mode = fs::metadata(home.config()).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Given up in the middle, the terminal is as it was.
    let mut terminal = start(&["login", "-u", USER, &server]);
    terminal.answer("Password: ", "half");
    assert!(!terminal.echoes());
    rustix::process::kill_process(terminal.process(), rustix::process::Signal::INT).expect("kill");
    assert_eq!(terminal.ended(), Some(130));
    assert!(terminal.echoes() && !terminal.screen().contains("half"));

    // Neither a terminal nor the flags.
    let refused = home.run(&engine, "hyper", &["login", &server], "").exited(1);
    refused.says(&["--password-stdin"]);
    let refused = home.run(&engine, "hyper", &["login", "-u", USER, &server], "x\n").exited(1);
    refused.says(&["--password-stdin"]);
}
