//! QEMU's command line, as a pure function of the VM.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::path::Path;

use bulkhead_config::Machine;
use bulkhead_protocol::SHARE_TAG;

use crate::vm::{Acceleration, LaunchSpec, Nic, Share, Size};

/// PCI Express slots of q35 that are left free for hotplug.
const FREE_SLOTS: u8 = 4;
/// What they are called, without their number.
const SLOT: &str = "slot";
/// The one that the controller of disks is plugged into.
pub(super) const DISKS_SLOT: &str = "slot0";
/// Id of the controller of disks; its bus is called after it.
pub(super) const CONTROLLER: &str = "disks";
/// The device that adds memory while the VM runs, and what it takes it from.
pub(super) const GROWTH: &str = "growth";
const GROWTH_BACKEND: &str = "growth-ram";
/// Memory for growth comes in whole blocks of the guest's, in MiB (`/sys/devices/system/memory/block_size_bytes`).
const GROWTH_BLOCK_MIB: u32 = 128;

/// The host's processor, but for virtualisation and its counters: a guest that could be a host itself has more of KVM to
/// attack, and the counters tell of what else runs there.
pub(super) const KVM_CPU: &str = "host,-vmx,-svm,pmu=off";
/// Of both machines: a core dump of QEMU is without its guest's memory, whoever takes it.
const FRAME: &str = "memory-backend=ram,dump-guest-core=off";

/// How far a VM can grow.
struct Room {
    /// Processors, those it begins with included.
    vcpus: u32,
    /// MiB beside those it begins with.
    memory_mib: u32,
}

/// Numbers of the descriptors that the VMM inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// Listening socket for QMP.
    pub(super) api: RawFd,
    /// Connection to the vsock helper.
    pub(super) vsock: RawFd,
    /// One for each network device.
    pub(super) taps: Vec<RawFd>,
}

/// Everything that decides the command line.
#[derive(Debug)]
pub(super) struct CommandLine<'a> {
    pub(super) machine: Machine,
    pub(super) acceleration: Acceleration,
    /// Frequency of the guest's time stamp counter, when it is known and the guest could not find out itself.
    pub(super) tsc_khz: Option<u32>,
    pub(super) spec: &'a LaunchSpec,
    pub(super) descriptors: &'a Descriptors,
    pub(super) extra_args: &'a [String],
}

/// Arguments under construction.
#[derive(Debug, Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.push(name.into());
        self.0.push(value.as_ref().to_owned());
    }

    /// An option whose value ends in a path: QEMU's option parser reads a doubled comma as one.
    fn path(&mut self, name: &str, before: &str, path: &Path) {
        let mut value = OsString::from(before);
        value.push(path.to_string_lossy().replace(',', ",,"));
        self.option(name, value);
    }
}

impl CommandLine<'_> {
    /// The arguments behind the program's name.
    pub(super) fn args(&self) -> Vec<OsString> {
        let mut args = Args::default();
        self.frame(&mut args);
        self.machine(&mut args);
        self.boot(&mut args);
        self.console_and_api(&mut args);
        self.devices(&mut args);
        args.0.extend(self.extra_args.iter().map(OsString::from));
        args.0
    }

    /// What QEMU leaves out and what it may not do.
    fn frame(&self, args: &mut Args) {
        if let Some(id) = self.spec.dir.path().file_name() {
            args.option("-name", id);
        }
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            args.flag(flag);
        }
        args.option("-display", "none");
        args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }

    fn machine(&self, args: &mut Args) {
        let accel = match self.acceleration {
            Acceleration::Hardware => "kvm",
            Acceleration::Emulation => "tcg",
        };
        args.option(
            "-machine",
            match self.machine {
                // The distribution kernel finds virtio-mmio devices by ACPI only.
                Machine::Microvm => format!(
                    "microvm,accel={accel},acpi=on,isa-serial=on,rtc=on,auto-kernel-cmdline=off,{FRAME}"
                ),
                Machine::Q35 => {
                    format!("q35,accel={accel},smbus=off,sata=off,usb=off,i8042=off,vmport=off,{FRAME}")
                }
            },
        );
        if self.machine == Machine::Microvm {
            // virtiofs needs virtio 1.0.
            args.option("-global", "virtio-mmio.force-legacy=false");
        }
        args.option(
            "-cpu",
            match self.acceleration {
                Acceleration::Hardware => KVM_CPU,
                // Told of fast `rep movsb`, kernel and libc copy with it, and the emulator goes byte by byte.
                Acceleration::Emulation => "max,-erms",
            },
        );
        self.size(args);
    }

    /// Processors and memory, and room for more where the machine can.
    fn size(&self, args: &mut Args) {
        let Size { vcpus, memory_mib } = self.spec.size;
        let Room { vcpus: most, memory_mib: more } = self.room();
        let most = most.max(self.least_slots());
        if most > vcpus.get() {
            args.option("-smp", format!("{vcpus},maxcpus={most}"));
        } else {
            args.option("-smp", vcpus.to_string());
        }
        let pages = if self.spec.hugepages { ",hugetlb=on" } else { "" };
        // Shared, because vhost-user devices work in the guest's memory.
        let backend =
            |id: &str, mib: u32| format!("memory-backend-memfd,id={id},size={mib}M,share=on{pages}");
        if more > 0 {
            let all = u64::from(memory_mib.get()) + u64::from(more);
            args.option("-m", format!("{memory_mib}M,maxmem={all}M"));
            // Address space only: no page is there, or set aside, before the guest has taken it.
            args.option("-object", format!("{},reserve=off", backend(GROWTH_BACKEND, more)));
        } else {
            args.option("-m", format!("{memory_mib}M"));
        }
        args.option("-object", backend("ram", memory_mib.get()));
    }

    /// How many processors QEMU must believe possible. The code that it makes for the only processor of an emulated VM has
    /// no memory barriers (7.2; mended for some of them in 8.1, QEMU commit c914d46d0a) and no locked instructions: what
    /// the guest tells vhost-user devices, which run in processes of their own, may then go unseen until it says more.
    fn least_slots(&self) -> u32 {
        match self.acceleration {
            Acceleration::Hardware => 1,
            Acceleration::Emulation => 2,
        }
    }

    /// Nothing on a machine that cannot grow.
    fn room(&self) -> Room {
        let Size { vcpus, memory_mib } = self.spec.size;
        match self.machine {
            Machine::Microvm => Room { vcpus: vcpus.get(), memory_mib: 0 },
            Machine::Q35 => {
                let more = self.spec.room.memory_mib.get().saturating_sub(memory_mib.get());
                Room {
                    vcpus: vcpus.max(self.spec.room.vcpus).get(),
                    memory_mib: more - more % GROWTH_BLOCK_MIB,
                }
            }
        }
    }

    fn boot(&self, args: &mut Args) {
        args.option("-kernel", &self.spec.kernel);
        args.option("-initrd", &self.spec.image);
        args.option("-append", self.kernel_cmdline());
    }

    /// Ours first: of a parameter given twice the kernel takes the last.
    fn kernel_cmdline(&self) -> String {
        let mut words = vec![
            "console=ttyS0".to_owned(),
            "quiet".to_owned(),
            // Triple fault instead of trying what these machines do not have; a panic ends the VM at once.
            "reboot=t".to_owned(),
            "panic=-1".to_owned(),
            "no_timer_check".to_owned(),
            // 64 MiB, set aside in a guest that may have memory above 4 GiB, for devices that reach less: none of ours.
            "swiotlb=noforce".to_owned(),
            // Work at boot that a pod has no use for: self-tests of the crypto algorithms, and tracefs with the
            // directories of its 1500 events. A fifth of the boot under emulation (images/README.md).
            "cryptomgr.notests=1".to_owned(),
            "initcall_blacklist=crypto_kdf108_init,trace_eval_init,tracer_init_tracefs".to_owned(),
        ];
        let possible = self.room().vcpus;
        if possible < self.least_slots() {
            words.push(format!("nr_cpus={possible}"));
        }
        // With a constant counter on the host those of an emulated VM's processors agree; a guest that might have
        // more than one doubts that and takes a clock that each reading leaves the guest for.
        words.extend(self.tsc_khz.map(|khz| format!("tsc_early_khz={khz} tsc=reliable")));
        words.push(self.spec.cmdline.clone());
        words.join(" ")
    }

    fn console_and_api(&self, args: &mut Args) {
        // Appending, so that the file can be emptied while it is written.
        args.path("-chardev", "file,id=console,append=on,path=", &self.spec.dir.console());
        args.option("-serial", "chardev:console");
        args.option("-chardev", format!("socket,id=api,fd={},server=on,wait=off", self.descriptors.api));
        args.option("-mon", "chardev=api,mode=control");
    }

    fn devices(&self, args: &mut Args) {
        args.path("-object", "rng-random,id=entropy,filename=", &self.spec.entropy_source);
        args.option("-device", format!("{},rng=entropy", self.device("virtio-rng")));
        args.option("-chardev", format!("socket,id=vsock,fd={}", self.descriptors.vsock));
        args.option("-device", format!("{},chardev=vsock", self.device("vhost-user-vsock")));
        if self.spec.share == Share::Exported {
            args.path("-chardev", "socket,id=share,path=", &self.spec.dir.virtiofs_sock());
            args.option("-device", format!("{},chardev=share,tag={SHARE_TAG}", self.device("vhost-user-fs")));
        }
        if self.spec.block_volumes && self.machine == Machine::Microvm {
            // Idle until the first disk comes; the guest does not even load its driver before. There is no other time
            // for it: this machine has no hotplug of devices.
            args.option("-device", format!("{},id={}", self.device("virtio-scsi"), CONTROLLER));
        }
        if self.room().memory_mib > 0 {
            // With huge pages: better no memory than a VM that is killed for a page that the host has not.
            let pages = if self.spec.hugepages { ",prealloc=on" } else { "" };
            args.option("-device", format!("virtio-mem-pci,id={GROWTH},memdev={GROWTH_BACKEND}{pages}"));
        }
        for (index, (nic, fd)) in self.spec.nics.iter().zip(&self.descriptors.taps).enumerate() {
            args.option("-netdev", format!("tap,id=net{index},fd={fd},vhost=off"));
            args.option("-device", self.nic(index, nic));
        }
        if self.machine == Machine::Q35 {
            for slot in 0..FREE_SLOTS {
                args.option("-device", format!("pcie-root-port,id={SLOT}{slot},chassis={}", slot + 1));
            }
        }
    }

    fn nic(&self, index: usize, nic: &Nic) -> String {
        let device = self.device("virtio-net");
        // No boot ROM: nothing boots from the network.
        let rom = match self.machine {
            Machine::Microvm => "",
            Machine::Q35 => ",romfile=",
        };
        format!("{device},netdev=net{index},mac={},host_mtu={}{rom}", nic.mac, nic.mtu)
    }

    /// A virtio device in the form that plugs into this machine's bus.
    fn device(&self, name: &str) -> String {
        match self.machine {
            Machine::Microvm => format!("{name}-device"),
            Machine::Q35 => format!("{name}-pci"),
        }
    }
}

#[cfg(test)]
mod tests;
