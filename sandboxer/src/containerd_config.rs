//! What containerd's configuration has to say of each profile, as TOML.

use std::path::Path;

use bulkhead_config::Settings;

/// A drop-in for containerd that has a runtime and a proxy plugin for every profile. `config/containerd/bulkhead.toml` is
/// the same for the shipped settings, with the reasons.
pub(crate) fn drop_in(settings: &Settings) -> String {
    let profiles = settings.all_profiles();
    let tables = profiles.map(|(name, profile)| tables(&name.runtime(), &profile.sandboxer.listen));
    let head = "# Put this where containerd's config.toml imports it from, and restart containerd: bulkhead-sandboxer
# --print-containerd has made it of the settings.
version = 3
";
    head.to_owned() + &tables.collect::<String>()
}

/// containerd names both after the profile. A bare path is the address; it puts unix:// before it.
fn tables(runtime: &str, listen: &Path) -> String {
    format!(
        "
[proxy_plugins.{runtime}]
  type = \"sandbox\"
  address = {:?}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{runtime}]
  runtime_type = \"io.containerd.bulkhead.v2\"
  sandboxer = \"{runtime}\"
  privileged_without_host_devices = true
  privileged_without_host_devices_all_devices_allowed = true
",
        listen.display().to_string()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without comments and empty lines.
    fn said(text: &str) -> Vec<&str> {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    #[test]
    fn of_the_shipped_settings_it_is_the_shipped_file() {
        let shipped = include_str!("../../config/containerd/bulkhead.toml");
        assert_eq!(said(&drop_in(&Settings::default())), said(shipped));
    }

    #[test]
    fn each_profile_has_its_socket_and_its_runtime() {
        let text = "[profile.big]\nlisten = \"/run/b.sock\"\n";
        let settings = Settings::parse(text, bulkhead_config::Scope::Values).unwrap();
        let printed = drop_in(&settings);
        for line in [
            "[proxy_plugins.bulkhead]",
            "address = \"/run/bulkhead/sandboxer.sock\"",
            "[proxy_plugins.bulkhead-big]",
            "address = \"/run/b.sock\"",
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bulkhead-big]",
            "sandboxer = \"bulkhead-big\"",
        ] {
            assert!(said(&printed).contains(&line), "{line} is not in {printed}");
        }
        assert_eq!(printed.matches("runtime_type = \"io.containerd.bulkhead.v2\"").count(), 2, "{printed}");
    }
}
