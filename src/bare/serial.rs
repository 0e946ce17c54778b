//! A 16550 serial port, as a guest left one behind: what its registers held
//! went with its VMM.
//!
//! Registers by National Semiconductor's PC16550D data sheet. There is no line:
//! what is sent has left at once, and the FIFO of what is received holds
//! whatever has been typed.

use std::collections::VecDeque;

/// Registers.
pub const PORTS: u16 = 8;

/// Interrupt enable: received data, transmitter empty, line status, modem status.
const IER_RDI: u8 = 1;
const IER_THRI: u8 = 2;
const IER_RLSI: u8 = 4;
const LCR_DLAB: u8 = 0x80;
const LCR_8N1: u8 = 3;
const MCR_LOOP: u8 = 0x10;
const MCR_DTR_RTS_OUT2: u8 = 0xb;
const LSR_DR: u8 = 1;
const LSR_THRE_TEMT: u8 = 0x60;
/// Clear to send, data set ready, carrier.
const MSR_READY: u8 = 0xb0;
const IIR_NONE: u8 = 1;
const IIR_THRI: u8 = 2;
const IIR_RDI: u8 = 4;
const IIR_FIFO: u8 = 0xc0;

/// What is kept of what nobody reads. Bytes.
const MOST_INPUT: usize = 4096;

/// The port.
#[derive(Debug)]
pub struct Serial {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: bool,
    /// The transmitter became empty, and nobody has been told.
    empty: bool,
    input: VecDeque<u8>,
}

impl Default for Serial {
    /// As a driver leaves a port that it has open: 115200 8N1, FIFOs on,
    /// interrupts for received data. The one for an empty transmitter is on
    /// too, and waits: a driver that was sending when the host died gets the
    /// interrupt that it waits for, and one that was not finds nothing to send.
    fn default() -> Self {
        Self {
            interrupt_enable: IER_RDI | IER_THRI | IER_RLSI,
            line_control: LCR_8N1,
            modem_control: MCR_DTR_RTS_OUT2,
            scratch: 0,
            divisor: [1, 0],
            fifo: true,
            empty: true,
            input: VecDeque::new(),
        }
    }
}

impl Serial {
    /// A register is read.
    pub fn read(&mut self, register: u16) -> u8 {
        let dlab = self.line_control & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor[0],
            1 if dlab => self.divisor[1],
            0 => self.input.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let fifo = if self.fifo { IIR_FIFO } else { 0 };
                let cause = self.cause();
                if cause == IIR_THRI {
                    self.empty = false;
                }
                cause | fifo
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.input.is_empty() => LSR_THRE_TEMT,
            5 => LSR_THRE_TEMT | LSR_DR,
            6 if self.modem_control & MCR_LOOP != 0 => {
                // RTS, DTR, OUT1, OUT2 come back as CTS, DSR, RI, DCD.
                let m = self.modem_control;
                (m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4
            }
            6 => MSR_READY,
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// A register is written; a byte that is sent.
    pub fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        let dlab = self.line_control & LCR_DLAB != 0;
        match register {
            0 if dlab => self.divisor[0] = value,
            1 if dlab => self.divisor[1] = value,
            0 if self.modem_control & MCR_LOOP != 0 => {
                self.type_in(&[value]);
                self.empty = true;
            }
            0 => {
                self.empty = true;
                return Some(value);
            }
            1 => {
                // The transmitter is empty always: the driver is told so when
                // it comes to want it. Whether it had wanted it before is not
                // known of the first time.
                self.interrupt_enable = value & 0xf;
                self.empty |= value & IER_THRI != 0;
            }
            2 => {
                self.fifo = value & 1 != 0;
                if value & 2 != 0 {
                    self.input.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    /// Whether the interrupt line is up.
    pub fn interrupt(&self) -> bool {
        self.cause() != IIR_NONE
    }

    /// Bytes arrive; what is typed beyond what fits is lost, as on a line.
    pub fn type_in(&mut self, bytes: &[u8]) {
        let room = MOST_INPUT.saturating_sub(self.input.len());
        self.input.extend(bytes.iter().take(room));
    }

    /// Nothing waits to be read: more may come.
    pub fn wants_input(&self) -> bool {
        self.input.is_empty()
    }

    /// What the interrupt identification register says.
    fn cause(&self) -> u8 {
        if self.interrupt_enable & IER_RDI != 0 && !self.input.is_empty() {
            IIR_RDI
        } else if self.interrupt_enable & IER_THRI != 0 && self.empty {
            IIR_THRI
        } else {
            IIR_NONE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_was_sending_is_told_to_go_on() {
        let mut port = Serial::default();
        assert!(port.interrupt());
        assert_eq!(port.read(2) & 0xf, IIR_THRI);
        // Told once.
        assert!(!port.interrupt());
        assert_eq!(port.write(0, b'x'), Some(b'x'));
        assert!(port.interrupt());
        // It has nothing more to send.
        port.read(2);
        port.write(1, IER_RDI | IER_RLSI);
        assert!(!port.interrupt());
        // And then it has.
        port.write(1, IER_RDI | IER_RLSI | IER_THRI);
        assert!(port.interrupt());
    }

    /// Linux's driver turns the interrupt on when it has something to send, and
    /// sends nothing before it comes.
    #[test]
    fn a_driver_that_was_idle_is_told_when_it_comes_to_send() {
        let mut port = Serial::default();
        // It was not sending: it asks why it was interrupted, and does no more.
        port.read(2);
        assert!(!port.interrupt());
        port.write(1, IER_RDI | IER_RLSI | IER_THRI);
        assert!(port.interrupt());
        assert_eq!(port.read(2) & 0xf, IIR_THRI);
    }

    #[test]
    fn what_is_typed_is_read_in_its_order() {
        let mut port = Serial::default();
        port.write(1, IER_RDI);
        port.type_in(b"ab");
        assert_eq!(port.read(2) & 0xf, IIR_RDI);
        assert_eq!(port.read(5) & LSR_DR, LSR_DR);
        assert_eq!([port.read(0), port.read(0)], *b"ab");
        assert_eq!(port.read(5) & LSR_DR, 0);
        assert!(!port.interrupt());
    }

    /// Linux's autoconfig: the loop-back test of drivers/tty/serial/8250.
    #[test]
    fn a_driver_that_looks_for_it_finds_a_16550() {
        let mut port = Serial::default();
        port.write(4, MCR_LOOP | 0xa);
        assert_eq!(port.read(6) & 0xf0, 0x90);
        port.write(4, 3);
        port.write(2, 1);
        assert_eq!(port.read(2) >> 6, 3);
        port.write(3, LCR_DLAB);
        port.write(0, 12);
        assert_eq!(port.read(0), 12);
        port.write(3, LCR_8N1);
        port.write(7, 0x5a);
        assert_eq!(port.read(7), 0x5a);
    }
}
