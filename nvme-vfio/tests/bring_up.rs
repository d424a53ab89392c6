//! Bringing a controller up and down by the book (Base Specification, "Controller Initialization", "Shutdown").

mod fake;

use std::time::{Duration, Instant};

use fake::{Fake, Step};
use nvme_spec::doorbell::Doorbell;
use nvme_spec::registers::{Cap, ControllerConfiguration, ControllerStatus, ShutdownNotification};
use nvme_spec::{AdminOpcode, Status};
use nvme_vfio::{Controller, Error, Options};

fn open(fake: &Fake) -> Result<Controller, Error> {
    Controller::open(fake.boxed(), Options::default())
}

fn refusal(fake: &Fake) -> String {
    open(fake).map(drop).unwrap_err().to_string()
}

/// CC of a driver that uses the NVM command set.
fn enabled() -> ControllerConfiguration {
    ControllerConfiguration::new().with_iosqes(6).with_iocqes(4).with_en(true)
}

#[test]
fn the_admin_queue_is_set_up_before_the_controller_is_enabled() {
    let fake = Fake::new();
    let controller = open(&fake).unwrap();
    let writes = fake.writes();
    let registers: Vec<_> = writes.iter().map(|(register, _)| *register).collect();
    assert_eq!(registers, ["AQA", "ASQ", "ACQ", "CC"]);
    assert_eq!(writes[3].1, u64::from(enabled().into_bits()));
    assert!(writes[1].1.is_multiple_of(4096) && writes[2].1.is_multiple_of(4096));
    assert!(writes[1].1 != 0 && writes[1].1 != writes[2].1);
    drop(controller);
}

#[test]
fn dropping_it_shuts_it_down_and_waits_for_that() {
    let fake = Fake::new();
    drop(open(&fake).unwrap());
    let last_two: Vec<_> = fake.writes().into_iter().rev().take(2).rev().collect();
    let shutdown = enabled().with_shn(ShutdownNotification::Normal);
    let disabled = enabled().with_en(false);
    let expected = [shutdown, disabled].map(|cc| ("CC", u64::from(cc.into_bits())));
    assert_eq!(last_two, expected);
}

#[test]
fn a_queue_pair_keeps_the_controller_up() {
    let fake = Fake::new();
    let queue = open(&fake).unwrap().queue_pair().unwrap();
    assert!(fake.state().csts.rdy());
    drop(queue);
    assert!(!fake.state().csts.rdy());
}

#[test]
fn a_controller_left_enabled_is_disabled_first() {
    let fake = Fake::with(|state| {
        state.cc = enabled();
        state.csts = ControllerStatus::new().with_rdy(true);
    });
    let _controller = open(&fake).unwrap();
    assert_eq!(fake.writes()[0], ("CC", u64::from(enabled().with_en(false).into_bits())));
}

#[test]
fn a_controller_left_enabled_that_never_got_ready_is_disabled_after_its_time() {
    let fake = Fake::with(|state| state.cc = enabled());
    let start = Instant::now();
    let _controller = open(&fake).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(500), "CAP.TO is 500 ms");
}

#[test]
fn a_controller_that_stays_ready_when_disabled_has_its_function_reset() {
    let fake = Fake::with(|state| {
        state.cc = enabled();
        state.csts = ControllerStatus::new().with_rdy(true);
        state.stays_ready = true;
    });
    let controller = open(&fake).unwrap();
    assert!(fake.state().steps.contains(&Step::FunctionReset));
    fake.state().stays_ready = false;
    drop(controller);
}

#[test]
fn a_controller_left_with_a_fatal_error_has_its_function_reset() {
    let fake = Fake::with(|state| {
        state.cc = enabled();
        state.csts = ControllerStatus::new().with_rdy(true).with_cfs(true);
    });
    let _controller = open(&fake).unwrap();
    assert!(fake.state().steps.contains(&Step::FunctionReset));
}

#[test]
fn a_controller_that_never_gets_ready_is_an_error_within_its_time() {
    let fake = Fake::with(|state| state.gets_ready = false);
    let start = Instant::now();
    assert_eq!(refusal(&fake), "fake: CSTS.RDY = 1 took more than 1s");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_fatal_error_on_the_way_up_is_an_error_at_once() {
    let fake = Fake::with(|state| {
        state.gets_ready = false;
        state.cfs_on_enable = true;
    });
    assert_eq!(refusal(&fake), "fake: the controller reports a fatal error (CSTS.CFS)");
}

#[test]
fn registers_of_all_ones_mean_that_nobody_is_there() {
    let fake = Fake::with(|state| state.gone = true);
    assert_eq!(refusal(&fake), "fake: the controller has gone (its registers read as all ones)");
}

#[test]
fn a_controller_without_the_nvm_command_set_is_refused() {
    let fake = Fake::with(|state| state.cap.set_css(Cap::CSS_NO_IO));
    assert_eq!(refusal(&fake), "fake: the controller has no NVM command set (CAP.CSS = 0x80)");
}

#[test]
fn a_controller_with_all_command_sets_only_gets_them_all() {
    let fake = Fake::with(|state| state.cap.set_css(Cap::CSS_IO_COMMAND_SETS));
    let _controller = open(&fake).unwrap();
    assert_eq!(fake.state().cc.css(), ControllerConfiguration::CSS_ALL);
}

#[test]
fn larger_memory_pages_are_used_where_the_controller_has_no_smaller_ones() {
    let fake = Fake::with(|state| state.cap = state.cap.with_mpsmin(2).with_mpsmax(4));
    let controller = open(&fake).unwrap();
    assert_eq!(fake.state().cc.memory_page_size(), 16384);
    assert!(controller.alloc_dma(1).unwrap().iova().is_multiple_of(16384));
    assert!(
        fake.writes()[..3].iter().all(|(register, value)| *register == "AQA" || value.is_multiple_of(16384))
    );
}

#[test]
fn doorbells_keep_the_controllers_stride() {
    let fake = Fake::with(|state| state.cap.set_dstrd(4));
    // The fake takes no other offsets for doorbells.
    let controller = open(&fake).unwrap();
    assert!(!fake.doorbells(Doorbell::SubmissionQueueTail(0)).is_empty());
    assert_eq!(controller.namespaces().unwrap().len(), 1);
}

#[test]
fn no_more_queues_are_made_than_were_granted() {
    let fake = Fake::with(|state| state.queues = 2);
    let controller = Controller::open(fake.boxed(), Options { queues: 5, ..Options::default() }).unwrap();
    assert_eq!(controller.max_queues(), 2);
    let pairs = [controller.queue_pair().unwrap(), controller.queue_pair().unwrap()];
    assert_eq!(pairs.each_ref().map(|pair| pair.qid()), [1, 2]);
    let error = controller.queue_pair().map(drop).unwrap_err().to_string();
    assert_eq!(error, "fake: all 2 I/O queues are in use");
    let [first, _second] = pairs;
    drop(first);
    assert_eq!(controller.queue_pair().unwrap().qid(), 1, "a queue given back can be made again");
}

#[test]
fn more_queues_than_asked_for_are_not_used() {
    let controller = Controller::open(Fake::new().boxed(), Options { queues: 3, ..Options::default() });
    assert_eq!(controller.unwrap().max_queues(), 3);
}

#[test]
fn queues_are_not_longer_than_the_controller_allows() {
    let fake = Fake::with(|state| state.cap.set_mqes(15));
    assert_eq!(open(&fake).unwrap().queue_pair().unwrap().depth(), 15);
}

#[test]
fn transfers_are_not_longer_than_the_controller_allows() {
    let fake = Fake::with(|state| {
        state.identify.mdts = 3;
        state.cap = state.cap.with_mpsmin(1).with_mpsmax(1);
    });
    assert_eq!(open(&fake).unwrap().max_transfer(), 8 << 13);
    let unlimited = Fake::with(|state| state.identify.mdts = 0);
    assert_eq!(open(&unlimited).unwrap().max_transfer(), Options::default().max_transfer);
}

#[test]
fn a_refused_command_is_an_error_with_the_specifications_words() {
    let fake = Fake::with(|state| state.refused = Some((AdminOpcode::IDENTIFY, Status::INTERNAL_ERROR)));
    assert_eq!(refusal(&fake), "fake: Identify: Internal Error");
}

#[test]
fn a_failed_start_still_disables_the_controller() {
    for opcode in [AdminOpcode::IDENTIFY, AdminOpcode::SET_FEATURES] {
        let fake = Fake::with(|state| state.refused = Some((opcode, Status::INTERNAL_ERROR)));
        refusal(&fake);
        assert!(!fake.state().cc.en(), "{opcode}");
    }
}

#[test]
fn namespaces_that_cannot_be_used_say_why() {
    let fake = Fake::with(|state| state.namespace.lbaf[0].set_ms(8));
    let controller = open(&fake).unwrap();
    let error = controller.namespace(1).map(drop).unwrap_err().to_string();
    assert_eq!(error, "fake: namespace 1 has 8 bytes of metadata with each block");
    assert_eq!(controller.namespaces().unwrap().len(), 0);
    fake.state().namespace.nsze = 0;
    let error = controller.namespace(1).map(drop).unwrap_err().to_string();
    assert_eq!(error, "fake: namespace 1 is not active");
}

#[test]
fn shadow_doorbells_are_configured_where_the_controller_has_them() {
    let fake = Fake::with(|state| state.identify.oacs.set_doorbell_buffer_config(true));
    assert!(open(&fake).unwrap().shadow_doorbells());
    assert!(!open(&Fake::new()).unwrap().shadow_doorbells());
    let options = Options { shadow_doorbells: false, ..Options::default() };
    assert!(!Controller::open(fake.boxed(), options).unwrap().shadow_doorbells());
}
