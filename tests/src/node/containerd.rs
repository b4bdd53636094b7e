//! Unmodified containerd on a node: its configuration, start, restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Daemon, Node, OTLP};
use crate::{image, wait};

impl Node {
    pub(super) fn write_containerd_config(&self) {
        let dir = self.dir.display();
        let mut text = format!(
            r#"version = 3
root = "{dir}/root"
state = "{dir}/state"

[grpc]
  address = "{dir}/c.sock"

[debug]
  level = "debug"

[plugins.'io.containerd.internal.v1.opt']
  path = "{dir}/opt"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{pause}"

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "{registries}"

[plugins.'io.containerd.cri.v1.runtime']
  disable_apparmor = true
  enable_selinux = false
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
  {bin_key} = {bin_value}
  conf_dir = "{dir}/cni"

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "{default_runtime}"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
"#,
            pause = image::PAUSE,
            registries = self.registries().display(),
            default_runtime = self.options.default_runtime,
            bin_key = self.cni_bin_key(),
            bin_value = self.cni_bin_value(),
        );
        if self.options.bulkhead {
            text.push_str(&self.runtime(super::BULKHEAD, &self.controller_socket()));
            for profile in &self.options.profiles {
                text.push_str(&self.runtime(&format!("bulkhead-{profile}"), &self.profile_socket(profile)));
            }
        }
        std::fs::write(self.dir.join("containerd.toml"), text).expect("write containerd's configuration");
        std::fs::write(self.dir.join("cni/10-bridge.conflist"), self.cni_config()).expect("write CNI's");
        self.write_cni_commands();
    }

    /// A runtime under test, and the proxy plugin of the same name.
    fn runtime(&self, name: &str, socket: &Path) -> String {
        format!(
            r#"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{name}]
  runtime_type = "io.containerd.bulkhead.v2"
  sandboxer = "{name}"
  privileged_without_host_devices = true
  io_type = "{io}"
  privileged_without_host_devices_all_devices_allowed = true

[proxy_plugins.{name}]
  type = "sandbox"
  address = "{address}"
"#,
            io = if self.options.streaming { "streaming" } else { "fifo" },
            address = socket.display()
        )
    }

    /// Where containerd looks who serves a registry, one folder for each with a `hosts.toml`. A node knows of none.
    #[must_use]
    pub fn registries(&self) -> PathBuf {
        self.dir.join("registries")
    }

    /// 2.1 knows one directory, 2.2 and later want the list.
    const fn cni_bin_key(&self) -> &'static str {
        match self.options.line {
            crate::peers::Line::V21 => "bin_dir",
            crate::peers::Line::V24 | crate::peers::Line::V23 => "bin_dirs",
        }
    }

    fn cni_bin_value(&self) -> String {
        let path = self.base.cni.display();
        match self.options.line {
            crate::peers::Line::V21 => format!("\"{path}\""),
            crate::peers::Line::V24 | crate::peers::Line::V23 => {
                format!("[\"{path}\", \"{}\"]", self.dir.join("cni-bin").display())
            }
        }
    }

    /// The plugin of the test: it brings nothing that CNI knows of.
    fn write_cni_commands(&self) {
        if self.options.cni_commands.is_empty() {
            return;
        }
        let (folder, commands) = (self.dir.join("cni-bin"), self.dir.join("cni-bin/commands"));
        std::fs::create_dir_all(&folder).expect("make the plugin's folder");
        std::fs::write(&commands, &self.options.cni_commands).expect("write the plugin's commands");
        let program = format!(
            "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
             nsenter --net=\"$CNI_NETNS\" sh -e {} >&2 || exit 1\necho '{{\"cniVersion\": \"1.0.0\"}}'\n",
            commands.display()
        );
        let path = folder.join("test-commands");
        std::fs::write(&path, program).expect("write the plugin");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("make the plugin executable");
    }

    fn cni_config(&self) -> String {
        let first =
            if self.options.cni_commands.is_empty() { "" } else { "{\"type\": \"test-commands\"},\n    " };
        let more = if self.options.host_ports {
            r#",
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }"#
        } else {
            ""
        };
        format!(
            r#"{{
  "cniVersion": "1.0.0",
  "name": "bulkhead-test",
  "plugins": [
    {first}{{
      "type": "bridge",
      "bridge": "bh0",
      "isGateway": true,
      "ipMasq": false,
      "mtu": 1450,
      "ipam": {{
        "type": "host-local",
        "dataDir": "{}/leases",
        "ranges": [[{{"subnet": "10.88.0.0/16"}}], [{{"subnet": "fd00:88::/64"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]
      }}
    }}{more}
  ]
}}
"#,
            self.dir.display()
        )
    }

    /// Starts containerd and waits until CRI and its network are ready.
    pub async fn start_containerd(&mut self) {
        let folder =
            self.base.containerd.parent().expect("containerd lies in a folder").display().to_string();
        let product =
            self.product.as_ref().map_or_else(String::new, |found| format!("{}:", found.bin.display()));
        let path = format!("{product}{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let program = self.base.containerd.display().to_string();
        let config = self.dir.join("containerd.toml").display().to_string();
        let log = self.dir.join("log/containerd.log");
        let endpoint = format!("http://{OTLP}");
        let mut environment = vec![("PATH", path.as_str())];
        if self.options.containerd_traces {
            // It takes this from its environment only.
            environment.push(("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint));
            environment.push(("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"));
        }
        let args = [program.as_str(), "--config", &config];
        let mut daemon = Daemon::start(&self.namespaces, &log, &environment, &args).await;
        let ready = wait::until(Duration::from_secs(60), async || {
            if daemon.ended().is_some() {
                return Some(false);
            }
            self.cri.network_ready().await.then_some(true)
        })
        .await;
        self.containerd = Some(daemon);
        if ready != Some(true) {
            self.print_logs();
            panic!("containerd did not become ready");
        }
    }

    /// Ends containerd by `signal`; pods and their processes are not told.
    pub async fn stop_containerd(&mut self, signal: Signal) {
        let daemon = self.containerd.take().expect("containerd runs");
        daemon.end(signal).await;
    }

    /// SIGTERM and a new start.
    pub async fn restart_containerd(&mut self) {
        self.stop_containerd(Signal::SIGTERM).await;
        self.start_containerd().await;
    }
}
