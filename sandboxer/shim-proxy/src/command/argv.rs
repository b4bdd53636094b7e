//! The command line: `serve` for the sandboxer, and containerd's shim protocol with its Go-style flags (fact 1.8).

use std::path::PathBuf;

/// The action that the command line names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Serve a pod until it is removed.
    Serve(ServeArgs),
    /// containerd's `delete`: answer how a container ended, and delete it.
    Delete(DeleteArgs),
    /// containerd's `start`.
    Start,
    /// `-info`: the features of this runtime.
    Info,
    /// `-v`.
    Version,
}

/// Arguments of `serve`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServeArgs {
    /// The sandbox.
    pub(crate) id: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The sandboxer's `control.sock`.
    pub(crate) control: PathBuf,
    /// containerd's ttrpc socket, for events.
    pub(crate) containerd_events: PathBuf,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// error, warn, info, debug or trace; empty: info.
    pub(crate) log_level: String,
}

/// Arguments of `delete`, from containerd's flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteArgs {
    /// The container.
    pub(crate) id: String,
    /// Its bundle; empty: the working directory.
    pub(crate) bundle: PathBuf,
}

/// A command line that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgvError {
    /// There is no action.
    #[error("say what to do: serve, delete, start, -info or -v")]
    NoAction,
    /// The action is not known.
    #[error("unknown action {0:?}; known are serve, delete, start, -info and -v")]
    UnknownAction(String),
    /// A flag of `serve` is missing.
    #[error("serve needs --{0}")]
    Missing(&'static str),
    /// A flag of `serve` is not known.
    #[error("serve does not know {0:?}")]
    UnknownFlag(String),
    /// A flag has no value.
    #[error("{0:?} needs a value")]
    NoValue(String),
}

/// containerd's flags that take a value. Flags that are not known are tolerated.
const VALUED: &[&str] = &["namespace", "address", "publish-binary", "id", "bundle", "socket", "log-level"];
/// Flags that take no value.
const SWITCHES: &[&str] = &["debug", "v", "version", "info", "h", "help"];
const ACTIONS: &[&str] = &["serve", "start", "delete"];

/// Parses the arguments, without the program's name.
///
/// # Errors
/// [`ArgvError`].
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, ArgvError> {
    let mut arguments = arguments.into_iter().peekable();
    let mut delete = DeleteArgs::default();
    let mut early = None;
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            return early.map_or_else(|| action(&argument, delete, arguments), Ok);
        };
        let (name, mut value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        match name {
            "v" | "version" => early = Some(Command::Version),
            "info" => early = early.or(Some(Command::Info)),
            name => {
                let looks_valued =
                    |next: &String| !next.starts_with('-') && !ACTIONS.contains(&next.as_str());
                let takes = VALUED.contains(&name)
                    || (!SWITCHES.contains(&name) && arguments.peek().is_some_and(looks_valued));
                if value.is_none() && takes {
                    value = arguments.next();
                }
                match name {
                    "id" => delete.id = value.unwrap_or_default(),
                    "bundle" => delete.bundle = value.unwrap_or_default().into(),
                    _ => {}
                }
            }
        }
    }
    early.ok_or(ArgvError::NoAction)
}

fn action(name: &str, delete: DeleteArgs, rest: impl Iterator<Item = String>) -> Result<Command, ArgvError> {
    match name {
        "serve" => serve(rest).map(Command::Serve),
        "delete" => Ok(Command::Delete(delete)),
        "start" => Ok(Command::Start),
        other => Err(ArgvError::UnknownAction(other.to_owned())),
    }
}

fn serve(mut rest: impl Iterator<Item = String>) -> Result<ServeArgs, ArgvError> {
    let mut args = ServeArgs::default();
    while let Some(flag) = rest.next() {
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag.as_str(), rest.next()),
        };
        let value = value.ok_or_else(|| ArgvError::NoValue(name.to_owned()))?;
        match name {
            "--id" => args.id = value,
            "--dir" => args.dir = value.into(),
            "--control" => args.control = value.into(),
            "--containerd-events" => args.containerd_events = value.into(),
            "--namespace" => args.namespace = value,
            "--log-level" => args.log_level = value,
            other => return Err(ArgvError::UnknownFlag(other.to_owned())),
        }
    }
    let given = [
        ("id", args.id.is_empty()),
        ("dir", args.dir.as_os_str().is_empty()),
        ("control", args.control.as_os_str().is_empty()),
        ("containerd-events", args.containerd_events.as_os_str().is_empty()),
        ("namespace", args.namespace.is_empty()),
    ];
    match given.into_iter().find(|(_, missing)| *missing) {
        Some((name, _)) => Err(ArgvError::Missing(name)),
        None => Ok(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, ArgvError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn delete(id: &str, bundle: &str) -> Result<Command, ArgvError> {
        Ok(Command::Delete(DeleteArgs { id: id.into(), bundle: bundle.into() }))
    }

    #[test]
    fn delete_is_parsed_in_every_spelling_of_its_flags() {
        let line =
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id C -bundle /b";
        assert_eq!(parsed(&format!("{line} delete")), delete("C", "/b"));
        assert_eq!(parsed(&format!("{line} -debug delete")), delete("C", "/b"));
        assert_eq!(parsed("--id=C -bundle=/b delete"), delete("C", "/b"));
        assert_eq!(parsed("delete"), delete("", ""));
    }

    #[test]
    fn unknown_flags_are_tolerated_with_and_without_value() {
        assert_eq!(parsed("-novel -id C delete"), delete("C", ""));
        assert_eq!(parsed("-novel value -id C delete"), delete("C", ""));
        assert_eq!(parsed("-novel=value -id C delete"), delete("C", ""));
        assert_eq!(parsed("-id C -novel delete"), delete("C", ""));
    }

    #[test]
    fn info_and_version_need_no_action() {
        assert_eq!(parsed("-info"), Ok(Command::Info));
        assert_eq!(parsed("-debug --info"), Ok(Command::Info));
        assert_eq!(parsed("-v"), Ok(Command::Version));
        assert_eq!(parsed(""), Err(ArgvError::NoAction));
        assert_eq!(parsed("-id C start"), Ok(Command::Start));
        assert_eq!(parsed("fly"), Err(ArgvError::UnknownAction("fly".into())));
    }

    #[test]
    fn serve_needs_all_its_flags_and_takes_no_others() {
        let line = "serve --id s --dir /d --control=/c --containerd-events /e --namespace k8s.io";
        let Ok(Command::Serve(args)) = parsed(line) else { panic!("not understood") };
        assert_eq!((args.id.as_str(), args.control), ("s", PathBuf::from("/c")));
        assert_eq!(parsed("serve --id s"), Err(ArgvError::Missing("dir")));
        assert_eq!(parsed("serve --id"), Err(ArgvError::NoValue("--id".into())));
        assert_eq!(parsed("serve --what x"), Err(ArgvError::UnknownFlag("--what".into())));
    }
}
