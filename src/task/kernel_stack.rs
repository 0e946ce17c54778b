//! What a sleeping thread keeps on its kernel stack: the timer that will wake it, and where its call is.
//!
//! Where a function keeps its variables no table says, so they are looked for by what they must be:
//! structures whose members point to what is known from elsewhere.

use super::clock::Clocks;
use super::page_cache::words;
use crate::kernel::{Kernel, KernelError, Object};

/// Bytes of a kernel stack (THREAD_SIZE of x86-64).
const STACK: u64 = 16 << 10;
/// Bytes of the user's registers at its end: `struct pt_regs`.
const REGISTERS: u64 = 168;

/// The stack of a thread that does not run, from its pointer up.
pub(super) struct Stack<'k> {
    kernel: &'k Kernel,
    sp: u64,
    words: Vec<u64>,
}

impl<'k> Stack<'k> {
    pub fn of(task: &Object<'k>) -> Result<Stack<'k>, KernelError> {
        let end = task.ptr("stack")?.wrapping_add(STACK);
        let sp = task.u("thread.sp")?;
        let len = end.wrapping_sub(sp);
        if len > STACK || !sp.is_multiple_of(8) {
            return Err(KernelError::Damaged {
                what: "thread_struct.sp",
                addr: task.addr(),
                detail: format!("it is {sp:#x}, and the stack ends at {end:#x}"),
            });
        }
        // The user's own registers are no part of it.
        let len = len.saturating_sub(REGISTERS);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        task.kernel().read(sp, &mut bytes)?;
        Ok(Stack {
            kernel: task.kernel(),
            sp,
            words: words(&bytes),
        })
    }

    pub fn kernel(&self) -> &'k Kernel {
        self.kernel
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Addresses of its words, the deepest first.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        let sp = self.sp;
        (0..self.words.len() as u64).map(move |i| sp.wrapping_add(i * 8))
    }

    /// The word at an address.
    pub fn word(&self, at: u64) -> Option<u64> {
        let offset = at.checked_sub(self.sp)?;
        let index = usize::try_from(offset / 8).ok()?;
        self.words
            .get(index)
            .filter(|_| offset.is_multiple_of(8))
            .copied()
    }

    /// A function is among those that it may return to.
    pub fn is_in(&self, function: &str) -> bool {
        let kernel = self.kernel;
        let (Ok(entry), Ok(len)) = (kernel.symbol(function), kernel.symbol_size(function)) else {
            return false;
        };
        self.words
            .iter()
            .any(|word| *word != entry && word.wrapping_sub(entry) < len)
    }

    /// It may have fallen asleep over a page of the process that was not there: in the middle of
    /// copying, when what is counted and what is there are not the same.
    pub fn may_be_in_a_fault(&self) -> bool {
        const FAULT: &str = "asm_exc_page_fault";
        self.kernel.symbol(FAULT).is_err() || self.is_in(FAULT)
    }
}

/// Time until the timer that the thread sleeps on wakes it, if there is one: its `hrtimer_sleeper`.
/// Nanoseconds.
pub(super) fn sleep_left(clocks: &Clocks, task: &Object<'_>) -> Option<i64> {
    let kernel = task.kernel();
    let wakeup = kernel.symbol("hrtimer_wakeup").ok()?;
    let function = kernel.offset_of("hrtimer", "function").ok()?;
    let stack = Stack::of(task).ok()?;
    let found = stack.addresses().zip(stack.words());
    found
        .filter(|(_, word)| **word == wakeup)
        .filter_map(|(at, _)| {
            let at = at.checked_sub(function)?;
            let timer = kernel.object("hrtimer_sleeper", at).ok()?;
            (timer.ptr("task").ok()? == task.addr()).then_some(timer)
        })
        .find_map(|sleeper| {
            let clock = sleeper.follow("timer.base").ok()?.i("clockid").ok()?;
            // When it was asked to wake; the queue's own time has the slack on top.
            let expires = match sleeper.has("timer._softexpires") {
                true => sleeper.i("timer._softexpires").ok()?,
                false => sleeper.i("timer.node.expires").ok()?,
            };
            Some(expires.saturating_sub(clocks.now(clock)))
        })
}
