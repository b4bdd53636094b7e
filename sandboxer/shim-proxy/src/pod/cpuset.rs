//! What of a container's resources names CPUs and memory nodes of the host. The guest has others, whatever their numbers.
//!
//! kubelet's CPU manager chooses them for a container, and containerd sends them again with every other change. They were
//! left out when the container was made, so they are left out here; but a change of them is no success.

use std::path::Path;

use serde_json::{Map, Value};
use tracing::debug;

use crate::error::TaskError;

/// Keys of OCI's `linux.resources.cpu`.
const NUMBERED: [(&str, &str); 2] = [("cpus", "CPUs"), ("mems", "memory nodes")];

/// New resources (OCI `linux.resources`, JSON) without what is the host's.
///
/// # Errors
/// [`TaskError::Pinned`] when the container of `bundle` was made with other CPUs or memory nodes;
/// [`TaskError::BadRequest`].
pub(super) fn left_out(resources: &[u8], bundle: &Path) -> Result<Vec<u8>, TaskError> {
    let bad = |error| TaskError::BadRequest(format!("the new resources are not an OCI object: {error}"));
    let mut wanted: Map<String, Value> = serde_json::from_slice(resources).map_err(bad)?;
    if let Some(cpu) = wanted.get_mut("cpu").and_then(Value::as_object_mut) {
        let numbered = NUMBERED.map(|(key, what)| (key, what, text(cpu.remove(key).as_ref())));
        if numbered.iter().any(|(.., value)| !value.is_empty()) {
            let made_with = made_with(bundle);
            for (key, what, wanted) in numbered {
                let had = text(made_with.get(key));
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

/// OCI's `linux.resources.cpu` that the container was made with.
fn made_with(bundle: &Path) -> Map<String, Value> {
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

    fn plain(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    #[test]
    fn what_the_container_has_goes_along_with_other_changes() {
        let made = bundle(r#"{"cpus": "2-3", "mems": "0"}"#);
        let new = br#"{"cpu": {"cpus": "2-3", "mems": "0", "shares": 7}, "memory": {"limit": 5}}"#;
        let left = left_out(new, made.path()).unwrap();
        assert_eq!(plain(&left), serde_json::json!({"cpu": {"shares": 7}, "memory": {"limit": 5}}));
        let none = br#"{"cpu": {"cpus": "", "shares": 7}}"#;
        let left = left_out(none, Path::new("/no/such")).unwrap();
        assert_eq!(plain(&left), serde_json::json!({"cpu": {"shares": 7}}));
        assert_eq!(left_out(b"{}", Path::new("/no/such")).unwrap(), b"{}");
    }

    #[test]
    fn others_are_refused_by_name() {
        let made = bundle(r#"{"cpus": "2-3"}"#);
        for (new, says) in [
            (r#"{"cpu": {"cpus": "0-7"}}"#, [r#"CPUs "0-7""#, r#""2-3""#]),
            (r#"{"cpu": {"cpus": "2-3", "mems": "1"}}"#, [r#"memory nodes "1""#, r#""""#]),
        ] {
            let error = left_out(new.as_bytes(), made.path()).unwrap_err().to_string();
            assert!(says.iter().all(|part| error.contains(part)), "{error}");
        }
        assert!(matches!(left_out(b"[]", made.path()), Err(TaskError::BadRequest(_))));
    }
}
