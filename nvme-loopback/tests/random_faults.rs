//! Random fault scripts under random work: whatever a controller does, everything ends, once, in time, and with the
//! truth; what was written is what is read; and no memory is written that nobody lent.
//!
//! `PROPTEST_CASES=5000` tries more than the usual number, `PROPTEST_RNG_SEED=…` (printed when something fails) the same
//! ones once more; what machines do meanwhile is not in the seed.

mod drive;
mod random;
mod rig;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nvme_vfio::{Controller, RecoveryCounters};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, RngSeed, TestError, TestRng, TestRunner};
use random::disks::Disks;
use random::queue_pairs::QueuePairs;
use random::workload::{Side, Tally, Workload};
use random::{Case, Emulated};

/// Cases of each test, unless the environment says otherwise.
const CASES: u32 = 96;
/// Threads that try cases, which sleep most of the time.
const THREADS: u32 = 4;
/// For a machine that has other things to do.
const SLACK: Duration = Duration::from_secs(15);

/// The longest that anything may take: `nvme_vfio::recovery` has the sum.
fn deadline(case: &Case) -> Duration {
    let options = case.options();
    let recovery = options.recovery.unwrap_or_default();
    let ready = Duration::from_millis(500 + 500);
    let reset = 4 * ready + 6 * (options.admin_timeout + recovery.abort_timeout) + Duration::from_secs(1);
    (recovery.resets + 1) * (options.io_timeout + recovery.abort_timeout + reset) + SLACK
}

/// Panics of any thread since the first look.
fn panics() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            COUNT.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
    COUNT.load(Ordering::Relaxed)
}

/// What all cases of a test came to: a test in which nothing happens is none.
#[derive(Debug, Default)]
struct Sum {
    cases: u32,
    not_opened: u32,
    given_up: u32,
    recovered: u32,
    undisturbed: u32,
    succeeded: u64,
    failed: u64,
    counters: RecoveryCounters,
}

impl Sum {
    fn add(&mut self, tally: Tally, counters: RecoveryCounters, given_up: bool) {
        self.given_up += u32::from(given_up);
        self.recovered += u32::from(!given_up && counters.resets > 0);
        self.undisturbed += u32::from(!given_up && counters.resets == 0);
        self.succeeded += tally.succeeded;
        self.failed += tally.failed;
        self.counters.expired += counters.expired;
        self.counters.resets += counters.resets;
        self.counters.replayed += counters.replayed;
        self.counters.failed += counters.failed;
    }
}

/// Runs one case in a thread of its own, and sees to it that it ends.
fn watched(
    case: &Case,
    body: fn(&Case, &Mutex<Sum>) -> Result<(), TestCaseError>,
    sum: &'static Mutex<Sum>,
) -> Result<(), TestCaseError> {
    let (before, limit) = (panics(), 4 * deadline(case));
    let (sender, receiver) = mpsc::sync_channel(1);
    let own = case.clone();
    thread::spawn(move || sender.send(body(&own, sum)));
    match receiver.recv_timeout(limit) {
        Ok(result) => result?,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            return Err(TestCaseError::fail(format!("it hangs: more than {limit:?}")));
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => return Err(TestCaseError::fail("it has panicked")),
    }
    prop_assert_eq!(panics(), before, "something has panicked");
    sum.lock().unwrap().cases += 1;
    Ok(())
}

/// Tries many cases.
fn hold(body: fn(&Case, &Mutex<Sum>) -> Result<(), TestCaseError>) {
    let sum: &'static Mutex<Sum> = Box::leak(Box::default());
    let config = Config::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { CASES };
    let base = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => RandomState::new().build_hasher().finish(),
    };
    let start = Instant::now();
    thread::scope(|scope| {
        for seed in (0..u64::from(THREADS)).map(|thread| base.wrapping_add(thread)) {
            scope.spawn(move || {
                let config = Config {
                    cases: cases.div_ceil(THREADS),
                    failure_persistence: None,
                    // Each try takes its time, and the next may go well by chance.
                    max_shrink_iters: 200,
                    ..Config::default()
                };
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes(seed));
                let mut runner = TestRunner::new_with_rng(config, rng);
                let found = runner.run(&Case::any(), |case| watched(&case, body, sum));
                match found {
                    Ok(()) => {}
                    Err(TestError::Fail(why, case)) => {
                        panic!("PROPTEST_RNG_SEED={base}: {why}\n{case:#?}");
                    }
                    Err(TestError::Abort(why)) => panic!("PROPTEST_RNG_SEED={base}: {why}"),
                }
            });
        }
    });
    let sum = sum.lock().unwrap();
    println!("{sum:#?} in {:?}", start.elapsed());
    assert!(
        cases < CASES || sum.recovered + sum.undisturbed > sum.cases / 4,
        "too little goes well: {sum:?}"
    );
    assert!(cases < CASES || (sum.given_up > 0 && sum.recovered > 0 && sum.counters.replayed > 0), "{sum:?}");
}

fn seed_bytes(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

/// Starts a case's controller. One that cannot be opened, because the script spoils that, says so in a line.
fn start(case: &Case, sum: &Mutex<Sum>) -> Result<Option<(Emulated, Controller)>, TestCaseError> {
    let began = Instant::now();
    let (emulated, opened) = Emulated::start(case);
    prop_assert!(began.elapsed() < deadline(case));
    match opened {
        Ok(controller) => Ok(Some((emulated, controller))),
        Err(error) => {
            let error = error.to_string();
            prop_assert!(error.contains("loopback") && !error.contains('\n'), "{}", error);
            sum.lock().unwrap().not_opened += 1;
            Ok(None)
        }
    }
}

#[test]
fn queue_pairs_keep_their_promises_whatever_the_controller_does() {
    hold(queue_pairs);
}

fn queue_pairs(case: &Case, sum: &Mutex<Sum>) -> Result<(), TestCaseError> {
    let Some((emulated, controller)) = start(case, sum)? else { return Ok(()) };
    let Ok(mut pairs) = QueuePairs::new(case, controller.clone()) else { return Ok(()) };
    let mut workload = Workload::new(case, &mut pairs, deadline(case));
    let tally = workload.run()?;
    workload.check_failure()?;
    workload.check_all_memory()?;
    let slots = std::mem::take(&mut workload.slots);
    let (lost, lost_repeatable) = (pairs.lost, pairs.lost_repeatable);
    let (counters, given_up) = (controller.recovery_counters(), controller.failure().is_some());
    let explained = case.script.lies() || tally.failed <= lost;
    prop_assert!(explained, "{:?}, of which {} were lost, and no other reason for an error", tally, lost);
    prop_assert_eq!(lost, counters.failed, "{:?}", counters);
    prop_assert!(
        lost_repeatable == 0 || counters.expired >= 2,
        "{} were not sent once more: {:?}",
        lost_repeatable,
        counters
    );
    let began = Instant::now();
    drop(controller);
    let memory = pairs.into_memory();
    prop_assert!(began.elapsed() < deadline(case), "closing it has taken {:?}", began.elapsed());
    // What is late comes now.
    thread::sleep(Duration::from_millis(2 * case.slow_ms));
    for (number, buffer) in memory.iter().enumerate() {
        let mut found = vec![0; random::model::SLOT];
        buffer.read_at(0, &mut found);
        prop_assert!(found.iter().all(|byte| *byte == 0x77), "memory {} written after the end", number);
    }
    drop(memory);
    sum.lock().unwrap().add(tally, counters, given_up);
    emulated.check_disk(&slots)
}

#[test]
fn disks_keep_their_promises_whatever_the_controller_does() {
    hold(disks);
}

fn disks(case: &Case, sum: &Mutex<Sum>) -> Result<(), TestCaseError> {
    let Some((emulated, controller)) = start(case, sum)? else { return Ok(()) };
    let Ok(mut disks) = Disks::new(case, controller) else { return Ok(()) };
    let mut workload = Workload::new(case, &mut disks, deadline(case));
    let tally = workload.run()?;
    workload.check_failure()?;
    workload.check_all_memory()?;
    let slots = std::mem::take(&mut workload.slots);
    let controller = disks.drive.controller();
    let (counters, given_up) = (controller.recovery_counters(), controller.failure().is_some());
    let explained = case.script.lies() || tally.failed == 0 || counters.failed > 0 || given_up;
    prop_assert!(explained, "{:?}, {:?}, and no reason for an error", tally, counters);
    let began = Instant::now();
    disks.close();
    prop_assert!(began.elapsed() < deadline(case), "closing it has taken {:?}", began.elapsed());
    thread::sleep(Duration::from_millis(2 * case.slow_ms));
    for slot in 0..case.slots() {
        let found = disks.read_memory(slot, 0, random::model::SLOT);
        prop_assert!(found.iter().all(|byte| *byte == 0x77), "memory of {} written after the end", slot);
    }
    drop(disks);
    sum.lock().unwrap().add(tally, counters, given_up);
    emulated.check_disk(&slots)
}
