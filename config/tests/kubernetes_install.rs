//! `kubernetes/install.sh` against a node that is a directory: what it lays out, restarts, keeps and refuses.
//!
//! The payload is what `make install` makes, with text files for programs. Whatever the script runs on the node goes through
//! one fake program, which keeps a list of the calls and answers as the node's own programs would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const FAKE_NODE: &str = r#"#!/bin/sh
# Answers for a node whose files are below $NODE. Files beside them say what is wrong with it.
case "$*" in systemctl\ [der]* | *'config dump') [ ! -e "$NODE/cut" ] || "$NODE/cut-off" ;; esac
echo "$*" >>"$NODE/calls"
config=/etc/containerd/conf.d/bulkhead.toml
case $1 in
    uname) if [ "$2" = -m ]; then echo x86_64; else echo 6.1.0-50-amd64; fi ;;
    test) [ -e "$NODE/root$3" ] ;;
    find) find "$NODE/root$2" -name '*.json' ;;
    dd) [ -e "$NODE/root/dev/kvm" ] || { echo "dd: failed to open '/dev/kvm': No such file or directory" >&2; exit 1; } ;;
    /usr/bin/qemu-system-x86_64) echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)' ;;
    /usr/bin/containerd)
        if [ "$2" = --version ]; then
            echo "containerd github.com/containerd/containerd/v2 $(cat "$NODE/containerd-version") 0123abc"
        else
            [ ! -e "$NODE/broken" ] || { echo 'containerd: toml: array is incomplete' >&2; exit 1; }
            [ "$*" = '/usr/bin/containerd --config /etc/containerd/config.toml config dump' ] || exit 1
            echo "imports = ['/etc/containerd/conf.d/*.toml']"
            [ ! -e "$NODE/imports" ] || cat "$NODE/root$config" 2>/dev/null || true
        fi ;;
    */bulkhead-sandboxer)
        if [ "$2 $3 $4" = '--print-containerd --config /etc/bulkhead/bulkhead.toml' ]; then
            grep '^\[profile\.\|^\[plugins' "$NODE/root$4" | sed 's/^/# /'
            echo "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bulkhead]"
            exit
        fi
        [ ! -e "$NODE/bad-settings" ] || { echo 'bulkhead.toml:3: vm.vcpus = 0: wrong' >&2; exit 2; } ;;
    systemctl)
        case "$2 $3" in
            show*) printf '{ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd --config %s ; ignore_errors=no }\n' \
                /etc/containerd/config.toml ;;
            'restart containerd.service') ! { [ -e "$NODE/containerd-fails" ] && [ -e "$NODE/root$config" ]; } ;;
        esac ;;
esac
"#;

/// Ends the script and all that it has started, as a power cut does, when it is asked for the n-th time.
const CUT_OFF: &str = r#"#!/bin/sh
left=$(($(cat "$NODE/cut") - 1))
echo "$left" >"$NODE/cut"
[ "$left" -ne 0 ] || kill -9 0
"#;

const DROP_IN: &str = "etc/containerd/conf.d/bulkhead.toml";
const SETTINGS: &str = "etc/bulkhead/bulkhead.toml";
const SERVICE: &str = "restart bulkhead-sandboxer.service";
const CONTAINERD: &str = "restart containerd.service";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What `make install` lays out, with these words for programs.
fn payload(dir: &Path, words: &str) -> PathBuf {
    let made = dir.join(format!("made-{words}"));
    for program in ["bulkhead-sandboxer", "containerd-shim-bulkhead-v2"] {
        write(&made.join("bin").join(program), &format!("{program} {words}\n"), 0o755);
    }
    for file in ["vmlinux", "bulkhead-guest.cpio", "manifest.json"] {
        write(&made.join("guest").join(file), &format!("{file} {words}\n"), 0o644);
    }
    let payload = dir.join(format!("payload-{words}"));
    let output = Command::new(repository().join(".ci/install"))
        .args([&payload, Path::new("/usr/local"), Path::new("/etc"), &made.join("bin"), &made.join("guest")])
        .arg("no")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    payload
}

struct Node {
    dir: TempDir,
    payload: PathBuf,
}

/// What a run said and did.
#[derive(Debug)]
struct Run {
    succeeded: bool,
    text: String,
    /// Restarts of daemons, in their order.
    restarts: Vec<String>,
    /// Every call of systemctl that is no question.
    commands: Vec<String>,
}

impl Node {
    /// One that has everything but Bulkhead.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let payload = payload(dir.path(), "one");
        Self::with(dir, payload)
    }

    fn with(dir: TempDir, payload: PathBuf) -> Self {
        for file in ["dev/kvm", "dev/net/tun", "sys/fs/cgroup/cgroup.controllers", "run/systemd/system/x"] {
            write(&dir.path().join("root").join(file), "", 0o644);
        }
        write(&dir.path().join("fake-node"), FAKE_NODE, 0o755);
        write(&dir.path().join("cut-off"), CUT_OFF, 0o755);
        // Renaming and removing, like commands to the node, are where a run is cut off.
        for tool in ["mv", "rm"] {
            let text =
                format!("#!/bin/sh\n[ ! -e \"$NODE/cut\" ] || \"$NODE/cut-off\"\nexec /bin/{tool} \"$@\"\n");
            write(&dir.path().join("tools").join(tool), &text, 0o755);
        }
        write(&dir.path().join("containerd-version"), "v2.4.2", 0o644);
        write(&dir.path().join("imports"), "", 0o644);
        Self { dir, payload }
    }

    /// Another one that is the same.
    fn twin(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let copied = Command::new("cp").arg("-a").arg(self.path("")).arg(dir.path()).status().unwrap();
        assert!(copied.success());
        let twin = Self::with(dir, self.payload.clone());
        assert_eq!(twin.tree(), self.tree());
        twin
    }

    /// How many steps there are in a run at which it can be cut off.
    fn steps(&self, command: &str) -> usize {
        let (twin, many) = (self.twin(), 1000);
        twin.set("cut", &many.to_string());
        assert!(twin.run(&[command]).succeeded);
        let left = fs::read_to_string(twin.dir.path().join("cut")).unwrap();
        many - left.trim().parse::<usize>().unwrap()
    }

    /// A twin of it after a run that was cut off at that step and one that was not, and the restarts of both.
    fn cut_off(&self, command: &str, step: usize) -> (Self, Vec<String>) {
        let twin = self.twin();
        twin.set("cut", &step.to_string());
        let first = twin.run(&[command]);
        assert!(!first.succeeded, "step {step}: {}", first.text);
        twin.unset("cut");
        let second = twin.run(&[command]);
        assert!(second.succeeded, "step {step}: {}", second.text);
        (twin, [first.restarts, second.restarts].concat())
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("root").join(below)
    }

    fn read(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap()
    }

    /// Something is the matter with it, or no longer.
    fn set(&self, flag: &str, text: &str) {
        write(&self.dir.path().join(flag), text, 0o644);
    }

    fn unset(&self, flag: &str) {
        fs::remove_file(self.dir.path().join(flag)).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let calls = self.dir.path().join("calls");
        fs::write(&calls, "").unwrap();
        let output: Output = Command::new("bash")
            .arg(repository().join("config/kubernetes/install.sh"))
            .args(arguments)
            .args(["--payload".as_ref(), self.payload.as_os_str()])
            .args(["--host".as_ref(), self.path("").as_os_str()])
            .args(["--enter".as_ref(), self.dir.path().join("fake-node").as_os_str()])
            .env("NODE", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .env(
                "PATH",
                format!("{}:{}", self.dir.path().join("tools").display(), std::env::var("PATH").unwrap()),
            )
            .process_group(0)
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let calls = fs::read_to_string(calls).unwrap();
        let commands = calls.lines().filter_map(|line| line.strip_prefix("systemctl ").map(str::to_owned));
        let commands: Vec<_> =
            commands.filter(|line| !line.starts_with("show ") && !line.starts_with("is-active ")).collect();
        let restarts = commands.iter().filter(|line| line.starts_with("restart ")).cloned().collect();
        Run { succeeded: output.status.success(), text, restarts, commands }
    }

    fn install(&self) -> Run {
        let run = self.run(&["install"]);
        assert!(run.succeeded, "{}", run.text);
        run
    }

    /// That it is refused for that reason, and that nothing has changed on the node.
    fn refuses(&self, reason: &str) {
        let before = self.tree();
        let run = self.run(&["install"]);
        assert!(!run.succeeded, "{}", run.text);
        assert!(run.text.contains(reason), "{reason:?} is not in {}", run.text);
        assert_eq!(run.commands, [""; 0], "{}", run.text);
        assert_eq!(self.tree(), before);
    }

    /// Every file of the node with mode and content.
    fn tree(&self) -> BTreeMap<String, (u32, String)> {
        let root = self.path("");
        let (mut tree, mut directories) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                } else {
                    let name = entry.path().strip_prefix(&root).unwrap().display().to_string();
                    let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                    tree.insert(name, (mode, fs::read_to_string(entry.path()).unwrap()));
                }
            }
        }
        tree
    }
}

#[test]
fn the_first_run_lays_out_everything_and_restarts_the_service_before_containerd() {
    let node = Node::new();
    let run = node.install();
    assert_eq!(run.commands, ["daemon-reload", "enable bulkhead-sandboxer.service", SERVICE, CONTAINERD]);
    for (path, mode) in [
        ("usr/local/bin/bulkhead-sandboxer", 0o755),
        ("usr/local/bin/containerd-shim-bulkhead-v2", 0o755),
        ("usr/local/share/bulkhead/vmlinux", 0o644),
        ("usr/local/share/bulkhead/bulkhead-guest.cpio", 0o644),
        ("usr/local/lib/systemd/system/bulkhead-sandboxer.service", 0o644),
        ("usr/local/lib/systemd/system/containerd.service.d/10-bulkhead.conf", 0o644),
        ("usr/local/libexec/bulkhead/install.sh", 0o755),
        (SETTINGS, 0o644),
        (DROP_IN, 0o644),
    ] {
        let metadata = fs::metadata(node.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
        assert_ne!(metadata.len(), 0, "{path}");
    }
    assert!(node.read(DROP_IN).contains("runtimes.bulkhead]"));
    assert!(node.read(SETTINGS).contains("\"/usr/local/share/bulkhead/vmlinux\""));
}

#[test]
fn a_second_run_changes_and_restarts_nothing() {
    let node = Node::new();
    node.install();
    let before = node.tree();
    let run = node.install();
    assert_eq!(run.commands, [""; 0], "{}", run.text);
    assert_eq!(node.tree(), before);
}

#[test]
fn what_has_changed_is_restarted_once_and_nothing_else() {
    let mut node = Node::new();
    node.install();

    // A release with another guest and shim: both are read when a pod is made.
    let shim = node.payload.join("usr/local/bin/containerd-shim-bulkhead-v2");
    write(&shim, "another shim\n", 0o755);
    assert_eq!(node.install().restarts, [""; 0]);
    assert_eq!(node.read("usr/local/bin/containerd-shim-bulkhead-v2"), "another shim\n");

    // A release with another drop-in.
    let drop_in = node.payload.join("usr/local/share/doc/bulkhead/examples/containerd/bulkhead.toml");
    write(&drop_in, &format!("{}# another\n", fs::read_to_string(&drop_in).unwrap()), 0o644);
    assert_eq!(node.install().restarts, [CONTAINERD]);
    assert_eq!(node.install().restarts, [""; 0]);

    // A release with another service.
    node.payload = payload(node.dir.path(), "two");
    write(
        &node.payload.join("usr/local/share/doc/bulkhead/examples/containerd/bulkhead.toml"),
        &node.read(DROP_IN),
        0o644,
    );
    assert_eq!(node.install().restarts, [SERVICE]);
    assert_eq!(node.install().restarts, [""; 0]);

    // Settings that the administrator changed on the node, as far as the service has not been restarted for them.
    write(&node.path(SETTINGS), &node.read(SETTINGS).replace("vcpus = 1", "vcpus = 2"), 0o644);
    assert_eq!(node.install().restarts, [SERVICE]);
    assert_eq!(node.install().restarts, [""; 0]);
}

#[test]
fn a_running_program_keeps_the_file_it_was_started_from() {
    let mut node = Node::new();
    node.install();
    let path = node.path("usr/local/bin/bulkhead-sandboxer");
    let running = fs::File::open(&path).unwrap();
    node.payload = payload(node.dir.path(), "two");
    node.install();
    assert_eq!(std::io::read_to_string(running).unwrap(), "bulkhead-sandboxer one\n");
    assert_eq!(fs::read_to_string(path).unwrap(), "bulkhead-sandboxer two\n");
}

#[test]
fn what_the_administrator_has_changed_is_kept_and_the_shipped_file_lies_beside_it() {
    let node = Node::new();
    node.install();
    for path in [SETTINGS, DROP_IN] {
        write(&node.path(path), &format!("{}# mine\n", node.read(path)), 0o644);
    }
    let mine = [SETTINGS, DROP_IN].map(|path| node.read(path));
    let shipped = node.payload.join(SETTINGS);
    write(&shipped, &format!("{}# a new release\n", fs::read_to_string(&shipped).unwrap()), 0o644);
    let run = node.install();
    assert!(run.text.contains("kept /etc/bulkhead/bulkhead.toml, which was changed here"), "{}", run.text);
    assert_eq!([SETTINGS, DROP_IN].map(|path| node.read(path)), mine);
    assert!(node.read(&format!("{SETTINGS}.new")).ends_with("# a new release\n"));
    assert_eq!(run.restarts, [SERVICE, CONTAINERD], "both run with what is there now");

    // Settings that nobody changed follow the release.
    let untouched = Node::new();
    untouched.install();
    let shipped = untouched.payload.join(SETTINGS);
    write(&shipped, &format!("{}# a new release\n", fs::read_to_string(&shipped).unwrap()), 0o644);
    assert_eq!(untouched.install().restarts, [SERVICE]);
    assert!(untouched.read(SETTINGS).ends_with("# a new release\n"));
}

#[test]
fn settings_of_the_chart_replace_the_shipped_ones_and_unknown_ones_are_refused() {
    let node = Node::new();
    let overrides = node.dir.path().join("overrides");
    let install = |text: &str| {
        fs::write(&overrides, text).unwrap();
        node.run(&["install", "--settings", overrides.to_str().unwrap()])
    };
    let refused = install("vm.memory_mib = 512\nvm.memory = 1\n");
    assert!(!refused.succeeded && refused.text.contains("there is no setting vm.memory"), "{}", refused.text);
    assert!(!node.path(SETTINGS).exists());

    let run =
        install("vm.memory_mib = 512\nqemu.accelerator = \"tcg\"\nqemu.extra_args = [\"-d\", \"a = b\"]\n");
    assert!(run.succeeded, "{}", run.text);
    let settings: toml::Table = node.read(SETTINGS).parse().unwrap();
    assert_eq!(settings["vm"]["memory_mib"].as_integer(), Some(512));
    assert_eq!(settings["vm"]["vcpus"].as_integer(), Some(1));
    assert_eq!(settings["qemu"]["accelerator"].as_str(), Some("tcg"));
    assert_eq!(settings["qemu"]["extra_args"].as_array().unwrap()[1].as_str(), Some("a = b"));
}

#[test]
fn profiles_of_the_chart_come_into_the_settings_and_their_runtimes_into_the_drop_in() {
    let node = Node::new();
    let overrides = node.dir.path().join("overrides");
    let install = |text: &str| {
        fs::write(&overrides, text).unwrap();
        let run = node.run(&["install", "--settings", overrides.to_str().unwrap()]);
        assert!(run.succeeded, "{}", run.text);
        run
    };
    install("vm.memory_mib = 512\n");
    let shipped = node.read(DROP_IN);

    let big = "profile.big.listen = \"/run/bulkhead/big.sock\"\nprofile.big.vm.memory_mib = 1024\n\
               profile.big.qemu.extra_args = [\"-d\", \"a.b = c\"]\nprofile.big.vm.vcpus = 2\n";
    let run = install(&format!("vm.memory_mib = 512\n{big}"));
    assert_eq!(run.restarts, [SERVICE, CONTAINERD], "{}", run.text);
    let settings: toml::Table = node.read(SETTINGS).parse().unwrap();
    assert_eq!(settings["vm"]["memory_mib"].as_integer(), Some(512));
    let profile = &settings["profile"]["big"];
    assert_eq!(profile["listen"].as_str(), Some("/run/bulkhead/big.sock"));
    assert_eq!(
        (profile["vm"]["memory_mib"].as_integer(), profile["vm"]["vcpus"].as_integer()),
        (Some(1024), Some(2))
    );
    assert_eq!(profile["qemu"]["extra_args"].as_array().unwrap()[1].as_str(), Some("a.b = c"));
    assert!(node.read(DROP_IN).contains("[profile.big]"), "{}", node.read(DROP_IN));
    assert_eq!(install(&format!("vm.memory_mib = 512\n{big}")).restarts, [""; 0]);

    // Without them it is as shipped again.
    assert_eq!(install("vm.memory_mib = 512\n").restarts, [SERVICE, CONTAINERD]);
    assert_eq!(node.read(DROP_IN), shipped);
    assert!(node.run(&["uninstall"]).succeeded);
}

#[test]
fn a_node_that_cannot_run_it_is_refused_with_the_reason_and_stays_as_it_is() {
    let node = Node::new();
    fs::remove_file(node.path("dev/kvm")).unwrap();
    node.refuses("KVM cannot be used (No such file or directory), and [qemu] accelerator is \"auto\"");
    node.set("containerd-version", "v1.7.27");
    node.refuses("containerd is 1.7.27: 2.1 or newer is needed");
    let both = node.run(&["check"]);
    assert!(both.text.contains("KVM") && both.text.contains("1.7.27"), "all reasons at once: {}", both.text);
    write(&node.path("dev/kvm"), "", 0o644);

    node.set("containerd-version", "v2.1.0");
    node.unset("imports");
    node.refuses("imports = [\"/etc/containerd/conf.d/*.toml\"]");
    node.set("imports", "");

    node.set("broken", "");
    node.refuses("containerd cannot read its own settings: containerd: toml: array is incomplete");
    node.unset("broken");

    fs::remove_file(node.path("sys/fs/cgroup/cgroup.controllers")).unwrap();
    node.refuses("no cgroup file system is mounted below /sys/fs/cgroup");
    write(&node.path("sys/fs/cgroup/cgroup.controllers"), "", 0o644);

    fs::remove_dir_all(node.path("run/systemd")).unwrap();
    node.refuses("systemd does not run here");
}

#[test]
fn without_kvm_the_setting_tcg_is_enough() {
    let node = Node::new();
    fs::remove_file(node.path("dev/kvm")).unwrap();
    let overrides = node.dir.path().join("overrides");
    fs::write(&overrides, "qemu.accelerator = \"tcg\"\n").unwrap();
    let run = node.run(&["install", "--settings", overrides.to_str().unwrap()]);
    assert!(run.succeeded, "{}", run.text);
    // What counts from now on is the node's own file, if somebody changes it.
    write(&node.path(SETTINGS), &node.read(SETTINGS).replace("\"tcg\"", "\"kvm\""), 0o644);
    let run = node.run(&["install", "--settings", overrides.to_str().unwrap()]);
    assert!(!run.succeeded && run.text.contains("[qemu] accelerator is \"kvm\""), "{}", run.text);
}

#[test]
fn wrong_settings_leave_the_running_service_alone() {
    let node = Node::new();
    node.install();
    write(&node.path(SETTINGS), "[vm]\nvcpus = 0\n", 0o644);
    node.set("bad-settings", "");
    let run = node.run(&["install"]);
    assert!(!run.succeeded && run.text.contains("vm.vcpus = 0: wrong"), "{}", run.text);
    assert_eq!(run.restarts, [""; 0]);
    node.unset("bad-settings");
    assert_eq!(node.install().restarts, [SERVICE], "put right, it is restarted");
}

#[test]
fn containerd_that_does_not_start_with_the_drop_in_is_started_without_it() {
    let node = Node::new();
    node.set("containerd-fails", "");
    let run = node.run(&["install"]);
    assert!(!run.succeeded && run.text.contains("the file was put back"), "{}", run.text);
    assert_eq!(run.restarts, [SERVICE, CONTAINERD, CONTAINERD]);
    assert!(!node.path(DROP_IN).exists());
    node.unset("containerd-fails");
    assert_eq!(node.install().restarts, [CONTAINERD]);
}

/// Some of the first steps, in which files are renamed one like the other, and each of the last: the daemons.
fn steps_to_try(all: usize) -> impl Iterator<Item = usize> {
    assert!(all > 15, "{all}");
    (1..=all).filter(move |step| step % 5 == 2 || step + 12 > all)
}

/// However far an installation of `before` got when it was cut off, the next makes `after` of it, daemons included.
fn expect_finished(before: &Node, after: &Node) {
    for step in steps_to_try(before.steps("install")) {
        let (node, restarts) = before.cut_off("install", step);
        assert_eq!(node.tree(), after.tree(), "step {step}");
        for restart in [SERVICE, CONTAINERD] {
            assert!(restarts.iter().any(|line| line == restart), "step {step}: {restarts:?}");
        }
    }
}

#[test]
fn an_installation_that_was_cut_off_is_finished_by_the_next() {
    let bare = Node::new();
    let whole = bare.twin();
    whole.install();
    expect_finished(&bare, &whole);
}

#[test]
fn an_upgrade_that_was_cut_off_is_finished_by_the_next() {
    let mut old = Node::new();
    old.install();
    old.payload = payload(old.dir.path(), "two");
    for path in [SETTINGS, "usr/local/share/doc/bulkhead/examples/containerd/bulkhead.toml"] {
        let path = old.payload.join(path);
        write(&path, &format!("{}# two\n", fs::read_to_string(&path).unwrap()), 0o644);
    }
    let new = old.twin();
    new.install();
    expect_finished(&old, &new);
}

#[test]
fn uninstall_waits_for_the_pods_and_then_leaves_nothing_but_what_was_changed() {
    let node = Node::new();
    let before = node.tree();
    node.install();
    let installed = node.tree();
    let record = node.path("var/lib/bulkhead/sandboxes/abc.json");
    write(&record, "a pod", 0o600);
    let run = node.run(&["uninstall"]);
    assert!(!run.succeeded && run.text.contains("1 pods of Bulkhead are on this node"), "{}", run.text);
    assert_eq!(run.commands, [""; 0]);
    fs::remove_file(&record).unwrap();
    assert_eq!(node.tree(), installed);

    let run = node.run(&["uninstall"]);
    assert!(run.succeeded, "{}", run.text);
    assert_eq!(run.commands, [CONTAINERD, "disable --now bulkhead-sandboxer.service", "daemon-reload"]);
    assert_eq!(node.tree(), before);
    let again = node.run(&["uninstall"]);
    assert!(again.succeeded && again.commands.is_empty(), "{}", again.text);

    node.install();
    write(&node.path(SETTINGS), "# mine\n", 0o644);
    assert!(node.run(&["uninstall"]).succeeded);
    assert_eq!(node.read(SETTINGS), "# mine\n");
}

#[test]
fn an_uninstall_that_was_cut_off_is_finished_by_the_next() {
    let bare = Node::new();
    let whole = bare.twin();
    whole.install();
    // In the last, the script removes its own temporary files.
    for step in 1..whole.steps("uninstall") {
        let (node, restarts) = whole.cut_off("uninstall", step);
        assert_eq!(node.tree(), bare.tree(), "step {step}");
        assert!(restarts.iter().any(|line| line == CONTAINERD), "step {step}: {restarts:?}");
    }
}
