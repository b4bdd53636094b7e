//! `-info` and `-v`: name, version and features of this runtime (fact 10).

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// The runtime's name in containerd's configuration (`runtime_type`).
const RUNTIME: &str = "io.containerd.bulkhead.v2";
/// Type of the features document, as containerd registers it.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// OCI features document (runtime-spec 1.2, features.md). It names only what works inside the guest: neither user
/// namespaces nor idmapped mounts, so that kubelet asks for none.
const FEATURES: &str = r#"{
  "ociVersionMin": "1.0.0",
  "ociVersionMax": "1.2.0",
  "mountOptions": [
    "async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "noatime", "nodev", "nodiratime",
    "noexec", "norelatime", "nostrictatime", "nosuid", "private", "rbind", "relatime", "ro", "rprivate", "rro",
    "rslave", "rw", "slave", "strictatime", "suid", "sync"
  ],
  "linux": {
    "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
    "cgroup": {"v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
    "seccomp": {"enabled": true},
    "apparmor": {"enabled": false},
    "selinux": {"enabled": false},
    "intelRdt": {"enabled": false},
    "mountExtensions": {"idmap": {"enabled": false}}
  }
}"#;

/// The serialised `containerd.types.RuntimeInfo`.
///
/// # Errors
/// Never in practice: the message has no required fields.
pub(crate) fn runtime_info() -> protobuf::Result<Vec<u8>> {
    let features =
        Any { type_url: FEATURES_TYPE.to_owned(), value: FEATURES.as_bytes().to_vec(), ..Default::default() };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(version).into(),
        features: Some(features).into(),
        ..Default::default()
    };
    info.write_to_bytes()
}

/// What `-v` prints.
pub(crate) fn version() -> String {
    format!("containerd-shim-bulkhead-v2:\n  Version: {}\n", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_json_and_name_nothing_that_does_not_work() {
        let features: serde_json::Value = serde_json::from_str(FEATURES).unwrap();
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.iter().all(|option| option != "idmap" && option != "rshared"));
        assert!(features["linux"].is_object());
        assert!(features["linux"]["namespaces"].as_array().unwrap().iter().all(|name| name != "user"));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], false);
    }
}
