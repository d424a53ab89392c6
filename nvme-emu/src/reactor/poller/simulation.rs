//! The poller against simulated guests, by a simulated clock: what it costs, and what the best fixed choice would have.
//!
//! A *trace* is what a guest does when nobody keeps it waiting: gaps, each followed by commands. A *policy* is the poller,
//! or one fixed length of spinning with a sleep behind it, from sleeping at once to never sleeping. The *price* of a run
//! puts it all into one figure: CPU time of the reactor, [`super::WAKE`] for each time that it had to be woken, and the time
//! for which commands waited for a doze to end. *Regret* is the poller's price over that of the best fixed choice for
//! the same trace.

use super::{BATCH, DOZE, Idle, LOOKS_PER_CLOCK, MAX_DOZE, Poller, WAKE};
use proptest::prelude::*;
use std::time::{Duration, Instant};

/// What a look costs on the simulated machine, and what a doze with its wake-up does.
const LOOK: Duration = Duration::from_nanos(25);
const NAP: Duration = Duration::from_micros(4);

/// Looks until the clock is looked at twice: by so much a spin may be longer than it was meant to be.
const SLACK: Duration = Duration::from_nanos(25 * 2 * LOOKS_PER_CLOCK as u64);

/// A gap, and how many commands end it.
type Step = (Duration, usize);

#[derive(Clone, Copy, Default, Debug)]
struct Cost {
    /// CPU time of the reactor in gaps, apart from being woken.
    cpu: Duration,
    /// How often the guest had to ring.
    rings: u32,
    /// Time for which commands waited for a doze to end.
    delay: Duration,
}

impl Cost {
    fn price(&self) -> f64 {
        (self.cpu + self.delay + WAKE * self.rings).as_secs_f64()
    }
}

trait Policy {
    fn idle(&mut self, now: Instant) -> Idle;
    fn worked(&mut self, commands: usize, now: Instant);
}

impl Policy for Poller {
    fn idle(&mut self, now: Instant) -> Idle {
        Self::idle(self, || now)
    }

    fn worked(&mut self, commands: usize, now: Instant) {
        Self::worked(self, commands, || now);
    }
}

/// Always the same spin.
struct Fixed {
    spin: Duration,
    since: Option<Instant>,
}

impl Policy for Fixed {
    fn idle(&mut self, now: Instant) -> Idle {
        let since = *self.since.get_or_insert(now);
        if now - since < self.spin { Idle::Spin } else { Idle::Sleep }
    }

    fn worked(&mut self, _: usize, _: Instant) {
        self.since = None;
    }
}

fn run(policy: &mut impl Policy, trace: &[Step]) -> Cost {
    let mut now = Instant::now();
    let mut cost = Cost::default();
    for &(gap, commands) in trace {
        let end = now + gap;
        while now < end {
            match policy.idle(now) {
                Idle::Spin => (now, cost.cpu) = (now + LOOK, cost.cpu + LOOK),
                Idle::Doze(nap) => (now, cost.cpu) = (now + nap, cost.cpu + NAP),
                Idle::Sleep => (now, cost.rings) = (end, cost.rings + 1),
            }
        }
        // A look that has begun is no delay that anybody could do without.
        cost.delay += (now - end).saturating_sub(LOOK);
        policy.worked(commands, now);
    }
    cost
}

fn poller(trace: &[Step]) -> Cost {
    run(&mut Poller::new(), trace)
}

/// What a fixed spin costs; simulated in one step a gap, since it is known what it does.
fn fixed(spin: Duration, trace: &[Step]) -> Cost {
    let mut cost = Cost::default();
    for &(gap, _) in trace {
        cost.cpu += gap.min(spin);
        cost.rings += u32::from(gap > spin);
    }
    cost
}

/// The best fixed spin in hindsight. Its price changes only where a gap ends, so those are all that have to be tried.
fn best_fixed(trace: &[Step]) -> (Duration, Cost) {
    let mut spins: Vec<Duration> = trace.iter().map(|step| step.0).chain([Duration::ZERO]).collect();
    spins.sort_unstable();
    spins.dedup();
    let step = spins.len().div_ceil(400);
    let all = spins.iter().step_by(step).chain(spins.last()).map(|&spin| (spin, fixed(spin, trace)));
    all.min_by(|a, b| a.1.price().total_cmp(&b.1.price())).unwrap()
}

/// Numbers that look random, the same ones each time.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponentially distributed, as the gaps of many independent submitters are.
    fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.next()).ln())
    }
}

fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// Guests, by name.
fn traces() -> Vec<(&'static str, Vec<Step>)> {
    let mut dice = Dice(1);
    let mut random = |n: usize, mean: Duration, commands: usize| -> Vec<Step> {
        (0..n).map(|_| (dice.exponential(mean), commands)).collect()
    };
    let saturated = random(20_000, Duration::from_nanos(200), 8);
    let quick = random(5000, us(8), 1);
    let middling = random(5000, us(40), 1);
    let slow = random(5000, us(200), 1);
    let batches = random(3000, us(150), 32);
    let bursts: Vec<Step> =
        (0..100).flat_map(|_| [vec![(us(3), 1); 60], vec![(us(5000), 1)]].concat()).collect();
    let phases = [&quick[..1000], &slow[..1000], &batches[..1000], &quick[1000..2000], &slow[1000..2000]];
    vec![
        ("saturated", saturated),
        ("one by one, mean 8 µs", quick.clone()),
        ("one by one, mean 40 µs", middling),
        ("one by one, mean 200 µs", slow.clone()),
        ("batches of 32, mean 150 µs", batches.clone()),
        ("periodic, 100 µs", vec![(us(100), 1); 3000]),
        ("periodic, 1 ms", vec![(us(1000), 1); 1000]),
        ("alternating, 5 and 300 µs", [(us(5), 1), (us(300), 1)].repeat(2000)),
        ("bursts of 60, every 5 ms", bursts),
        ("idle, 1 a second", vec![(Duration::from_secs(1), 1); 200]),
        ("phases of all of these", phases.concat()),
    ]
}

#[test]
fn regret_against_the_best_fixed_choice_is_at_most_an_eighth() {
    println!(
        "{:28} {:>9} {:>7} {:>7} {:>9} {:>7} {:>7} {:>7}",
        "trace", "CPU/gap", "rings", "delay", "best spin", "CPU/gap", "rings", "regret"
    );
    let mut worst: f64 = 0.0;
    for (name, trace) in traces() {
        let (own, (spin, best)) = (poller(&trace), best_fixed(&trace));
        let (gaps, regret) = (trace.len() as u32, own.price() / best.price() - 1.0);
        println!(
            "{name:28} {:>9.2?} {:>7.3} {:>7.1?} {:>9.1?} {:>7.2?} {:>7.3} {:>6.1}%",
            own.cpu / gaps,
            f64::from(own.rings) / f64::from(gaps),
            own.delay / gaps,
            spin,
            best.cpu / gaps,
            f64::from(best.rings) / f64::from(gaps),
            regret * 100.0,
        );
        worst = worst.max(regret);
    }
    assert!(worst <= 0.125, "{worst}");
}

#[test]
fn short_gaps_are_spun_through_and_the_guest_need_not_ring() {
    let cost = poller(&vec![(us(5), 1); 1000]);
    assert!(cost.rings < 20, "{cost:?}");
}

#[test]
fn gaps_between_batches_are_dozed_through_and_the_guest_need_not_ring() {
    for micros in [60, 100, 200, 400] {
        let gap = us(micros);
        let cost = poller(&vec![(gap, 32); 1000]);
        assert!(cost.rings < 50, "{micros}: {cost:?}");
        assert!(cost.cpu < gap * 1000 / 5, "{micros}: {cost:?}");
    }
}

#[test]
fn lone_commands_never_wait_for_a_doze() {
    for micros in [60, 100, 400] {
        let cost = poller(&vec![(us(micros), BATCH as usize - 1); 1000]);
        assert_eq!(cost.delay, Duration::ZERO);
        assert!(cost.rings > 950, "{cost:?}");
    }
}

#[test]
fn long_gaps_are_slept_through_after_the_shortest_spin_even_between_batches() {
    for commands in [1, 32] {
        let cost = poller(&vec![(us(10_000), commands); 1000]);
        assert!(cost.rings > 990, "{cost:?}");
        assert!(cost.cpu < us(5) * 1000, "{cost:?}");
    }
}

#[test]
fn commands_that_come_alone_are_slept_for_at_once_until_they_come_together() {
    let alone = vec![(us(200), 1); 1000];
    let cost = poller(&alone);
    assert!(cost.cpu < us(1) * 1000 / 4 && cost.rings > 950, "{cost:?}");
    let together = vec![(us(1), 1); 1000];
    let both = poller(&[alone, together].concat());
    assert!(both.rings < cost.rings + 40, "{both:?}");
}

#[test]
fn a_guest_whose_gaps_are_as_long_as_a_wake_up_takes_is_still_looked_for() {
    let mut poller = Poller::new();
    let mut now = Instant::now();
    // It has its next command ready at once, but the reactor is back only after a while.
    let mut slept = 0;
    for _ in 0..1000 {
        match poller.idle(|| now) {
            Idle::Spin => now += LOOK,
            Idle::Doze(nap) => now += nap,
            Idle::Sleep => (now, slept) = (now + us(60), slept + 1),
        }
        poller.worked(1, || now);
    }
    assert!(slept < 20, "{slept}");
}

#[test]
fn an_idle_guest_after_a_busy_one_is_dozed_for_only_a_little_while() {
    let busy = vec![(us(200), 32); 1000];
    let before = poller(&busy);
    let after = poller(&[busy, vec![(Duration::from_secs(1), 1)]].concat());
    assert!(after.cpu - before.cpu < us(200), "{before:?} {after:?}");
    assert_eq!(after.rings, before.rings + 1);
}

#[test]
fn a_wake_up_without_work_is_followed_by_a_bounded_spin_and_sleep() {
    let mut poller = Poller::new();
    let mut now = Instant::now();
    for _ in 0..100 {
        let mut spun = Duration::ZERO;
        while poller.idle(|| now) != Idle::Sleep {
            (now, spun) = (now + LOOK, spun + LOOK);
        }
        assert!(spun <= WAKE + SLACK, "{spun:?}");
        now += us(1000);
    }
}

#[test]
fn a_fixed_policy_that_is_simulated_step_by_step_costs_what_is_computed() {
    let trace: Vec<Step> = [1, 7, 30, 49, 80, 500].map(|micros| (us(micros), 1)).into();
    let stepped = run(&mut Fixed { spin: us(30), since: None }, &trace);
    let computed = fixed(us(30), &trace);
    assert_eq!(stepped.rings, computed.rings);
    assert!(stepped.cpu.abs_diff(computed.cpu) <= LOOK * trace.len() as u32);
}

/// Gaps of every order of magnitude, in an order that nobody can learn from.
fn any_step() -> impl Strategy<Value = Step> {
    (0u32..30, 1.0..2.0f64, 0usize..40).prop_map(|(magnitude, mantissa, commands)| {
        (Duration::from_nanos(1 << magnitude).mul_f64(mantissa), commands)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn no_guest_can_make_it_pay_more_than_its_bounds(trace in prop::collection::vec(any_step(), 1..200)) {
        let cost = poller(&trace);
        let dozes = (MAX_DOZE.as_micros() / DOZE.as_micros()) as u32 + 1;
        let worst: Duration = trace.iter().map(|step| step.0.min(WAKE) + SLACK + NAP * dozes).sum();
        prop_assert!(cost.cpu <= worst, "{cost:?} > {worst:?}");
        prop_assert!(cost.delay <= DOZE * trace.len() as u32, "{cost:?}");
        // What somebody who knows the future pays, twice, and what the shortest spin and the dozes cost.
        let clairvoyant: Duration = trace.iter().map(|step| step.0.min(WAKE)).sum();
        let allowance = (super::spin::SPINS[0] + SLACK + NAP * dozes + DOZE) * trace.len() as u32;
        prop_assert!(cost.price() <= (clairvoyant * 2 + allowance).as_secs_f64());
    }
}
