//! Profiles: what they inherit, and what is refused of them.

use super::*;

/// A profile that can be.
const BIG: &str = "[profile.big]\nlisten = \"/run/bulkhead/big.sock\"\n";

fn name(name: &str) -> ProfileName {
    ProfileName::new(name).unwrap()
}

fn parse(text: &str) -> Settings {
    Settings::parse(text, Scope::Values).unwrap()
}

#[test]
fn a_profile_has_its_own_keys_and_those_of_the_top_level() {
    let text = format!(
        "[vm]\nvcpus = 2\nmemory_mib = 300\n[guest]\nkernel_params = \"quiet\"\n{BIG}\
         [profile.big.vm]\nmemory_mib = 1024\n[profile.big.qemu]\nmachine = \"q35\"\n"
    );
    let settings = parse(&text);
    let big = settings.profile(&name("big")).unwrap();
    assert_eq!(big.sandboxer.listen, Path::new("/run/bulkhead/big.sock"));
    assert_eq!((big.vm.vcpus.get(), big.vm.memory_mib.get()), (2, 1024));
    assert_eq!((big.qemu.machine, big.guest.kernel_params.as_str()), (Machine::Q35, "quiet"));
    assert_eq!((settings.vm.memory_mib.get(), settings.qemu.machine), (300, Machine::Microvm));
    let rest = |settings: &Settings| {
        let listen = Sandboxer::default().listen;
        let sandboxer = Sandboxer { listen, ..settings.sandboxer.clone() };
        (sandboxer, settings.shim.clone(), settings.cgroup.clone(), settings.virtiofsd.clone())
    };
    assert_eq!(rest(big), rest(&settings));
    assert!(big.profiles.is_empty());
}

#[test]
fn the_default_profile_is_the_top_level_and_comes_first() {
    let settings = parse(&format!("{BIG}[profile.a]\nlisten = \"/run/a.sock\"\n"));
    let names: Vec<String> = settings.all_profiles().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["default", "a", "big"]);
    assert_eq!(settings.profile(&ProfileName::default()), Some(&settings));
    assert_eq!(settings.profile(&name("small")), None);
}

#[test]
fn the_runtime_of_a_profile_is_named_after_it() {
    assert_eq!(ProfileName::default().runtime(), "bulkhead");
    assert_eq!(name("big-1").runtime(), "bulkhead-big-1");
    assert_eq!(name(&"x".repeat(54)).runtime().len(), 63, "a label of DNS");
    for bad in ["", "Big", "a_b", "a.b", "-a", "a-", "ä", &"x".repeat(55), "default"] {
        assert!(ProfileName::new(bad).is_err(), "{bad:?} was taken");
    }
}

#[test]
fn what_is_printed_of_profiles_reads_back() {
    let settings = parse(&format!("{BIG}[profile.big.virtiofsd]\nextra_args = [\"-x\"]\n[vm]\nvcpus = 3\n"));
    let printed = settings.to_toml().unwrap();
    assert_eq!(Settings::parse(&printed, Scope::Values), Ok(settings), "{printed}");
    let tables: toml::Table = toml::from_str(&printed).unwrap();
    let big = tables["profile"]["big"].as_table().unwrap();
    let of_a_profile: Vec<&str> = big.keys().map(String::as_str).collect();
    assert!(of_a_profile.contains(&"vm") && of_a_profile.contains(&"listen"), "{of_a_profile:?}");
    assert!(!of_a_profile.contains(&"sandboxer") && !of_a_profile.contains(&"profile"), "{of_a_profile:?}");
    assert_eq!(big["vm"]["vcpus"].as_integer(), Some(3), "with what it has from the top level");
}

#[test]
fn every_table_is_of_the_node_or_of_a_profile_and_the_lists_agree() {
    let tables = toml::Table::try_from(Settings::default()).unwrap();
    let of_the_node: Vec<&String> =
        tables.keys().filter(|table| profile::of_the_node(table).is_some()).collect();
    assert_eq!(of_the_node, ["cgroup", "metrics", "sandboxer", "shim", "traces"]);
}

#[test]
fn each_slip_in_a_profile_is_named_as_it_is_written() {
    let cases = [
        ("[profile.big.vm]\nvcpu = 2", "profile.big.vm.vcpu = 2: unknown key; did you mean vcpus?"),
        (
            "[profile.big.vm]\nkernel = \"/k\"",
            "profile.big.vm.kernel = \"/k\": unknown key; kernel belongs into [profile.big.guest]",
        ),
        ("[profile.big.vn]\nvcpus = 2", "profile.big.vn: unknown table; did you mean [profile.big.vm]?"),
        (
            "[profile.big]\nvm = 2",
            "profile.big.vm = 2: integer where a table belongs; write [profile.big.vm]",
        ),
        (
            "[profile.big]\nmemory_mib = 512",
            "profile.big.memory_mib = 512: unknown key; memory_mib belongs into [profile.big.vm]",
        ),
        (
            "[profile.big.vm]\nmemory_mib = \"much\"",
            "profile.big.vm.memory_mib = \"much\": invalid type: string \"much\", expected a nonzero u32",
        ),
        (
            "[profile.big.vm]\nmemory_mib = 16",
            "profile.big.vm.memory_mib = 16: too little for a guest to come up; at least 64",
        ),
        (
            "[profile.big.qemu]\npath = \"qemu\"",
            "profile.big.qemu.path = \"qemu\": not an absolute path without ..; begin it with /",
        ),
        (
            "[profile.big.metrics]\nlisten = \"127.0.0.1:1\"",
            "profile.big.metrics: not of a profile; the service has one endpoint for all; set it in [metrics]",
        ),
        (
            "[profile.big.sandboxer]\nrun_dir = \"/x\"",
            "profile.big.sandboxer: not of a profile; one service has all profiles; a profile has its own `listen`, \
             the rest is in [sandboxer]",
        ),
    ];
    for (text, says) in cases {
        let listen = "listen = \"/run/bulkhead/big.sock\"\n";
        let whole = match text.strip_prefix("[profile.big]\n") {
            Some(keys) => format!("[profile.big]\n{listen}{keys}"),
            None => format!("[profile.big]\n{listen}{text}"),
        };
        assert_eq!(fault(&whole), says, "{whole}");
    }
}

#[test]
fn a_profile_needs_a_socket_of_its_own() {
    assert_eq!(
        fault("[profile.big.vm]\nvcpus = 2"),
        "profile.big.listen: missing; for example \"/run/bulkhead/big.sock\", for containerd's proxy_plugins"
    );
    assert_eq!(
        fault("[profile.big]\nlisten = \"big.sock\""),
        "profile.big.listen = \"big.sock\": not an absolute path without ..; begin it with /"
    );
    assert_eq!(
        fault("[profile.big]\nlisten = 7"),
        "profile.big.listen = 7: invalid type: integer `7`, expected path string"
    );
    let long = format!("[profile.big]\nlisten = \"/{}\"", "l".repeat(MAX_SOCKET_PATH));
    assert!(fault(&long).starts_with("profile.big.listen = ") && fault(&long).contains("at most 107 bytes"));
}

#[test]
fn two_profiles_with_one_socket_are_refused() {
    let says = fault("[profile.big]\nlisten = \"/run/bulkhead/sandboxer.sock\"");
    assert!(says.contains("profile.big.listen") && says.contains("also the socket of [sandboxer]"), "{says}");
    let says = fault(&format!("{BIG}[profile.large]\nlisten = \"/run/bulkhead/big.sock\""));
    assert!(says.contains("profile.large.listen"), "{says}");
    assert!(says.contains("also the socket of [profile.big]"), "{says}");
}

#[test]
fn what_cannot_be_a_profile_is_named() {
    let right = "1 to 54 of a-z, 0-9 and -, with no - at the ends";
    let bad = |name: &str| format!("[profile.{name}]\nlisten = \"/run/x.sock\"");
    for name in ["Big", "a_b", "-a", "\"a b\""] {
        let says = fault(&bad(name));
        assert!(says.starts_with("profile.") && says.ends_with(right), "{says}");
    }
    let says = fault(&bad("default"));
    assert!(says.starts_with("profile.default: the default profile is the top level of the file"), "{says}");
    assert_eq!(
        fault("[profile]\nlisten = \"/run/x.sock\""),
        "profile.listen = \"/run/x.sock\": string where a table belongs; write [profile.NAME]"
    );
    assert_eq!(fault("profile = 3"), "profile = 3: integer where a table belongs; write [profile.NAME]");
    assert_eq!(fault("[profil.big]\nx = 1"), "profil: unknown table; did you mean [profile]?");
}

#[test]
fn all_faults_of_all_profiles_are_said_at_once() {
    let text = "[vm]\nvcpus = 0\n[profile.a]\nlisten = \"/run/a.sock\"\n[profile.a.vm]\nvcpu = 2\n\
                memory_mib = 1\n[profile.B]\n[profile.c.guest]\nkernel = 4\n";
    let lines: Vec<_> = faults(text).into_iter().map(|fault| (fault.line, fault.key)).collect();
    let expected = [
        (2, "vm.vcpus"),
        (6, "profile.a.vm.vcpu"),
        (7, "profile.a.vm.memory_mib"),
        (8, "profile.B"),
        (9, "profile.c.listen"),
        (10, "profile.c.guest.kernel"),
    ];
    assert_eq!(lines, expected.map(|(line, key)| (Some(line), key.to_owned())));
}

#[test]
fn a_fault_of_the_top_level_is_said_once_and_one_that_a_profile_makes_of_it_there() {
    let text = format!("[vm]\nmemory_mib = 16\n{BIG}");
    assert_eq!(faults(&text).len(), 1, "{:?}", faults(&text));
    let text = format!("[vm]\nmemory_mib = 129\n{BIG}[profile.big.vm]\nhugepages = true\n");
    let found = faults(&text);
    let [fault] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((fault.line, fault.key.as_str()), (Some(2), "profile.big.vm.memory_mib"));
    assert!(fault.wrong.contains("not a whole number of huge pages"), "{fault}");
}

#[test]
fn the_host_is_looked_at_for_each_profile() {
    let dir = tempfile::tempdir().unwrap();
    let good = text_of(&good_host(dir.path()));
    let listen = dir.path().join("big.sock");
    let profile = format!("[profile.big]\nlisten = {:?}\n", listen.display().to_string());
    assert!(Settings::parse(&format!("{good}{profile}"), Scope::Host).is_ok());
    fs::write(&listen, "not a socket").unwrap();
    let text = format!("{good}{profile}[profile.big.guest]\nimage = \"/nowhere/image\"\n");
    let found = Settings::parse(&text, Scope::Host).unwrap_err();
    let keys: Vec<&str> = found.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(keys, ["profile.big.listen", "profile.big.guest.image"], "{found:?}");
    fs::remove_file(dir.path().join("shim")).unwrap();
    let found = Settings::parse(&format!("{good}{profile}"), Scope::Host).unwrap_err();
    let shims = found.iter().filter(|fault| fault.key.ends_with("shim.binary")).count();
    assert_eq!(shims, 1, "what all have is said once: {found:?}");
}
