//! Options as fstab(5) and the OCI runtime spec write them, sorted by who takes them. Pure.

use std::path::Path;

use rustix::mount::MountFlags;

use super::request::RootfsMount;
use crate::host::mount::{BindFlags, Filesystem, Propagation, attribute};

/// An option that makes no sense here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// It would need work that nobody here does.
    #[error("option {0:?} is not supported")]
    Unsupported(String),
}

/// What to do for one mount of a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Bind(BindFlags),
    Filesystem(Filesystem),
}

pub(super) fn rootfs(mount: &RootfsMount) -> Result<Kind, OptionError> {
    let is_bind = mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
    if mount.kind == "bind" || is_bind {
        return bind(&mount.options).map(Kind::Bind);
    }
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in &mount.options {
        if is_mapping(option) || option == "loop" {
            return Err(OptionError::Unsupported(option.clone()));
        }
        match flag(option) {
            Some(Flag::Set(flag)) => flags |= flag,
            Some(Flag::Clear(flag)) => flags &= !flag,
            None => data.push(option.clone()),
        }
    }
    let source = Path::new(&mount.source).to_owned();
    Ok(Kind::Filesystem(Filesystem { kind: mount.kind.clone(), source, flags, data }))
}

/// Flags of a bind mount. A volume gets nothing that the host mounts later unless it asks (`rslave`, `rshared`), and
/// the host never gets what a guest does: `rshared` is `rslave` here, because a guest cannot mount on the host.
pub(super) fn bind(options: &[String]) -> Result<BindFlags, OptionError> {
    let mut flags = BindFlags::default();
    for option in options {
        let bit = match option.as_str() {
            "rbind" => {
                flags.recursive = true;
                continue;
            }
            "rro" => {
                flags.recursive_read_only = true;
                attribute::RDONLY
            }
            "rslave" | "slave" | "rshared" | "shared" => {
                flags.propagation = Propagation::Slave;
                continue;
            }
            "rprivate" | "private" | "runbindable" | "unbindable" => {
                flags.propagation = Propagation::Private;
                continue;
            }
            "ro" => attribute::RDONLY,
            "nosuid" => attribute::NOSUID,
            "nodev" => attribute::NODEV,
            "noexec" => attribute::NOEXEC,
            "nodiratime" => attribute::NODIRATIME,
            "noatime" | "strictatime" | "relatime" => {
                flags.clear |= attribute::ATIME;
                flags.set &= !attribute::ATIME;
                access_time(option)
            }
            _ if is_mapping(option) => return Err(OptionError::Unsupported(option.clone())),
            // "bind", "rw" and the like are what a bind mount is anyway; others are for the guest or for nobody.
            _ => continue,
        };
        flags.set |= bit;
    }
    Ok(flags)
}

fn access_time(option: &str) -> u64 {
    match option {
        "noatime" => attribute::NOATIME,
        "strictatime" => attribute::STRICTATIME,
        _ => 0,
    }
}

/// User namespaces: ids would have to be mapped.
fn is_mapping(option: &str) -> bool {
    ["uidmap=", "gidmap=", "X-containerd."].iter().any(|prefix| option.starts_with(prefix))
        || matches!(option, "idmap" | "ridmap")
}

enum Flag {
    Set(MountFlags),
    Clear(MountFlags),
}

fn flag(option: &str) -> Option<Flag> {
    let (name, make): (&str, fn(MountFlags) -> Flag) = match option {
        "rw" => return Some(Flag::Clear(MountFlags::RDONLY)),
        "suid" => return Some(Flag::Clear(MountFlags::NOSUID)),
        "dev" => return Some(Flag::Clear(MountFlags::NODEV)),
        "exec" => return Some(Flag::Clear(MountFlags::NOEXEC)),
        "async" => return Some(Flag::Clear(MountFlags::SYNCHRONOUS)),
        "atime" => return Some(Flag::Clear(MountFlags::NOATIME)),
        "defaults" => return Some(Flag::Set(MountFlags::empty())),
        other => (other, Flag::Set),
    };
    let flag = match name {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        "lazytime" => MountFlags::LAZYTIME,
        "silent" => MountFlags::SILENT,
        _ => return None,
    };
    Some(make(flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn an_overlay_keeps_its_own_options_and_loses_the_common_ones() {
        let mount = RootfsMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: words("index=off,ro,rw,nosuid,lowerdir=/a:/b,upperdir=/c,workdir=/d"),
            ..RootfsMount::default()
        };
        let Kind::Filesystem(made) = rootfs(&mount).unwrap() else { panic!("no file system") };
        assert_eq!(made.flags, MountFlags::NOSUID);
        assert_eq!(made.data, ["index=off", "lowerdir=/a:/b", "upperdir=/c", "workdir=/d"]);
    }

    #[test]
    fn a_bind_is_known_by_type_or_option() {
        for (kind, options) in [("bind", "rbind,ro"), ("none", "rbind,ro")] {
            let mount = RootfsMount { kind: kind.into(), options: words(options), ..RootfsMount::default() };
            let flags = BindFlags { recursive: true, set: attribute::RDONLY, ..BindFlags::default() };
            assert_eq!(rootfs(&mount).unwrap(), Kind::Bind(flags));
        }
    }

    #[test]
    fn a_volume_is_private_unless_it_asks_and_never_gives_to_the_host() {
        assert_eq!(bind(&words("rbind,rw")).unwrap().propagation, Propagation::Private);
        assert_eq!(bind(&words("rbind,rslave")).unwrap().propagation, Propagation::Slave);
        assert_eq!(bind(&words("rbind,rshared")).unwrap().propagation, Propagation::Slave);
        assert_eq!(bind(&words("rslave,rprivate")).unwrap().propagation, Propagation::Private);
    }

    #[test]
    fn the_last_access_time_policy_wins() {
        let flags = bind(&words("noatime,relatime")).unwrap();
        assert_eq!((flags.set, flags.clear), (0, attribute::ATIME));
        let flags = bind(&words("relatime,noatime,ro,nodev")).unwrap();
        assert_eq!(flags.set, attribute::NOATIME | attribute::RDONLY | attribute::NODEV);
    }

    #[test]
    fn id_mappings_are_refused_by_name() {
        for option in ["uidmap=0:100000:65536", "ridmap"] {
            let error = bind(&words(option)).unwrap_err();
            assert!(error.to_string().contains(option), "{error}");
        }
    }
}
