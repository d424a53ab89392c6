//! The contract as tests: what every [`crate::Disk`] has to pass, run on each of them by [`crate::contract_suite!`].
//!
//! Each public function here is one sentence of the documentation of [`crate::Disk`], [`crate::Queue`] and
//! [`crate::Request`], named after what it checks. It is given a disk of at least [`CAPACITY`] bytes with any
//! contents, which it may overwrite, and panics where the disk breaks its word.
//!
//! Durability cannot be seen from a disk that runs: [`durability`] has workloads whose writes can be told apart, and what
//! may be left of them after the power has failed or the process was killed.

mod client;
mod data;
pub mod durability;
mod random;
mod ranges;
mod waiting;
mod zeroes;

pub use client::{Client, Memory, pattern};
pub use data::*;
pub use random::Random;
pub use ranges::*;
pub use waiting::*;
pub use zeroes::*;

/// A sentence of the contract, by its name.
pub type Sentence = (&'static str, fn(&dyn crate::Disk));

/// What [`crate::contract_suite!`] makes tests of for a disk that can be written and keeps its data: for programs that
/// are no tests.
pub const SENTENCES: &[Sentence] = crate::contract_suite!(@with_data [@table]);

/// Smallest disk that the suite works on, in bytes.
pub const CAPACITY: u64 = 8 << 20;

/// Makes a module of tests, one for each sentence of the contract.
///
/// The opener is called for each with `read_only`, and gives `Option<Arc<dyn Disk>>`; where it gives `None` the test
/// counts as skipped, and the opener has said why. A disk that keeps no data (`null:`) runs the `without_data` part.
///
/// ```text
/// block_core::contract_suite!(mem, |read_only| open_mem(read_only));
/// block_core::contract_suite!(null, without_data, |read_only| open_null(read_only));
/// ```
#[macro_export]
macro_rules! contract_suite {
    ($name:ident, without_data, $open:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::contract_suite!(@without_data [@tests false, $open;]);
            $crate::contract_suite!(@tests true, $open; a_read_only_disk_refuses_every_change);
        }
    };
    ($name:ident, $open:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $crate::contract_suite!(@with_data [@tests false, $open;]);
            $crate::contract_suite!(@tests true, $open; a_read_only_disk_refuses_every_change);
        }
    };
    (@with_data [$($then:tt)*]) => {
        $crate::contract_suite! { @without_data [$($then)*]
            a_write_outside_the_disk_leaves_its_end_as_it_was
            what_is_written_is_read_back_at_any_offset_and_length
            any_sequence_of_requests_does_what_a_plain_array_would
            more_segments_than_one_system_call_takes_are_all_moved
            a_fua_write_is_there
            a_flush_with_writes_in_flight_succeeds
            overlapping_writes_leave_each_block_to_one_of_them
            writes_to_parts_of_one_block_do_not_undo_each_other
            writes_beside_each_other_on_several_queues_do_not_undo_each_other
            a_write_of_whole_blocks_is_not_undone_by_one_to_a_part
            write_zeroes_reads_as_zeroes_and_leaves_its_neighbours
            write_zeroes_without_fallback_works_or_changes_nothing
            a_discarded_range_reads_as_the_disk_says
            announced_memory_serves_like_any_other
        }
    };
    (@without_data [$($then:tt)*] $($more:ident)*) => {
        $crate::contract_suite! { $($then)*
            a_range_outside_the_disk_ends_with_einval_and_touches_nothing
            a_length_of_zero_succeeds
            segments_that_do_not_add_up_to_the_length_end_with_einval
            the_last_bytes_of_the_disk_are_there
            a_flush_ignores_its_range
            a_full_queue_gives_the_request_back
            every_pending_request_completes_exactly_once
            a_wait_fd_is_readable_just_while_there_is_something_to_poll
            a_sleeper_in_epoll_is_woken_for_every_request
            dropping_a_queue_waits_for_what_is_left
            $($more)*
        }
    };
    (@table $($name:ident)*) => {
        &[$((stringify!($name), $crate::contract::$name as fn(&dyn $crate::Disk)),)*]
    };
    (@tests $read_only:literal, $open:expr; $($test:ident)*) => {
        $(#[test]
        fn $test() {
            let open: &dyn Fn(bool) -> Option<std::sync::Arc<dyn $crate::Disk>> = &$open;
            if let Some(disk) = open($read_only) {
                $crate::contract::$test(&*disk);
            }
        })*
    };
}
