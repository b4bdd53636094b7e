//! What a VM is made of is missing, broken or silent: the error names it, nothing is left, and with the thing back
//! pods run again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_tests::node::Options;
use bulkhead_tests::wait;
use tonic::Status;

use crate::stage::Stage;

/// A stage whose sandboxer reaches one of its files through a link that the test can bend.
struct Bent {
    stage: Stage,
    link: PathBuf,
    real: PathBuf,
}

impl Bent {
    async fn set(table: &str, key: &str, more: &[(&str, &str, &str)]) -> Option<Self> {
        let mut stage = Stage::vm(Options { sandboxer_later: true, ..Options::default() }).await?;
        let product = stage.node.product().clone();
        let real = match (table, key) {
            ("guest", "kernel") => product.kernel,
            ("guest", "image") => product.image,
            ("qemu", "path") => product.qemu,
            ("qemu", "vsock_path") => product.vsock,
            ("virtiofsd", "path") => product.virtiofsd,
            ("shim", "binary") => product.bin.join("containerd-shim-bulkhead-v2"),
            other => panic!("no file behind {other:?}"),
        };
        let link = stage.node.dir().join(format!("bent-{table}-{key}"));
        std::os::unix::fs::symlink(&real, &link).unwrap();
        stage.node.set(table, key, format!("\"{}\"", link.display()));
        for (table, key, value) in more {
            stage.node.set(table, key, *value);
        }
        stage.node.start_sandboxer().await;
        let pod = stage.cri().run_pod("whole").await;
        stage.cri().end_pod(&pod).await;
        stage.look_again().await;
        Some(Self { stage, link, real })
    }

    fn put(&self, content: &str, mode: u32) {
        std::fs::remove_file(&self.link).unwrap();
        std::fs::write(&self.link, content).unwrap();
        std::fs::set_permissions(&self.link, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A pod fails now, quickly, with `wanted` in the error and nothing left.
    async fn expect_failure(&self, wanted: &[&str]) -> Status {
        let start = Instant::now();
        let config = self.stage.cri().pod_config("broken");
        let status =
            self.stage.cri().try_run_pod(config).await.map(drop).expect_err("the pod starts all the same");
        eprintln!("{:?} after {:?}", status.message(), start.elapsed());
        for word in wanted {
            assert!(status.message().contains(word), "{word:?} is not in {status:?}");
        }
        self.stage.expect_clean().await;
        status
    }

    /// With the real file back a pod runs.
    async fn mend(self) {
        if self.link.exists() {
            std::fs::remove_file(&self.link).unwrap();
        }
        std::os::unix::fs::symlink(&self.real, &self.link).unwrap();
        let pod = self.stage.cri().run_pod("mended").await;
        self.stage.end(&pod).await;
    }
}

async fn missing(table: &str, key: &str) {
    let Some(bent) = Bent::set(table, key, &[]).await else { return };
    std::fs::remove_file(&bent.link).unwrap();
    let path = bent.link.display().to_string();
    bent.expect_failure(&[&path]).await;
    bent.mend().await;
}

async fn not_executable(table: &str, key: &str) {
    let Some(bent) = Bent::set(table, key, &[]).await else { return };
    bent.put("#!/bin/sh\n", 0o644);
    let path = bent.link.display().to_string();
    bent.expect_failure(&[&path]).await;
    bent.mend().await;
}

macro_rules! for_each_file {
    ($($name:ident: $check:ident($table:literal, $key:literal);)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                $check($table, $key).await;
            }
        )*
    };
}

for_each_file! {
    kernel_missing: missing("guest", "kernel");
    image_missing: missing("guest", "image");
    vmm_missing: missing("qemu", "path");
    virtiofsd_missing: missing("virtiofsd", "path");
    vsock_helper_missing: missing("qemu", "vsock_path");
    shim_proxy_missing: missing("shim", "binary");
    vmm_not_executable: not_executable("qemu", "path");
    virtiofsd_not_executable: not_executable("virtiofsd", "path");
    vsock_helper_not_executable: not_executable("qemu", "vsock_path");
    shim_proxy_not_executable: not_executable("shim", "binary");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_vmm_that_exits_at_once_are_in_the_error() {
    let tcg = [("qemu", "accelerator", "\"tcg\"")];
    let Some(bent) = Bent::set("qemu", "path", &tcg).await else { return };
    bent.put("#!/bin/sh\necho 'no room in the engine shed' >&2\nexit 3\n", 0o755);
    bent.expect_failure(&["no room in the engine shed"]).await;
    bent.mend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_a_virtiofsd_that_exits_at_once_are_in_the_error() {
    let Some(bent) = Bent::set("virtiofsd", "path", &[]).await else { return };
    bent.put("#!/bin/sh\necho 'the share is shut' >&2\nexit 3\n", 0o755);
    bent.expect_failure(&["the share is shut"]).await;
    bent.mend().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_answers_is_given_up_with_its_console() {
    let short = [("guest", "boot_timeout_secs", "12")];
    let Some(bent) = Bent::set("guest", "image", &short).await else { return };
    std::fs::remove_file(&bent.link).unwrap();
    silent_image(&bent.stage, &bent.link).await;
    let start = Instant::now();
    let status = bent.expect_failure(&["this guest says nothing to anybody"]).await;
    assert!(
        start.elapsed() < wait::patiently(Duration::from_secs(40)),
        "given up after {:?}: {status:?}",
        start.elapsed()
    );
    bent.mend().await;
}

/// An initramfs with a busybox shell as init that prints one line and sleeps.
async fn silent_image(stage: &Stage, to: &Path) {
    let root = stage.node.dir().join("silent-root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::create_dir_all(root.join("dev")).unwrap();
    std::fs::copy(&stage.node.base().busybox, root.join("bin/busybox")).unwrap();
    let init =
        "#!/bin/busybox sh\necho this guest says nothing to anybody\nexec /bin/busybox sleep 1000000\n";
    std::fs::write(root.join("init"), init).unwrap();
    std::fs::set_permissions(root.join("init"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!(
        "cd {} && mknod dev/console c 5 1 && find . | busybox cpio -o -H newc > {}",
        root.display(),
        to.display()
    );
    stage.node.run(&["sh", "-c", &script]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_panics_at_boot_is_given_up_at_once() {
    let Some(bent) = Bent::set("guest", "image", &[]).await else { return };
    bent.put("this is not an initramfs", 0o644);
    let start = Instant::now();
    bent.expect_failure(&["panic"]).await;
    assert!(
        start.elapsed() < wait::patiently(Duration::from_secs(40)),
        "given up after {:?}",
        start.elapsed()
    );
    bent.mend().await;
}

/// A stage whose state directory is a small file system of its own.
async fn small_state_dir() -> Option<Stage> {
    let mut stage = Stage::vm(Options { sandboxer_later: true, ..Options::default() }).await?;
    let state = stage.node.state_dir().display().to_string();
    stage.node.run(&["mount", "-t", "tmpfs", "-o", "size=256k", "state", &state]).await;
    stage.node.start_sandboxer().await;
    let pod = stage.cri().run_pod("roomy").await;
    stage.cri().end_pod(&pod).await;
    stage.look_again().await;
    Some(stage)
}

async fn expect_state_dir_error(stage: &Stage) {
    let config = stage.cri().pod_config("recordless");
    let status = stage.cri().try_run_pod(config).await.map(drop).expect_err("a pod without a record starts");
    let state = stage.node.state_dir().display().to_string();
    assert!(status.message().contains(&state), "{state} is not in {status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_directory_is_named() {
    let Some(stage) = small_state_dir().await else { return };
    let filler = stage.node.state_dir().join("filler").display().to_string();
    stage.node.run(&["sh", "-c", &format!("dd if=/dev/zero of={filler} bs=4k 2>/dev/null || true")]).await;
    expect_state_dir_error(&stage).await;
    stage.node.run(&["rm", &filler]).await;
    stage.expect_clean().await;
    let pod = stage.cri().run_pod("room-again").await;
    stage.end(&pod).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_state_directory_is_named() {
    let Some(stage) = small_state_dir().await else { return };
    let state = stage.node.state_dir().display().to_string();
    stage.node.run(&["mount", "-o", "remount,ro", &state]).await;
    expect_state_dir_error(&stage).await;
    stage.node.run(&["mount", "-o", "remount,rw", &state]).await;
    stage.expect_clean().await;
    let pod = stage.cri().run_pod("writable-again").await;
    stage.end(&pod).await;
}
