//! The stages of a command's way through the controller, each as a closure that runs it once.
//!
//! Between them they touch what a reactor touches, in its own types; a disk's `submit` is block-core's to time.

use crate::memory::sigbus::Fault;
use crate::memory::{Access, Mapping, MemoryMap};
use crate::nvm::{self, Context, NamespaceView};
use crate::reactor::completion_queue::{CompletionQueue, CompletionQueueParameters};
use crate::reactor::doorbell::Doorbell;
use crate::reactor::doorbell_page::{DoorbellPage, head_index, tail_index};
use crate::reactor::submission_queue::{SubmissionQueue, SubmissionQueueParameters};
use crate::transfer::{SegmentList, Walker};
use nvme_spec::nvm_command::ReadWrite;
use nvme_spec::{CompletionQueueEntry, NvmOpcode, Status, SubmissionQueueEntry};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A stage.
pub struct Stage {
    /// What it is.
    pub name: &'static str,
    /// Runs it once.
    pub run: Box<dyn FnMut()>,
}

const PAGE: u64 = 4096;
/// Regions of guest memory, about as many as a guest of QEMU's has.
const REGIONS: u64 = 20;
/// The length of each.
const REGION: u64 = 1 << 20;
/// Pages of the longest transfer here.
const LIST_PAGES: u64 = 32;
/// Entries of the queues.
const ENTRIES: u32 = 128;

/// Where things are in guest memory: in different regions, so that each has to be found.
const SQ: u64 = 0;
const CQ: u64 = REGION;
const LIST: u64 = 2 * REGION;
const DATA: u64 = 3 * REGION;

/// Guest memory: some regions with gaps between them in this process.
fn guest_memory() -> io::Result<Arc<MemoryMap>> {
    let fault = Arc::<Fault>::default();
    let mut map = MemoryMap::default();
    for index in 0..REGIONS {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, REGION)?;
        let mapping = Mapping::new(fd, 0, REGION as usize, true, true, fault.clone())?;
        map = map
            .with_region(index * REGION, REGION, true, true, Some(Arc::new(mapping)))
            .map_err(io::Error::from_raw_os_error)?;
    }
    // Pages in the opposite order, so that no two of them become one segment.
    for page in 0..LIST_PAGES {
        let entry = DATA + (LIST_PAGES - page) * PAGE;
        map.write(LIST + page * 8, &entry.to_le_bytes()).map_err(|_| io::ErrorKind::InvalidData)?;
    }
    Ok(Arc::new(map))
}

/// A read of `pages` pages, scattered as [`guest_memory`] has them.
fn read(pages: u64) -> SubmissionQueueEntry {
    let dwords = ReadWrite::new().with_slba(8).with_number_of_logical_blocks(pages as u32 * 8);
    let prp2 = if pages == 1 { 0 } else { LIST };
    SubmissionQueueEntry::new(NvmOpcode::READ, 7).with_nsid(1).with_dwords(dwords).with_prp(DATA, prp2)
}

/// All stages, in the order in which a command goes through them.
///
/// # Errors
///
/// There is no memory to be had.
pub fn stages() -> io::Result<Vec<Stage>> {
    let map = guest_memory()?;
    let mut stages = vec![fetch(&map)?];
    stages.extend(translations(&map));
    stages.extend(walks(&map));
    stages.extend(plans(&map));
    stages.push(post(&map)?);
    Ok(stages)
}

/// The tail doorbell is read and the entry at the head copied.
fn fetch(map: &MemoryMap) -> io::Result<Stage> {
    let page = DoorbellPage::new()?;
    let doorbell = Doorbell::new(page.clone(), tail_index(1)).ok_or(io::ErrorKind::InvalidData)?;
    let parameters = SubmissionQueueParameters { id: 1, size: ENTRIES, base: SQ, cqid: 1 };
    let mut queue = SubmissionQueue::new(parameters, doorbell, 0, map);
    let mut tail = 0;
    let run = move || {
        tail = (tail + 1) % ENTRIES;
        if let Some(word) = page.word(tail_index(1)) {
            word.store(tail, Ordering::Release);
        }
        if queue.look() == Ok(1) {
            black_box(queue.peek());
            queue.advance();
        }
    };
    Ok(Stage { name: "doorbell and SQE", run: Box::new(run) })
}

/// An address is found in the region that was last found, or in another one.
fn translations(map: &Arc<MemoryMap>) -> [Stage; 2] {
    let stage = |name, other: u64| {
        let map = map.clone();
        let (mut hint, mut iova) = (0, DATA);
        let run = move || {
            iova = if iova == DATA { DATA + other } else { DATA };
            let _ = black_box(map.translate(black_box(iova), PAGE as usize, Access::Write, &mut hint));
        };
        Stage { name, run: Box::new(run) }
    };
    [
        stage("address translation, same region", PAGE),
        stage("address translation, another region", 9 * REGION),
    ]
}

/// A data pointer becomes segments.
fn walks(map: &Arc<MemoryMap>) -> [Stage; 2] {
    let stage = |name, pages: u64| {
        let (map, command) = (map.clone(), read(pages));
        let (mut hint, mut list) = (0, SegmentList::new());
        let run = move || {
            let mut walker = Walker { map: &map, page_size: PAGE, hint: &mut hint, list: &mut list };
            let _ = black_box(walker.walk(black_box(&command), (pages * PAGE) as usize, Access::Write));
            black_box(list.as_slice());
        };
        Stage { name, run: Box::new(run) }
    };
    [stage("PRP walk, 4 KiB", 1), stage("PRP list walk, 128 KiB in 32 segments", LIST_PAGES)]
}

/// A command is validated and becomes a request, its walk included.
fn plans(map: &Arc<MemoryMap>) -> [Stage; 2] {
    let stage = |name, pages: u64| {
        let (map, command) = (map.clone(), read(pages));
        let view = NamespaceView {
            disk: 0,
            shift: 9,
            capacity_lbas: 1 << 30,
            read_only: false,
            volatile_cache: false,
        };
        let mut context =
            Context { namespaces: vec![Some(view)], map, max_transfer: 1 << 20, ..Context::new() };
        let run = move || {
            let _ = black_box(nvm::plan(&mut context, black_box(&command)).is_ok());
        };
        Stage { name, run: Box::new(run) }
    };
    [stage("decode a read, 4 KiB", 1), stage("decode a read, 128 KiB in 32 segments", LIST_PAGES)]
}

/// A place is reserved, and the completion posted to it.
fn post(map: &MemoryMap) -> io::Result<Stage> {
    let page = DoorbellPage::new()?;
    let doorbell = Doorbell::new(page.clone(), head_index(1)).ok_or(io::ErrorKind::InvalidData)?;
    let parameters =
        CompletionQueueParameters { id: 1, size: ENTRIES, base: CQ, vector: 0, interrupts: false };
    let mut queue = CompletionQueue::new(parameters, doorbell, map);
    let mut head = 0;
    let run = move || {
        if queue.reserve() == Ok(true) {
            queue.post_reserved(CompletionQueueEntry::new(7, 1, 0, Status::SUCCESS, false));
        }
        head = (head + 1) % ENTRIES;
        if let Some(word) = page.word(head_index(1)) {
            word.store(head, Ordering::Release);
        }
    };
    Ok(Stage { name: "CQE", run: Box::new(run) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_runs_again_and_again() {
        for mut stage in stages().unwrap() {
            (0..3 * ENTRIES).for_each(|_| (stage.run)());
        }
    }
}
