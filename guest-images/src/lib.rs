//! Programs that run inside the lab: the small guest's init, the host's agent
//! and the ordinary program.
//!
//! | binary | runs as | tells the judge |
//! |---|---|---|
//! | `guest-init` | PID 1 of each small guest (static) | memory, counter, disk sequence, vector registers and clocks are whole |
//! | `lab-agent` | PID 1 of the lab's host | nothing: it carries commands and file contents |
//! | `lab-net` | plain processes of the lab's host | the other side of networks, sockets and terminals |
//! | `lab-process` | a plain process of the lab's host | threads, pipes, timers, signals and files are whole |
//!
//! The formulas here are restated, not shared, by the lab's judge: a program
//! that is wrong about itself must not be believed.

pub mod clock;
pub mod disk;
pub mod line;
pub mod net;
pub mod pattern;
pub mod ports;
