//! Per-CPU variables, and which CPUs there were.

use super::{Kernel, KernelError};

/// `CONFIG_NR_CPUS` goes up to 8192.
const MAX_CPUS: u64 = 8192;

impl Kernel {
    /// The address of a CPU's own copy of a per-CPU variable. `addr` is what a symbol, or a pointer
    /// from `alloc_percpu`, says. Linux include/linux/percpu-defs.h: `per_cpu_ptr`.
    pub fn per_cpu(&self, addr: u64, cpu: u32) -> Result<u64, KernelError> {
        let table = self.symbol("__per_cpu_offset")?;
        let offset = self.read_u64(table.wrapping_add(u64::from(cpu) * 8))?;
        // CPUs that are not possible have no area: their entries point into init data, or are 0.
        if u64::from(cpu) >= MAX_CPUS || !self.mask_has("__cpu_possible_mask", cpu)? {
            return Err(KernelError::Damaged {
                what: "CPU number",
                addr: table,
                detail: format!("CPU {cpu} was not possible on that machine"),
            });
        }
        Ok(addr.wrapping_add(offset))
    }

    /// The CPUs that were present, by number. That includes those offline: at a panic the others are
    /// stopped, and some ways of stopping mark them offline.
    pub fn cpus(&self) -> Result<Vec<u32>, KernelError> {
        self.mask("__cpu_present_mask")
    }

    /// The CPUs that were online when the memory was saved.
    pub fn online_cpus(&self) -> Result<Vec<u32>, KernelError> {
        self.mask("__cpu_online_mask")
    }

    fn mask_has(&self, name: &str, cpu: u32) -> Result<bool, KernelError> {
        let word = self.symbol(name)?.wrapping_add(u64::from(cpu / 64) * 8);
        Ok(self.read_u64(word)? >> (cpu % 64) & 1 != 0)
    }

    fn mask(&self, name: &str) -> Result<Vec<u32>, KernelError> {
        let mask = self.object("cpumask", self.symbol(name)?)?;
        let bits = mask.get("bits")?;
        let words = bits.array_len().unwrap_or(0).min(MAX_CPUS / 64);
        let mut cpus = Vec::new();
        for word in 0..words {
            let value = bits.element(word)?.unsigned()?;
            cpus.extend(
                (0..64u32)
                    .filter(|bit| value >> bit & 1 != 0)
                    .map(|bit| word as u32 * 64 + bit),
            );
        }
        Ok(cpus)
    }
}
