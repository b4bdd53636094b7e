//! Why a call failed, in gRPC's terms.

/// gRPC status codes that a sandboxer answers with (<https://grpc.io/docs/guides/status-codes/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request itself is wrong; repeating it is useless.
    InvalidArgument,
    /// No such sandbox.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The sandbox is not in a state for this call.
    FailedPrecondition,
    /// The node cannot give what the sandbox needs.
    ResourceExhausted,
    /// The bound on this call is over.
    DeadlineExceeded,
    /// Try again: the service is starting, ending, or lost a helper.
    Unavailable,
    /// Not offered.
    Unimplemented,
    /// A fault of the sandboxer or its host.
    Internal,
}

/// A failed call: its code, and what a person reads in `kubectl describe pod`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What containerd decides by.
    pub code: Code,
    /// Which sandbox, which step, what to do.
    pub message: String,
}

impl Failure {
    /// A failure with this code and text.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            Code::InvalidArgument => tonic::Code::InvalidArgument,
            Code::NotFound => tonic::Code::NotFound,
            Code::AlreadyExists => tonic::Code::AlreadyExists,
            Code::FailedPrecondition => tonic::Code::FailedPrecondition,
            Code::ResourceExhausted => tonic::Code::ResourceExhausted,
            Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
            Code::Unavailable => tonic::Code::Unavailable,
            Code::Unimplemented => tonic::Code::Unimplemented,
            Code::Internal => tonic::Code::Internal,
        };
        Self::new(code, failure.message)
    }
}
