//! Memory that is not the driver's own: lent to the controller, found by address, taken back.

mod fake;

use std::ptr::NonNull;

use fake::Fake;
use nvme_vfio::transport::DmaMemory;
use nvme_vfio::{Controller, Options};

const PAGE: usize = 4096;

/// Pages of somebody else's.
fn pages(count: usize) -> (Vec<u8>, NonNull<u8>) {
    let mut memory = vec![0; (count + 1) * PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let base = NonNull::new(memory[skip..].as_mut_ptr()).unwrap();
    (memory, base)
}

fn lend(base: NonNull<u8>, len: usize) -> DmaMemory<'static> {
    DmaMemory { base, len: len as u64, backing: None }
}

#[test]
fn lent_memory_is_reached_until_it_is_taken_back() {
    let fake = Fake::new();
    let controller = Controller::open(fake.boxed(), Options::default()).unwrap();
    let (memory, base) = pages(3);
    // SAFETY: the memory outlives the mapping.
    let mapping = unsafe { controller.map_dma(&lend(base, 3 * PAGE)) }.unwrap();
    fake.state().write(mapping.iova() + 5000, b"hello");
    let at = base.as_ptr().addr() - memory.as_ptr().addr() + 5000;
    assert_eq!(&memory[at..at + 5], b"hello");

    let (first, last) = (mapping.iova(), mapping.iova() + 3 * PAGE as u64 - 1);
    assert!(fake.state().is_mapped(first) && fake.state().is_mapped(last));
    mapping.unmap().unwrap();
    assert!(!fake.state().is_mapped(first) && !fake.state().is_mapped(last));
    // SAFETY: as above.
    let again = unsafe { controller.map_dma(&lend(base, PAGE)) }.unwrap();
    assert_eq!(again.iova(), first, "the address is free again");
    drop(again);
    assert!(!fake.state().is_mapped(first));
}

#[test]
fn addresses_of_this_process_translate_inside_the_memory_only() {
    let fake = Fake::new();
    let controller = Controller::open(fake.boxed(), Options::default()).unwrap();
    let (_memory, base) = pages(2);
    // SAFETY: the memory outlives the mapping.
    let mapping = unsafe { controller.map_dma(&lend(base, 2 * PAGE)) }.unwrap();
    let at = |offset: isize, len| {
        let range = mapping.translate(base.as_ptr().wrapping_offset(offset), len);
        range.map(|range| (range.iova - mapping.iova(), range.len))
    };
    let end = 2 * PAGE as isize;
    assert_eq!(at(0, 2 * PAGE as u32), Some((0, 2 * PAGE as u32)));
    assert_eq!(at(end - 1, 1), Some((end as u64 - 1, 1)));
    assert_eq!(at(end - 1, 2), None);
    assert_eq!(at(-1, 1), None);
    assert_eq!(at(1, u32::MAX), None);
}

#[test]
fn memory_that_is_not_whole_pages_is_refused() {
    let fake = Fake::new();
    let controller = Controller::open(fake.boxed(), Options::default()).unwrap();
    let (_memory, base) = pages(2);
    // SAFETY: one byte of two pages is skipped.
    let inside = unsafe { base.add(1) };
    for (base, len) in [(base, PAGE + 1), (inside, PAGE), (base, 0)] {
        // SAFETY: the memory outlives the mapping, if one were made.
        let error = unsafe { controller.map_dma(&lend(base, len)) }.unwrap_err().to_string();
        assert!(error.contains("multiples of 4096"), "{error}");
    }
}
