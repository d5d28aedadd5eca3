//! What may be given, and what of it is told.

use super::super::spec::Mount;
use super::*;

fn file(path: &str, bytes: usize) -> GivenFile {
    GivenFile {
        path: path.to_owned(),
        mode: 0o400,
        content: Contents(vec![b'x'; bytes]),
        ..GivenFile::default()
    }
}

fn directory(target: &str, files: Vec<GivenFile>) -> Given {
    Given { target: target.to_owned(), directory: true, mode: 0o755, files, ..Given::default() }
}

fn single(target: &str, bytes: usize) -> Given {
    Given { target: target.to_owned(), files: vec![file("", bytes)], ..Given::default() }
}

fn checked(files: Vec<Given>) -> Result<HostSpec> {
    let mut host = HostSpec { files, ..HostSpec::default() };
    check(&mut host, &[])?;
    check_places(&host)?;
    Ok(host)
}

#[test]
fn places_are_made_plain() {
    let host = checked(vec![directory("/etc/./app//", vec![file("a/b", 1), file("c", MAX_FILE)])]);
    assert_eq!(host.unwrap().files[0].target, "/etc/app");
    checked(vec![single("/run/secrets/a", 3), single("/run/secrets/b", 0)]).unwrap();
    checked(vec![directory("/empty", Vec::new())]).unwrap();
}

#[test]
fn what_cannot_be_given_is_refused_by_name() {
    let many = (0..3000).map(|number| file(&number.to_string(), 0)).collect();
    for (files, words) in [
        (vec![single("a", 1)], "`a`"),
        (vec![single("/", 1)], "whole root"),
        (vec![single("/a/../b", 1)], "`..`"),
        (vec![single("/proc/x", 1)], "/proc"),
        (vec![single("/a", MAX_FILE + 1)], "1048577 bytes"),
        (vec![single("/a", MAX_FILE), single("/b", MAX_FILE)], "more than 2048 files or 2097152"),
        (vec![directory("/a", many)], "more than 2048 files"),
        (vec![directory("/a", vec![file("../b", 1)])], "plain names"),
        (vec![directory("/a", vec![file("", 1)])], "has a path"),
        (vec![directory("/a", vec![file("b", 1), file("b", 1)])], "given twice"),
        (vec![directory("/a", vec![file("b/c", 1), file("b", 1)])], "given twice"),
        (vec![single("/a", 1), single("//a", 1)], "Duplicate mount point: /a"),
        (vec![directory("/a", vec![]), single("/a/b", 1)], "below `/a`"),
        (vec![single("/a/b", 1), directory("/a", vec![])], "below `/a`"),
    ] {
        let error = checked(files).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn mounts_neither_hide_files_nor_lie_in_them() {
    let mut host = HostSpec { files: vec![single("/a/b", 1)], ..HostSpec::default() };
    for (mount, words) in
        [("/a/b", Some("Duplicate")), ("/a/b/c", Some("below")), ("/a", None), ("/a/bc", None)]
    {
        host.mounts = vec![Mount { target: mount.to_owned(), ..Mount::default() }];
        match (check_places(&host), words) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
            (other, _) => panic!("{mount}: {other:?}"),
        }
    }
}

#[test]
fn secrets_leave_the_spec_and_tell_nothing() {
    let mut given = directory("/s", vec![file("open", 2), file("hidden", 3)]);
    given.files[1].secret = Some("db/password".to_owned());
    let variable = SecretVariable {
        name: "TOKEN".to_owned(),
        secret: "token".to_owned(),
        value: Contents(b"open sesame".to_vec()),
    };
    let mut host =
        HostSpec { files: vec![given], secret_env: vec![variable.clone()], ..HostSpec::default() };
    check(&mut host, &[]).unwrap();
    let error = check(&mut host, &["TOKEN=1".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("`TOKEN`") && !error.contains("sesame"), "{error}");
    let debug = format!("{host:?}");
    assert!(!debug.contains("sesame") && debug.contains("11 bytes"), "{debug}");
    for (value, words) in [(vec![b'x'; 128 << 10], "131070 bytes"), (vec![0xff], "`token`")] {
        let variable = SecretVariable { value: Contents(value), ..variable.clone() };
        let mut host = HostSpec { secret_env: vec![variable], ..HostSpec::default() };
        let error = check(&mut host, &[]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let taken = take_secrets(&mut host);
    assert_eq!(taken, [Contents(b"xxx".to_vec()), Contents(b"open sesame".to_vec())]);
    assert_eq!(secrets(&host), ["db/password", "token"]);
    let stored = serde_json::to_string(&host).unwrap();
    assert!(!stored.contains(&STANDARD.encode("open sesame")) && !stored.contains("eHh4"));
    assert!(stored.contains(&STANDARD.encode("xx")), "what is no secret stays");
    let back: HostSpec = serde_json::from_str(&stored).unwrap();
    assert_eq!(back, host);

    let bad = serde_json::from_str::<SecretVariable>(r#"{"value": 12345}"#).unwrap_err();
    assert!(!bad.to_string().contains("12345"), "{bad}");
    let bad = serde_json::from_str::<SecretVariable>(r#"{"value": "12?45"}"#).unwrap_err();
    assert!(!bad.to_string().contains("12"), "{bad}");
}
