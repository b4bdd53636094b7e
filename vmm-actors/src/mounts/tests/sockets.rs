//! Unix sockets of the host as volumes.

use super::*;

#[test]
fn a_socket_of_the_host_is_described_and_not_mounted() {
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        let before = below(dir).unwrap();
        let (path, link) = (dir.join("sock"), dir.join("link"));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o620)).unwrap();
        std::os::unix::fs::chown(&path, Some(12), Some(34)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let binds =
            vec![volume(0, &path, "bind"), volume(1, &dir.join("snap"), "bind"), volume(2, &link, "ro")];
        let prepared = prepare(&share, id("c1"), vec![overlay(dir)], binds).await.unwrap();
        let described = |number| HostSocket { number, path: path.clone(), uid: 12, gid: 34, mode: 0o620 };
        assert_eq!(prepared.sockets, [described(0), described(2)]);
        assert!(share.join("c1/mounts/1").exists());
        assert!(!share.join("c1/mounts/0").exists() && !share.join("c1/mounts/2").exists());
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "the server was bothered");
        release(&share, &id("c1")).await.unwrap();
        // One that nobody serves at the moment may be served later.
        drop(listener);
        let alone = vec![volume(5, &path, "bind")];
        let prepared = prepare(&share, id("c1"), vec![overlay(dir)], alone).await.unwrap();
        assert_eq!(prepared.sockets, [described(5)]);
        release(&share, &id("c1")).await.unwrap();
        assert_eq!(below(dir).unwrap(), before);
        close(&share).await.unwrap();
    });
}

#[test]
fn a_socket_that_carries_no_stream_is_refused_by_name() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    in_own_mounts(async |dir| {
        let share = dir.join("shared");
        open(&share).await.unwrap();
        for (name, kind) in [("datagram", SocketType::DGRAM), ("seqpacket", SocketType::SEQPACKET)] {
            let path = dir.join(name);
            let server = socket(AddressFamily::UNIX, kind, None).unwrap();
            bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
            if kind == SocketType::SEQPACKET {
                listen(&server, 0).unwrap();
            }
            // Also when its queue is full.
            for _ in 0..3 {
                let volumes = vec![volume(0, &path, "bind")];
                let error = prepare(&share, id("c1"), vec![overlay(dir)], volumes).await.unwrap_err();
                assert!(matches!(&error, MountsError::HostSocket { .. }), "{error}");
                let text = error.to_string();
                assert!(text.contains(&format!("{name} is a {name} unix socket")), "{text}");
            }
        }
        close(&share).await.unwrap();
    });
}
