//! A controller that nothing reaches any more, as when a vfio-user server has ended.

mod fake;

use std::time::{Duration, Instant};

use fake::setup::Setup;
use fake::{Answer, Fake};
use nvme_spec::{NvmOpcode, Status, SubmissionQueueEntry};
use nvme_vfio::{Condition, Error, Fault, Options};

/// Far more than any of this takes, even on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn it_is_not_reset_and_everything_ends_with_the_reason() {
    // The controller is looked at every eighth of that.
    let options = Options { io_timeout: Duration::from_secs(2), ..Options::default() };
    let Setup { fake, controller, mut queue, .. } = Setup::new(Fake::new(), options);
    fake.state().answer = Answer::Held;
    queue.submit(SubmissionQueueEntry::new(NvmOpcode::READ, 0).with_nsid(1), 7).unwrap();
    queue.kick();
    fake.state().steps.clear();
    let start = Instant::now();
    fake.state().lost = Some("the server closed the connection".into());
    let mut ended = Vec::new();
    let fault = loop {
        if let Err(fault) = queue.poll(|token, result| ended.push((token, result))) {
            break fault;
        }
        assert!(start.elapsed() < LONG);
    };
    assert_eq!(fault, Fault::Lost);
    assert_eq!(ended, [(7, Err(Status::HOST_PATHING_ERROR))]);
    assert_eq!(controller.condition(), Condition::Failed);
    assert_eq!(
        controller.failure(),
        Some("fake: the controller cannot be reached any more: the server closed the connection")
    );
    assert_eq!(controller.recovery_counters().resets, 0);
    assert!(fake.state().steps.is_empty(), "{:?}", fake.state().steps);
    for error in [controller.namespace(1).map(drop), controller.reset()] {
        assert!(matches!(error, Err(Error::Queue { fault: Fault::Lost, .. })), "{error:?}");
    }
}
