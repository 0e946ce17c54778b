//! Kernel modules.

use std::ffi::CStr;
use std::io;

/// Loads a module from its (unpacked) content. One that is loaded already is no error.
///
/// # Errors
/// `init_module(2)` refused.
pub fn load(content: &[u8], parameters: &CStr) -> io::Result<()> {
    // SAFETY: the content's own pointer and length, and a string that ends with NUL; the kernel copies
    // both.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_init_module,
            content.as_ptr(),
            content.len(),
            parameters.as_ptr(),
        )
    };
    if answer == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}
