//! Runs inside containers, and beside them on the host: what one process hears and holds of a file that others have too.
//!
//! `file_probe watch DIRECTORY` prints `ready`, then the name of every file in it that inotify tells a change of.
//! `file_probe hold KIND FILE` takes a lock, prints `held` and keeps it until it is killed.
//! `file_probe try KIND FILE` takes it and lets go. KIND is `flock` or `fcntl`. A lock that another has is exit status 1.

use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::mem::MaybeUninit;
use std::process::ExitCode;

use rustix::fs::{FlockOperation, fcntl_lock, flock, inotify};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["watch", directory] => watch(directory),
        ["hold", kind, file] => lock(kind, file).and_then(|_lock| {
            say("held")?;
            loop {
                rustix::event::pause();
            }
        }),
        ["try", kind, file] => lock(kind, file).map(drop),
        _ => Err(Error::other("usage: file_probe watch DIRECTORY | hold KIND FILE | try KIND FILE")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.kind() == std::io::ErrorKind::WouldBlock { 1 } else { 2 })
        }
    }
}

fn say(line: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn watch(directory: &str) -> Result<(), Error> {
    #[allow(clippy::disallowed_methods, reason = "it is what is to be tested")]
    let queue = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let changes = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::MOVE
        | inotify::WatchFlags::DELETE;
    inotify::add_watch(&queue, directory, changes)?;
    say("ready")?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&queue, &mut buffer);
    loop {
        let event = events.next()?;
        if let Some(name) = event.file_name() {
            say(&name.to_string_lossy())?;
        }
    }
}

fn lock(kind: &str, file: &str) -> Result<File, Error> {
    // An exclusive lock by fcntl is for writers only.
    let file = OpenOptions::new().read(true).write(kind == "fcntl").open(file)?;
    match kind {
        "flock" => flock(&file, FlockOperation::NonBlockingLockExclusive)?,
        "fcntl" => fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?,
        other => return Err(Error::other(format!("no such kind of lock: {other}"))),
    }
    Ok(file)
}
