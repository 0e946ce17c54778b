//! VMAs: what is mapped where, and which pages are the process's own.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::area::{anonymous_name, areas, special_name};
use super::extract::Extraction;
use super::file::{self, operations};
use super::inode::{self, Runs};
use super::mapped::{Together, clip, push_frames, shift, unreadable};
use super::page_frame::Frames;
use super::path::{self, Name, Place};
use super::sysv;
use crate::dataset::{MappingKind, PageContent, PageRun, Vma};
use crate::kernel::{AddressSpace, Entry, KernelError, Object};

/// Bytes in a page.
const PAGE: u64 = 4096;
/// Most pages of the vDSO, of which it has two to four.
const MAX_VDSO: usize = 64;

/// `vm_flags`. Linux include/linux/mm.h.
/// Set in every mapping with MAP_SHARED; VM_SHARED is not where the file was
/// opened for reading alone.
const VM_MAYSHARE: u64 = 0x80;
const VM_MAYWRITE: u64 = 0x20;
const VM_GROWSDOWN: u64 = 0x100;
const VM_PFNMAP: u64 = 0x400;
const VM_IO: u64 = 0x4000;
const VM_HUGETLB: u64 = 0x40_0000;
/// The kernel's own name of the file behind MAP_ANONYMOUS | MAP_HUGETLB. Linux
/// include/linux/hugetlb.h, HUGETLB_ANON_FILE.
const ANON_HUGEPAGE: &str = "/anon_hugepage";

/// The VMAs of `mm`, with their pages.
pub(super) fn read(
    x: &mut Extraction<'_, '_>,
    mm: &Object<'_>,
    subject: &str,
    root: Option<Place>,
) -> Result<Vec<Vma>, KernelError> {
    let kernel = x.kernel;
    // The same object, with the extraction's own lifetime.
    let mm = kernel.object("mm_struct", mm.addr())?;
    let space = super::access::space(&mm)?;
    let mut reader = Reader {
        space,
        subject,
        root,
        vdso: mm.ptr("context.vdso").unwrap_or(0),
        vdso_image: mm.follow("context.vdso_image").ok(),
        heap: (mm.u("start_brk")?, mm.u("brk")?),
        orphans: HashMap::new(),
    };
    let mut out = Vec::new();
    for area in areas(&mm)? {
        out.push(reader.area(x, &area)?);
    }
    out.sort_by_key(|v| v.start);
    Ok(out)
}

struct Reader<'a, 'k> {
    space: AddressSpace<'k>,
    subject: &'a str,
    root: Option<Place>,
    vdso: u64,
    /// The kernel's own copy of the vDSO, which every process's is mapped from.
    vdso_image: Option<Object<'k>>,
    heap: (u64, u64),
    /// Pages in the cache of files without a name, by inode.
    orphans: HashMap<u64, Vec<PageRun>>,
}

/// Which pages of an area are taken from the page tables.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    None,
    /// All that are mapped.
    All,
    /// Those that are anonymous: written to, and no longer the file's.
    Anonymous,
}

impl<'k> Reader<'_, 'k> {
    fn area(&mut self, x: &mut Extraction<'_, 'k>, area: &Object<'k>) -> Result<Vma, KernelError> {
        let (start, end) = (area.u("vm_start")?, area.u("vm_end")?);
        let flags = area.u("vm_flags")?;
        if start >= end || start % PAGE != 0 || end % PAGE != 0 || end > 1 << 56 {
            return Err(KernelError::Damaged {
                what: "vm_area_struct",
                addr: area.addr(),
                detail: format!("it spans {start:#x} to {end:#x}"),
            });
        }
        let file = area.follow_opt("vm_file")?;
        let huge_page = match &file {
            Some(file) if flags & VM_HUGETLB != 0 => inode::huge_page(&file.follow("f_inode")?),
            _ => 0,
        };
        let (kind, pages) = match file {
            None => self.without_file(x, area, start, end, flags)?,
            Some(file) => {
                let offset = area.u("vm_pgoff")?.wrapping_mul(PAGE);
                self.with_file(x, &file, start, end, flags, offset)?
            }
        };
        Ok(Vma {
            start,
            end,
            flags,
            kind,
            pages,
            huge_page,
        })
    }

    /// The vDSO's code, by which another kernel's can be told apart.
    fn vdso_pages(&self, x: &Extraction<'_, 'k>, start: u64, end: u64) -> Vec<PageRun> {
        let data = self.vdso_image.as_ref().and_then(|i| i.ptr("data").ok());
        let mut pages = Vec::new();
        for (index, at) in (start..end).step_by(4096).enumerate() {
            if index >= MAX_VDSO {
                return Vec::new();
            }
            let place = data.map(|data| data.wrapping_add(index as u64 * PAGE));
            let Some(frame) = place.and_then(|va| x.kernel.virt_to_phys(va).ok()) else {
                return Vec::new();
            };
            pages.push(PageRun {
                start: at,
                count: 1,
                content: PageContent::Frame(frame / PAGE),
            });
        }
        pages
    }

    fn without_file(
        &mut self,
        x: &mut Extraction<'_, 'k>,
        area: &Object<'k>,
        start: u64,
        end: u64,
        flags: u64,
    ) -> Result<(MappingKind, Vec<PageRun>), KernelError> {
        if let Some(name) = special_name(area) {
            let kind = match name.as_str() {
                "[vdso]" => MappingKind::Vdso,
                // [vvar_vclock] is a part of it with an area of its own since
                // v6.13.
                "[vvar]" | "[vvar_vclock]" => MappingKind::Vvar,
                _ => MappingKind::Unsupported { why: name },
            };
            let pages = match kind {
                MappingKind::Vdso => self.vdso_pages(x, start, end),
                _ => Vec::new(),
            };
            return Ok((kind, pages));
        }
        if start == self.vdso {
            return Ok((MappingKind::Vdso, self.vdso_pages(x, start, end)));
        }
        if flags & (VM_PFNMAP | VM_IO) != 0 {
            let why = "memory of a device, mapped without a file".to_owned();
            return Ok((MappingKind::Unsupported { why }, Vec::new()));
        }
        let kind = MappingKind::Anonymous {
            name: anonymous_name(area),
            stack: flags & VM_GROWSDOWN != 0,
            heap: start <= self.heap.1 && end > self.heap.0 && self.heap.1 > self.heap.0,
        };
        Ok((kind, self.own_pages(x, start, end, Take::All)?))
    }

    fn with_file(
        &mut self,
        x: &mut Extraction<'_, 'k>,
        file: &Object<'k>,
        start: u64,
        end: u64,
        flags: u64,
        offset: u64,
    ) -> Result<(MappingKind, Vec<PageRun>), KernelError> {
        let kernel = x.kernel;
        let object = file.follow("f_inode")?;
        let mode = inode::mode(&object)?;
        let shared = flags & VM_MAYSHARE != 0;
        let name = path::name(kernel, Place::of(&file.get("f_path")?)?, self.root)?;
        let anonymous = MappingKind::Anonymous {
            name: None,
            stack: false,
            heap: false,
        };
        // Anonymous inodes first: newer kernels give them the mode of a regular
        // file.
        if operations(kernel, file)? == "kvm_vcpu_fops"
            || name.path.starts_with("anon_inode:kvm-vcpu")
        {
            let kind = MappingKind::KvmVcpu {
                file: x.file(file.addr(), self.root),
                offset,
            };
            return Ok((kind, Vec::new()));
        }
        let fs_type = inode::fs_type(&object)?;
        let is_memory = inode::lives_in_memory(&fs_type);
        match mode & 0o170_000 {
            0o100_000
                if is_memory
                    || !(name.nameless || matches!(fs_type.as_str(), "aio" | "secretmem")) => {}
            // A private mapping of /dev/zero is anonymous memory.
            0o020_000 if inode::device_number(&object)? == (1, 5) && !shared => {
                return Ok((anonymous, self.own_pages(x, start, end, Take::All)?));
            }
            0o020_000 => {
                let kind = MappingKind::Device {
                    file: x.file(file.addr(), self.root),
                    path: name.path,
                    offset,
                };
                return Ok((kind, Vec::new()));
            }
            _ => {
                if fs_type == "aio" {
                    return Ok((MappingKind::AioRing, Vec::new()));
                }
                let why = format!("a mapping of {}", name.path);
                x.lost(self.subject, &format!("mapping at {start:#x}"), why.clone());
                return Ok((MappingKind::Unsupported { why }, Vec::new()));
            }
        }
        let cache = file.follow("f_mapping")?;
        if shared
            && name.nameless
            && let Some((memory, attachment)) = sysv::attachment(x, file, &object, &name.path)?
        {
            let kind = MappingKind::Segment {
                memory,
                attachment,
                offset,
            };
            return Ok((kind, Vec::new()));
        }
        if name.nameless || name.deleted {
            return self.orphan(x, &object, &cache, &name, (start, end), shared, offset);
        }
        let file_id = x.file(file.addr(), self.root);
        let writable = shared && flags & VM_MAYWRITE != 0;
        let inode_id = x.inode(&object, Some(&cache), &name.path, writable)?;
        let pages = if shared {
            if writable && !is_memory {
                let dirty = self.dirty_pages(x.frames, start, end, offset)?;
                x.dirty_by_mapping(inode_id, dirty);
            }
            Vec::new()
        } else {
            self.own_pages(x, start, end, Take::Anonymous)?
        };
        let kind = MappingKind::File {
            file: file_id,
            inode: inode_id,
            offset,
        };
        Ok((kind, pages))
    }

    /// A mapping of a file that no path leads to any more.
    #[allow(clippy::too_many_arguments)]
    fn orphan(
        &mut self,
        x: &mut Extraction<'_, 'k>,
        object: &Object<'k>,
        cache: &Object<'k>,
        name: &Name,
        (start, end): (u64, u64),
        shared: bool,
        offset: u64,
    ) -> Result<(MappingKind, Vec<PageRun>), KernelError> {
        if shared {
            let memory = file::orphan_memory(x, object, cache, name)?;
            return Ok((MappingKind::Shared { memory, offset }, Vec::new()));
        }
        // A private mapping is made anonymous memory with the same content:
        // nothing can tell the difference but /proc/PID/maps.
        x.orphans.insert(start);
        let own = self.own_pages(x, start, end, Take::Anonymous)?;
        let cached = match self.orphans.get(&object.addr()) {
            Some(runs) => runs.clone(),
            None => {
                let runs = file::whole_content(x, object, cache)?;
                self.orphans.insert(object.addr(), runs.clone());
                runs
            }
        };
        let moved = shift(&cached, offset, start, end);
        let pages = inode::merge(own, moved);
        let missing: u64 = pages
            .iter()
            .filter(|r| matches!(r.content, PageContent::Filtered))
            .map(|r| r.count)
            .sum();
        let what = format!("mapping of {} (deleted) at {start:#x}", name.path);
        if missing > 0 {
            x.lost(
                self.subject,
                &what,
                format!("{missing} pages of the deleted file are in no page cache"),
            );
        } else if name.path != ANON_HUGEPAGE {
            x.reconstructed(self.subject, &what, "anonymous memory with its content");
        }
        let kind = MappingKind::Anonymous {
            name: None,
            stack: false,
            heap: false,
        };
        Ok((kind, pages))
    }

    /// The area's own pages, as the page tables have them.
    fn own_pages(
        &self,
        x: &mut Extraction<'_, 'k>,
        start: u64,
        end: u64,
        take: Take,
    ) -> Result<Vec<PageRun>, KernelError> {
        let mut runs = Runs::default();
        if take == Take::None {
            return Ok(runs.0);
        }
        let (frames, swap) = (x.frames, x.swap);
        let mut trouble: Option<(u64, Box<KernelError>)> = None;
        let mut together = Together::default();
        self.space.walk(start, end, |mapping| {
            let Some((va, count, skipped)) = clip(&mapping, start, end) else {
                return ControlFlow::Continue(());
            };
            match mapping.entry {
                Entry::Present(present) => {
                    let first = present.pfn.wrapping_add(skipped);
                    let wanted = take == Take::All
                        || frames.is_anonymous(first).unwrap_or_else(|error| {
                            trouble.get_or_insert((va, Box::new(error)));
                            true
                        });
                    if wanted && !frames.is_zero_page(first) {
                        together.add(&mut runs, frames, (va, count, first));
                    }
                }
                Entry::NonPresent { raw } => {
                    if let Some(content) = swap.entry(raw) {
                        together.push(&mut runs, frames);
                        runs.push_many(va, count, content);
                    }
                }
                Entry::Unreadable(error) => {
                    together.push(&mut runs, frames);
                    runs.push_many(va, count, unreadable(&error));
                    trouble.get_or_insert((va, error));
                }
            }
            ControlFlow::Continue(())
        })?;
        together.push(&mut runs, frames);
        if let Some((va, error)) = trouble {
            x.lost(
                self.subject,
                "memory",
                format!("page tables or page structures from {va:#x} on: {error}"),
            );
        }
        Ok(runs.0)
    }

    /// Pages of a file that this shared mapping wrote to and that the page
    /// cache may not know to be dirty yet, by byte offset in the file.
    fn dirty_pages(
        &self,
        frames: &Frames<'k>,
        start: u64,
        end: u64,
        offset: u64,
    ) -> Result<Vec<PageRun>, KernelError> {
        let mut runs = Runs::default();
        self.space.walk(start, end, |mapping| {
            if let (Some((va, count, skipped)), Entry::Present(present)) =
                (clip(&mapping, start, end), &mapping.entry)
                && present.dirty
            {
                let at = offset.wrapping_add(va - start);
                push_frames(
                    &mut runs,
                    frames,
                    at,
                    count,
                    present.pfn.wrapping_add(skipped),
                );
            }
            ControlFlow::Continue(())
        })?;
        Ok(runs.0)
    }
}
