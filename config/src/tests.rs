use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

mod profiles;

fn faults(text: &str) -> Vec<Fault> {
    Settings::parse(text, Scope::Values).expect_err("the text was taken")
}

/// The one fault of a text, as a person reads it.
fn fault(text: &str) -> String {
    match faults(text).as_slice() {
        [fault] => fault.to_string(),
        many => panic!("{text}: {many:?}"),
    }
}

#[test]
fn nothing_set_is_the_default() {
    assert_eq!(Settings::parse("", Scope::Values), Ok(Settings::default()));
}

#[test]
fn the_shipped_file_is_the_default_and_names_every_key() {
    let shipped = include_str!("../bulkhead.toml");
    assert_eq!(Settings::parse(shipped, Scope::Values), Ok(Settings::default()));
    let shipped: toml::Table = toml::from_str(shipped).unwrap();
    assert_eq!(shipped, toml::Table::try_from(Settings::default()).unwrap());
}

#[test]
fn the_other_shipped_files_agree_with_the_defaults() {
    let snippet: toml::Table = toml::from_str(include_str!("../containerd/bulkhead.toml")).unwrap();
    let defaults = Settings::default();
    let plugin = &snippet["proxy_plugins"]["bulkhead"];
    assert_eq!(plugin["address"].as_str(), defaults.sandboxer.listen.to_str());
    let runtime = &snippet["plugins"]["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["bulkhead"];
    assert_eq!(runtime["sandboxer"].as_str(), Some("bulkhead"), "the name of the proxy plugin");
    let words: Vec<&str> = runtime["runtime_type"].as_str().unwrap().rsplit('.').take(2).collect();
    let shim = format!("containerd-shim-{}-{}", words[1], words[0]);
    assert!(defaults.shim.binary.ends_with(shim), "containerd makes the shim's name from the runtime's");

    let unit = include_str!("../systemd/bulkhead-sandboxer.service");
    assert!(unit.contains("RuntimeDirectory=bulkhead\n") && unit.contains("StateDirectory=bulkhead\n"));
    assert!(
        defaults.sandboxer.run_dir.ends_with("bulkhead")
            && defaults.sandboxer.state_dir.ends_with("bulkhead")
    );
}

#[test]
fn what_is_printed_reads_back() {
    let mut settings = Settings::default();
    settings.vm.vcpus = 3.try_into().unwrap();
    settings.qemu.extra_args = vec!["-name".into(), "a \"quoted\" one".into()];
    settings.guest.kernel_params = "quiet loglevel=3".into();
    let printed = settings.to_toml().unwrap();
    assert_eq!(Settings::parse(&printed, Scope::Values), Ok(settings));
}

#[test]
fn slips_in_the_tables_of_vmms_are_named_with_what_would_be_right() {
    let cases = [
        (
            "[qemu]\naccelerator = \"kvmm\"",
            "qemu.accelerator = \"kvmm\": unknown variant `kvmm`, expected one of `kvm`, `tcg`, `auto`",
        ),
        (
            "[vm]\nhypervisor = \"cloud_hypervisor\"",
            "vm.hypervisor = \"cloud_hypervisor\": unknown variant `cloud_hypervisor`, expected `qemu` or `cloud-hypervisor`",
        ),
        (
            "[cloud_hypervisor]\npath = \"ch\"",
            "cloud_hypervisor.path = \"ch\": not an absolute path without ..; begin it with /",
        ),
        (
            "[cloud_hypervisor]\nextra_args = [\"\"]",
            "cloud_hypervisor.extra_args = [\"\"]: holds an empty argument or a NUL byte; one non-empty word for each argument",
        ),
        ("[qemu]\npath = \"qemu\"", "qemu.path = \"qemu\": not an absolute path without ..; begin it with /"),
    ];
    for (text, says) in cases {
        assert_eq!(fault(text), says, "{text}");
    }
}

#[test]
fn each_slip_is_named_with_what_would_be_right() {
    let cases = [
        ("[vm]\nvcpu = 2", "vm.vcpu = 2: unknown key; did you mean vcpus?"),
        ("[vm]\nkernel = \"/k\"", "vm.kernel = \"/k\": unknown key; kernel belongs into [guest]"),
        ("[vn]\nvcpus = 2", "vn: unknown table; did you mean [vm]?"),
        ("vm = 2", "vm = 2: integer where a table belongs; write [vm]"),
        ("[vm]\nvcpus = \"two\"", "vm.vcpus = \"two\": invalid type: string \"two\", expected a nonzero u32"),
        ("[vm]\nvcpus = 0", "vm.vcpus = 0: invalid value: integer `0`, expected a nonzero u32"),
        ("[vm]\nvcpus = -1", "vm.vcpus = -1: invalid value: integer `-1`, expected a nonzero u32"),
        ("[vm]\nvcpus = 256", "vm.vcpus = 256: more than a VM can have; 1 to 255"),
        ("[vm]\nmemory_mib = 16", "vm.memory_mib = 16: too little for a guest to come up; at least 64"),
        (
            "[vm]\nmemory_mib = 129\nhugepages = true",
            "vm.memory_mib = 129: not a whole number of huge pages; an even number, huge pages have 2 MiB",
        ),
        (
            "[virtiofsd]\nextra_args = [\"\"]",
            "virtiofsd.extra_args = [\"\"]: holds an empty argument or a NUL byte; one non-empty word for each argument",
        ),
        (
            "[guest]\nkernel_params = \"a\\nb\"",
            "guest.kernel_params = \"a\\nb\": not one line of at most 1024 bytes; parameters with blanks between them",
        ),
        (
            "[guest]\nagent_log_level = \"loud\"",
            "guest.agent_log_level = \"loud\": no log level; one of error, warn, info, debug, trace",
        ),
        (
            "[cgroup]\ndefault_parent = \"/\"",
            "cgroup.default_parent = \"/\": not the name of a cgroup; an absolute path below the root (/bulkhead) \
             or a slice (bulkhead.slice)",
        ),
        (
            "[metrics]\nlisten = \"0.0.0.0:9464\"",
            "metrics.listen = \"0.0.0.0:9464\": neither the path of a unix socket nor a loopback address with a port; \
             /run/bulkhead/metrics.sock or 127.0.0.1:9464; empty for no metrics",
        ),
        (
            "[traces]\nendpoint = \"https://collector:4317\"",
            "traces.endpoint = \"https://collector:4317\": neither http://host:port nor unix:// and an absolute path; \
             http://127.0.0.1:4317 (OTLP over gRPC; TLS is up to a collector on the node); empty for no traces",
        ),
        ("[traces]\nsample_percent = 101", "traces.sample_percent = 101: more than all; 0 to 100"),
        (
            "[sandboxer]\nstate_dir = \"/run/bulkhead/state\"",
            "sandboxer.state_dir = \"/run/bulkhead/state\": lies in run_dir, which is gone after a reboot; \
             a directory on disk, for example /var/lib/bulkhead",
        ),
    ];
    for (text, says) in cases {
        assert_eq!(fault(text), says, "{text}");
    }
}

#[test]
fn a_collector_is_named_by_an_address_or_a_socket() {
    let parse =
        |endpoint: &str| Settings::parse(&format!("[traces]\nendpoint = {endpoint:?}"), Scope::Values);
    for good in
        ["", "http://127.0.0.1:4317", "http://[::1]:4317", "http://otel-agent.svc:1", "unix:///run/otel.sock"]
    {
        assert!(parse(good).is_ok(), "{good}");
    }
    let long = format!("unix:///{}", "x".repeat(MAX_SOCKET_PATH));
    for bad in [
        "127.0.0.1:4317",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:+1",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:4317/v1/traces",
        "http://user@host:4317",
        "http://:4317",
        "http://[::1:4317",
        "http://[host]:4317",
        "unix://run/otel.sock",
        "/run/otel.sock",
        &long,
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_bad_log_filter_is_named() {
    for good in ["info", "OFF", "warn,vmm_actors=debug", "vmm_actors::vm=trace"] {
        assert!(
            Settings::parse(&format!("[sandboxer]\nlog_level = {good:?}"), Scope::Values).is_ok(),
            "{good}"
        );
    }
    for bad in ["", "inof", "warn,,", "warn,loud"] {
        assert!(fault(&format!("[sandboxer]\nlog_level = {bad:?}")).contains("is no log level"), "{bad}");
    }
    let says = fault("[sandboxer]\nlog_level = \"bulkhead=loudly\"");
    assert!(says.starts_with("sandboxer.log_level = \"bulkhead=loudly\": "), "{says}");
    assert!(says.ends_with("; for example info, or warn,bulkhead_sandboxer=debug"), "{says}");
}

#[test]
fn run_dir_leaves_room_for_socket_paths() {
    let with = |length: usize| format!("[sandboxer]\nrun_dir = \"/{}\"", "r".repeat(length - 1));
    assert!(Settings::parse(&with(MAX_RUN_DIR), Scope::Values).is_ok());
    let says = fault(&with(MAX_RUN_DIR + 1));
    for part in ["31 bytes, too long", "would have 108", "at most 30 bytes", "within 107"] {
        assert!(says.contains(part), "{part:?} is not in {says}");
    }
    let longest = format!("/{}/s/{}/task.sock", "r".repeat(MAX_RUN_DIR - 1), "f".repeat(64));
    assert_eq!(longest.len(), MAX_SOCKET_PATH, "the arithmetic is that of the directories");
}

#[test]
fn a_listen_path_too_long_for_a_socket_is_named() {
    let says = fault(&format!("[sandboxer]\nlisten = \"/{}\"", "l".repeat(MAX_SOCKET_PATH)));
    assert!(says.contains("108 bytes, too long for a unix socket; at most 107 bytes"), "{says}");
}

#[test]
fn every_fault_is_said_at_once_with_its_line() {
    let text = "[vm]\nvcpu = 2\nmemory_mib = \"much\"\n\n[qemu]\npath = \"qemu\"\nmachine = 7\n\n[colour]\nred = 1\n";
    let lines: Vec<_> = faults(text).into_iter().map(|fault| (fault.line, fault.key)).collect();
    let expected =
        [(2, "vm.vcpu"), (3, "vm.memory_mib"), (6, "qemu.path"), (7, "qemu.machine"), (9, "colour")];
    assert_eq!(lines, expected.map(|(line, key)| (Some(line), key.to_owned())));
}

#[test]
fn every_syntax_error_is_said_with_its_line() {
    let found = faults("[vm]\nvcpus = \n\n[qemu\npath = \"/q\"\n[vm]\n");
    assert!(found.len() >= 2, "{found:?}");
    assert_eq!(found.iter().map(|fault| fault.line).next(), Some(Some(2)));
    assert!(found.iter().all(|fault| fault.wrong.starts_with("not TOML: ")), "{found:?}");
    assert!(fault("[vm]\nvcpus = 1\nvcpus = 2").contains("duplicate key"));
}

#[test]
fn a_file_that_is_not_there_is_a_fault_of_its_own() {
    let faults = Settings::load(Path::new("/nowhere/bulkhead.toml"), Scope::Values).unwrap_err();
    let says = faults.to_string();
    assert!(says.starts_with("/nowhere/bulkhead.toml: cannot be read: No such file"), "{says}");
}

/// A host with everything the settings name, in one directory, and the text that names it.
fn good_host(dir: &Path) -> Vec<(&'static str, &'static str, std::path::PathBuf)> {
    let program = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let file = |name: &str, content: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    vec![
        ("shim", "binary", program("shim")),
        ("qemu", "path", program("qemu")),
        ("qemu", "vsock_path", program("vsock")),
        ("virtiofsd", "path", program("virtiofsd")),
        ("guest", "kernel", file("vmlinux", b"\x7fELF and more")),
        ("guest", "image", file("image", b"070701")),
        ("sandboxer", "listen", dir.join("sandboxer.sock")),
    ]
}

fn text_of(entries: &[(&'static str, &'static str, std::path::PathBuf)]) -> String {
    let mut tables = toml::Table::new();
    for (section, key, path) in entries {
        let table = tables.entry(*section).or_insert_with(|| toml::Table::new().into());
        table.as_table_mut().unwrap().insert((*key).to_owned(), path.display().to_string().into());
    }
    toml::to_string(&tables).unwrap()
}

#[test]
fn what_the_host_has_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let text = text_of(&good_host(dir.path()));
    let settings = Settings::parse(&text, Scope::Host).unwrap();
    assert_eq!(settings.shim.binary, dir.path().join("shim"));
}

#[test]
fn everything_the_host_lacks_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let host = good_host(dir.path());
    let path = |name: &str| dir.path().join(name);
    fs::remove_file(path("shim")).unwrap();
    fs::set_permissions(path("qemu"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::remove_file(path("vsock")).unwrap();
    fs::create_dir(path("vsock")).unwrap();
    fs::write(path("vmlinux"), "MZ bzImage").unwrap();
    fs::write(path("image"), "").unwrap();
    fs::write(path("sandboxer.sock"), "not a socket").unwrap();
    let found = Settings::parse(&text_of(&host), Scope::Host).unwrap_err();
    let says: Vec<String> = found.iter().map(ToString::to_string).collect();
    let expected = [
        ("shim.binary", "no such file; install containerd-shim-bulkhead-v2"),
        ("qemu.path", "not executable; chmod +x"),
        ("qemu.vsock_path", "not a file; install vhost-device-vsock"),
        ("guest.kernel", "not an ELF file; an uncompressed ELF vmlinux"),
        ("guest.image", "an empty file; build it"),
        ("sandboxer.listen", "something that is no socket is in the way; remove it"),
    ];
    for (key, part) in expected {
        let said = says.iter().any(|line| line.starts_with(key) && line.contains(part));
        assert!(said, "{key}: {part} is not in {says:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{says:#?}");
    assert!(found.iter().all(|fault| fault.line.is_some()), "{found:#?}");
}

#[test]
fn a_default_that_the_host_lacks_is_called_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = good_host(dir.path());
    host.retain(|(section, ..)| *section != "shim");
    let Err(found) = Settings::parse(&text_of(&host), Scope::Host) else {
        println!("skipped: this machine has the default shim installed");
        return;
    };
    let [fault] = found.as_slice() else { panic!("{found:?}") };
    let says = fault.to_string();
    let expected = "shim.binary = \"/usr/bin/containerd-shim-bulkhead-v2\" (the default): no such file";
    assert!(says.starts_with(expected), "{says}");
}

#[test]
fn a_key_that_cannot_be_read_is_not_looked_for_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = good_host(dir.path());
    host.retain(|(section, ..)| *section != "shim");
    let text = format!("{}\n[shim]\nbinary = 7\n", text_of(&host));
    let found = Settings::parse(&text, Scope::Host).unwrap_err();
    let [fault] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((fault.key.as_str(), fault.value.as_str()), ("shim.binary", "7"));
}
