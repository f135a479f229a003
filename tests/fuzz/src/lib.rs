//! Holds `src/hitless` to its promise, in memory, thousands of times a second.
//!
//! [`hitless`] is the very code that serves, in a [`world`] without a kernel; [`application`] is what it serves here.
//! [`case`] feeds a connection to it twice, once as it comes and once through restarts, and the client must not be
//! able to tell which was which. `tests/` and `fuzz.rs` think of the cases.

// What the code of `src/hitless` calls by these names.
extern crate world as rustix;
extern crate world as socket2;
extern crate world as std;
extern crate world as tokio;

pub mod application;
pub mod case;
pub mod hitless;

// Where the machinery finds its own modules: at the root of its crate.
use hitless::{connection, connections, frames, held, ledger, listener, notice, queue, upload};
