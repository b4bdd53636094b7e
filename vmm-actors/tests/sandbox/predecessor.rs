//! A service in a process of its own, which a test can end as suddenly as it likes.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vmm_actors::sandbox::record::Phase;
use vmm_actors::testing::{FakeDriver, Fault};

use crate::node::{Node, Place};

/// Set in the environment of a test program that is to be a service: the file with its place and task.
const ROLE: &str = "BULKHEAD_FAKE_SERVICE";
/// What it prints when it has done its task.
const DONE: &str = "the task is done";

/// What the service does before it waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Task {
    /// A pod runs.
    Run,
    /// A pod runs whose VMM wants much memory when it is told to.
    RunHungry,
    /// A pod was created and boots for ever.
    Boot,
    /// A pod was created; nobody has started it.
    Create,
    /// A pod ran and was stopped.
    Stop,
}

/// The service's process; killed with this value.
pub(crate) struct Predecessor(Child);

impl Predecessor {
    /// A service on this node that has done its task with the pod "p".
    pub(crate) fn of(node: &Node, task: Task) -> Self {
        Self::of_pod(node, task, "p")
    }

    /// The same with a pod of another id.
    pub(crate) fn of_pod(node: &Node, task: Task, id: &str) -> Self {
        let file = node.root.path().join("predecessor.json");
        std::fs::write(&file, serde_json::to_vec(&(&node.place, task, id)).unwrap()).unwrap();
        let mut service = Command::new(std::env::current_exe().unwrap());
        service.args(["--exact", "be_a_service_when_told_to", "--nocapture", "--test-threads=1"]);
        service.env(ROLE, &file).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut service = Self(service.spawn().unwrap());
        let output = BufReader::new(service.0.stdout.take().unwrap());
        let done = output.lines().map_while(Result::ok).any(|line| line.contains(DONE));
        assert!(done, "the predecessor did not get there");
        service
    }

    /// As `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.0.kill().and_then(|()| self.0.wait()).is_err() {
            println!("the predecessor, process {}, is left", self.0.id());
        }
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves in a process that [`Predecessor::of`] has started, until it is killed; else returns at once.
pub(crate) async fn serve_when_told_to() {
    let Some(file) = std::env::var_os(ROLE) else { return };
    let (place, task, id): (Place, Task, String) =
        serde_json::from_slice(&std::fs::read(Path::new(&file)).unwrap()).unwrap();
    let driver = FakeDriver::default().with_vsock_helper();
    let driver = match task {
        Task::Boot => driver.then(Fault::NeverAnnounces),
        Task::RunHungry => driver.then(Fault::Eats(256)),
        Task::Run | Task::Create | Task::Stop => driver,
    };
    let service = place.serve(driver);
    service.create(&id).await.unwrap();
    match task {
        Task::Run | Task::RunHungry => drop(service.start(&id).await.unwrap()),
        Task::Boot => {
            while service.driver.launched().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Task::Create => drop(service.until(&id, "created").await),
        Task::Stop => {
            service.start(&id).await.unwrap();
            service.stop(&id).await;
            // Stop does not wait for the disk.
            while !matches!(place.record(&id).unwrap().phase, Phase::Stopped { .. }) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    println!("\n{DONE}");
    std::future::pending::<()>().await;
}
