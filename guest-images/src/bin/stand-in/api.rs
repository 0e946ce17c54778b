//! The API: a UNIX socket at which one line is asked and one answered.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::guards::{Guard, Probe};
use crate::vcpu::Bus;
use vmm_sys_util::eventfd::EventFd;

/// Answers for ever. `sci` raises ACPI's interrupt.
pub fn serve(listener: &UnixListener, bus: &Bus, sci: &EventFd, probe: &Probe) {
    Guard::Api.enter();
    let mut answered = 0u64;
    for stream in listener.incoming().flatten() {
        probe.look(Guard::Api);
        answered += 1;
        // A client that has gone is none of the others' business.
        let _ = answer(stream, answered, bus, sci, probe);
    }
}

fn answer(
    stream: UnixStream,
    answered: u64,
    bus: &Bus,
    sci: &EventFd,
    probe: &Probe,
) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut line)?;
    let mut stream = stream;
    match line.trim() {
        "ping" => writeln!(stream, "pong {answered} guards={probe}"),
        "power" => {
            bus.power.press();
            sci.write(1)?;
            writeln!(stream, "pressed")
        }
        "quit" => {
            writeln!(stream, "bye")?;
            bus.exit.write(1)
        }
        other => writeln!(stream, "what is {other:?}?"),
    }
}

/// The client: asks at a socket, prints the answer.
pub fn ask(path: &str, question: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    writeln!(stream, "{question}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}
