//! What may be said of each piece of state.

use serde::{Deserialize, Serialize};

/// How faithful one piece of state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FidelityLevel {
    /// As it was at the instant of the crash.
    Exact,
    /// Made again from other state, in a way that what runs cannot tell or
    /// that it is built to bear.
    Reconstructed,
    /// Not in any dump; what runs may notice.
    Lost,
}

/// The fidelity report's word for general registers; what has lost them would be corrupted if it ran
/// on.
pub const REGISTERS: &str = "registers";

/// One line of the fidelity report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fidelity {
    /// How faithful it is.
    pub level: FidelityLevel,
    /// Whose state, e.g. `pid 812 thread 815`, `vm 0xffff… vcpu 1`.
    pub subject: String,
    /// Which state, e.g. `FPU registers`.
    pub what: String,
    /// How it was reconstructed, or why it is lost.
    pub how: String,
}

impl Fidelity {
    /// State that is exact where one would not expect it.
    pub fn exact(
        subject: impl Into<String>,
        what: impl Into<String>,
        how: impl Into<String>,
    ) -> Self {
        Self {
            level: FidelityLevel::Exact,
            subject: subject.into(),
            what: what.into(),
            how: how.into(),
        }
    }

    /// Lost state: it is in no dump.
    pub fn lost(
        subject: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            level: FidelityLevel::Lost,
            subject: subject.into(),
            what: what.into(),
            how: why.into(),
        }
    }

    /// Reconstructed state.
    pub fn reconstructed(
        subject: impl Into<String>,
        what: impl Into<String>,
        how: impl Into<String>,
    ) -> Self {
        Self {
            level: FidelityLevel::Reconstructed,
            subject: subject.into(),
            what: what.into(),
            how: how.into(),
        }
    }
}
