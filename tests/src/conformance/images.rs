//! The root file system of the suites' images: Debian's busybox, and what the suites' busybox has besides.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::{self, Image};
use crate::node::Node;

/// Users and groups of an image.
#[derive(Debug, Clone, Copy)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: &'static str,
    /// `/etc/group`.
    pub group: &'static str,
}

/// An image as its Dockerfile would say.
#[must_use]
pub fn image(name: &str, entrypoint: &[&str], command: &[&str], user: &str) -> Image {
    Image {
        name: name.into(),
        entrypoint: entrypoint.iter().map(|&part| part.into()).collect(),
        command: command.iter().map(|&part| part.into()).collect(),
        user: user.into(),
    }
}

/// Where the imported images lie as an OCI layout.
#[must_use]
pub fn layout(node: &Node) -> PathBuf {
    image::layout(&archive(node))
}

fn archive(node: &Node) -> PathBuf {
    node.dir().join("suite/images.tar")
}

/// Makes all `images` of one root, which `fill` fills, and imports them into the node's containerd.
pub async fn import(node: &Node, images: Vec<Image>, fill: impl FnOnce(&Path, &Path) + Send + 'static) {
    let archive = archive(node);
    let folder = archive.parent().expect("the archive lies in a folder").to_owned();
    let names: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
    let (busybox, target) = (node.base().busybox.clone(), archive.clone());
    tokio::task::spawn_blocking(move || {
        let root = folder.join("root");
        fill(&root, &busybox);
        image::archive(&target, &root, &images);
    })
    .await
    .expect("the images are built");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    image::import_archive(node, &archive, &names).await;
}

/// Folders, users, and a busybox with each of its applets but those of `without` as a file of its own.
pub fn fill_root(root: &Path, busybox: &Path, accounts: Accounts, without: &[&str]) {
    for path in
        ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "mnt", "home", "var/run", "usr/sbin", "usr/bin"]
    {
        std::fs::create_dir_all(root.join(path)).expect("make the images' root");
    }
    set_mode(&root.join("tmp"), 0o1777);
    let program = root.join("bin/busybox");
    std::fs::copy(busybox, &program).expect("copy busybox");
    let list = Command::new(busybox).arg("--list").output().expect("ask busybox for its applets");
    let wanted = |applet: &&str| *applet != "busybox" && !without.contains(applet);
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(wanted) {
        // Hard links, as in the suites' own image: masking one file must not mask them all.
        std::fs::hard_link(&program, root.join("bin").join(applet)).expect("link an applet");
    }
    std::fs::write(root.join("etc/passwd"), accounts.passwd).expect("write passwd");
    std::fs::write(root.join("etc/group"), accounts.group).expect("write group");
}

/// A program that is a script.
pub fn script(root: &Path, path: &str, text: &str) {
    std::fs::write(root.join(path), text).expect("write a script");
    set_mode(&root.join(path), 0o755);
}

/// A program of the machine's.
pub fn program(root: &Path, path: &str, from: &Path, mode: u32) {
    let to = root.join(path);
    std::fs::create_dir_all(to.parent().expect("a program lies in a folder")).expect("make its folder");
    std::fs::copy(from, &to).unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
    set_mode(&to, mode);
}

/// Sets the mode of a file or folder.
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set a mode");
}
