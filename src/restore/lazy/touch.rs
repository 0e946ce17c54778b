//! What a guest looks at first when it goes on: the code and stacks of its vCPUs, their descriptor
//! tables, and the page tables on the way there.

use super::board::PAGE;
use super::choice;
use crate::dataset::{Dataset, PageSource, Process, Vcpu, Vm};

/// Bits of CR0, CR4 and EFER. Intel SDM volume 3, 2.5 and 2.2.1.
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

/// A page table entry: it is there, it maps a large page, its address.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Addresses in the process's memory, in the order in which they are wanted.
pub fn of_guests(dataset: &Dataset, process: &Process, pages: &dyn PageSource) -> Vec<u64> {
    let mut found = Vec::new();
    for vm in dataset.vms.iter().filter(|vm| vm.pid == process.pid) {
        let memory = Memory {
            dataset,
            process,
            vm,
            pages,
        };
        for vcpu in &vm.vcpus {
            memory.of_vcpu(vcpu, &mut found);
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found
}

struct Memory<'a> {
    dataset: &'a Dataset,
    process: &'a Process,
    vm: &'a Vm,
    pages: &'a dyn PageSource,
}

impl Memory<'_> {
    fn of_vcpu(&self, vcpu: &Vcpu, found: &mut Vec<u64>) {
        let s = &vcpu.sregs;
        let code = s.cs.base.wrapping_add(vcpu.regs.rip);
        let wanted = [code, vcpu.regs.rsp, s.gdt.base, s.idt.base, s.tr.base];
        let is_paged = s.cr0 & CR0_PG != 0;
        let is_long = s.efer & EFER_LMA != 0 && s.cr4 & CR4_LA57 == 0;
        for address in wanted {
            match (is_paged, is_long) {
                (false, _) => found.extend(self.user_address(address)),
                // Of other ways to page only the root is known.
                (true, false) => found.extend(self.user_address(s.cr3 & ADDRESS)),
                (true, true) => self.walk(s.cr3 & ADDRESS, address, found),
            }
        }
    }

    /// The tables on the way to a linear address, and its page.
    fn walk(&self, root: u64, linear: u64, found: &mut Vec<u64>) {
        let mut table = root;
        for level in (0..4).rev() {
            let Some(user) = self.user_address(table) else {
                return;
            };
            found.push(user);
            let index = linear >> (12 + 9 * level) & 511;
            let Some(entry) = self.word(user + index * 8).filter(|e| e & PRESENT != 0) else {
                return;
            };
            if level > 0 && entry & LARGE != 0 {
                let size = 1u64 << (12 + 9 * level);
                let page = (entry & ADDRESS & !(size - 1)) | (linear & (size - 1));
                found.extend(self.user_address(page));
                return;
            }
            table = entry & ADDRESS;
        }
        found.extend(self.user_address(table));
    }

    /// Where the VMM has the page of a guest-physical address.
    fn user_address(&self, physical: u64) -> Option<u64> {
        let page = physical / PAGE * PAGE;
        let slots = self.vm.memslots.iter().filter(|s| s.address_space == 0);
        slots
            .filter_map(|slot| {
                let offset = page.checked_sub(slot.guest_address)?;
                (offset < slot.size).then(|| slot.user_address.wrapping_add(offset))
            })
            .next()
    }

    /// A word of the process's memory.
    fn word(&self, address: u64) -> Option<u64> {
        let page = address / PAGE * PAGE;
        let vmas = &self.process.mm.vmas;
        let vma = vmas.iter().find(|v| v.start <= page && page < v.end)?;
        let (runs, place) = match choice::of(vma) {
            None => (vma.pages.as_slice(), page),
            Some((id, offset)) => {
                let memory = self.dataset.shared_memory.iter().find(|m| m.id == id)?;
                (memory.pages.as_slice(), page - vma.start + offset)
            }
        };
        let at = runs
            .partition_point(|run| run.start <= place)
            .checked_sub(1)?;
        let run = runs.get(at)?;
        let first = (place - run.start) / PAGE;
        if first >= run.count {
            return None;
        }
        let mut bytes = [0u8; PAGE as usize];
        self.pages.read_pages(run, first, 1, &mut bytes).ok()?;
        let offset = (address % PAGE) as usize;
        let word = bytes.get(offset..offset + 8)?.try_into().ok()?;
        Some(u64::from_ne_bytes(word))
    }
}
