//! Whatever a guest sends has an outcome.

use super::*;
use proptest::prelude::*;

/// Bytes of a command; half of them with an opcode and a field that lead somewhere.
fn commands() -> impl Strategy<Value = SubmissionQueueEntry> {
    let dwords = (any::<u32>(), any::<u32>(), any::<u64>(), any::<u32>());
    let opcode = prop_oneof![any::<u8>(), proptest::sample::select(vec![0x02_u8, 0x06, 0x09, 0x0a, 0x0c])];
    let nsid = prop_oneof![any::<u32>(), 0..5_u32, Just(NSID_BROADCAST)];
    let cdw10 = prop_oneof![any::<u32>(), 0..0x20_u32, (0..0x20_u32).prop_map(|low| 0xff << 16 | low)];
    let flags = prop_oneof![9 => Just(0_u8), 1 => any::<u8>()];
    (opcode, flags, any::<u16>(), nsid, cdw10, dwords).prop_map(|(opcode, flags, cid, nsid, cdw10, rest)| {
        let mut sqe = SubmissionQueueEntry::new(opcode, cid).with_nsid(nsid);
        sqe.flags = CommandFlags::from_bits(flags);
        (sqe.cdw10, sqe.cdw11, sqe.cdw14) = (cdw10, rest.0, rest.3);
        (sqe.cdw12, sqe.cdw13) = (rest.1 & rest.0, if rest.2 % 2 == 0 { 0 } else { rest.2 as u32 });
        sqe
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_command_has_an_outcome_and_every_failure_an_entry(sequence in proptest::collection::vec(commands(), 1..64)) {
        let mut bench = Bench::new();
        bench.host.data = vec![0xa5; 4096];
        let mut failures = 0;
        for sqe in sequence {
            match bench.execute(sqe) {
                Outcome::Failed(status) => {
                    failures += 1;
                    prop_assert!(!status.is_success() && status.more());
                }
                Outcome::Complete { .. } => prop_assert!(bench.host.data.len() <= bench.admin.max_transfer().max(4096)),
                Outcome::Parked | Outcome::NotMine => {}
            }
            bench.host.data.resize(4096, 0xa5);
            prop_assert_eq!(bench.admin.errors.count(), failures);
            while bench.admin.take_event_completion().is_some() {}
        }
    }
}
