//! The terminal in raw mode, for a guest that is spoken to.

use std::os::fd::RawFd;

/// While this lives, the terminal hands every key on as it is; dropping it puts
/// the terminal back.
pub struct RawMode {
    terminal: RawFd,
    former: libc::termios,
}

impl RawMode {
    /// Of standard input; `None` where that is no terminal. What is written is
    /// still processed, so that a line feed starts a new line.
    pub fn of_stdin() -> Option<Self> {
        let terminal = libc::STDIN_FILENO;
        // SAFETY: termios is plain data, filled by tcgetattr before its use.
        unsafe {
            let mut former: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(terminal, &raw mut former) != 0 {
                return None;
            }
            let mut raw = former;
            libc::cfmakeraw(&raw mut raw);
            raw.c_oflag = former.c_oflag;
            if libc::tcsetattr(terminal, libc::TCSADRAIN, &raw const raw) != 0 {
                return None;
            }
            Some(Self { terminal, former })
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // SAFETY: the attributes are what the terminal had.
        unsafe { libc::tcsetattr(self.terminal, libc::TCSADRAIN, &raw const self.former) };
    }
}

/// Rows and columns of the terminal at standard error; `None` where that is
/// none, or does not say.
pub fn size() -> Option<(u16, u16)> {
    // SAFETY: winsize is plain data, filled by the call.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        let asked = libc::ioctl(libc::STDERR_FILENO, libc::TIOCGWINSZ, &raw mut size);
        (asked == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    }
}
