//! `vhost-device-vsock`: the host's side of the guest's vsock.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::error::QemuError;
use crate::host::process::{Exit, OwnedProcess, Spawn, last_lines};
use crate::vm::LaunchSpec;

/// Key of the helper's program in the settings.
const SETTING: &str = "[qemu] vsock_path";
/// The guest's context id. Each helper serves one VM, so all may have the same; below 3 they are reserved
/// (vsock(7)).
const GUEST_CID: u32 = 3;
/// How long the helper may take to listen. It takes 2 ms on an idle machine.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);
/// Pauses between two tries to connect, first and longest. Only inotify(7) tells when a socket appears, and its
/// instances are too few for one at each launch (decision 11).
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(32));

/// What it writes into the pod's directory. Its back end warns of every connection that both sides close, and of whatever
/// a guest sends to nobody: a few thousand execs would fill the directory.
const LOGGED: &str = "warn,vhost_device_vsock::thread_backend=error";

/// Starts the helper and connects to its vhost-user socket. The connection is for the VMM: if it dialled itself, it
/// would have to be started late enough.
pub(super) async fn start(program: &Path, spec: &LaunchSpec) -> Result<(OwnedProcess, OwnedFd), QemuError> {
    let dir = &spec.dir;
    let socket = dir.vhost_vsock_sock();
    let failed = |act| {
        let path = socket.clone();
        move |source| QemuError::Socket { act, path, source }
    };
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove the old")(error)),
        Ok(()) | Err(_) => {}
    }
    let mut device = OsString::from(format!("guest-cid={GUEST_CID},uds-path="));
    device.push(dir.vsock());
    device.push(",socket=");
    device.push(&socket);
    let start = Spawn {
        program: program.to_owned(),
        args: vec!["--vm".into(), device],
        output: dir.vsock_output(),
        fds: Vec::new(),
        cgroup: spec.cgroup.clone(),
        env: vec![("RUST_LOG".into(), LOGGED.into())],
    };
    let helper =
        OwnedProcess::spawn(start).map_err(|source| QemuError::StartHelper { setting: SETTING, source })?;
    let last_words = || last_lines(&dir.vsock_output(), 8, 4096);
    let connected = tokio::select! {
        biased;
        connected = connect(&socket) => connected.map_err(failed("connect to"))?,
        exit = helper.wait() => return Err(ended(program, exit, last_words())),
        () = tokio::time::sleep(LISTENS_WITHIN) => {
            return Err(QemuError::HelperSilent { socket, waited: LISTENS_WITHIN, last_words: last_words() });
        }
    };
    Ok((helper, connected))
}

fn ended(program: &Path, exit: Exit, last_words: String) -> QemuError {
    QemuError::HelperEnded { program: program.to_owned(), exit, last_words }
}

/// Connects as soon as the socket is there, and listens.
async fn connect(socket: &Path) -> io::Result<OwnedFd> {
    let mut pause = PAUSES.0;
    loop {
        match UnixStream::connect(socket).map_err(|error| (error.kind(), error)) {
            Ok(stream) => return Ok(stream.into()),
            // Refused: between bind(2) and listen(2) of the helper.
            Err((io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused, _)) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
            Err((_, error)) => return Err(error),
        }
    }
}
