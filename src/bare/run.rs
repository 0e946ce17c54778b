//! Lets a bare guest run until it ends, or somebody ends it.

use super::Machine;
use super::devices::{Counts, Devices, Output, Request};
use super::exit::Exit;
use crate::sys::interrupt;
use crate::sys::own_vm::{self, OwnVcpu};
use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is looked whether somebody wants something.
const LOOK: Duration = Duration::from_millis(20);
/// How long vCPUs may take to stop. One may be stuck in a write to a terminal
/// that does not take it.
const STOP: Duration = Duration::from_secs(3);
/// Ctrl-a.
const ESCAPE: u8 = 1;

/// How a bare guest is run.
pub struct Settings {
    /// It is stopped after so long.
    pub limit: Option<Duration>,
    /// Where the serial port's output goes.
    pub output: Output,
    /// What is typed on its serial port; the end of it is not the guest's.
    pub keys: Option<Receiver<Vec<u8>>>,
    /// Ctrl-a x, typed, ends the guest, and ctrl-a ctrl-a is ctrl-a.
    pub escape: bool,
}

/// Why a bare guest ended.
#[derive(Debug)]
pub enum Ending {
    /// The time was up.
    Limit,
    /// Ctrl-a x.
    Escape,
    /// SIGINT or SIGTERM.
    Signal,
    /// Its output cannot be written any more.
    Output(std::io::Error),
    /// The guest turned itself off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// A vCPU halted where no interrupt can come.
    Halt,
    /// A triple fault: how some kernels reset a machine, or a crash.
    TripleFault,
    /// KVM or the CPU gave up.
    Broken(String),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Limit => f.write_str("the time was up"),
            Self::Escape => f.write_str("ctrl-a x"),
            Self::Signal => f.write_str("interrupted"),
            Self::Output(error) => write!(f, "its output cannot be written: {error}"),
            Self::PowerOff => f.write_str("the guest turned itself off"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Halt => f.write_str("it halted, and no interrupt can come"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl Ending {
    /// A word for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Escape => "escape",
            Self::Signal => "signal",
            Self::Output(_) => "output_closed",
            Self::PowerOff => "power_off",
            Self::Reset => "reset",
            Self::Halt => "halt",
            Self::TripleFault => "triple_fault",
            Self::Broken(_) => "broken",
        }
    }

    /// The guest fell over; else it was ended, or ended itself.
    pub fn is_failure(&self) -> bool {
        matches!(
            self,
            Self::Output(_) | Self::Halt | Self::TripleFault | Self::Broken(_)
        )
    }
}

/// What became of a bare guest.
#[derive(Debug)]
pub struct Outcome {
    pub ending: Ending,
    pub ran: Duration,
    /// By vCPU: exits that were answered.
    pub exits: Vec<u64>,
    pub counts: Counts,
}

/// A vCPU's thread, as others see it.
struct Runner {
    thread: JoinHandle<()>,
    tid: Arc<AtomicI32>,
    exits: Arc<AtomicU64>,
}

impl Machine {
    /// Runs the guest to its end, which is the end of the machine.
    pub fn run(self, settings: Settings, guard: &interrupt::Guard) -> Outcome {
        let start = Instant::now();
        let Settings {
            limit,
            output,
            keys,
            escape,
        } = settings;
        let mut devices = Devices::new(output, self.serial_interrupt);
        devices.interrupt(&self.shared);
        let devices = Arc::new(Mutex::new(devices));
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let mut runners = Vec::new();
        for (vcpu, pending) in self.vcpus.into_iter().zip(self.pending) {
            let (tid, exits) = (Arc::default(), Arc::default());
            let driver = Driver {
                vcpu,
                devices: Arc::clone(&devices),
                stop: Arc::clone(&stop),
                exits: Arc::clone(&exits),
                tell: tell.clone(),
            };
            let own_tid = Arc::clone(&tid);
            runners.push(Runner {
                thread: std::thread::spawn(move || driver.drive(pending, &own_tid)),
                tid,
                exits,
            });
        }
        drop(tell);
        let mut typing = Typing {
            escape,
            after_escape: false,
        };
        let ending = loop {
            if guard.interrupted() {
                break Ending::Signal;
            }
            let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                break Ending::Limit;
            }
            match told.recv_timeout(left.map_or(LOOK, |left| left.min(LOOK))) {
                Ok(ending) => break ending,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    break Ending::Broken("its vCPUs' threads have ended".into());
                }
            }
            let mut devices = devices.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = devices.output_error() {
                break Ending::Output(error);
            }
            let Some(bytes) = keys
                .as_ref()
                .filter(|_| devices.wants_input())
                .and_then(|keys| keys.try_recv().ok())
            else {
                continue;
            };
            match typing.take(&bytes) {
                Some(bytes) => devices.type_in(&bytes, &self.shared),
                None => break Ending::Escape,
            }
        };
        stop.store(true, Ordering::Relaxed);
        stop_all(&runners);
        Outcome {
            ending,
            ran: start.elapsed(),
            exits: runners
                .iter()
                .map(|r| r.exits.load(Ordering::Relaxed))
                .collect(),
            counts: devices
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .counts(),
        }
    }
}

/// Kicks vCPUs until they have stopped. One that does not is left behind: it
/// ends with this process.
fn stop_all(runners: &[Runner]) {
    let start = Instant::now();
    while start.elapsed() < STOP && runners.iter().any(|r| !r.thread.is_finished()) {
        for runner in runners.iter().filter(|r| !r.thread.is_finished()) {
            let tid = runner.tid.load(Ordering::Acquire);
            if tid != 0 {
                own_vm::kick(tid);
            }
        }
        // Again after this, should it have come before the call.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads standard input in a thread of its own, which ends with the process.
pub fn standard_input() -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        loop {
            match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => {
                    if sender.send(buffer[..len].to_vec()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Where in an escape sequence the one who types is.
struct Typing {
    escape: bool,
    after_escape: bool,
}

impl Typing {
    /// What goes to the guest; `None`: it is to end.
    fn take(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if !self.escape {
            return Some(bytes.to_vec());
        }
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (std::mem::take(&mut self.after_escape), byte) {
                (true, b'x') => return None,
                (false, ESCAPE) => self.after_escape = true,
                (_, byte) => out.push(byte),
            }
        }
        Some(out)
    }
}

/// A vCPU in its thread.
struct Driver {
    vcpu: OwnVcpu,
    devices: Arc<Mutex<Devices>>,
    stop: Arc<AtomicBool>,
    exits: Arc<AtomicU64>,
    tell: Sender<Ending>,
}

impl Driver {
    /// Runs until it is told to stop, or the guest ends. `pending`: an exit
    /// from before the crash comes first. Whether the dead VMM had answered it
    /// is not known; so a byte that it had already printed comes again.
    fn drive(mut self, pending: bool, tid: &AtomicI32) {
        tid.store(own_vm::can_be_kicked(), Ordering::Release);
        let mut ending = match pending {
            // What the VMM found wrong then is past; KVM says it again if it is so.
            true => self.answer().filter(|e| !matches!(e, Ending::Broken(_))),
            false => None,
        };
        while ending.is_none() && !self.stop.load(Ordering::Relaxed) {
            ending = match self.vcpu.run() {
                Ok(()) => self.answer(),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN) => None,
                    _ => Some(Ending::Broken(format!("KVM_RUN: {error}"))),
                },
            };
        }
        if let Some(ending) = ending {
            // Nobody listens when another vCPU was first.
            let _ = self.tell.send(ending);
        }
    }

    fn answer(&mut self) -> Option<Ending> {
        self.exits.fetch_add(1, Ordering::Relaxed);
        let vm = Arc::clone(self.vcpu.shared());
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let request = match Exit::of(self.vcpu.area()) {
            Exit::Out { port, size, data } => devices.port_out(port, size, data, &vm),
            Exit::In { port, size, data } => {
                devices.port_in(port, size, data, &vm);
                None
            }
            Exit::MmioRead { address, data } => {
                devices.memory_read(address, data);
                None
            }
            Exit::MmioWrite { address } => {
                devices.memory_write(address);
                None
            }
            Exit::Nothing => None,
            Exit::PowerOff => Some(Request::PowerOff),
            Exit::Reset => Some(Request::Reset),
            Exit::Halt => return Some(Ending::Halt),
            Exit::TripleFault => return Some(Ending::TripleFault),
            Exit::Broken(why) => return Some(Ending::Broken(why)),
        };
        request.map(|request| match request {
            Request::PowerOff => Ending::PowerOff,
            Request::Reset => Ending::Reset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_ends_it_and_ctrl_a_twice_is_ctrl_a() {
        let mut typing = Typing {
            escape: true,
            after_escape: false,
        };
        assert_eq!(typing.take(b"ab\x01").as_deref(), Some(&b"ab"[..]));
        assert_eq!(typing.take(b"\x01c\x01q").as_deref(), Some(&b"\x01cq"[..]));
        assert_eq!(typing.take(b"\x01"), Some(Vec::new()));
        assert_eq!(typing.take(b"x"), None);
        let mut plain = Typing {
            escape: false,
            after_escape: false,
        };
        assert_eq!(plain.take(b"\x01x").as_deref(), Some(&b"\x01x"[..]));
    }
}
