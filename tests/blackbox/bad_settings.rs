//! Settings that cannot work: all of them reported at once, before anything is touched.

use std::path::PathBuf;
use std::process::{Command, Output};

use bulkhead_tests::{peers, report};

/// Runs the sandboxer with `text` as its settings.
fn run(arguments: &[&str], text: &str) -> Option<Output> {
    let product = match peers::product() {
        Ok(product) => product,
        Err(why) => {
            report::skipped(std::thread::current().name().unwrap_or("a settings test"), &why);
            return None;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bulkhead.toml");
    std::fs::write(&file, text).unwrap();
    let program: PathBuf = product.bin.join("bulkhead-sandboxer");
    Some(Command::new(program).arg("--config").arg(&file).args(arguments).output().unwrap())
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn expect_refused(text: &str, wanted: &[&str]) {
    for arguments in [&["--check-config"][..], &[][..]] {
        let Some(output) = run(arguments, text) else { return };
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        for word in wanted {
            assert!(said.contains(word), "{arguments:?}: {word:?} is not in: {said}");
        }
    }
}

#[test]
fn a_run_dir_too_long_for_a_socket_is_refused_with_the_limit() {
    let long = format!("/run/{}", "long".repeat(20));
    expect_refused(&format!("[sandboxer]\nrun_dir = \"{long}\"\n"), &["run_dir", &long, "107"]);
}

#[test]
fn every_fault_is_reported_at_once() {
    let text =
        "[sandboxer]\nlog_format = \"xml\"\nspeed = 3\n\n[vm]\nvcpus = \"many\"\n\n[unknown]\nkey = 1\n";
    expect_refused(text, &["log_format", "speed", "vcpus", "unknown"]);
}

#[test]
fn files_that_are_not_there_are_named() {
    let text = "[guest]\nkernel = \"/no/kernel\"\nimage = \"/no/image\"\n\n[qemu]\npath = \"/no/qemu\"\n\n\
                [virtiofsd]\npath = \"/no/virtiofsd\"\n\n[shim]\nbinary = \"/no/shim\"\n";
    expect_refused(text, &["/no/kernel", "/no/image", "/no/qemu", "/no/virtiofsd", "/no/shim"]);
}

#[test]
fn programs_that_are_not_executable_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    let path = plain.display();
    expect_refused(&format!("[qemu]\npath = \"{path}\"\n"), &[&path.to_string(), "execut"]);
}

#[test]
fn a_settings_file_that_is_not_there_is_named() {
    let Ok(product) = peers::product() else {
        return report::skipped("a_settings_file_that_is_not_there_is_named", "no product built");
    };
    let program = product.bin.join("bulkhead-sandboxer");
    let output = Command::new(program).args(["--config", "/no/such/file.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("/no/such/file.toml"), "{}", stderr(&output));
}

#[test]
fn printed_settings_can_be_fed_back() {
    let Some(first) = run(&["--print-config"], "[vm]\nmemory_mib = 333\n") else { return };
    assert!(first.status.success(), "{}", stderr(&first));
    let printed = String::from_utf8(first.stdout).unwrap();
    assert!(printed.contains("333") && printed.contains("run_dir"), "{printed}");
    let second = run(&["--print-config"], &printed).unwrap();
    assert_eq!(String::from_utf8(second.stdout).unwrap(), printed);
}
