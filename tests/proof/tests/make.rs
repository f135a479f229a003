//! `make deploy`, `make logs` and `make top`, with stand-ins for cargo and ssh.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn program(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// make in the template's folder, which is no part of the one that runs this test.
fn make(path: &OsStr) -> Command {
    let mut make = Command::new("make");
    make.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    make.env("PATH", path).env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    make
}

/// What cargo has built is pushed, wherever its configuration has it put that.
#[test]
fn what_was_built_is_what_is_pushed() {
    let scene = tempfile::tempdir().unwrap();
    let (programs, elsewhere) = (scene.path().join("bin"), scene.path().join("else where"));
    fs::create_dir(&programs).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    program(&elsewhere, "service", "# this was built");
    program(
        &programs,
        "cargo",
        r#"echo '{"reason":"compiler-artifact","target":{"kind":["custom-build"]},"executable":null}'
[ -e "$ELSEWHERE/broken" ] && exit 101
echo '{"reason":"compiler-artifact","target":{"kind":["bin"]},"executable":"'"$ELSEWHERE"'/service","fresh":true}'"#,
    );
    let pushed = scene.path().join("pushed");
    program(&programs, "ssh", &format!("cat >'{}'", pushed.display()));

    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    )
    .unwrap();
    let deploy =
        || make(&path).args(["deploy", "HOST=root@host.invalid"]).env("ELSEWHERE", &elsewhere).output().unwrap();
    let output = deploy();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&fs::read(&pushed).unwrap()).contains("# this was built"));

    fs::remove_file(&pushed).unwrap();
    fs::write(elsewhere.join("broken"), "").unwrap();
    assert!(!deploy().status.success());
    assert!(!pushed.exists(), "something was pushed though nothing was built");
}

/// What is looked at is of one host, and has a terminal there only where there is one here. One is drained at a time.
#[test]
fn what_is_looked_at_is_of_one_host() {
    let scene = tempfile::tempdir().unwrap();
    program(scene.path(), "ssh", r#"printf '%s\n' "$@""#);
    let path = std::env::join_paths(
        std::iter::once(scene.path().to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let path = path.unwrap();
    for action in ["logs", "top"] {
        let look = |hosts| {
            let output = make(&path).args([action, hosts, "SSH_OPTS=-p 22"]).output().unwrap();
            (output.status.success(), [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()))
        };
        let (done, [said, _]) = look("HOST=root@host.invalid");
        assert!(
            done && said.starts_with("-T\n-p\n22\nroot@host.invalid\nsh -c 'host=/opt/hitless-template/"),
            "{said}"
        );
        assert!(said.trim_end().ends_with(&format!("exec sh $host {action} hitless-template'")), "{said}");
        let (done, [said, why]) = look("HOST=root@a.invalid root@b.invalid");
        assert!(!done && said.is_empty() && why.contains("say of which one: make"), "{said}{why}");
        assert!(!look("HOST=").0);
        let drained = make(&path).args(["drain", "HOST=root@a.invalid root@b.invalid"]).output().unwrap();
        assert!(!drained.status.success() && drained.stdout.is_empty(), "{drained:?}");
    }
}
