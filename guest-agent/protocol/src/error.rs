//! How an error is told where it leaves a program: in a status, in a log line, in a record.

use std::error::Error;

/// An error with all its causes, in one line. A cause that the text before it ends with is not repeated: transparent
/// wrappers, and some libraries, include the cause in their own text.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = message(cause);
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}

/// The text of one cause. Of a status that the peer of a ttrpc call has answered, only the peer's message: ttrpc itself
/// would print its data structure.
fn message(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<ttrpc::Error>() {
        Some(ttrpc::Error::RpcStatus(status)) => status.message().to_owned(),
        Some(_) | None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("call")]
    struct Call(#[source] ttrpc::Error);

    #[test]
    fn each_cause_is_told_once() {
        assert_eq!(chain(&Outer(Inner)), "outer: inner");
    }

    #[test]
    fn a_status_is_told_by_its_message_alone() {
        let status = ttrpc::get_status(ttrpc::Code::INVALID_ARGUMENT, "no such sysctl");
        assert_eq!(chain(&Call(ttrpc::Error::RpcStatus(status))), "call: no such sysctl");
    }
}
