//! Tests of `doorbell.rs`: when a guest rings. (A file of its own, because the model checker takes that one as it is.)

use super::doorbell::{Doorbell, Shadow};
use super::doorbell_page::{DoorbellPage, tail_index};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a driver does after moving a shadow doorbell (the specification's annex; Linux's
/// `nvme_dbbuf_need_event`).
fn guest_rings(event_index: u32, old: u32, new: u32) -> bool {
    let (event, old, new) = (event_index as u16, old as u16, new as u16);
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn shadowed(page: &Arc<DoorbellPage>, words: &[AtomicU32; 2]) -> Doorbell {
    let mut doorbell = Doorbell::new(page.clone(), tail_index(1)).unwrap();
    let shadow = Shadow { value: NonNull::from(&words[0]), event_index: NonNull::from(&words[1]) };
    // SAFETY: the words outlive the doorbell.
    unsafe { doorbell.use_shadow(Some(shadow)) };
    doorbell
}

#[test]
fn an_armed_doorbell_is_rung_by_the_next_change_wherever_it_is() {
    let page = DoorbellPage::new().unwrap();
    let words = [AtomicU32::new(0), AtomicU32::new(0)];
    let doorbell = shadowed(&page, &words);
    for size in [2, 3, 64, 1024] {
        for seen in 0..size {
            doorbell.arm(seen);
            for step in 1..size {
                let new = (seen + step) % size;
                assert!(guest_rings(words[1].load(Ordering::Relaxed), seen, new), "{size} {seen} {new}");
            }
        }
    }
}

#[test]
fn a_suppressed_doorbell_is_not_rung_while_the_queue_is_looked_at() {
    let page = DoorbellPage::new().unwrap();
    let words = [AtomicU32::new(0), AtomicU32::new(0)];
    let doorbell = shadowed(&page, &words);
    let size = 64;
    let mut rings = 0;
    for seen in (0..size).chain(0..size) {
        doorbell.suppress(seen, size);
        let new = (seen + 1) % size;
        rings += u32::from(guest_rings(words[1].load(Ordering::Relaxed), seen, new));
    }
    assert_eq!(rings, 0);
}

#[test]
fn a_doorbell_whose_shadow_goes_keeps_what_was_rung_last() {
    let page = DoorbellPage::new().unwrap();
    let words = [AtomicU32::new(0), AtomicU32::new(0)];
    let mut doorbell = shadowed(&page, &words);
    page.word(tail_index(1)).unwrap().store(3, Ordering::Relaxed);
    words[0].store(7, Ordering::Relaxed);
    // SAFETY: there is no shadow.
    unsafe { doorbell.use_shadow(None) };
    assert_eq!(doorbell.load(), 7);
    // SAFETY: as above.
    unsafe { doorbell.use_shadow(None) };
    page.word(tail_index(1)).unwrap().store(8, Ordering::Relaxed);
    assert_eq!(doorbell.load(), 8, "and is rung in the page from then on");
}
