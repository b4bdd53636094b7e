//! The command line.

use std::path::{Path, PathBuf};

use bulkhead_config::{Faults, Scope, Settings};
use clap::Parser;

/// Where the settings are when nobody says otherwise.
const DEFAULT_CONFIG: &str = "/etc/bulkhead/bulkhead.toml";

/// Runs every Kubernetes pod of this node in its own microVM, for an unmodified containerd.
#[derive(Debug, Parser)]
#[command(name = "bulkhead-sandboxer", version)]
pub(crate) struct Args {
    /// Settings file [default: /etc/bulkhead/bulkhead.toml, or every default when that does not exist].
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say "ok", or everything that is wrong with the settings and what would be right; then end.
    #[arg(long)]
    pub check_config: bool,
    /// Print the settings in effect as TOML, defaults included; then end.
    #[arg(long, conflicts_with = "check_config")]
    pub print_config: bool,
    /// Print the Kubernetes RuntimeClasses that fit the settings, one for each profile, their overhead above all; then end.
    #[arg(long, conflicts_with_all = ["check_config", "print_config"])]
    pub print_runtimeclass: bool,
    /// Print the drop-in for containerd that fits the settings, with a runtime for each profile; then end.
    #[arg(long, conflicts_with_all = ["check_config", "print_config", "print_runtimeclass"])]
    pub print_containerd: bool,
}

impl Args {
    /// Reads the settings that these arguments name. To print them needs nothing of the host.
    ///
    /// # Errors
    /// Every [`Fault`](bulkhead_config::Fault) at once.
    pub(crate) fn settings(&self) -> Result<Settings, Faults> {
        let prints = self.print_config || self.print_runtimeclass || self.print_containerd;
        let scope = if prints { Scope::Values } else { Scope::Host };
        match &self.config {
            Some(file) => Settings::load(file, scope),
            None if Path::new(DEFAULT_CONFIG).exists() => Settings::load(Path::new(DEFAULT_CONFIG), scope),
            None => Settings::parse("", scope).map_err(|faults| Faults { file: "defaults".into(), faults }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
