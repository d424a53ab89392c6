//! Requests in flight: a full queue, completions, sleeping, and the end of a queue.

use super::client::{Client, Memory};
use crate::{Disk, Operation, RequestFlags, Submission};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::time::Duration;

const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Submits 4 KiB reads until the queue is full or `most` are pending; gives their tokens.
fn fill(client: &mut Client, memory: &mut [Memory]) -> (BTreeSet<u64>, bool) {
    let mut pending = BTreeSet::new();
    for (i, memory) in memory.iter_mut().enumerate() {
        let segments = [memory.segment()];
        let range = (i as u64 * 4096, 4096);
        // SAFETY: the callers keep the memory until everything has completed or the queue is gone.
        match unsafe { client.submit(Operation::Read, range, &segments, RequestFlags::NONE) } {
            (_, Submission::Done(result)) => assert_eq!(result, Ok(())),
            (token, Submission::Pending) => assert!(pending.insert(token)),
            (_, Submission::Full) => return (pending, true),
        }
    }
    (pending, false)
}

fn buffers(n: usize) -> Vec<Memory> {
    (0..n).map(|_| Memory::new(4096, 0, 0x5a)).collect()
}

/// `Full` has not taken the request: no completion follows, and it can be submitted again after a poll.
pub fn a_full_queue_gives_the_request_back(disk: &dyn Disk) {
    let mut client = Client::new(disk, 3);
    for _ in 0..3 {
        let mut memory = buffers(64);
        let (mut pending, full) = fill(&mut client, &mut memory);
        if !full {
            assert!(pending.is_empty(), "64 requests are pending on a queue of 3");
            return;
        }
        assert!(pending.len() <= 3, "{} requests are pending on a queue of 3", pending.len());
        client.kick();
        while !pending.is_empty() {
            for completion in client.wait() {
                assert_eq!(completion.result, Ok(()));
                assert!(pending.remove(&completion.token), "a completion of a request that was not taken");
            }
        }
        let mut memory = buffers(1);
        let (pending, full) = fill(&mut client, &mut memory);
        assert!(!full, "an empty queue is full");
        client.kick();
        client.wait_for_all(pending.len());
    }
}

impl Client {
    /// Waits for up to `n` requests, fewer if they were done at once.
    fn wait_for_all(&mut self, n: usize) {
        let mut left = n;
        while left > 0 && (self.wait_fd().is_some() || !self.may_sleep()) {
            left -= self.wait().len();
        }
    }

    /// Whether the descriptor comes to rest with nothing to poll. It may be readable a few times for nothing: an
    /// interrupt can come after what it is for has been polled.
    fn comes_to_rest(&mut self) -> bool {
        (0..100).any(|_| {
            let at_rest = self.may_sleep() && (self.wait_fd().is_none() || !self.readable(AT_ONCE));
            assert!(self.poll().is_empty(), "a completion of nothing");
            at_rest
        })
    }
}

/// Each with its token, none twice, none missing; submitted in batches, collected while more are submitted.
pub fn every_pending_request_completes_exactly_once(disk: &dyn Disk) {
    let mut client = Client::new(disk, 32);
    let mut memory = buffers(400);
    let mut pending = BTreeSet::new();
    for batch in memory.chunks_mut(7) {
        while pending.len() + batch.len() > 32 {
            for completion in client.wait() {
                assert_eq!(completion.result, Ok(()));
                assert!(pending.remove(&completion.token), "completed twice, or never submitted");
            }
        }
        let (new, full) = fill(&mut client, batch);
        assert!(!full);
        pending.extend(new);
        client.kick();
    }
    while !pending.is_empty() {
        for completion in client.wait() {
            assert_eq!(completion.result, Ok(()));
            assert!(pending.remove(&completion.token), "completed twice, or never submitted");
        }
    }
    assert!(client.poll().is_empty());
}

/// A queue whose thread may sleep with requests pending has a descriptor to sleep on; it is unreadable when there is
/// nothing to poll, readable when there is, and unreadable again when that has been polled.
pub fn a_wait_fd_is_readable_just_while_there_is_something_to_poll(disk: &dyn Disk) {
    let mut client = Client::new(disk, 8);
    for operation in [Operation::Read, Operation::Flush, Operation::WriteZeroes, Operation::Write] {
        for range in [(0, 4096), (8192, 4096), (3, 1000)] {
            let mut memory = Memory::new(range.1 as usize, 0, 0x5a);
            let data = matches!(operation, Operation::Read | Operation::Write);
            let segments = if data { vec![memory.segment()] } else { vec![] };
            // SAFETY: the memory outlives the request, which is waited for below.
            let (token, submission) =
                unsafe { client.submit(operation, range, &segments, RequestFlags::NONE) };
            if submission != Submission::Pending {
                continue;
            }
            client.kick();
            let completed = client.wait();
            assert_eq!(completed.iter().map(|c| c.token).collect::<Vec<_>>(), [token]);
            assert!(client.poll().is_empty());
            assert!(client.comes_to_rest(), "readable with nothing to poll, after {operation:?}");
        }
    }
    if client.wait_fd().is_none() {
        let mut memory = buffers(4);
        let pending = fill(&mut client, &mut memory).0;
        client.kick();
        assert!(pending.is_empty() || !client.may_sleep(), "a request is pending, and nothing to wait on");
        client.wait_for_all(pending.len());
    }
}

/// A reactor registers the descriptor once and sleeps on it, on its own thread, for as long as the queue lives.
pub fn a_sleeper_in_epoll_is_woken_for_every_request(disk: &dyn Disk) {
    let mut client = Client::new(disk, 8);
    let Some(fd) = client.wait_fd() else { return };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    epoll::add(&epoll, fd, epoll::EventData::new_u64(1), epoll::EventFlags::IN).expect("epoll");
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    for i in 0..40u64 {
        let (operation, range) = match i % 4 {
            0 => (Operation::Read, (i * 4096, 4096)),
            1 => (Operation::Write, (i * 4096 + 5, 1000)),
            2 => (Operation::Flush, (0, 0)),
            _ => (Operation::WriteZeroes, (i * 4096, 4096)),
        };
        let mut memory = Memory::new(range.1 as usize, 0, 0x5a);
        let data = matches!(operation, Operation::Read | Operation::Write);
        let segments = if data { vec![memory.segment()] } else { vec![] };
        // SAFETY: the memory outlives the request, which is waited for below.
        let (token, submission) = unsafe { client.submit(operation, range, &segments, RequestFlags::FUA) };
        if submission != Submission::Pending {
            continue;
        }
        client.kick();
        loop {
            let completed = client.poll();
            if !completed.is_empty() {
                assert_eq!((completed.len(), completed[0].token), (1, token));
                assert_eq!(completed[0].result, Ok(()));
                break;
            }
            if !client.may_sleep() {
                continue;
            }
            let mut events = Vec::with_capacity(4);
            match epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience)) {
                Ok(n) => assert!(n > 0, "nobody woke the sleeper, {operation:?}"),
                Err(Errno::INTR) => {}
                Err(error) => panic!("epoll_wait: {error}"),
            }
        }
    }
}

/// After the drop nobody touches the requests' memory any more, kicked or not.
pub fn dropping_a_queue_waits_for_what_is_left(disk: &dyn Disk) {
    for kick in [true, false] {
        let mut client = Client::new(disk, 32);
        let mut memory = buffers(32);
        fill(&mut client, &mut memory);
        // Requests of other kinds too, aligned and not.
        let (mut part, mut whole) = (Memory::new(1000, 1, 0x5a), Memory::new(65536, 0, 0x5a));
        for (memory, offset) in [(&mut part, 5), (&mut whole, 65536)] {
            let segments = [memory.segment()];
            let range = (offset, segments[0].len as u64);
            // SAFETY: the memory outlives the queue.
            let _ = unsafe { client.submit(Operation::Read, range, &segments, RequestFlags::NONE) };
        }
        if kick {
            client.kick();
        }
        drop(client);
        let all = || memory.iter().chain([&part, &whole]).map(|m| m.bytes().to_vec()).collect::<Vec<_>>();
        let at_drop = all();
        std::thread::sleep(Duration::from_millis(5));
        assert!(all() == at_drop, "memory changed after the queue was dropped");
    }
    // The disk is as good as before.
    Client::new(disk, 1).read(0, 4096);
}
