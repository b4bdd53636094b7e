//! Which values are impossible, whatever the host. Pure.

use std::net::{Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Component, Path};

use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::finding::{Finding, Findings, quoted};
use crate::{Settings, Traces, vmm};

/// Longest path of a unix socket, in bytes: `sun_path` holds 108 with the final NUL (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// A sandbox id of CRI, in bytes: 64 hex digits.
const ID_LENGTH: usize = 64;

/// The longest name of a socket in a pod's directory. Those of VMs have longer names and much shorter ids.
const LONGEST_SOCKET: &str = "task.sock";

/// Longest `run_dir`, in bytes, that leaves room for `/s/<id>/<socket>`.
pub const MAX_RUN_DIR: usize = MAX_SOCKET_PATH - "/s/".len() - ID_LENGTH - "/".len() - LONGEST_SOCKET.len();

/// Below this a guest with its image in memory does not come up.
const MIN_MEMORY_MIB: u32 = 64;

/// What a guest without an IOMMU can address (x2APIC ids above 254 need one).
const MAX_VCPUS: u32 = 255;

/// The kernel's limit for a command line is 2048 bytes on x86-64 (`COMMAND_LINE_SIZE`); we add to it ourselves.
const MAX_KERNEL_PARAMS: usize = 1024;

/// kubelet gives up long before.
const MAX_BOOT_TIMEOUT_SECS: u32 = 3600;

/// Levels of the agent's log.
const AGENT_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Every path among the settings, by key.
pub(crate) fn paths(settings: &Settings) -> Vec<(&'static str, &Path)> {
    let Settings { sandboxer, shim, guest, vm, virtiofsd, .. } = settings;
    let mut paths: Vec<(&str, &Path)> = vec![
        ("sandboxer.listen", &sandboxer.listen),
        ("sandboxer.run_dir", &sandboxer.run_dir),
        ("sandboxer.state_dir", &sandboxer.state_dir),
        ("sandboxer.containerd_address", &sandboxer.containerd_address),
        ("shim.binary", &shim.binary),
        ("guest.kernel", &guest.kernel),
        ("guest.image", &guest.image),
        ("vm.entropy_source", &vm.entropy_source),
        ("virtiofsd.path", &virtiofsd.path),
    ];
    paths.extend(vmm::paths(settings.vmms()));
    paths
}

/// Every impossible value.
pub(crate) fn values(settings: &Settings) -> Vec<Finding> {
    let mut findings = Findings::default();
    for (key, path) in paths(settings) {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            findings.add(key, quoted(path), "not an absolute path without ..", "begin it with /");
        }
    }
    directories(settings, &mut findings);
    metrics(settings, &mut findings);
    traces(settings, &mut findings);
    logs(settings, &mut findings);
    numbers(settings, &mut findings);
    arguments(settings, &mut findings);
    findings.0
}

fn directories(settings: &Settings, findings: &mut Findings) {
    let sandboxer = &settings.sandboxer;
    for (key, path) in [
        ("sandboxer.listen", &sandboxer.listen),
        ("sandboxer.containerd_address", &sandboxer.containerd_address),
    ] {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            let wrong = format!("{length} bytes, too long for a unix socket");
            findings.add(key, quoted(path), wrong, format!("at most {MAX_SOCKET_PATH} bytes"));
        }
    }
    let (run_dir, length) = (&sandboxer.run_dir, sandboxer.run_dir.as_os_str().len());
    if length > MAX_RUN_DIR {
        let wrong = format!(
            "{length} bytes, too long: with /s/<id of {ID_LENGTH}>/{LONGEST_SOCKET} a socket path would have {}",
            length + MAX_SOCKET_PATH - MAX_RUN_DIR
        );
        let right =
            format!("at most {MAX_RUN_DIR} bytes, so that socket paths stay within {MAX_SOCKET_PATH}");
        findings.add("sandboxer.run_dir", quoted(run_dir), wrong, right);
    }
    let apart = (
        "lies in run_dir, which is gone after a reboot",
        "a directory on disk, for example /var/lib/bulkhead",
    );
    let state_dir = &sandboxer.state_dir;
    findings.unless(!state_dir.starts_with(run_dir), "sandboxer.state_dir", quoted(state_dir), apart);
    let parent = Path::new(&settings.cgroup.default_parent);
    let usable = parent.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && parent.components().any(|part| matches!(part, Component::Normal(_)))
        && (parent.is_absolute() || settings.cgroup.default_parent.ends_with(".slice"));
    let example = (
        "not the name of a cgroup",
        "an absolute path below the root (/bulkhead) or a slice (bulkhead.slice)",
    );
    findings.unless(usable, "cgroup.default_parent", quoted(parent), example);
}

fn metrics(settings: &Settings, findings: &mut Findings) {
    let listen = &settings.metrics.listen;
    let is_loopback = listen.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    let is_path = Path::new(listen).is_absolute() && listen.len() <= MAX_SOCKET_PATH;
    let example = (
        "neither the path of a unix socket nor a loopback address with a port",
        "/run/bulkhead/metrics.sock or 127.0.0.1:9464; empty for no metrics",
    );
    findings.unless(
        listen.is_empty() || is_loopback || is_path,
        "metrics.listen",
        quoted(Path::new(listen)),
        example,
    );
}

fn traces(settings: &Settings, findings: &mut Findings) {
    let Traces { endpoint, sample_percent } = &settings.traces;
    let example = (
        "neither http://host:port nor unix:// and an absolute path",
        "http://127.0.0.1:4317 (OTLP over gRPC; TLS is up to a collector on the node); empty for no traces",
    );
    let reachable = endpoint.is_empty() || is_http(endpoint) || is_unix(endpoint);
    findings.unless(reachable, "traces.endpoint", format!("{endpoint:?}"), example);
    let percent = ("more than all", "0 to 100");
    findings.unless(*sample_percent <= 100, "traces.sample_percent", sample_percent.to_string(), percent);
}

/// `http://`, a host (a name, or an address, of IPv6 in brackets), and a port.
fn is_http(endpoint: &str) -> bool {
    let Some((host, port)) = endpoint.strip_prefix("http://").and_then(|rest| rest.rsplit_once(':')) else {
        return false;
    };
    let is_name =
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<NonZeroU16>().is_ok();
    is_port && (is_name || is_v6.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok()))
}

fn is_unix(endpoint: &str) -> bool {
    endpoint
        .strip_prefix("unix://")
        .is_some_and(|path| Path::new(path).is_absolute() && path.len() <= MAX_SOCKET_PATH)
}

fn logs(settings: &Settings, findings: &mut Findings) {
    let level = &settings.sandboxer.log_level;
    if let Err(wrong) = log_filter(level) {
        let right = "for example info, or warn,bulkhead_sandboxer=debug";
        findings.add("sandboxer.log_level", format!("{level:?}"), wrong, right);
    }
    let level = settings.guest.agent_log_level.as_str();
    let known = ("no log level", "one of error, warn, info, debug, trace");
    findings.unless(AGENT_LEVELS.contains(&level), "guest.agent_log_level", format!("{level:?}"), known);
}

/// A bare word would be taken for a module: here it has to be a level.
fn log_filter(filter: &str) -> Result<(), String> {
    let mut words = filter.split(',').filter(|part| !part.contains('='));
    if let Some(word) = words.find(|word| word.is_empty() || word.parse::<LevelFilter>().is_err()) {
        return Err(format!("{word:?} is no log level"));
    }
    filter.parse::<Targets>().map(|_| ()).map_err(|error| error.to_string())
}

fn numbers(settings: &Settings, findings: &mut Findings) {
    let Settings { guest, vm, virtiofsd, .. } = settings;
    let (vcpus, memory) = (vm.vcpus.get(), vm.memory_mib.get());
    for (key, vcpus) in [("vm.vcpus", vcpus), ("vm.max_vcpus", vm.max_vcpus.get())] {
        let few = ("more than a VM can have", "1 to 255");
        findings.unless(vcpus <= MAX_VCPUS, key, vcpus.to_string(), few);
    }
    let boots = ("too little for a guest to come up", "at least 64");
    findings.unless(memory >= MIN_MEMORY_MIB, "vm.memory_mib", memory.to_string(), boots);
    let whole = ("not a whole number of huge pages", "an even number, huge pages have 2 MiB");
    findings.unless(!vm.hugepages || memory % 2 == 0, "vm.memory_mib", memory.to_string(), whole);
    let timeout = guest.boot_timeout_secs.get();
    let sane = ("longer than anybody waits", "1 to 3600");
    findings.unless(timeout <= MAX_BOOT_TIMEOUT_SECS, "guest.boot_timeout_secs", timeout.to_string(), sane);
    let threads = virtiofsd.thread_pool_size;
    let few = ("more threads than a file server can use", "0 to 1024");
    findings.unless(threads <= 1024, "virtiofsd.thread_pool_size", threads.to_string(), few);
}

fn arguments(settings: &Settings, findings: &mut Findings) {
    let params = &settings.guest.kernel_params;
    let printable = params.len() <= MAX_KERNEL_PARAMS && !params.chars().any(char::is_control);
    let line = ("not one line of at most 1024 bytes", "parameters with blanks between them");
    findings.unless(printable, "guest.kernel_params", format!("{params:?}"), line);
    let mut extra = vmm::arguments(settings.vmms());
    extra.push(("virtiofsd.extra_args", &settings.virtiofsd.extra_args));
    for (key, arguments) in extra {
        let usable = arguments.iter().all(|argument| !argument.is_empty() && !argument.contains('\0'));
        let words = ("holds an empty argument or a NUL byte", "one non-empty word for each argument");
        findings.unless(usable, key, format!("{arguments:?}"), words);
    }
}
