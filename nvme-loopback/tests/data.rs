//! Data is where it was written: all sizes, all offsets, several queues, every way of ringing and waiting.

mod rig;

use std::thread;

use nvme_emu::PollMode;
use nvme_spec::nvm_command::{DatasetManagement, DatasetManagementRange};
use nvme_vfio::{Options, QueuePair};
use rig::{Emulated, PLACES, Place, Rig, complete, pattern, run};

/// Writes a pattern from one place of a buffer, reads it back to another, and compares.
struct Checked {
    namespace: nvme_vfio::Namespace,
    queue: QueuePair,
    buffer: nvme_vfio::DmaBuffer,
}

impl Checked {
    fn new(rig: &Rig, max: usize) -> Self {
        let namespace = rig.controller.namespace(1).unwrap();
        let queue = rig.controller.queue_pair().unwrap();
        // Room for an offset in front of each half.
        let buffer = rig.controller.alloc_dma(2 * (max + 4096)).unwrap();
        Self { namespace, queue, buffer }
    }

    fn check(&mut self, slba: u64, blocks: u32, write_offset: usize, read_offset: usize) {
        let len = (blocks * self.namespace.block_size()) as usize;
        let data = pattern(slba << 32 | u64::from(blocks) << 12 | write_offset as u64, len);
        let half = self.buffer.len() / 2;
        self.buffer.write_at(write_offset, &data);
        self.buffer.fill(half..2 * half, 0xa5);
        let from = self.buffer.range(write_offset..write_offset + len);
        let to = self.buffer.range(half + read_offset..half + read_offset + len);
        let Self { namespace, queue, .. } = self;
        assert_eq!(run(queue, |queue| queue.write(namespace, slba, blocks, from, false, 0)), Ok(()));
        assert_eq!(run(queue, |queue| queue.read(namespace, slba, blocks, to, 0)), Ok(()));
        let mut half_read = vec![0; half];
        self.buffer.read_at(half, &mut half_read);
        let what = format!("{blocks} blocks at {slba}, offsets {write_offset} and {read_offset}");
        assert!(half_read[read_offset..read_offset + len] == data, "{what}: wrong data");
        // Nothing around it was touched.
        assert!(half_read[..read_offset].iter().all(|byte| *byte == 0xa5), "{what}: written before");
        assert!(half_read[read_offset + len..].iter().all(|byte| *byte == 0xa5), "{what}: written behind");
    }
}

#[test]
fn all_sizes_from_one_block_to_the_maximum_transfer() {
    for place in PLACES {
        let emulated = Emulated { mdts: 5, ..Emulated::default() };
        let rig = Rig::new(place, emulated, Options::default());
        let max = rig.controller.max_transfer();
        assert_eq!(max, 128 << 10);
        let mut checked = Checked::new(&rig, max as usize);
        for blocks in 1..=max / 512 {
            checked.check(u64::from(blocks) * 3, blocks, 0, 0);
        }
    }
}

#[test]
fn sizes_around_page_and_list_boundaries_up_to_a_mebibyte() {
    for place in PLACES {
        let emulated = Emulated { block_size: 4096, ..Emulated::default() };
        let rig = Rig::new(place, emulated, Options::default());
        let max = rig.controller.max_transfer();
        assert_eq!(max, 1 << 20);
        let mut checked = Checked::new(&rig, max as usize);
        for blocks in [1, 2, 3, 127, 128, 129, 254, 255, 256] {
            for offset in [0, 4, 2048, 4092] {
                checked.check(u64::from(blocks), blocks, offset, 4092 - offset);
            }
        }
    }
}

#[test]
fn all_prp_offsets() {
    for place in PLACES {
        let rig = Rig::new(place, Emulated::default(), Options::default());
        let mut checked = Checked::new(&rig, 16 << 10);
        for offset in (0..4096).step_by(4) {
            // One page or two, two or three, five or more.
            for blocks in [1, 8, 32] {
                checked.check(offset as u64, blocks, offset, (offset * 7 + 4) % 4096);
            }
        }
    }
}

#[test]
fn data_in_pieces_of_pages() {
    for place in PLACES {
        let rig = Rig::new(place, Emulated::default(), Options::default());
        let namespace = rig.controller.namespace(1).unwrap();
        let mut queue = rig.controller.queue_pair().unwrap();
        let buffer = rig.controller.alloc_dma(8 * 4096).unwrap();
        let data = pattern(1, 8 * 4096);
        buffer.write_at(0, &data);
        // Half a page, two whole ones out of order, half a page: 12 KiB.
        let pieces = [
            buffer.range(6 * 4096 + 2048..7 * 4096),
            buffer.range(4 * 4096..5 * 4096),
            buffer.range(2 * 4096..3 * 4096),
            buffer.range(0..2048),
        ];
        assert_eq!(run(&mut queue, |queue| queue.write(&namespace, 0, 24, pieces, false, 0)), Ok(()));
        let whole = buffer.range(4096..4096 + 12288);
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, 0, 24, whole, 0)), Ok(()));
        let mut read = vec![0; 12288];
        buffer.read_at(4096, &mut read);
        let expected = [&data[26624..28672], &data[16384..20480], &data[8192..12288], &data[..2048]].concat();
        assert!(read == expected);
    }
}

/// PRPs cannot describe them: pieces that begin at odd addresses and meet inside pages.
#[test]
fn data_in_pieces_of_any_alignment_goes_by_sgl() {
    for place in PLACES {
        let rig = Rig::new(place, Emulated::default(), Options::default());
        let namespace = rig.controller.namespace(1).unwrap();
        let mut queue = rig.controller.queue_pair().unwrap();
        let buffer = rig.controller.alloc_dma(8 * 4096).unwrap();
        let data = pattern(2, 4 * 4096);
        buffer.write_at(0, &data);
        let pieces = [buffer.range(10_001..10_512), buffer.range(3..4), buffer.range(513..4609)];
        assert_eq!(run(&mut queue, |queue| queue.write(&namespace, 0, 9, pieces, false, 0)), Ok(()));
        let pieces =
            [buffer.range(20_000..20_001), buffer.range(24_577..28_672), buffer.range(30_000..30_512)];
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, 0, 9, pieces, 0)), Ok(()));
        let mut whole = vec![0; buffer.len()];
        buffer.read_at(0, &mut whole);
        let read = [&whole[20_000..20_001], &whole[24_577..28_672], &whole[30_000..30_512]].concat();
        assert!(read == [&data[10_001..10_512], &data[3..4], &data[513..4609]].concat());
    }
}

/// Writes and reads on several queues at once, each a range of its own, verified.
fn several_queues(place: Place, poll: PollMode, shadow_doorbells: bool, interrupts: bool) {
    const QUEUES: u64 = 3;
    const DEPTH: usize = 16;
    const LAPS: u64 = 40;
    let what = format!("{place:?} {poll:?} shadow {shadow_doorbells} interrupts {interrupts}");
    let options = Options {
        queues: QUEUES as u16,
        depth: DEPTH as u16,
        shadow_doorbells,
        interrupts,
        ..Options::default()
    };
    let rig = Rig::new(place, Emulated { poll, ..Emulated::default() }, options);
    let mapped = poll == PollMode::Always;
    assert_eq!(rig.controller.shadow_doorbells(), shadow_doorbells && !mapped, "{what}");
    let worker = |index: u64| {
        let namespace = rig.controller.namespace(1).unwrap();
        let mut queue = rig.controller.queue_pair().unwrap();
        assert_eq!(queue.wait_fd().is_some(), interrupts);
        let buffer = rig.controller.alloc_dma(2 * DEPTH * 4096).unwrap();
        let slots = |half: usize| (0..DEPTH).map(move |slot| (slot, (half * DEPTH + slot) * 4096));
        for lap in 0..LAPS {
            // Scattered over a third of the disk, each place once a lap.
            let slba = |slot: usize| (index * 40_000) + ((slot as u64 * 37 + lap * 11) % 4_000) * 8;
            let data = |slot: usize| pattern(index << 40 | lap << 20 | slot as u64, 4096);
            for (slot, at) in slots(0) {
                buffer.write_at(at, &data(slot));
                queue
                    .write(&namespace, slba(slot), 8, buffer.range(at..at + 4096), false, at as u64)
                    .unwrap();
            }
            for (_, result) in complete(&mut queue, DEPTH) {
                assert_eq!(result, Ok(()));
            }
            for (slot, at) in slots(1) {
                queue.read(&namespace, slba(slot), 8, buffer.range(at..at + 4096), at as u64).unwrap();
            }
            complete(&mut queue, DEPTH);
            for (slot, at) in slots(1) {
                let mut read = [0; 4096];
                buffer.read_at(at, &mut read);
                assert!(read == data(slot)[..], "{what}: queue {index}, lap {lap}, slot {slot}");
            }
        }
    };
    thread::scope(|scope| {
        for index in 0..QUEUES {
            scope.spawn(move || worker(index));
        }
    });
}

#[test]
fn several_queues_with_shadow_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Adaptive, true, false);
    }
}

#[test]
fn several_queues_with_trapped_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Adaptive, false, false);
    }
}

#[test]
fn several_queues_with_mapped_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Always, true, false);
    }
}

#[test]
fn several_queues_with_interrupts_and_shadow_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Adaptive, true, true);
    }
}

#[test]
fn several_queues_with_interrupts_and_trapped_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Adaptive, false, true);
    }
}

#[test]
fn several_queues_with_interrupts_and_mapped_doorbells() {
    for place in PLACES {
        several_queues(place, PollMode::Always, true, true);
    }
}

#[test]
fn a_driver_that_pauses_between_commands_wakes_the_controller_each_time() {
    for place in PLACES {
        for shadow_doorbells in [false, true] {
            let options = Options { shadow_doorbells, ..Options::default() };
            let rig = Rig::new(place, Emulated::default(), options);
            let namespace = rig.controller.namespace(1).unwrap();
            let mut queue = rig.controller.queue_pair().unwrap();
            for pause in [0, 1, 50, 500, 5_000, 50_000] {
                for _ in 0..10 {
                    thread::sleep(std::time::Duration::from_micros(pause));
                    assert_eq!(run(&mut queue, |queue| queue.flush(&namespace, 0)), Ok(()));
                }
            }
        }
    }
}

#[test]
fn zeroes_and_deallocated_blocks_read_as_zeroes() {
    for place in PLACES {
        let rig = Rig::new(place, Emulated::default(), Options::default());
        let namespace = rig.controller.namespace(1).unwrap();
        let mut queue = rig.controller.queue_pair().unwrap();
        let len = 1 << 20;
        let blocks = (len / 512) as u32;
        let buffer = rig.controller.alloc_dma(len).unwrap();
        buffer.fill(0..len, 0xff);
        let whole = buffer.range(0..len);
        assert_eq!(run(&mut queue, |queue| queue.write(&namespace, 0, blocks, whole, false, 0)), Ok(()));
        assert_eq!(run(&mut queue, |queue| queue.write_zeroes(&namespace, 1, 15, false, true, 0)), Ok(()));
        assert_eq!(run(&mut queue, |queue| queue.write_zeroes(&namespace, 32, 8, true, false, 0)), Ok(()));
        let ranges: Vec<_> = (0..200)
            .map(|index| DatasetManagementRange {
                context_attributes: 0,
                length_lbas: 8,
                slba: 64 + index * 9,
            })
            .collect();
        let deallocate = DatasetManagement::new().with_ad(true);
        let dsm = |queue: &mut QueuePair| queue.dataset_management(&namespace, deallocate, &ranges, 0);
        assert_eq!(run(&mut queue, dsm), Ok(()));
        assert_eq!(run(&mut queue, |queue| queue.read(&namespace, 0, blocks, whole, 0)), Ok(()));
        let mut read = vec![0; len];
        buffer.read_at(0, &mut read);
        for (slba, block) in read.chunks(512).enumerate() {
            let zeroed = (1..16).contains(&slba) || (32..40).contains(&slba);
            let deallocated = (64..64 + 200 * 9).contains(&slba) && (slba - 64) % 9 < 8;
            // A memory disk's deallocated blocks read as zeroes.
            let expected = if zeroed || deallocated { 0 } else { 0xff };
            assert!(block.iter().all(|byte| *byte == expected), "block {slba}");
        }
    }
}
