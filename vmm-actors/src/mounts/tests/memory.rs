//! Volumes in memory.

use std::os::unix::fs::{PermissionsExt, chown};

use super::*;
use crate::host::mount::{BindFlags, Filesystem, Mount};

fn tmpfs(at: &Path) -> Mount {
    fs::create_dir_all(at).unwrap();
    let kind = Filesystem {
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        flags: rustix::mount::MountFlags::empty(),
        data: vec!["size=2m".into()],
    };
    Mount::filesystem(&kind, at).unwrap()
}

#[test]
fn an_empty_dir_in_memory_is_described_with_its_sub_paths_and_not_mounted() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        let pod = dir.join("pods/u-1");
        let empty_dir = pod.join("volumes/kubernetes.io~empty-dir/cache");
        let (_cache, secret) = (tmpfs(&empty_dir), pod.join("volumes/kubernetes.io~secret/token"));
        let _secret = tmpfs(&secret);
        chown(&empty_dir, None, Some(34)).unwrap();
        fs::set_permissions(&empty_dir, fs::Permissions::from_mode(0o2770)).unwrap();
        // As kubelet prepares a subPath.
        fs::create_dir_all(empty_dir.join("a/b")).unwrap();
        fs::set_permissions(empty_dir.join("a/b"), fs::Permissions::from_mode(0o2750)).unwrap();
        let sub = pod.join("volume-subpaths/cache/main/0");
        fs::create_dir_all(&sub).unwrap();
        let _sub = Mount::bind(&empty_dir.join("a/b"), &sub, BindFlags::default()).unwrap();
        let binds = || {
            let paths = [&empty_dir, &sub, &empty_dir.join("a"), &secret, &pod];
            paths.into_iter().zip(0..).map(|(path, number)| volume(number, path, "rbind")).collect::<Vec<_>>()
        };
        let prepare = async |pod_uid: Option<&str>| {
            let volumes = Volumes { binds: binds(), memory_of: pod_uid.map(str::to_owned) };
            let made = prepare_for(None, &share, id("c1"), vec![overlay(dir)], volumes).await.unwrap();
            let mounted =
                (0..5).filter(|number| share.join(format!("c1/mounts/{number}")).exists()).collect();
            release(&share, &id("c1")).await.unwrap();
            (made.memory, mounted)
        };
        let (memory, mounted): (_, Vec<_>) = prepare(Some("u-1")).await;
        assert_eq!(mounted, [3, 4], "a Secret, and a host path around it all");
        let root = Ownership { uid: 0, gid: 34, mode: 0o2770 };
        let described: Vec<_> =
            memory.iter().map(|volume| (volume.number, volume.sub_path.as_str(), volume.sub.mode)).collect();
        assert_eq!(described, [(0, "", 0o2770), (1, "a/b", 0o2750), (2, "a", 0o2755)]);
        for volume in &memory {
            assert_eq!((volume.name.as_str(), volume.size_bytes, volume.root), ("cache", 2 << 20, root));
        }
        for other in [None, Some("u-2"), Some("")] {
            let (memory, mounted) = prepare(other).await;
            assert_eq!((memory, mounted), (vec![], vec![0, 1, 2, 3, 4]), "{other:?}");
        }
        close(&share).await.unwrap();
    });
}
