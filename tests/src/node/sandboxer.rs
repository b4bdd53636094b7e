//! The sandboxer of a node: its settings, start, ends of every kind.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Daemon, Node};
use crate::wait;

/// Settings by table and key, values as TOML spells them.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<String, BTreeMap<String, String>>);

impl Settings {
    /// Sets one value.
    pub fn set(&mut self, table: &str, key: &str, value: impl Into<String>) {
        self.0.entry(table.to_owned()).or_default().insert(key.to_owned(), value.into());
    }

    /// Forgets a table and those below it.
    fn remove(&mut self, table: &str) {
        let below = format!("{table}.");
        self.0.retain(|name, _| name != table && !name.starts_with(&below));
    }

    /// As a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for (table, keys) in &self.0 {
            writeln!(text, "[{table}]").expect("write to a string");
            for (key, value) in keys {
                writeln!(text, "{key} = {value}").expect("write to a string");
            }
            text.push('\n');
        }
        text
    }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

impl Node {
    /// The settings this node's sandboxer gets: private paths, then the test's own changes.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let product = self.product();
        let mut all = Settings::default();
        all.set("sandboxer", "listen", quoted(self.controller_socket().display()));
        all.set("sandboxer", "run_dir", quoted(self.run_dir().display()));
        all.set("sandboxer", "state_dir", quoted(self.state_dir().display()));
        all.set("sandboxer", "containerd_address", quoted(self.containerd_socket().display()));
        all.set(
            "sandboxer",
            "log_level",
            quoted("debug,h2=info,hyper=info,tower=info,actix=info,tonic=info"),
        );
        all.set("shim", "binary", quoted(product.bin.join("containerd-shim-bulkhead-v2").display()));
        all.set("guest", "kernel", quoted(product.kernel.display()));
        all.set("guest", "image", quoted(product.image.display()));
        all.set("guest", "agent_log_level", quoted("debug"));
        all.set("guest", "boot_timeout_secs", (45 * wait::patience()).to_string());
        // The trial of KVM costs seconds for each node where KVM only looks as if it worked.
        let accelerator = std::env::var("BULKHEAD_ACCELERATOR").unwrap_or_else(|_| "tcg".to_owned());
        all.set("qemu", "accelerator", quoted(accelerator));
        all.set("qemu", "path", quoted(product.qemu.display()));
        all.set("qemu", "vsock_path", quoted(product.vsock.display()));
        all.set("virtiofsd", "path", quoted(product.virtiofsd.display()));
        all.set("cgroup", "default_parent", quoted(format!("{}/default", self.cgroup_parent())));
        for profile in &self.options.profiles {
            let socket = self.profile_socket(profile);
            all.set(&format!("profile.{profile}"), "listen", quoted(socket.display()));
        }
        for (table, keys) in &self.options.settings.0 {
            for (key, value) in keys {
                all.set(table, key, value.clone());
            }
        }
        all
    }

    /// Changes a setting for the next start of the sandboxer.
    pub fn set(&mut self, table: &str, key: &str, value: impl Into<String>) {
        self.options.settings.set(table, key, value);
    }

    /// Forgets a change made by [`Node::set`].
    pub fn unset(&mut self, table: &str, key: &str) {
        if let Some(keys) = self.options.settings.0.get_mut(table) {
            keys.remove(key);
        }
    }

    /// Takes a profile out of the settings for the next start of the sandboxer. containerd goes on to know its runtime.
    pub fn remove_profile(&mut self, name: &str) {
        self.options.profiles.retain(|profile| *profile != name);
        self.options.settings.remove(&format!("profile.{name}"));
    }

    /// Path of the settings file, written anew.
    pub fn write_settings(&self) -> PathBuf {
        let path = self.dir.join("bulkhead.toml");
        std::fs::write(&path, self.settings().to_toml()).expect("write the settings");
        path
    }

    /// Starts the sandboxer and waits until it takes calls.
    pub async fn start_sandboxer(&mut self) {
        if let Err(status) = self.try_start_sandboxer().await {
            self.print_logs();
            panic!("the sandboxer ended at start: {status}");
        }
    }

    /// Starts the sandboxer; its exit status when it ends instead of taking calls.
    pub async fn try_start_sandboxer(&mut self) -> Result<(), ExitStatus> {
        let config = self.write_settings().display().to_string();
        let program = self.product().bin.join("bulkhead-sandboxer").display().to_string();
        let log = self.dir.join("log/sandboxer.log");
        let path = [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")];
        let mut daemon = Daemon::start(&self.namespaces, &log, &path, &[&program, "--config", &config]).await;
        let socket = self.controller_socket();
        let listening = wait::expect("the sandboxer listens", Duration::from_secs(60), async || {
            if let Some(status) = daemon.ended() {
                return Some(Err(status));
            }
            tokio::net::UnixStream::connect(&socket).await.ok().map(|_| Ok(()))
        })
        .await;
        self.sandboxer = Some(daemon);
        listening
    }

    /// Ends the sandboxer by `signal`.
    pub async fn stop_sandboxer(&mut self, signal: Signal) -> ExitStatus {
        self.sandboxer.take().expect("the sandboxer runs").end(signal).await
    }

    /// What the sandboxer has logged since the node began.
    #[must_use]
    pub fn sandboxer_log(&self) -> String {
        let bytes = std::fs::read(self.dir.join("log/sandboxer.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
