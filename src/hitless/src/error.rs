use std::{fmt, io};

/// Why a service cannot start, or an instance cannot be reached.
///
/// Its `Debug` is a sentence as well, with its causes: where `main` gives an error, that is what the operator reads.
#[non_exhaustive]
pub enum Error {
    /// There is no tokio runtime here. (In one without timers and sockets, tokio itself panics.)
    NoRuntime,
    /// The signals that tell a process to leave cannot be handled.
    Signals(io::Error),
    /// There is no thread for what ends the process where everything else is stuck.
    Thread(io::Error),
    /// The process may have fewer descriptors than it needs for a single connection (`ulimit -n`, `LimitNOFILE=`).
    TooFewDescriptors {
        /// How many it may have.
        allowed: u64,
        /// How many it needs, and one for each connection.
        needed: u64,
    },
    /// The service's own socket could not be bound: what the service itself said.
    Bind(io::Error),
    /// A listening socket cannot be registered with the runtime.
    Listen(io::Error),
    /// An instance does not take a connection.
    Instance(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRuntime => f.write_str("there is no tokio runtime here"),
            Self::Signals(_) => f.write_str("signals cannot be handled"),
            Self::Thread(_) => f.write_str("there is no thread for what ends the process at last"),
            Self::TooFewDescriptors { allowed, needed } => write!(
                f,
                "{allowed} descriptors are allowed (ulimit -n, LimitNOFILE=), which is not enough: the service needs \
                 {needed}, and one for each connection"
            ),
            Self::Bind(error) | Self::Instance(error) => error.fmt(f),
            Self::Listen(_) => f.write_str("a listening socket cannot be served"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoRuntime | Self::TooFewDescriptors { .. } => None,
            Self::Signals(error) | Self::Thread(error) | Self::Listen(error) => Some(error),
            // What they say is said already.
            Self::Bind(error) | Self::Instance(error) => std::error::Error::source(error),
        }
    }
}
