//! Volumes that have mounts of the host in them.

use super::*;

#[test]
fn mounts_of_the_host_come_along_and_stay_the_hosts() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        let (early, late) = (dir.join("host/early"), dir.join("host/late"));
        for path in [&early, &late] {
            fs::create_dir_all(path).unwrap();
        }
        mount("tmpfs", &early, "tmpfs", MountFlags::empty(), c"").unwrap();
        file(&early.join("file"), "early");
        open(&share).await.unwrap();
        let guest = Spectator::new();
        let host = dir.join("host");
        let binds = ["rbind,rslave", "rbind,rshared", "rbind,rprivate", "rbind,rro"];
        let binds = binds.iter().zip(0..).map(|(options, number)| volume(number, &host, options)).collect();
        prepare(&share, id("c1"), vec![overlay(dir)], binds).await.unwrap();
        mount("tmpfs", &late, "tmpfs", MountFlags::empty(), c"").unwrap();
        file(&late.join("file"), "late");
        for (number, sees_late) in [(0, true), (1, true), (2, false), (3, false)] {
            let place = share.join(format!("c1/mounts/{number}"));
            assert_eq!(guest.read(&place.join("early/file")).unwrap(), "early");
            assert_eq!(guest.read(&place.join("late/file")).is_ok(), sees_late, "volume {number}");
        }
        assert!(guest.write(&share.join("c1/mounts/0/early/other")).is_ok());
        assert!(guest.write(&share.join("c1/mounts/3/early/other")).is_err(), "rro is not recursive");
        release(&share, &id("c1")).await.unwrap();
        // Unmounting the copies has not unmounted what they are copies of.
        assert!(early.join("file").exists() && late.join("file").exists());
        drop(guest);
        close(&share).await.unwrap();
        unmount(&late, rustix::mount::UnmountFlags::empty()).unwrap();
        unmount(&early, rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

#[test]
fn a_volume_may_hold_the_share_itself() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        let guest = Spectator::new();
        let before = below(dir).unwrap();
        let binds = vec![volume(0, dir, "rbind,rslave,ro"), volume(1, dir, "rbind,rshared")];
        prepare(&share, id("c1"), vec![overlay(dir)], binds).await.unwrap();
        assert!(below(dir).unwrap().len() < 20);
        assert_eq!(guest.read(&share.join("c1/mounts/0/snap/1/fs/etc/name")).unwrap(), "lower");
        release(&share, &id("c1")).await.unwrap();
        assert_eq!(below(dir).unwrap(), before);
        drop(guest);
        close(&share).await.unwrap();
    });
}

#[test]
fn a_directory_that_the_host_unmounted_can_be_removed_while_a_container_has_it() {
    in_own_mounts(async |dir| {
        let share = dir.join("pod/shared");
        fs::create_dir(dir.join("pod")).unwrap();
        let below_volume = dir.join("host/volume/below");
        fs::create_dir_all(&below_volume).unwrap();
        mount("tmpfs", &below_volume, "tmpfs", MountFlags::empty(), c"").unwrap();
        file(&below_volume.join("file"), "there");
        open(&share).await.unwrap();

        let args = ["--mount", "--propagation", "slave", "sleep", "100"];
        let mut server = std::process::Command::new("unshare").args(args).spawn().unwrap();
        let start = std::time::Instant::now();
        let name = format!("/proc/{}/comm", server.id());
        while fs::read_to_string(&name).unwrap() != "sleep\n" {
            assert!(start.elapsed() < Duration::from_secs(10), "unshare does not start");
            std::thread::yield_now();
        }
        let process = ProcessIdentity::of(server.id()).unwrap();
        let seen =
            |path: &str| PathBuf::from(format!("/proc/{}/root{}/{path}", process.pid, share.display()));

        let binds = vec![volume(0, &dir.join("host/volume"), "rbind,rprivate,ro")];
        let known = Some(FileServer { process: process.clone(), share: share.clone() });
        let volumes = Volumes { binds, memory_of: None };
        prepare_for(known, &share, id("c1"), vec![overlay(dir)], volumes).await.unwrap();
        assert_eq!(fs::read_to_string(seen("c1/mounts/0/below/file")).unwrap(), "there");
        assert!(!share.join("c1/mounts/0/below").exists(), "it is in our way");
        fs::write(seen("c1/mounts/0/below/new"), "only the volume itself is read-only").unwrap();

        unmount(&below_volume, rustix::mount::UnmountFlags::empty()).unwrap();
        fs::remove_dir(&below_volume).unwrap();

        release(&share, &id("c1")).await.unwrap();
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid)).unwrap();
        assert!(!table.contains("/c1/"), "{table}");
        server.kill().unwrap();
        server.wait().unwrap();
        close(&share).await.unwrap();
    });
}
