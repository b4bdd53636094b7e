//! Which driver a VM has: the one place that lists them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bulkhead_config::{Hypervisor, ProfileName, Settings};

use super::api::Driver;
use super::cloud_hypervisor::CloudHypervisorDriver;
use super::qemu::QemuDriver;
use crate::vm::record::VmRecord;

/// One driver for each VMM that Bulkhead knows, with the settings of one profile.
#[derive(Debug, Clone)]
struct Vmms {
    qemu: Arc<dyn Driver>,
    cloud_hypervisor: Arc<dyn Driver>,
}

impl Vmms {
    fn new(settings: &Settings) -> Self {
        Self {
            qemu: Arc::new(QemuDriver::new(settings)),
            cloud_hypervisor: Arc::new(CloudHypervisorDriver::new(settings)),
        }
    }

    fn get(&self, hypervisor: Hypervisor) -> Arc<dyn Driver> {
        Arc::clone(match hypervisor {
            Hypervisor::Qemu => &self.qemu,
            Hypervisor::CloudHypervisor => &self.cloud_hypervisor,
        })
    }
}

/// The drivers of every profile. Profiles whose settings for VMMs and guest do not differ share theirs, and so what those
/// find out about the host.
#[derive(Debug, Clone)]
pub struct Drivers {
    default: Vmms,
    others: BTreeMap<ProfileName, Vmms>,
}

impl Drivers {
    /// The drivers of all profiles of these settings. Nothing is started before a driver is asked.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let default = Vmms::new(settings);
        let mut made = vec![(settings, default.clone())];
        let mut others = BTreeMap::new();
        for (name, profile) in &settings.profiles {
            let shared = made.iter().find(|(other, _)| differ_in_nothing_of_drivers(other, profile));
            let vmms = shared.map_or_else(|| Vmms::new(profile), |(_, vmms)| vmms.clone());
            made.push((profile, vmms.clone()));
            others.insert(name.clone(), vmms);
        }
        Self { default, others }
    }

    /// This driver for every VM, whatever its record says: for tests.
    #[must_use]
    pub fn only(driver: &Arc<dyn Driver>) -> Self {
        let vmms = Vmms { qemu: Arc::clone(driver), cloud_hypervisor: Arc::clone(driver) };
        Self { default: vmms, others: BTreeMap::new() }
    }

    /// The driver of this VMM with the settings of the default profile.
    #[must_use]
    pub fn get(&self, hypervisor: Hypervisor) -> Arc<dyn Driver> {
        self.default.get(hypervisor)
    }

    /// The driver of this VMM that launches VMs of this profile. For a profile that is not in the settings it is the
    /// default profile's.
    #[must_use]
    pub fn of_profile(&self, profile: &ProfileName, hypervisor: Hypervisor) -> Arc<dyn Driver> {
        self.others.get(profile).unwrap_or(&self.default).get(hypervisor)
    }

    /// The drivers that launch VMs, each once, with the names of its profiles.
    #[must_use]
    pub fn launching(&self, settings: &Settings) -> Vec<(Vec<ProfileName>, Arc<dyn Driver>)> {
        let mut found: Vec<(Vec<ProfileName>, Arc<dyn Driver>)> = Vec::new();
        for (name, profile) in settings.all_profiles() {
            let driver = self.of_profile(&name, profile.vm.hypervisor);
            match found.iter_mut().find(|(_, known)| Arc::ptr_eq(known, &driver)) {
                Some((names, _)) => names.push(name),
                None => found.push((vec![name], driver)),
            }
        }
        found
    }

    /// The driver of this VM, for every call but the launch. It is chosen by the record, and whose settings the driver has
    /// means nothing to a VM that runs.
    #[must_use]
    pub fn of(&self, vm: &VmRecord) -> Arc<dyn Driver> {
        self.get(vm.hypervisor)
    }
}

/// Whether two profiles differ at most in the shape of their VMs, the file server and the socket: a driver reads none of
/// those from its settings.
fn differ_in_nothing_of_drivers(one: &Settings, other: &Settings) -> bool {
    let (vm, virtiofsd) = (other.vm.clone(), other.virtiofsd.clone());
    let (sandboxer, profiles) = (other.sandboxer.clone(), other.profiles.clone());
    Settings { vm, virtiofsd, sandboxer, profiles, ..one.clone() } == *other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<Vec<String>> {
        let settings = Settings::parse(text, bulkhead_config::Scope::Values).unwrap();
        let launching = Drivers::new(&settings).launching(&settings);
        launching.iter().map(|(names, _)| names.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn profiles_that_differ_only_in_size_share_a_driver() {
        let big = "[profile.big]\nlisten = \"/run/b.sock\"\n[profile.big.vm]\nmemory_mib = 1024\n";
        assert_eq!(names(big), [["default", "big"]]);
        let q35 = "[profile.q35]\nlisten = \"/run/q.sock\"\n[profile.q35.qemu]\nextra_args = [\"-x\"]\n";
        let both = format!("{big}{q35}");
        assert_eq!(names(&both), [vec!["default", "big"], vec!["q35"]]);
        let same = q35.replace("q35", "too").replace("q.sock", "t.sock");
        assert_eq!(names(&format!("{both}{same}")), [vec!["default", "big"], vec!["q35", "too"]]);
    }

    #[test]
    fn a_profile_that_is_not_in_the_settings_has_the_default_drivers() {
        let drivers = Drivers::new(&Settings::default());
        let gone = drivers.of_profile(&ProfileName::new("gone").unwrap(), Hypervisor::default());
        assert!(Arc::ptr_eq(&gone, &drivers.get(Hypervisor::default())));
    }
}
