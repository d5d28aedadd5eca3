//! Programs that look closely at the processor, in a guest whose kernel keeps its registers for it.

use hyper_e2e::{Engine, root, runtimes, tool};

#[test]
fn registers_and_faults_are_those_of_a_machine() {
    let engine = Engine::with_busybox();
    let programs = engine.dir().join("programs");
    std::fs::create_dir(&programs).expect("directory");
    let (source, program) =
        (root().join("tests/e2e/guests/processor.c"), programs.join("processor"));
    let [source, program] = [source, program].map(|path| path.display().to_string());
    tool("cc", &["-O2", "-Wall", "-Werror", "-static", "-pthread", "-o", &program, &source]);
    let mount = format!("{}:/programs:ro", programs.display());
    for runtime in runtimes() {
        let run = ["run", "--rm", "--runtime", runtime, "-v", &mount, "busybox"];
        let seen = engine.hyper(&[&run[..], &["/programs/processor"]].concat()).succeeded();
        assert_eq!(seen.text(), "all well", "{runtime}");
    }
}
