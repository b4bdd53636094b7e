//! The life of the service: directories, records, sockets, "ready", serve, drain.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_config::{ProfileName, Settings};
use bulkhead_protocol::CONTROL_SOCKET;
use bulkhead_protocol::error::chain;
use containerd_sandbox::ServeError;
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vmm_actors::registry::RecoveryReport;
use vmm_actors::runtime_dir::{PODS, VMS};
use vmm_actors::sandbox::record::RecordError;
use vmm_actors::vm::{Acceleration, Driver, Drivers};
use vmm_actors::{Sandboxes, Telemetry};

use crate::controller::Controller;
use crate::sockets::{SocketError, listen, lock, make_directory};
use crate::{exporter, orphans, pods, traces};

/// How long calls under way have to end after SIGTERM. systemd's patience (TimeoutStopSec) is longer.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the service could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    /// A directory, lock or socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The records of an earlier instance.
    #[error("cannot take over from the last instance")]
    Records {
        /// Why.
        source: RecordError,
    },
    /// The service for shim proxies.
    #[error("cannot serve the shim proxies")]
    ServePods {
        /// What ttrpc says.
        source: ttrpc::Error,
    },
    /// The service for containerd.
    #[error("cannot serve containerd")]
    Serve {
        /// Why.
        source: ServeError,
    },
    /// The counters and histograms.
    #[error("cannot make the metrics")]
    Telemetry {
        /// A name that Prometheus does not allow.
        source: prometheus::Error,
    },
    /// Signals.
    #[error("cannot listen for signals")]
    Signals {
        /// Why.
        source: io::Error,
    },
}

/// Runs the service until SIGTERM or SIGINT. Pods go on.
///
/// # Errors
/// [`ServiceError`].
pub(crate) async fn run(settings: Settings) -> Result<(), ServiceError> {
    let settings = Arc::new(settings);
    let sandboxer = &settings.sandboxer;
    let mut ends = EndSignals::new()?;
    for directory in [PODS, VMS] {
        make_directory(&sandboxer.run_dir.join(directory))?;
    }
    make_directory(&sandboxer.state_dir)?;
    let _lock = lock(&sandboxer.state_dir)?;

    let drivers = Drivers::new(&settings);
    tokio::spawn(try_virtualisation(drivers.launching(&settings)));
    let telemetry = Telemetry::new().map_err(|source| ServiceError::Telemetry { source })?;
    let (sandboxes, recovered) = Sandboxes::start_up(Arc::clone(&settings), drivers, telemetry.clone())
        .map_err(|source| ServiceError::Records { source })?;
    report(&recovered);

    // containerd takes the first answer about a sandbox for final: no socket before the records are read.
    let mut controls = vec![listen(&sandboxer.run_dir.join(CONTROL_SOCKET))?];
    controls.extend(old_controls(&recovered, &sandboxer.run_dir));
    let controllers = controllers(&settings, &recovered)?;
    let mut shim_proxies = Vec::new();
    for control in controls {
        let server = pods::serve(sandboxes.clone(), control).await;
        shim_proxies.push(server.map_err(|source| ServiceError::ServePods { source })?);
    }
    exporter::start(settings.metrics.listen.clone(), sandboxes.clone(), telemetry);
    tell_systemd(NotifyState::Ready);
    tracing::info!(listen = %sandboxer.listen.display(), version = env!("CARGO_PKG_VERSION"), "serving");

    let controller = Controller::new(sandboxes.clone());
    let serving = serve_containerd(&controller, controllers, async move {
        ends.first().await;
        tell_systemd(NotifyState::Stopping);
    });
    let grace = Duration::from_secs(sandboxer.orphan_grace_secs.into());
    let served = tokio::select! {
        served = serving => served,
        never = orphans::watch(sandboxes, &sandboxer.containerd_address, grace) => match never {},
    };
    for mut server in shim_proxies {
        if let Err(error) = server.shutdown().await {
            tracing::debug!(%error, "shim proxies were still being answered at the end");
        }
    }
    tracing::info!("ended; pods go on");
    served.map_err(|source| ServiceError::Serve { source })
}

/// Answers containerd on every socket until `end` completes, each with its profile for new sandboxes.
async fn serve_containerd(
    controller: &Controller,
    sockets: Vec<(ProfileName, UnixListener)>,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let end = end.boxed().shared();
    let serving = sockets.into_iter().map(|(profile, socket)| {
        let service = Arc::new(controller.of_profile(profile));
        containerd_sandbox::serve(service, socket, DRAIN, traces::of_controller, end.clone())
    });
    try_join_all(serving).await.map(drop)
}

/// The Controller sockets with their profiles: those of the settings, and those where containerd asks for sandboxes that
/// were made by a profile that the settings do not have any more, or have elsewhere. One of the latter that cannot be had
/// costs only these pods, which containerd then cannot stop.
fn controllers(
    settings: &Settings,
    recovered: &RecoveryReport,
) -> Result<Vec<(ProfileName, UnixListener)>, SocketError> {
    let mut sockets = Vec::new();
    for (name, profile) in settings.all_profiles() {
        let path = &profile.sandboxer.listen;
        sockets.push((name.clone(), listen(path)?));
        tracing::debug!(profile = %name, listen = %path.display(), "listening");
    }
    let is_old = |path: &Path| settings.all_profiles().all(|(_, profile)| profile.sandboxer.listen != path);
    for (path, profile) in recovered.controllers.iter().filter(|(path, _)| is_old(path)) {
        let (socket, path) = (listen(path), path.display());
        match socket {
            Ok(listener) => {
                tracing::warn!(%profile, listen = %path, "pods of a profile that is gone or has moved; serving them here");
                sockets.push((profile.clone(), listener));
            }
            Err(error) => {
                tracing::error!(%profile, listen = %path, error = chain(&error), "containerd cannot reach its pods here");
            }
        }
    }
    Ok(sockets)
}

/// Sockets for the shim proxies of pods that were made with another `run_dir`: they know no other place. One that cannot
/// be had costs only these pods, and only their new containers.
fn old_controls(recovered: &RecoveryReport, run_dir: &Path) -> Vec<UnixListener> {
    let old = recovered.run_dirs.iter().filter(|dir| *dir != run_dir);
    let listen = |dir: &PathBuf| match listen(&dir.join(CONTROL_SOCKET)) {
        Ok(listener) => {
            tracing::info!(run_dir = %dir.display(), "running pods lie in another run_dir; serving them there");
            Some(listener)
        }
        Err(error) => {
            tracing::error!(run_dir = %dir.display(), error = chain(&error), "running pods get no new containers");
            None
        }
    };
    old.filter_map(listen).collect()
}

/// Finds out early how guests of each profile will run, so that the first pod need not wait for it.
async fn try_virtualisation(drivers: Vec<(Vec<ProfileName>, Arc<dyn Driver>)>) {
    join_all(drivers.into_iter().map(|(profiles, driver)| async move {
        let profiles = profiles.iter().map(ProfileName::as_str).collect::<Vec<_>>().join(", ");
        match driver.probe().await {
            Ok(Acceleration::Hardware) => tracing::info!(profiles, "guests run on KVM"),
            Ok(Acceleration::Emulation) => {
                tracing::warn!(profiles, "guests are emulated: expect everything to be slow");
            }
            Err(error) => tracing::error!(profiles, error = chain(&error), "no pod can start"),
        }
    }))
    .await;
}

/// SIGTERM and SIGINT.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> Result<Self, ServiceError> {
        let on = |kind| signal(kind).map_err(|source| ServiceError::Signals { source });
        Ok(Self { terminate: on(SignalKind::terminate())?, interrupt: on(SignalKind::interrupt())? })
    }

    async fn first(&mut self) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "ending");
    }
}

fn report(recovered: &RecoveryReport) {
    let RecoveryReport { adopted, undone, lost, stopped, quarantined, run_dirs: _, controllers: _ } =
        recovered;
    tracing::info!(
        adopted = adopted.len(),
        undone = undone.len(),
        lost = lost.len(),
        stopped = stopped.len(),
        quarantined = quarantined.len(),
        "read the records"
    );
    for path in quarantined {
        tracing::warn!(path = %path.display(), "a broken record was put aside; look at it, then delete it");
    }
}

fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell systemd");
    }
}
