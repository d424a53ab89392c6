//! Data arrives whole, where it belongs, and stays.

use super::CAPACITY;
use super::client::{Client, Memory, cut_up, pattern};
use super::random::Random;
use crate::{Disk, MemoryRegion, Operation, RequestFlags, Submission};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Lengths and offsets around everything that an implementation may align to.
const EDGES: [u64; 13] = [1, 3, 511, 512, 513, 1024, 4095, 4096, 4097, 65535, 65536, 65537, 300_001];

/// Every length at every kind of offset, out of memory of every alignment.
pub fn what_is_written_is_read_back_at_any_offset_and_length(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    for (seed, &len) in EDGES.iter().enumerate() {
        for offset in [0, 1, 511, 512, 4095, 4096, 123_457] {
            for skew in [0, 1, 4, 512] {
                let data = pattern(seed as u64 * 64 + skew as u64, offset, len as usize);
                let mut memory = Memory::holding(&data, skew);
                let result = client.write_from(offset, &mut memory, &[len as usize], RequestFlags::NONE);
                assert_eq!(result, Ok(()), "write {offset}+{len}, memory {skew}");
                let mut memory = Memory::new(len as usize, 512 - skew, 0xee);
                let result = client.read_into(offset, &mut memory, &[len as usize]);
                assert_eq!(result, Ok(()), "read {offset}+{len}, memory {skew}");
                assert!(memory.bytes() == data, "{offset}+{len}, memory {skew}");
            }
        }
    }
}

/// Reads, writes and zeroes of random ranges, cuts and alignments, against an array that does the same.
pub fn any_sequence_of_requests_does_what_a_plain_array_would(disk: &dyn Disk) {
    const WINDOW: u64 = 1 << 20;
    // The end of the disk is part of it, with all that may be odd about it.
    let base = disk.info().capacity - WINDOW;
    let mut client = Client::new(disk, 4);
    let mut model = pattern(0, base, WINDOW as usize);
    client.write(base, &model);
    let mut random = Random::new(0x5eed);
    for step in 1..400u64 {
        let len = (random.one_of(&EDGES) + random.below(3) * 512).min(WINDOW);
        let room = WINDOW - len;
        let at = match random.below(3) {
            0 => random.below(room + 1),
            1 => random.below(room / 512 + 1) * 512,
            _ => room,
        };
        let (range, skew) = (at as usize..(at + len) as usize, random.one_of(&[0, 0, 1, 4, 512]));
        let uncut = [len as usize];
        let cut = random.one_of(&[&uncut[..], &[4096], &[512, 1024], &[1, 4095, 0, 77]]);
        let what = format!("step {step}: {at}+{len}, memory {skew}, cut {cut:?}");
        match random.below(4) {
            0 => {
                let mut memory = Memory::new(len as usize, skew, 0xee);
                assert_eq!(client.read_into(base + at, &mut memory, cut), Ok(()), "{what}");
                assert!(memory.bytes() == &model[range], "read, {what}");
            }
            1 => {
                let flags = random.one_of(&[RequestFlags::NONE, RequestFlags::MAY_UNMAP, RequestFlags::FUA]);
                assert_eq!(client.run(Operation::WriteZeroes, (base + at, len), flags), Ok(()), "{what}");
                model[range].fill(0);
            }
            _ => {
                let flags = random.one_of(&[RequestFlags::NONE, RequestFlags::NONE, RequestFlags::FUA]);
                let data = pattern(step, base + at, len as usize);
                let mut memory = Memory::holding(&data, skew);
                assert_eq!(client.write_from(base + at, &mut memory, cut, flags), Ok(()), "{what}");
                model[range].copy_from_slice(&data);
            }
        }
    }
    assert!(client.read(base, WINDOW as usize) == model, "the whole, in the end");
}

/// Linux takes at most 1024 segments in a call.
pub fn more_segments_than_one_system_call_takes_are_all_moved(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    for (cut, skew) in [(&[512][..], 0), (&[37, 0, 511], 1), (&[1024, 512, 4096], 0)] {
        let len = 2_500 * 512;
        let data = pattern(3, 4096, len);
        let mut memory = Memory::holding(&data, skew);
        assert!(memory.segments(cut).len() > 500);
        assert_eq!(client.write_from(4096, &mut memory, cut, RequestFlags::NONE), Ok(()));
        assert!(client.read(4096, len) == data, "written {cut:?}");
        let mut memory = Memory::new(len, skew, 0xee);
        assert_eq!(client.read_into(4096, &mut memory, cut), Ok(()));
        assert!(memory.bytes() == data, "read {cut:?}");
    }
}

/// FUA changes when a write completes, not what it does.
pub fn a_fua_write_is_there(disk: &dyn Disk) {
    let mut client = Client::new(disk, 4);
    for (offset, len) in [(0, 4096), (8192, 65536), (1, 100), (5000, 10000)] {
        let data = pattern(4, offset, len);
        let mut memory = Memory::holding(&data, 0);
        assert_eq!(client.write_from(offset, &mut memory, &[4096], RequestFlags::FUA), Ok(()));
        assert!(client.read(offset, len) == data);
    }
    let zeroes = (8192, 4096);
    assert_eq!(client.run(Operation::WriteZeroes, zeroes, RequestFlags::FUA), Ok(()));
    assert!(client.read(8192, 4096).iter().all(|&b| b == 0));
}

/// A flush may overtake writes and be overtaken: it only covers those that had completed.
pub fn a_flush_with_writes_in_flight_succeeds(disk: &dyn Disk) {
    let mut client = Client::new(disk, 16);
    let mut memory: Vec<Memory> = (0..8).map(|i| Memory::holding(&pattern(i, i * 4096, 4096), 0)).collect();
    let mut batch = Batch::new(&mut client);
    for (i, memory) in memory.iter_mut().enumerate() {
        batch.write(i as u64 * 4096, memory);
        batch.flush();
    }
    batch.finish();
    for i in 0..8 {
        assert!(client.read(i * 4096, 4096) == pattern(i, i * 4096, 4096));
    }
}

/// Requests that are in flight together, all of which succeed.
struct Batch<'a> {
    client: &'a mut Client,
    pending: usize,
}

impl<'a> Batch<'a> {
    fn new(client: &'a mut Client) -> Self {
        Self { client, pending: 0 }
    }

    fn write(&mut self, offset: u64, memory: &mut Memory) {
        let segments = [memory.segment()];
        let range = (offset, segments[0].len as u64);
        // SAFETY: the caller keeps the memory until `finish` has returned.
        let (_, submission) =
            unsafe { self.client.submit(Operation::Write, range, &segments, RequestFlags::NONE) };
        self.note(submission);
    }

    fn flush(&mut self) {
        // SAFETY: there are no segments.
        let (_, submission) =
            unsafe { self.client.submit(Operation::Flush, (0, 0), &[], RequestFlags::NONE) };
        self.note(submission);
    }

    fn note(&mut self, submission: Submission) {
        match submission {
            Submission::Done(result) => assert_eq!(result, Ok(())),
            Submission::Pending => self.pending += 1,
            Submission::Full => panic!("the queue is deep enough"),
        }
    }

    fn finish(mut self) {
        self.client.kick();
        while self.pending > 0 {
            for completion in self.client.wait() {
                assert_eq!(completion.result, Ok(()));
                self.pending -= 1;
            }
        }
    }
}

/// Where requests in flight overlap, each range of `request_alignment` holds one of them whole.
pub fn overlapping_writes_leave_each_block_to_one_of_them(disk: &dyn Disk) {
    const LEN: usize = 64 << 10;
    let block = disk.info().request_alignment.max(1) as usize;
    let mut client = Client::new(disk, 32);
    for round in 0..8u64 {
        let seeds = (0..16).map(|i| 100 + round * 16 + i);
        let mut memory: Vec<Memory> =
            seeds.clone().map(|seed| Memory::holding(&pattern(seed, 4096, LEN), 0)).collect();
        let mut batch = Batch::new(&mut client);
        memory.iter_mut().for_each(|memory| batch.write(4096, memory));
        batch.finish();
        let found = client.read(4096, LEN);
        for (i, found) in found.chunks(block).enumerate() {
            let whole = memory.iter().any(|memory| memory.bytes()[i * block..].starts_with(found));
            assert!(whole, "block {i} is none of the writes'");
        }
    }
}

/// Parts of one block that do not overlap, in flight together: each is there afterwards.
pub fn writes_to_parts_of_one_block_do_not_undo_each_other(disk: &dyn Disk) {
    let mut client = Client::new(disk, 64);
    for round in 0..16u64 {
        // Parts of odd lengths, so that blocks of any size are cut, some of them aligned as a whole.
        let cuts: [u64; 12] = [8192, 8193, 8200, 8700, 8703, 8704, 9216, 12288, 16384, 16400, 20479, 20480];
        let mut memory: Vec<(u64, Memory)> = cuts
            .windows(2)
            .map(|cut| {
                (cut[0], Memory::holding(&pattern(200 + round, cut[0], (cut[1] - cut[0]) as usize), 0))
            })
            .collect();
        let mut batch = Batch::new(&mut client);
        memory.iter_mut().for_each(|(offset, memory)| batch.write(*offset, memory));
        batch.finish();
        let len = (cuts[11] - cuts[0]) as usize;
        assert!(client.read(8192, len) == pattern(200 + round, 8192, len), "round {round}");
    }
}

/// The same from several threads, each with its own queue; some write whole blocks, some parts.
pub fn writes_beside_each_other_on_several_queues_do_not_undo_each_other(disk: &dyn Disk) {
    // Each thread owns every third stretch of 1536 bytes: blocks of 512 are its own, blocks of 4096 are shared.
    const STRETCH: u64 = 1536;
    const STRETCHES: u64 = 24;
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            scope.spawn(move || {
                let mut client = Client::new(disk, 16);
                for round in 0..12 {
                    let mut memory: Vec<(u64, Memory)> = (0..STRETCHES / 3)
                        .map(|i| {
                            let offset = (i * 3 + thread) * STRETCH;
                            (offset, Memory::holding(&pattern(round, offset, STRETCH as usize), 0))
                        })
                        .collect();
                    let mut batch = Batch::new(&mut client);
                    memory.iter_mut().for_each(|(offset, memory)| batch.write(*offset, memory));
                    batch.finish();
                    for (offset, memory) in &memory {
                        assert!(client.read(*offset, STRETCH as usize) == memory.bytes(), "round {round}");
                    }
                }
            });
        }
    });
    let len = (STRETCHES * STRETCH) as usize;
    assert!(Client::new(disk, 1).read(0, len) == pattern(11, 0, len));
}

/// A write of whole blocks, and one of a part of them over and over: what the second does not cover is the first's, at
/// the first's completion and later.
pub fn a_write_of_whole_blocks_is_not_undone_by_one_to_a_part(disk: &dyn Disk) {
    const PART: (u64, usize) = (8000, 1000);
    const WHOLE: (u64, usize) = (8192, 8192);
    const ONLY_WHOLE: (u64, usize) = (9000, 16384 - 9000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::new(disk, 1);
            while !done.load(Ordering::Relaxed) {
                client.write(PART.0, &pattern(300, PART.0, PART.1));
            }
        });
        let mut client = Client::new(disk, 1);
        for round in 400..600 {
            client.write(WHOLE.0, &pattern(round, WHOLE.0, WHOLE.1));
            for _ in 0..3 {
                let found = client.read(ONLY_WHOLE.0, ONLY_WHOLE.1);
                if found != pattern(round, ONLY_WHOLE.0, ONLY_WHOLE.1) {
                    done.store(true, Ordering::Relaxed);
                    panic!("an older write came back in round {round}");
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Requests into announced memory, across its edge and beside it: memory of one process, and memory that others can
/// map too. A disk may be unable to do anything with either; then it serves like any other all the same.
pub fn announced_memory_serves_like_any_other(disk: &dyn Disk) {
    let mut private = Memory::new(ANNOUNCED, 0, 0);
    announce(disk, private.segment().base, None);
    let shared = SharedMemory::new(ANNOUNCED);
    announce(disk, shared.base, Some((shared.file.as_fd(), 0)));
}

const ANNOUNCED: usize = 256 << 10;

/// Announces the first half of memory of [`ANNOUNCED`] bytes, which outlives this call, and uses all of it.
fn announce(disk: &dyn Disk, base: *mut u8, backing: Option<(BorrowedFd<'_>, u64)>) {
    const LEN: usize = ANNOUNCED;
    let (mut client, mut beside) = (Client::new(disk, 4), Client::new(disk, 4));
    let data = pattern(5, 0, LEN);
    // SAFETY: the caller's memory, which nobody else uses between requests.
    let fill = |data: &[u8]| unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), base, LEN) };
    // SAFETY: as above.
    let holds = |data: &[u8]| unsafe { std::slice::from_raw_parts(base, LEN) } == data;
    let mut run = |operation, cut: &[usize]| {
        let segments = cut_up(base, LEN, cut);
        // SAFETY: the caller's memory.
        let submitted = unsafe { client.submit(operation, (0, LEN as u64), &segments, RequestFlags::NONE) };
        assert_eq!(client.finish(submitted), Ok(()));
    };
    let region = MemoryRegion { base, len: LEN / 2, backing };
    // SAFETY: the memory outlives the announcement.
    let announced = unsafe { disk.register_memory(region) };
    for cut in [&[LEN][..], &[4096], &[3000, 5000]] {
        fill(&data);
        run(Operation::Write, cut);
        fill(&vec![0; LEN]);
        run(Operation::Read, cut);
        assert!(holds(&data), "{announced:?}, cut {cut:?}");
        beside.read(CAPACITY / 2, 4096);
    }
    if announced.is_ok() {
        disk.unregister_memory(base, LEN / 2);
    }
    fill(&vec![0; LEN]);
    run(Operation::Read, &[LEN]);
    assert!(holds(&data));
}

/// Pages of a memfd.
struct SharedMemory {
    base: *mut u8,
    len: usize,
    file: OwnedFd,
}

impl SharedMemory {
    fn new(len: usize) -> Self {
        let file = memfd_create("contract", MemfdFlags::CLOEXEC).expect("memfd_create");
        ftruncate(&file, len as u64).expect("ftruncate");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) };
        Self { base: base.expect("mmap").cast(), len, file }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length.
        let _ = unsafe { munmap(self.base.cast(), self.len) };
    }
}
