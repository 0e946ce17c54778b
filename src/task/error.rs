//! Why a process could not be read.

use crate::kernel::KernelError;

/// Why a question about a process has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TaskError {
    /// No such process.
    #[error("no process with PID {pid} ran when the host died")]
    NoSuchProcess {
        /// PID in the initial PID namespace.
        pid: i32,
    },
    /// A thread of the kernel has nothing to restore.
    #[error("PID {pid} ({comm}) is a thread of the kernel, not a process")]
    KernelThread {
        /// PID.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// It was dead already.
    #[error("process {pid} ({comm}) was dead or dying when the host died: it has no address space")]
    Exited {
        /// PID.
        pid: i32,
        /// Its name.
        comm: String,
    },
    /// A process of a kind that cannot be restored.
    #[error("process {pid} ({comm}) cannot be read: {what}")]
    Unsupported {
        /// PID.
        pid: i32,
        /// Its name.
        comm: String,
        /// What is unsupported.
        what: String,
    },
    /// Something that the process cannot do without is unreadable.
    #[error("process {pid} ({comm}): cannot read its {what}")]
    Process {
        /// PID.
        pid: i32,
        /// Its name.
        comm: String,
        /// What could not be read.
        what: &'static str,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The dead kernel as a whole could not be read.
    #[error("cannot read the dead kernel's {what}")]
    Kernel {
        /// What could not be read.
        what: &'static str,
        /// Why.
        #[source]
        source: KernelError,
    },
}
