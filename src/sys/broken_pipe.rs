//! What happens when nobody reads our output any more.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Ends this process quietly when it writes to a pipe that is closed, as `vmrestore list DUMP | head`
/// does. Not for commands that must finish what they have begun.
pub fn end_quietly() {
    // SAFETY: the default action takes no handler, so no code of ours runs in a signal's context; a
    // failure leaves things as they are.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
