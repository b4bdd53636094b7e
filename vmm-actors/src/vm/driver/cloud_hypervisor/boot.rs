//! From a program to a guest that boots: the VMM, its VM, one network device after the other, and off it goes.
//!
//! A VMM of this kind answers a reset of its guest by booting it anew. A pod's containers would be gone, and nobody
//! would know why. So it boots by links that are gone once it has read them: a reset finds neither a source of entropy,
//! which it opens before it would wait a minute for virtiofsd, nor a kernel, and ends the VMM. The console
//! is such a link, too: the VMM would empty it first.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::api::Api;
use super::body::{self, Payload};
use super::error::{CloudHypervisorError, PATH_SETTING};
use super::info::Ping;
use super::version;
use crate::host::process::{Exit, OwnedProcess, ProcessError, Spawn, last_lines};
use crate::host::socket;
use crate::runtime_dir::VmDir;
use crate::vm::LaunchSpec;
use crate::vm::driver::payload;

/// Number of the API's listening socket in the VMM.
const API_FD: i32 = 3;
/// File for the events of a VM: booted, resized, rebooting, shutdown.
const EVENTS: &str = "events.json";
/// How long the end of a VMM may take to be seen after its API has gone.
const SEEN_WITHIN: Duration = Duration::from_secs(2);

/// Starts the VMM. Its API listens before it runs: nobody waits for a socket to appear, and no lock of an earlier life is in
/// the way.
pub(super) fn spawn(
    program: &Path,
    extra_args: &[String],
    spec: &LaunchSpec,
) -> Result<OwnedProcess, CloudHypervisorError> {
    let path = spec.dir.vmm_sock();
    let listener = socket::listen(&path).map_err(|source| CloudHypervisorError::Prepare {
        act: "listen on",
        path,
        source,
    })?;
    let mut args: Vec<OsString> = ["--api-socket".into(), format!("fd={API_FD}").into()].to_vec();
    args.extend(["--seccomp".into(), "true".into()]);
    // For whoever looks into the directory later; and so the arguments name the VM.
    let mut events = OsString::from("path=");
    events.push(spec.dir.path().join(EVENTS));
    args.extend(["--event-monitor".into(), events]);
    args.extend(extra_args.iter().map(Into::into));
    let start = Spawn {
        program: program.to_owned(),
        args,
        output: spec.dir.vmm_output(),
        fds: vec![(listener.into(), API_FD)],
        cgroup: spec.cgroup.clone(),
        env: Vec::new(),
    };
    OwnedProcess::spawn(start).map_err(|source| CloudHypervisorError::Start { setting: PATH_SETTING, source })
}

/// Has the VMM make and boot the VM, and answers with its version. The end of the VMM meanwhile is an error with its last
/// words.
pub(super) async fn boot(
    api: &Api,
    vmm: &OwnedProcess,
    spec: &LaunchSpec,
) -> Result<String, CloudHypervisorError> {
    let booted = tokio::select! {
        biased;
        booted = make(api, spec) => booted,
        exit = vmm.wait() => return Err(ended(exit, &spec.dir)),
    };
    if let Err(CloudHypervisorError::Unreachable { .. }) = &booted
        && let Ok(exit) = tokio::time::timeout(SEEN_WITHIN, vmm.wait()).await
    {
        return Err(ended(exit, &spec.dir));
    }
    booted
}

async fn make(api: &Api, spec: &LaunchSpec) -> Result<String, CloudHypervisorError> {
    let Ping { version } = api.get("vmm.ping").await?;
    version::require(&version)?;
    let links = Links::make(spec)?;
    api.put("vm.create", Some(&body::create(spec, &links.payload()))).await?;
    for (index, nic) in spec.nics.iter().enumerate() {
        let tap = nic.tap.try_clone().map_err(|source| CloudHypervisorError::Start {
            setting: PATH_SETTING,
            source: ProcessError::Start { program: api.socket().to_owned(), step: "passing a tap", source },
        })?;
        api.put_with("vm.add-net", &body::add_net(index, nic), tap).await?;
    }
    api.put("vm.boot", None).await?;
    Ok(version)
}

fn ended(exit: Exit, dir: &VmDir) -> CloudHypervisorError {
    CloudHypervisorError::Ended { exit, last_words: last_lines(&dir.vmm_output(), 8, 4096) }
}

/// The ways by which one VM finds its kernel, its image, entropy and its console. Gone on drop.
#[derive(Debug)]
struct Links {
    kernel: PathBuf,
    initramfs: PathBuf,
    entropy: PathBuf,
    serial: PathBuf,
}

impl Links {
    fn make(spec: &LaunchSpec) -> Result<Self, CloudHypervisorError> {
        readable("[guest] kernel", &spec.kernel)?;
        readable("[guest] image", &spec.image)?;
        let dir = spec.dir.path();
        let [kernel, initramfs, entropy, serial] =
            ["kernel", "initramfs", "entropy", "serial"].map(|name| dir.join(name));
        let links = Self { kernel, initramfs, entropy, serial };
        let console = spec.dir.console();
        for (to, link) in [
            (&spec.kernel, &links.kernel),
            (&spec.image, &links.initramfs),
            (&spec.entropy_source, &links.entropy),
            (&console, &links.serial),
        ] {
            symlink(to, link).map_err(|source| CloudHypervisorError::Prepare {
                act: "make the link",
                path: link.clone(),
                source,
            })?;
        }
        Ok(links)
    }

    fn payload(&self) -> Payload<'_> {
        Payload {
            kernel: &self.kernel,
            initramfs: &self.initramfs,
            entropy: &self.entropy,
            serial: &self.serial,
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        for link in [&self.kernel, &self.initramfs, &self.entropy, &self.serial] {
            if let Err(error) = std::fs::remove_file(link)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, link = %link.display(), "a guest that resets will boot anew: a link is left");
            }
        }
    }
}

fn readable(setting: &'static str, path: &Path) -> Result<(), CloudHypervisorError> {
    payload::readable(path).map_err(|source| CloudHypervisorError::Unusable {
        setting,
        path: path.to_owned(),
        source,
    })
}
