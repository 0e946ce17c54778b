//! Pages that are in swap areas of this host: on the partition or in the file that the dead kernel
//! had swapped them to.
//!
//! Nothing about a swap area says when it was last used, and the new boot may have swapped to it
//! before anybody thought of a restore. So an area is read only when it can be told that its slots
//! are those of the crash: it is the same device or file (`place`), made by the same mkswap
//! (`header`), this host has not swapped anything out to it since it booted (`usage`), and where the
//! dump has the content of slots of its own, in the dead kernel's swap cache, the area has the same.
//! What is left unsaid by this, an earlier boot between the crash and this one, is said in the report.

mod header;
mod place;
mod usage;

use super::RestoreError;
use crate::dataset::{
    Dataset, Fidelity, PageContent, PageRun, PageSource, PageSourceError, PlainPages, SwapArea,
};
use header::Header;
use place::Place;
use std::fs::File;
use std::os::unix::fs::FileExt;
use usage::{Boot, Usage};

const PAGE: u64 = 4096;
/// Pages that are read in one step.
const BATCH: u64 = 512;

/// A [`PageSource`] that finds swapped pages in this host's swap areas, and all others in another
/// source.
pub struct WithSwap<'p> {
    pages: &'p dyn PageSource,
    areas: Vec<OpenArea>,
    force: bool,
}

/// A swap area that is what it was.
struct OpenArea {
    area: SwapArea,
    device: File,
    place: Place,
    /// Pages of the dataset in it.
    pages: u64,
    /// How that is known.
    evidence: String,
    overridden: Option<String>,
}

/// Why an area's pages cannot be had.
struct Refusal {
    why: String,
    hint: &'static str,
    /// The operator may know better (`--force`).
    is_doubt: bool,
}

impl Refusal {
    fn certain(why: impl Into<String>, hint: &'static str) -> Self {
        Self {
            why: why.into(),
            hint,
            is_doubt: false,
        }
    }

    fn doubt(why: impl Into<String>, hint: &'static str) -> Self {
        Self {
            why: why.into(),
            hint,
            is_doubt: true,
        }
    }
}

/// Opens the swap areas that pages of the dataset are in. With `force`, those too that may have been
/// used since.
///
/// # Errors
/// An area that is not here, or not what it was: its pages cannot be brought back.
pub fn open<'p>(
    dataset: &Dataset,
    pages: &'p dyn PageSource,
    force: bool,
) -> Result<WithSwap<'p>, RestoreError> {
    let mut areas = Vec::new();
    let mut boot = None;
    for (number, count) in wanted(dataset) {
        let pid = dataset.processes.first().map_or(0, |p| p.pid);
        let unknown = SwapArea {
            number,
            path: format!("number {number}"),
            trouble: Some("the dataset does not say where it is".into()),
            ..SwapArea::default()
        };
        let area = dataset.swap.iter().find(|a| a.number == number);
        let area = area.unwrap_or(&unknown);
        let boot = boot.get_or_insert_with(Boot::look);
        let opened = open_area(area, count, pages, boot, force);
        areas.push(opened.map_err(|refusal| RestoreError::Refused {
            pid,
            what: format!("{count} pages that were swapped out to {}", name_of(area)),
            why: refusal.why,
            hint: refusal.hint,
        })?);
    }
    Ok(WithSwap {
        pages,
        areas,
        force,
    })
}

fn name_of(area: &SwapArea) -> String {
    match (&area.zram, area.path.is_empty()) {
        (Some(zram), false) => format!("{} (backing {zram})", area.path),
        (_, true) => format!("area {}", area.number),
        (None, false) => area.path.clone(),
    }
}

/// The areas that pages are in, and how many pages.
fn wanted(dataset: &Dataset) -> std::collections::BTreeMap<u32, u64> {
    let private = dataset.processes.iter().flat_map(|p| &p.mm.vmas);
    let runs = private
        .flat_map(|vma| &vma.pages)
        .chain(dataset.shared_memory.iter().flat_map(|m| &m.pages))
        .chain(dataset.inodes.iter().flat_map(|i| &i.dirty));
    let mut found = std::collections::BTreeMap::new();
    for run in runs {
        if let PageContent::Swap { area, .. } = run.content {
            let count: &mut u64 = found.entry(area).or_default();
            *count = count.saturating_add(run.count);
        }
    }
    found
}

fn open_area(
    area: &SwapArea,
    count: u64,
    pages: &dyn PageSource,
    boot: &Boot,
    force: bool,
) -> Result<OpenArea, Refusal> {
    if let Some(trouble) = &area.trouble {
        return Err(Refusal::certain(trouble.clone(), ""));
    }
    let place = place::find(area)?;
    let device = place.open()?;
    let mut evidence = Vec::new();
    if area.zram.is_none() {
        let mut page = Aligned::new(1);
        read_slots(area, &device, 0, 1, &mut page).map_err(|why| Refusal::certain(why, ""))?;
        let then = area.header.as_ref().map(|blob| blob.0.as_slice());
        evidence.push(Header::same(area.slots, then, page.bytes())?);
    }
    let mut overridden = None;
    let mut doubt = |refusal: Refusal| match force && refusal.is_doubt {
        true => {
            overridden = Some(refusal.why);
            Ok(())
        }
        false => Err(refusal),
    };
    match untouched(boot, area, &place) {
        Ok(usage) => evidence.push(said(usage).into()),
        Err(refusal) => doubt(refusal)?,
    }
    match compare(area, &device, pages) {
        Ok(0) => {
            if let Some(refusal) = nothing_to_tell_by(area, &place) {
                doubt(refusal)?;
            }
        }
        Ok(n) => evidence.push(format!("{n} slots that the dump has as well are the same")),
        Err(refusal) => doubt(refusal)?,
    }
    Ok(OpenArea {
        area: area.clone(),
        device,
        place,
        pages: count,
        evidence: evidence.join(", "),
        overridden,
    })
}

/// Why an area is not read of which the dump has neither the header nor a slot that could be compared.
fn nothing_to_tell_by(area: &SwapArea, place: &Place) -> Option<Refusal> {
    if area.header.is_some() {
        return None;
    }
    let uuid = area.device.as_ref().and_then(|d| d.dm_uuid.as_ref());
    // It is often given a new key, and a new swap header, at each boot.
    if uuid.is_some_and(|uuid| uuid.starts_with("CRYPT-PLAIN-")) {
        return Some(Refusal::doubt(
            "it is encrypted, perhaps with another key by now, and the dump has neither its header nor a \
             slot of it to tell by",
            "where its key is the same at every boot, --force reads it",
        ));
    }
    match usage::written(place) {
        Some(0) | None => None,
        sectors => Some(was_written(sectors)),
    }
}

fn was_written(sectors: Option<u64>) -> Refusal {
    let sectors = sectors.map_or("an unknown number of".into(), |n| n.to_string());
    Refusal::doubt(
        format!(
            "{sectors} sectors of it were written since this host booted, and the dump has nothing of it that \
             would tell whether its slots are the same"
        ),
        "restore before anything is done to it",
    )
}

/// Why this boot has left the area as it was.
fn untouched(boot: &Boot, area: &SwapArea, place: &Place) -> Result<Usage, Refusal> {
    let written = usage::written(place);
    match &area.zram {
        // Whatever may be done with such a device, its own counter tells.
        Some(_) if written == Some(0) => Ok(Usage::NothingWritten),
        Some(_) => Err(was_written(written)),
        None => boot.usage(place, written),
    }
}

fn said(usage: Usage) -> &'static str {
    match usage {
        Usage::NeverOn => "this boot has not had it on",
        Usage::NothingSwapped => "this boot has swapped nothing out yet",
        Usage::NothingWritten => "this boot has written nothing to it",
    }
}

/// Slots that are in the swap cache of the dump too.
fn compare(area: &SwapArea, device: &File, pages: &dyn PageSource) -> Result<u64, Refusal> {
    let mut then = vec![0; PAGE as usize];
    let mut now = Aligned::new(1);
    let mut same = 0;
    for run in area.witnesses.iter().filter(|run| run.count == 1) {
        let slot = run.start / PAGE;
        // A page that the dump holds damaged is no witness.
        if pages.read_pages(run, 0, 1, &mut then).is_err() {
            continue;
        }
        read_slots(area, device, slot, 1, &mut now).map_err(|why| Refusal::certain(why, ""))?;
        if now.bytes() != then {
            return Err(Refusal::doubt(
                format!("its slot {slot} is not what it was at the crash: it was used since"),
                "a swap area keeps its pages until something else is swapped out to it: restore \
                 before it is turned on again",
            ));
        }
        same += 1;
    }
    Ok(same)
}

/// Reads slots that may be anywhere on the device into the begin of `out`.
fn read_slots(
    area: &SwapArea,
    device: &File,
    slot: u64,
    count: u64,
    out: &mut Aligned,
) -> Result<(), String> {
    let mut done = 0;
    while done < count {
        let first = slot.saturating_add(done);
        let place = |slot| {
            area.place(slot)
                .filter(|_| slot < area.slots)
                .ok_or_else(|| format!("it has no slot {slot}"))
        };
        let at = place(first)?;
        let mut run = 1;
        while done + run < count && place(first + run)? == at + run {
            run += 1;
        }
        let from = usize::try_from(done * PAGE).unwrap_or(usize::MAX);
        let len = usize::try_from(run * PAGE).unwrap_or(usize::MAX);
        let to = out
            .bytes_mut()
            .get_mut(from..from.saturating_add(len))
            .ok_or("more is asked for than there is room for")?;
        device
            .read_exact_at(to, at.saturating_mul(PAGE))
            .map_err(|e| format!("slot {first} cannot be read: {e}"))?;
        done += run;
    }
    Ok(())
}

/// Pages that begin where pages do: past the page cache nothing else can be read.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(pages: u64) -> Self {
        let page = PAGE as usize;
        let len = usize::try_from(pages).unwrap_or(0).saturating_mul(page);
        let memory = vec![0; len + page];
        let start = memory.as_ptr().align_offset(page).min(page);
        Self { memory, start, len }
    }

    fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.len)
            .unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + self.len)
            .unwrap_or_default()
    }
}

impl WithSwap<'_> {
    /// What is to be said of the areas.
    pub fn notes(&self) -> Vec<Fidelity> {
        self.areas
            .iter()
            .map(|open| {
                let what = format!("{} pages from swap area {}", open.pages, name_of(&open.area));
                match &open.overridden {
                    Some(why) => Fidelity::lost("host", what, format!("read all the same (--force): {why}")),
                    // As far as anybody can tell it is exact; only a boot in between nobody can rule out.
                    None => Fidelity::reconstructed(
                        "host",
                        what,
                        format!(
                            "read from {}: {}; boots between the crash and this one are not known of",
                            open.place, open.evidence
                        ),
                    ),
                }
            })
            .collect()
    }

    /// Whether the areas were left alone while they were read.
    ///
    /// # Errors
    /// One that this host has begun to swap to: pages read from it may be another's.
    pub fn still_untouched(&self, pid: i32) -> Result<(), RestoreError> {
        if self.areas.is_empty() || self.force {
            return Ok(());
        }
        let boot = Boot::look();
        for open in &self.areas {
            if let Err(refusal) = untouched(&boot, &open.area, &open.place) {
                return Err(RestoreError::Refused {
                    pid,
                    what: format!(
                        "{} pages that were swapped out to {}",
                        open.pages,
                        name_of(&open.area)
                    ),
                    why: format!("while they were read, this changed: {}", refusal.why),
                    hint: refusal.hint,
                });
            }
        }
        Ok(())
    }
}

impl PageSource for WithSwap<'_> {
    fn still_whole(&self) -> Result<(), String> {
        self.pages.still_whole()
    }

    fn plain(&self, run: &PageRun, first: u64) -> Option<PlainPages<'_>> {
        self.pages.plain(run, first)
    }

    fn read_pages(
        &self,
        run: &PageRun,
        first: u64,
        count: u64,
        out: &mut [u8],
    ) -> Result<(), PageSourceError> {
        let PageContent::Swap { area, offset } = run.content else {
            return self.pages.read_pages(run, first, count, out);
        };
        let fail = |page: u64, why: String| PageSourceError {
            at: run.start.saturating_add(page.saturating_mul(PAGE)),
            content: run.content,
            why,
        };
        let open = self
            .areas
            .iter()
            .find(|open| open.area.number == area)
            .ok_or_else(|| fail(first, format!("swap area {area} is not open")))?;
        let mut buffer = Aligned::new(count.min(BATCH));
        let mut done = 0;
        for to in out.chunks_mut((BATCH * PAGE) as usize) {
            let now = to.len() as u64 / PAGE;
            let slot = offset.saturating_add(first).saturating_add(done);
            read_slots(&open.area, &open.device, slot, now, &mut buffer).map_err(|why| {
                fail(
                    first.saturating_add(done),
                    format!("swap area {}: {why}", name_of(&open.area)),
                )
            })?;
            let got = buffer.bytes().get(..to.len()).unwrap_or_default();
            if got.len() != to.len() {
                return Err(fail(first, "no room for it".into()));
            }
            to.copy_from_slice(got);
            done += now;
        }
        Ok(())
    }
}
