mod host_mounts;
mod memory;
mod rig;
mod sockets;

use super::*;
use rig::*;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix::Actor;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::mount::{MountFlags, mount, unmount};

use crate::ask::ask;
use crate::host::mount::MountError;
use crate::host::mountinfo::below;
use crate::host::process::{ProcessError, ProcessIdentity};
use crate::id::ContainerId;

#[test]
fn a_container_is_seen_by_the_file_server_and_goes_without_a_trace() {
    in_own_mounts(async |dir| {
        let share = dir.join("pod/shared");
        fs::create_dir(dir.join("pod")).unwrap();
        file(&dir.join("host/rw/file"), "rw");
        file(&dir.join("host/ro/file"), "ro");
        file(&dir.join("host/single"), "single");
        let before = below(dir).unwrap();
        open(&share).await.unwrap();
        open(&share).await.unwrap();
        let guest = Spectator::new();
        let binds = vec![
            volume(0, &dir.join("host/rw"), "rbind,rprivate,rw"),
            volume(1, &dir.join("host/ro"), "rbind,rprivate,ro"),
            volume(7, &dir.join("host/single"), "bind,ro"),
        ];
        let prepared = prepare(&share, id("c1"), vec![overlay(dir)], binds.clone()).await.unwrap();
        assert_eq!(prepared.rootfs, Path::new("/run/bulkhead/share/c1/rootfs"));
        assert_eq!(prepared.binds[2], Path::new("/run/bulkhead/share/c1/mounts/7"));
        let place = share.join("c1");
        let inert = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
        let mounts = below(&share).unwrap();
        assert_eq!(mounts.len(), 5);
        for path in mounts {
            let flags = statvfs(&path).unwrap().f_flag;
            assert!(flags.contains(inert), "{}: {flags:?}", path.display());
        }
        assert_eq!(guest.read(&place.join("rootfs/etc/name")).unwrap(), "lower");
        guest.write(&place.join("rootfs/etc/new")).unwrap();
        assert!(dir.join("snap/2/fs/etc/new").exists());
        guest.write(&place.join("mounts/0/file")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("host/rw/file")).unwrap(), "by the guest");
        for (name, content) in [("mounts/1/file", "ro"), ("mounts/7", "single")] {
            assert_eq!(guest.read(&place.join(name)).unwrap(), content);
            let error = guest.write(&place.join(name)).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{name}");
        }
        let error = guest.write(&share.join("c1/mounts/link")).unwrap_err();
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "the guest can make things beside its mounts"
        );
        let again = prepare(&share, id("c1"), vec![overlay(dir)], binds).await.unwrap_err();
        assert!(matches!(again, MountsError::AlreadyPrepared { .. }), "{again}");
        release(&share, &id("c1")).await.unwrap();
        assert!(!place.exists());
        let view = share.clone();
        assert_eq!(guest.see(move || below(&view).unwrap().len()), 1, "the share itself is all that is left");
        release(&share, &id("c1")).await.unwrap();
        drop(guest);
        close(&share).await.unwrap();
        close(&share).await.unwrap();
        assert_eq!(below(dir).unwrap(), before);
        assert_eq!(fs::read_dir(dir.join("pod")).unwrap().count(), 0);
        assert!(dir.join("host/rw/file").exists() && dir.join("host/single").exists());
    });
}

#[test]
fn containers_share_a_volume_and_it_goes_with_the_last_of_them() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        file(&dir.join("host/file"), "x");
        open(&share).await.unwrap();
        let before = below(dir).unwrap();
        let host = dir.join("host");
        let take = async |name: &str, options: &str| {
            let volume = volume(0, &host, options);
            let prepared = prepare(&share, id(name), vec![overlay(dir)], vec![volume]).await.unwrap();
            let read_only_in_guest = prepared.read_only_in_guest == [0];
            (fs::read_link(share.join(name).join("mounts/0")).unwrap(), read_only_in_guest)
        };
        let early = take("early", "bind,ro").await;
        let (one, _) = take("one", "bind,rw").await;
        assert_ne!(early, (one.clone(), true), "what nobody may write to is read-only here");
        assert!(!early.1, "and the guest need not see to it");
        assert_eq!(take("two", "bind").await, (one.clone(), false));
        for (name, options) in [("reader", "rbind,rro"), ("again", "bind,ro")] {
            assert_eq!(take(name, options).await, (one.clone(), true), "the guest sees to it");
        }
        let (other, in_guest) = take("slave", "bind,ro,rslave").await;
        assert!(other != one && !in_guest, "what comes below it later may be writable");
        let (other, in_guest) = take("careful", "bind,ro,noexec").await;
        assert!(other != one && !in_guest, "more than who may write is different");
        assert_eq!(take("tree", "rbind").await, (one.clone(), false), "there is nothing below it");
        assert_eq!(
            fs::write(share.join("early/mounts/0/y"), "").unwrap_err().kind(),
            ErrorKind::ReadOnlyFilesystem
        );
        fs::write(share.join("two/mounts/0/y"), "").unwrap();
        for name in ["one", "early", "slave", "careful", "again", "tree", "reader"] {
            release(&share, &id(name)).await.unwrap();
            assert!(share.join("two/mounts/0/file").exists(), "{name} took it away");
        }
        // Another directory of the same name is another volume.
        fs::rename(&host, dir.join("old")).unwrap();
        file(&dir.join("host/other"), "");
        assert_ne!(take("new", "bind").await.0, one);
        assert!(share.join("new/mounts/0/other").exists());
        for name in ["new", "two"] {
            release(&share, &id(name)).await.unwrap();
        }
        assert_eq!(below(dir).unwrap(), before);
        assert_eq!(fs::read_dir(dir.join("shared.rw/.volumes")).unwrap().count(), 0);
        close(&share).await.unwrap();
        assert!(!dir.join("shared.ids").exists() && !dir.join("shared.rw").exists());
    });
}

#[test]
fn whichever_step_fails_everything_before_it_is_undone() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        file(&dir.join("host/file"), "x");
        open(&share).await.unwrap();
        let before = below(dir).unwrap();
        let missing = dir.join("host/missing");
        let broken = RootfsMount { kind: "no-such-fs".into(), source: "src".into(), ..Default::default() };
        let good = volume(0, &dir.join("host"), "rbind");
        let cases = [
            (vec![broken], vec![], "cannot mount src (no-such-fs) at"),
            (
                vec![overlay(dir)],
                vec![volume(0, &missing, "rbind")],
                "host/missing for volume 0 of container c1",
            ),
            (vec![overlay(dir)], vec![good.clone(), volume(1, &missing, "rbind")], "for volume 1"),
            (
                vec![overlay(dir)],
                vec![good.clone(), volume(2, &dir.join("host"), "rbind"), volume(3, &missing, "")],
                "for volume 3",
            ),
            (vec![overlay(dir)], vec![good, volume(1, &dir.join("host"), "idmap")], "cannot mount"),
            (vec![], vec![], "container c1 has no rootfs mount"),
        ];
        for (rootfs, binds, text) in cases {
            let error = prepare(&share, id("c1"), rootfs, binds).await.unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(below(dir).unwrap(), before, "{text}");
            assert!(!dir.join("shared.rw/c1").exists(), "{text}");
        }
        close(&share).await.unwrap();
    });
}

#[test]
fn a_mount_in_use_is_detached_in_the_end() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        prepare(&share, id("c1"), vec![overlay(dir)], vec![]).await.unwrap();
        let held = fs::File::open(share.join("c1/rootfs/etc/name")).unwrap();
        release(&share, &id("c1")).await.unwrap();
        assert!(!share.join("c1").exists());
        assert_eq!(std::io::read_to_string(held).unwrap(), "lower");
        close(&share).await.unwrap();
    });
}

#[test]
fn options_longer_than_a_page_are_mounted_all_the_same() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        let mut mount = overlay(dir);
        let store = dir.join("snap").join("x".repeat(80));
        let layers: Vec<String> = (0..45).map(|n| store.join(n.to_string()).display().to_string()).collect();
        for (n, layer) in layers.iter().enumerate() {
            file(&Path::new(layer).join(format!("file-{n}")), "x");
        }
        mount.options.retain(|option| !option.starts_with("lowerdir="));
        mount.options.push(format!("lowerdir={}", layers.join(":")));
        assert!(mount.options.join(",").len() > 4096);
        prepare(&share, id("c1"), vec![mount], vec![]).await.unwrap();
        for n in [0, 44] {
            assert!(share.join(format!("c1/rootfs/file-{n}")).exists());
        }
        close(&share).await.unwrap();
    });
}

#[test]
fn a_mount_inside_the_rootfs_cannot_be_led_out_of_it() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        let root = overlay(dir);
        fs::create_dir_all(dir.join("snap/1/fs/deep/inside")).unwrap();
        // In the image this is a link to the host's root, were it followed there.
        std::os::unix::fs::symlink("/deep", dir.join("snap/1/fs/link")).unwrap();
        std::os::unix::fs::symlink("../../../..", dir.join("snap/1/fs/up")).unwrap();
        file(&dir.join("host/file"), "x");
        let at = |target: &str| RootfsMount {
            kind: "bind".into(),
            source: dir.join("host").display().to_string(),
            target: target.into(),
            options: words("rbind,ro"),
        };
        let mounts = vec![root.clone(), at("/link/inside"), at("up/etc")];
        prepare(&share, id("c1"), mounts, vec![]).await.unwrap();
        let rootfs = share.join("c1/rootfs");
        for name in ["deep/inside/file", "etc/file"] {
            assert!(rootfs.join(name).exists(), "{name}");
        }
        release(&share, &id("c1")).await.unwrap();
        let error = prepare(&share, id("c1"), vec![root, at("nowhere")], vec![]).await.unwrap_err();
        assert!(error.to_string().contains("cannot reach nowhere inside"), "{error}");
        close(&share).await.unwrap();
    });
}

#[test]
fn a_share_reached_by_a_link_is_found_again() {
    in_own_mounts(async |dir| {
        fs::create_dir(dir.join("run")).unwrap();
        std::os::unix::fs::symlink("run", dir.join("link")).unwrap();
        let share = dir.join("link/shared");
        open(&share).await.unwrap();
        prepare(&share, id("c1"), vec![overlay(dir)], vec![]).await.unwrap();
        close(&share).await.unwrap();
        assert_eq!(below(&dir.join("run")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(fs::read_dir(dir.join("run")).unwrap().count(), 0);
    });
}

#[test]
fn nothing_is_mounted_without_a_share() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        let error = prepare(&share, id("c1"), vec![overlay(dir)], vec![]).await.unwrap_err();
        assert!(matches!(error, MountsError::NotOpen { .. }), "{error}");
    });
}

#[test]
fn the_actor_answers_and_a_command_outlives_its_caller() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        let mounts = Mounts::new(share.clone()).start();
        ask(&mounts, Open).await.unwrap();
        let rootfs = vec![overlay(dir)];
        let prepare = Prepare { container: id("c1"), rootfs, volumes: Volumes::default(), server: None };
        // Nobody waits for this one.
        let (reply, answer) = crate::ask::Reply::new();
        drop(answer);
        crate::ask::tell(&mounts, crate::ask::Request { command: prepare.clone(), reply }).unwrap();
        let again = ask(&mounts, prepare).await;
        assert!(again.unwrap_err().to_string().contains("there already"));
        ask(&mounts, Release { container: id("c1") }).await.unwrap();
        ask(&mounts, Close).await.unwrap();
        assert!(!share.exists());
    });
}

/// Errors of each act by errno(3): ENOENT 2, EIO 5, ENOMEM 12, EXDEV 18, ENODEV 19, ENOTDIR 20, EINVAL 22, ENOSPC 28,
/// ELOOP 40.
mod failed {
    use super::*;

    pub(super) fn path() -> PathBuf {
        "/x".into()
    }

    pub(super) fn container() -> ContainerId {
        ContainerId::new("c").unwrap()
    }

    pub(super) fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    pub(super) fn find(errno: i32) -> MountsError {
        MountsError::FindSource { source_path: path(), number: 0, container: container(), source: os(errno) }
    }

    pub(super) fn open(errno: i32) -> MountsError {
        let (source_path, target) = (path(), path());
        MountsError::Mount(MountError::OpenSource { source_path, target, source: os(errno) })
    }

    pub(super) fn attach(errno: i32) -> MountsError {
        let (kind, source_path, target) = ("overlay".to_owned(), path(), path());
        MountsError::Mount(MountError::Attach { kind, source_path, target, source: os(errno) })
    }

    pub(super) fn resolve(errno: i32) -> MountsError {
        MountsError::ResolveTarget { target: path(), container: container(), source: os(errno) }
    }
}

#[test]
fn what_the_caller_named_wrongly_is_its_own_fault() {
    use failed::{attach, container, find, open, path, resolve};

    let unsupported = OptionError::Unsupported("loop".to_owned());
    let callers = [
        MountsError::NoRootfs { container: container() },
        MountsError::Options { source_path: path(), source: unsupported },
        MountsError::HostSocket { path: path(), kind: SocketKind::Datagram, container: container() },
        find(2),
        find(20),
        find(40),
        open(2),
        attach(2),
        attach(19),
        attach(22),
        resolve(2),
        resolve(18),
    ];
    for error in callers {
        assert!(error.is_callers(), "{error:?}");
    }
}

#[test]
fn what_the_host_could_not_is_no_fault_of_the_caller() {
    use failed::{attach, container, find, open, os, path, resolve};

    let set = MountError::SetFlags { source_path: path(), target: path(), source: os(22) };
    let hosts = [
        find(5),
        open(12),
        attach(28),
        resolve(5),
        MountsError::Mount(set),
        MountsError::Mount(MountError::Share { target: path(), source: os(22) }),
        MountsError::Mount(MountError::Unmount { target: path(), source: os(22) }),
        MountsError::ListMounts { source: os(2) },
        MountsError::AlreadyPrepared { container: container() },
        MountsError::FindServer { source: ProcessError::Watch { pid: 1, source: os(2) } },
        MountsError::NotOpen { share: path() },
        MountsError::MakeMountPoint { path: path(), source: os(2) },
        MountsError::ReadVolumes { path: path(), source: os(2) },
        MountsError::RemoveMountPoint { path: path(), source: os(2) },
        MountsError::CutOff,
    ];
    for error in hosts {
        assert!(!error.is_callers(), "{error:?}");
    }
}
