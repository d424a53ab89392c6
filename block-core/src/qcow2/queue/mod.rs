//! A queue on a qcow2 disk.
//!
//! A request whose clusters are in the table and follow each other in one file goes straight to the queue on that file,
//! at another offset. Others go piece by piece, and what the table does not say is handed over to a thread that may block
//! for it ([`super::mailbox`]), which answers where to go on: `pieces.rs`.

mod pieces;

use super::disk::User;
use super::epoch::{Heap, Pin};
use super::fault::Fault;
use super::mailbox::{Answer, Mailbox};
use super::mapping::{Kind, Mapping};
use crate::file::transfer::Transfer;
use crate::queue::{Queue, Submission};
use crate::request::{Completion, Operation, Request, RequestError, RequestFlags, RequestResult, Segment};
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fd::OwnedFd;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Segments that a piece of a request has room for without allocating.
const USUAL_SEGMENTS: usize = 64;

/// A queue on a qcow2 disk.
pub(super) struct Qcow2Queue {
    /// Queues on the layers' data files; those below the first are opened when something is read there.
    files: Box<[Option<Box<dyn Queue>>]>,
    slots: Box<[Slot]>,
    free: Vec<u32>,
    depth: u16,
    pin: Pin,
    mailbox: Arc<Mailbox>,
    /// Handed over by the next kick.
    to_hand_over: Vec<u32>,
    /// Slots whose next piece a file's queue had no room for.
    stalled: Vec<u32>,
    answers: Vec<(u32, Answer)>,
    completed: Vec<Completion>,
    /// The segments of one piece.
    piece: Vec<Segment>,
    /// Something was submitted that no kick has followed.
    unkicked: bool,
    /// Readable when a file's queue or the mailbox has something.
    epoll: OwnedFd,
    waits: bool,
    shared: User,
}

/// A request under way.
struct Slot {
    token: u64,
    offset: u64,
    len: u64,
    operation: Operation,
    flags: RequestFlags,
    heap: Heap,
    /// It has to be durable when it completes, and its metadata is not yet.
    sync_last: bool,
    /// Pieces with the files' queues.
    pieces: u32,
    /// With the mailbox.
    handed_over: bool,
    /// Among the stalled ones, which name it until they have had their turn.
    stalled: bool,
    /// What is left to be sent.
    transfer: Transfer,
    /// The first errno.
    errno: i32,
}

impl Qcow2Queue {
    pub fn open(shared: User, depth: u16) -> io::Result<Self> {
        let depth = depth.max(1);
        let room = usize::from(depth);
        let mailbox = Arc::new(Mailbox::new(room)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, mailbox.event(), epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let slot = |_| Slot {
            token: 0,
            offset: 0,
            len: 0,
            operation: Operation::Flush,
            flags: RequestFlags::NONE,
            heap: Heap::default(),
            sync_last: false,
            pieces: 0,
            handed_over: false,
            stalled: false,
            transfer: Transfer::with_usual_room(),
            errno: 0,
        };
        let mut queue = Self {
            files: shared.files.iter().map(|_| None).collect(),
            slots: (0..room).map(slot).collect(),
            free: (0..u32::from(depth)).rev().collect(),
            depth,
            pin: shared.clock.pin(),
            mailbox,
            to_hand_over: Vec::with_capacity(room),
            stalled: Vec::with_capacity(room),
            answers: Vec::with_capacity(room),
            completed: Vec::with_capacity(room),
            piece: Vec::with_capacity(USUAL_SEGMENTS),
            unkicked: false,
            epoll,
            waits: true,
            shared,
        };
        queue.open_file(0)?;
        Ok(queue)
    }

    /// Opens a queue on a layer's data file.
    #[cold]
    fn open_file(&mut self, layer: usize) -> io::Result<()> {
        let queue = self.shared.files[layer].open_queue(self.depth)?;
        match queue.wait_fd() {
            Some(fd) => epoll::add(&self.epoll, fd, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?,
            None => self.waits = false,
        }
        self.files[layer] = Some(queue);
        Ok(())
    }

    /// The mapping of a range that is all in one place, if it is and the operation can be sent there.
    #[inline]
    fn whole(&self, operation: Operation, offset: u64, len: u64) -> Option<Mapping> {
        let bits = self.shared.cluster_bits;
        let first = offset >> bits;
        let mapping = self.shared.table.get(first);
        match (operation, mapping.kind()) {
            (Operation::Read, Kind::Data | Kind::ReadOnly) | (Operation::Write, Kind::Data) => {}
            _ => return None,
        }
        let last = (offset + len - 1) >> bits;
        (first + 1..=last)
            .all(|cluster| self.shared.table.get(cluster) == mapping.following(cluster - first, bits))
            .then_some(mapping)
    }

    /// Whether a write's metadata has to be made durable after it. To be asked when its mapping has been found.
    #[inline]
    fn sync_last(&self, operation: Operation, flags: RequestFlags) -> bool {
        matches!(operation, Operation::Write | Operation::WriteZeroes)
            && self.metadata_too(flags)
            && self.shared.dirty.load(Ordering::SeqCst)
    }

    /// Whether a write has to be durable, with the metadata that it has changed.
    #[inline]
    fn metadata_too(&self, flags: RequestFlags) -> bool {
        self.shared.cache.durable(flags.contains(RequestFlags::FUA))
            && !self.shared.faults.has(Fault::FuaIgnored)
    }

    /// Whether a flush is a matter of the file alone.
    #[inline]
    fn file_only(&self) -> bool {
        !self.shared.dirty.load(Ordering::SeqCst) || self.shared.faults.has(Fault::FlushIgnored)
    }

    /// The flags that a file's queue gets.
    #[inline]
    fn file_flags(&self, flags: RequestFlags, sync_last: bool) -> RequestFlags {
        // Without new metadata, the data is all that has to be durable.
        let fua = !sync_last && self.shared.cache.durable(flags.contains(RequestFlags::FUA));
        let unmap = RequestFlags::MAY_UNMAP;
        let kept = if flags.contains(unmap) { unmap } else { RequestFlags::NONE };
        if fua { kept.with(RequestFlags::FUA) } else { kept }
    }

    /// Ends a request that has nothing under way any more, or begins its last step. `None` while it has not ended.
    #[inline]
    fn settle(&mut self, index: u32) -> Option<RequestResult> {
        let slot = &mut self.slots[index as usize];
        if slot.pieces > 0 || slot.handed_over || slot.stalled || (slot.transfer.left > 0 && slot.errno == 0)
        {
            return None;
        }
        if slot.errno == 0 && std::mem::take(&mut slot.sync_last) {
            slot.operation = Operation::Flush;
            self.hand_over(index);
            return None;
        }
        Some(self.end(index))
    }

    #[inline]
    fn end(&mut self, index: u32) -> RequestResult {
        let slot = &mut self.slots[index as usize];
        let result = match slot.errno {
            0 => Ok(()),
            errno => {
                self.shared.look_at_failed_file();
                Err(RequestError { errno, offset: slot.offset, len: slot.len })
            }
        };
        if self.pin.end(slot.heap) && self.shared.to_give_away.load(Ordering::Relaxed) {
            self.shared.look_after();
        }
        self.free.push(index);
        result
    }

    fn settle_into(&mut self, index: u32, completions: &mut Vec<Completion>) {
        if let Some(result) = self.settle(index) {
            completions.push(Completion { token: self.slots[index as usize].token, result });
        }
    }

    /// Takes what a file's queue has completed.
    #[inline]
    fn collect_file(&mut self, layer: usize, completions: &mut Vec<Completion>) {
        let Some(file) = &mut self.files[layer] else { return };
        let mut completed = std::mem::take(&mut self.completed);
        file.poll(&mut completed);
        for completion in completed.drain(..) {
            let index = completion.token as u32;
            let slot = &mut self.slots[index as usize];
            slot.pieces -= 1;
            if let Err(error) = completion.result
                && slot.errno == 0
            {
                slot.errno = error.errno;
            }
            self.settle_into(index, completions);
        }
        self.completed = completed;
    }

    /// What can be said of a request at once.
    #[inline]
    fn settled(&self, request: &Request<'_>) -> Option<RequestResult> {
        let info = &self.shared.info;
        if let Some(result) = request.settled(info.capacity, info.read_only) {
            return Some(result);
        }
        if request.operation == Operation::Read {
            return None;
        }
        if let Err(errno) = self.shared.writable() {
            return Some(request.fail(errno));
        }
        match request.operation {
            Operation::Discard if info.unmapped == crate::Unmapped::Ignored => Some(Ok(())),
            Operation::Flush if info.read_only => Some(Ok(())),
            _ => None,
        }
    }
}

impl Queue for Qcow2Queue {
    #[inline]
    unsafe fn submit(&mut self, request: Request<'_>) -> Submission {
        if let Some(result) = self.settled(&request) {
            return Submission::Done(result);
        }
        let Some(index) = self.free.pop() else { return Submission::Full };
        let heap = self.pin.begin();
        let slot = &mut self.slots[index as usize];
        slot.token = request.token;
        slot.offset = request.offset;
        slot.len = request.len;
        slot.operation = request.operation;
        slot.flags = request.flags;
        slot.heap = heap;
        slot.sync_last = false;
        slot.errno = 0;
        let sent = match request.operation {
            Operation::Read | Operation::Write => {
                self.whole(request.operation, request.offset, request.len).map(|mapping| {
                    let mask = (1 << self.shared.cluster_bits) - 1;
                    (mapping.layer(), mapping.offset() + (request.offset & mask))
                })
            }
            Operation::Flush if self.file_only() => Some((0, 0)),
            _ => None,
        };
        let Some((layer, offset)) = sent else { return self.submit_in_pieces(index, &request) };
        let sync_last = self.sync_last(request.operation, request.flags);
        let flags = self.file_flags(request.flags, sync_last);
        let Some(file) = &mut self.files[layer] else { return self.submit_in_pieces(index, &request) };
        let inner = Request { offset, flags, token: u64::from(index), ..request };
        // SAFETY: handed on from the caller.
        match unsafe { file.submit(inner) } {
            Submission::Pending => {
                let slot = &mut self.slots[index as usize];
                slot.sync_last = sync_last;
                slot.pieces = 1;
                slot.transfer.left = 0;
                Submission::Pending
            }
            Submission::Done(result) => {
                let slot = &mut self.slots[index as usize];
                slot.sync_last = sync_last;
                slot.transfer.left = 0;
                if let Err(error) = result {
                    slot.errno = error.errno;
                }
                match self.settle(index) {
                    Some(result) => Submission::Done(result),
                    None => Submission::Pending,
                }
            }
            // Of pieces of other requests: it has its turn when there is room.
            Submission::Full => self.submit_in_pieces(index, &request),
        }
    }

    #[inline]
    fn kick(&mut self) {
        self.unkicked = false;
        for file in self.files.iter_mut().flatten() {
            file.kick();
        }
        if !self.to_hand_over.is_empty() {
            self.shared.hand_over(&self.mailbox, &self.to_hand_over);
            self.to_hand_over.clear();
        }
    }

    #[inline]
    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        if self.free.len() == self.slots.len() {
            return 0;
        }
        for layer in 0..self.files.len() {
            self.collect_file(layer, completions);
        }
        if self.mailbox.any() {
            self.collect_answers(completions);
        }
        if !self.stalled.is_empty() {
            self.go_on_with_stalled(completions);
        }
        if self.unkicked || !self.to_hand_over.is_empty() {
            self.kick();
        }
        completions.len() - before
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.waits.then(|| self.epoll.as_fd())
    }

    fn may_sleep(&mut self) -> bool {
        !self.mailbox.any() && self.files.iter_mut().flatten().all(|file| file.may_sleep())
    }
}

impl Drop for Qcow2Queue {
    fn drop(&mut self) {
        let mut rest = Vec::new();
        self.kick();
        while self.free.len() < self.slots.len() {
            if self.poll(&mut rest) == 0 && self.may_sleep() {
                let mut fds = [PollFd::new(&self.epoll, PollFlags::IN)];
                let _ = poll(&mut fds, None);
            }
            rest.clear();
        }
    }
}
