//! CPUs and memory nodes in a container's new resources. They are the host's; the guest's have other numbers.
//!
//! kubelet's CPU manager chooses them for a container, and containerd sends them again with every other change. They
//! were left out when the container was created, so they are left out of an update, too; but an update that changes
//! them fails.

use std::path::Path;

use serde_json::{Map, Value};
use tracing::debug;

use crate::error::TaskError;

/// Keys of OCI's `linux.resources.cpu`, and what they stand for.
const CPUSET_KEYS: [(&str, &str); 2] = [("cpus", "CPUs"), ("mems", "memory nodes")];

/// New resources (OCI `linux.resources`, JSON) without the host's CPUs and memory nodes.
///
/// # Errors
/// [`TaskError::Pinned`] when the container of `bundle` was created with others; [`TaskError::BadRequest`].
pub(super) fn without_host_cpus(resources: &[u8], bundle: &Path) -> Result<Vec<u8>, TaskError> {
    let bad = |error| TaskError::BadRequest(format!("the new resources are not an OCI object: {error}"));
    let mut wanted: Map<String, Value> = serde_json::from_slice(resources).map_err(bad)?;
    if let Some(cpu) = wanted.get_mut("cpu").and_then(Value::as_object_mut) {
        let requested = CPUSET_KEYS.map(|(key, what)| (key, what, text(cpu.remove(key).as_ref())));
        if requested.iter().any(|(.., value)| !value.is_empty()) {
            let created_with = cpu_at_creation(bundle);
            for (key, what, wanted) in requested {
                let had = text(created_with.get(key));
                if !wanted.is_empty() && wanted != had {
                    return Err(TaskError::Pinned { what, wanted, had });
                }
            }
        }
    }
    serde_json::to_vec(&wanted).map_err(bad)
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// OCI's `linux.resources.cpu` with which the container was created.
fn cpu_at_creation(bundle: &Path) -> Map<String, Value> {
    let path = bundle.join("config.json");
    let read = std::fs::read(&path).map_err(|error| error.to_string());
    let spec =
        read.and_then(|text| serde_json::from_slice::<Value>(&text).map_err(|error| error.to_string()));
    match spec {
        Ok(spec) => {
            spec.pointer("/linux/resources/cpu").and_then(Value::as_object).cloned().unwrap_or_default()
        }
        Err(error) => {
            debug!(path = %path.display(), error, "not known what the container was made with");
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(cpu: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let spec = format!(r#"{{"linux": {{"resources": {{"cpu": {cpu}}}}}}}"#);
        std::fs::write(dir.path().join("config.json"), spec).unwrap();
        dir
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn cpus_and_nodes_of_the_creation_are_left_out_of_other_changes() {
        let made = bundle(r#"{"cpus": "2-3", "mems": "0"}"#);
        let new = br#"{"cpu": {"cpus": "2-3", "mems": "0", "shares": 7}, "memory": {"limit": 5}}"#;
        let left = without_host_cpus(new, made.path()).unwrap();
        assert_eq!(json(&left), serde_json::json!({"cpu": {"shares": 7}, "memory": {"limit": 5}}));
        let none = br#"{"cpu": {"cpus": "", "shares": 7}}"#;
        let left = without_host_cpus(none, Path::new("/no/such")).unwrap();
        assert_eq!(json(&left), serde_json::json!({"cpu": {"shares": 7}}));
        assert_eq!(without_host_cpus(b"{}", Path::new("/no/such")).unwrap(), b"{}");
    }

    #[test]
    fn other_cpus_and_nodes_are_refused_by_name() {
        let made = bundle(r#"{"cpus": "2-3"}"#);
        for (new, says) in [
            (r#"{"cpu": {"cpus": "0-7"}}"#, [r#"CPUs "0-7""#, r#""2-3""#]),
            (r#"{"cpu": {"cpus": "2-3", "mems": "1"}}"#, [r#"memory nodes "1""#, r#""""#]),
        ] {
            let error = without_host_cpus(new.as_bytes(), made.path()).unwrap_err().to_string();
            assert!(says.iter().all(|part| error.contains(part)), "{error}");
        }
        assert!(matches!(without_host_cpus(b"[]", made.path()), Err(TaskError::BadRequest(_))));
    }
}
