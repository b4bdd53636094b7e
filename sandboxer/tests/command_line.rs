//! The binary as an operator meets it: settings checked, printed, refused.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says so by panicking")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{fulfilled, write};

fn sandboxer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bulkhead-sandboxer")).args(args).output().unwrap()
}

/// Short enough for a `run_dir` below it.
fn short_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("bh").tempdir_in("/tmp").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn good_settings_are_ok() {
    let dir = short_dir();
    let file = write(dir.path(), "good.toml", &fulfilled(dir.path()));
    let output = sandboxer(&["--config", file.to_str().unwrap(), "--check-config"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "ok\n".to_owned()), "{output:?}");
}

#[test]
fn every_fault_is_on_stderr_and_the_code_is_2() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = "[vm]\nvcpu = 2\nmemory_mib = \"much\"\n[qemu]\naccelerator = \"kvmm\"\n";
    let deep = format!("[sandboxer]\nrun_dir = \"/{}\"\n", "r".repeat(60));
    let file = write(dir.path(), "bad.toml", &(wrong.to_owned() + &deep));
    for args in [vec!["--check-config"], vec!["--print-config"], vec![]] {
        let args = [vec!["--config", file.to_str().unwrap()], args].concat();
        let output = sandboxer(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let said = text(&output.stderr);
        let name = file.display();
        for part in [
            format!("{name}:2: vm.vcpu = 2: unknown key; did you mean vcpus?"),
            format!("{name}:3: vm.memory_mib = \"much\": invalid type"),
            format!("{name}:5: qemu.accelerator = \"kvmm\": unknown variant"),
            "at most 30 bytes, so that socket paths stay within 107".to_owned(),
        ] {
            assert!(said.contains(&part), "{args:?}: {part:?} is not in\n{said}");
        }
    }
}

/// Like the settings, it needs nothing of the host it is printed on.
#[test]
fn the_runtime_class_that_is_printed_fits_the_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "mine.toml", "[vm]\nmemory_mib = 1000\n[guest]\nkernel = \"/not/here\"\n");
    let output = sandboxer(&["--config", file.to_str().unwrap(), "--print-runtimeclass"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = text(&output.stdout);
    for line in [
        "kind: RuntimeClass",
        "handler: bulkhead",
        "    memory: 1192Mi",
        "    bulkhead-project.github.io/ready: \"true\"",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
    }
}

#[test]
fn everything_that_is_printed_has_every_profile() {
    let dir = tempfile::tempdir().unwrap();
    let profile = "[profile.big]\nlisten = \"/run/big.sock\"\n[profile.big.vm]\nmemory_mib = 1000\n";
    let file = write(dir.path(), "mine.toml", profile);
    for (option, lines) in [
        ("--print-config", ["[profile.big.vm]", "memory_mib = 1000", "memory_mib = 256"]),
        ("--print-runtimeclass", ["handler: bulkhead", "handler: bulkhead-big", "    memory: 1192Mi"]),
        (
            "--print-containerd",
            ["[proxy_plugins.bulkhead]", "[proxy_plugins.bulkhead-big]", "  address = \"/run/big.sock\""],
        ),
    ] {
        let output = sandboxer(&["--config", file.to_str().unwrap(), option]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let printed = text(&output.stdout);
        for line in lines {
            assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let output = sandboxer(&["--config", "/nowhere/bulkhead.toml", "--check-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("/nowhere/bulkhead.toml: cannot be read"), "{output:?}");
}

#[test]
fn what_is_printed_can_be_edited_and_fed_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "mine.toml", "[vm]\nvcpus = 3\n[guest]\nkernel = \"/not/here\"\n");
    let print = |file: &Path| {
        let output = sandboxer(&["--config", file.to_str().unwrap(), "--print-config"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        text(&output.stdout)
    };
    let printed = print(&file);
    for line in [
        "vcpus = 3",
        "kernel = \"/not/here\"",
        "memory_mib = 256",
        "listen = \"/run/bulkhead/sandboxer.sock\"",
    ] {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
    let again = write(dir.path(), "again.toml", &printed.replace("memory_mib = 256", "memory_mib = 512"));
    let reprinted = print(&again);
    assert_eq!(reprinted, printed.replace("memory_mib = 256", "memory_mib = 512"));
}

#[test]
fn a_slip_on_the_command_line_is_2_too() {
    assert_eq!(sandboxer(&["--confg", "x"]).status.code(), Some(2));
    assert_eq!(sandboxer(&["--check-config", "--print-config"]).status.code(), Some(2));
}
