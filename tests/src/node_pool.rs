//! Nodes that tests use one after the other: starting one costs more than most tests do.
//!
//! A node is lent to one test at a time. Only a test that leaves it as it found it gives it back. What is in the pool
//! when the process ends is removed then.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use crate::node::{Node, Options};

static IDLE: Mutex<Vec<Node>> = Mutex::new(Vec::new());

/// An idle node with the usual options, or a new one.
///
/// # Errors
/// What this machine lacks for a node.
pub async fn take(bulkhead: bool) -> Result<Node, String> {
    let idle = idle().pop();
    match idle {
        Some(mut node) => {
            node.renew_client();
            Ok(node)
        }
        None => Node::start(Options { bulkhead, ..Options::default() }).await,
    }
}

/// What lies in a node's own directory.
#[must_use]
pub fn contents(node: &Node) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(node.dir()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// Keeps a node for the next test, without the files that the last one laid beside the `found`: another test may use the
/// same names. A node that does not let go of them ends.
pub fn give_back(node: Node, found: &BTreeSet<OsString>) {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(empty_at_exit);
    let removed = contents(&node).difference(found).try_for_each(|name| {
        let path = node.dir().join(name);
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        }
    });
    match removed {
        Ok(()) => idle().push(node),
        Err(error) => eprintln!("{} is used no more: {error}", node.dir().display()),
    }
}

fn idle() -> MutexGuard<'static, Vec<Node>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn empty() {
    let nodes = std::mem::take(&mut *idle());
    drop(nodes);
}

/// libtest ends the process without dropping what statics hold.
#[allow(unsafe_code, reason = "no library offers atexit(3) as a safe call")]
fn empty_at_exit() {
    // SAFETY: `empty` is a plain function without arguments that does not unwind: a poisoned lock is taken all the same,
    // and nobody calls exit(3) again in it.
    let failed = unsafe { libc::atexit(empty) };
    assert_eq!(failed, 0, "atexit(3) has no room");
}
