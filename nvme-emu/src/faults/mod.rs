//! Misbehaviour by script: for people who test NVMe drivers, ours among them.
//!
//! A controller with a [`FaultScript`] ([`crate::ControllerOptions::faults`]) does everything as any other, except what
//! the script says: it loses completions, posts wrong ones, reports fatal errors, vanishes. What can be said and what it
//! looks like to a host is in `docs/faults.md`; [`script`] is the same for the compiler.
//!
//! Where it acts: on commands as they are fetched, on completions as they are posted, on registers as they are read and
//! written. A controller without a script pays one test of a pointer for each command and each completion.

pub mod script;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nvme_spec::registers::{self, ControllerConfiguration, ControllerStatus};
use nvme_spec::{AdminOpcode, CompletionQueueEntry, NvmOpcode, Status, SubmissionQueueEntry};

use script::{Do, Tamper, When};
pub use script::{Fault, FaultScript, ScriptError};

/// What becomes of a command that was just fetched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It is executed.
    Execute,
    /// It is executed, and these bytes of what it gives to the host are others.
    Corrupt(usize, Vec<u8>),
    /// It is not executed, and never completes.
    Ignore,
    /// It is not executed, and ends with this.
    Fail(Status),
}

/// What a controller's faults are doing.
pub(crate) struct Faults {
    state: Mutex<State>,
}

struct State {
    rules: Vec<Rule>,
    random: Random,
    /// What is to be done to completions of commands in flight, by submission queue and command identifier.
    tampering: HashMap<(u16, u16), Tamper>,
    /// Dword 0 of events that wait for a request.
    events: VecDeque<u32>,
    ready_timeout: Option<u8>,
    enabled: bool,
    /// CSTS.CFS is set; nothing is done until a reset.
    fatal: bool,
    /// CSTS.RDY reads as 0 until the controller is disabled.
    never_ready: bool,
    /// CSTS.RDY reads as 1 until the function is reset.
    always_ready: bool,
    gone: Option<Gone>,
}

/// All registers read as ones.
enum Gone {
    ForGood,
    Until(Instant),
}

struct Rule {
    fault: Fault,
    /// Its place in the script, from 1.
    number: usize,
    /// How often what it waits for has happened.
    matched: u64,
    /// How often it was done.
    done: u64,
}

impl Rule {
    /// Whether it is to be done now that what it waits for has happened once more.
    fn is_due(&mut self, random: &mut Random) -> bool {
        self.matched += 1;
        let Fault { nth, times, chance, .. } = &self.fault;
        let due = self.matched >= nth.get()
            && times.is_none_or(|times| self.done < times)
            && chance.is_none_or(|chance| random.is_below(chance));
        self.done += u64::from(due);
        due
    }
}

impl Faults {
    pub(crate) fn new(script: &FaultScript) -> Arc<Self> {
        let rules = script.faults.iter().zip(1..);
        let rules =
            rules.map(|(fault, number)| Rule { fault: fault.clone(), number, matched: 0, done: 0 }).collect();
        Arc::new(Self {
            state: Mutex::new(State {
                rules,
                random: Random(script.seed),
                tampering: HashMap::new(),
                events: VecDeque::new(),
                ready_timeout: script.ready_timeout,
                enabled: false,
                fatal: false,
                never_ready: false,
                always_ready: false,
                gone: None,
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A command was fetched.
    pub(crate) fn on_command(&self, sqid: u16, sqe: &SubmissionQueueEntry) -> Verdict {
        let mut state = self.state();
        // A command identifier used again: what was to be done to the completion of the old one is over.
        state.tampering.remove(&(sqid, sqe.cid));
        if state.is_dead() {
            return Verdict::Ignore;
        }
        let mut verdict = Verdict::Execute;
        for (number, what) in state.due(|when| when.is_command(sqid, sqe)) {
            let name = opcode_name(sqid, sqe);
            tracing::info!("fault {number}: {what}: queue {sqid}, command {} ({name})", sqe.cid);
            match what {
                Do::Ignore => verdict = Verdict::Ignore,
                Do::Fail(status) => verdict = Verdict::Fail(status),
                Do::Corrupt { offset, bytes } => verdict = Verdict::Corrupt(offset, bytes),
                Do::Tamper(tamper) => {
                    state.tampering.insert((sqid, sqe.cid), tamper);
                }
                other => state.begin(other),
            }
        }
        if state.is_dead() { Verdict::Ignore } else { verdict }
    }

    /// What to do to a completion that is about to be posted.
    pub(crate) fn on_completion(&self, entry: &CompletionQueueEntry) -> Option<Tamper> {
        let mut state = self.state();
        let tamper = state.tampering.remove(&(entry.sq_id, entry.cid));
        if state.is_dead() { Some(Tamper::Drop) } else { tamper }
    }

    /// Whether an event waits for a request to report it with.
    pub(crate) fn has_event(&self) -> bool {
        !self.state().events.is_empty()
    }

    /// The event to report next.
    pub(crate) fn take_event(&self) -> Option<u32> {
        self.state().events.pop_front()
    }

    /// What a register reads as that has this value.
    pub(crate) fn on_read(&self, at: u64, value: u32) -> u32 {
        let mut state = self.state();
        if state.is_gone() {
            return u32::MAX;
        }
        match (at, state.ready_timeout) {
            (registers::CSTS, _) => {}
            // CAP.TO is in bits 31:24, CRTO.CRWMT in bits 15:0.
            (registers::CAP, Some(units)) => return value & 0x00ff_ffff | u32::from(units) << 24,
            (registers::CRTO, Some(units)) => return value & 0xffff_0000 | u32::from(units),
            _ => return value,
        }
        let csts = ControllerStatus::from_bits(value);
        let ready = (csts.rdy() && !state.never_ready) || state.always_ready;
        csts.with_cfs(csts.cfs() || state.fatal).with_rdy(ready).into_bits()
    }

    /// A register is written; false if nobody is there to take it.
    pub(crate) fn on_write(&self, at: u64, value: u32) -> bool {
        let mut state = self.state();
        if state.is_gone() {
            return false;
        }
        if at == registers::CC {
            let enabled = ControllerConfiguration::from_bits(value).en();
            let before = std::mem::replace(&mut state.enabled, enabled);
            if before != enabled {
                if !enabled {
                    state.reset();
                }
                let happened = if enabled { When::Enable } else { When::Disable };
                for (number, what) in state.due(|when| *when == happened) {
                    tracing::info!("fault {number}: {what}: CC.EN = {}", u8::from(enabled));
                    state.begin(what);
                }
            }
        }
        // Whoever is not there any more has not seen it either.
        !state.is_gone()
    }

    /// The function is being reset.
    pub(crate) fn on_function_reset(&self) {
        let mut state = self.state();
        state.reset();
        (state.enabled, state.always_ready) = (false, false);
    }
}

impl State {
    /// Ends what a reset of the controller ends.
    fn reset(&mut self) {
        (self.fatal, self.never_ready) = (false, false);
        self.tampering.clear();
        self.events.clear();
    }

    /// What is to be done, by rules that wait for something that has just happened.
    fn due(&mut self, happened: impl Fn(&When) -> bool) -> Vec<(usize, Do)> {
        let Self { rules, random, .. } = self;
        let waiting = rules.iter_mut().filter(|rule| happened(&rule.fault.when));
        waiting
            .filter_map(|rule| rule.is_due(random).then(|| (rule.number, rule.fault.what.clone())))
            .collect()
    }

    /// Begins something that is about the controller.
    fn begin(&mut self, what: Do) {
        match what {
            Do::Fatal => self.fatal = true,
            Do::NeverReady => self.never_ready = true,
            Do::AlwaysReady => self.always_ready = true,
            Do::Gone(None) => self.gone = Some(Gone::ForGood),
            Do::Gone(Some(time)) => self.gone = Some(Gone::Until(Instant::now() + time)),
            Do::Event(dw0) => self.events.push_back(dw0),
            // About commands: a script that has them elsewhere is refused.
            Do::Ignore | Do::Fail(_) | Do::Corrupt { .. } | Do::Tamper(_) => {}
        }
    }

    fn is_gone(&mut self) -> bool {
        if matches!(self.gone, Some(Gone::Until(end)) if Instant::now() >= end) {
            self.gone = None;
        }
        self.gone.is_some()
    }

    /// Whether it fetches and posts nothing.
    fn is_dead(&mut self) -> bool {
        self.fatal || self.is_gone()
    }
}

fn opcode_name(sqid: u16, sqe: &SubmissionQueueEntry) -> String {
    if sqid == 0 { AdminOpcode(sqe.opcode).to_string() } else { NvmOpcode(sqe.opcode).to_string() }
}

/// xorshift64*: what is left to chance is the same in every run with the same seed.
struct Random(u64);

impl Random {
    fn is_below(&mut self, chance: f64) -> bool {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        // 53 bits, as many as the mantissa has.
        (bits as f64) < chance * (1_u64 << 53) as f64
    }
}

/// A shard's part: which command it asked about last, and completions that are late.
pub(crate) struct FaultPoint {
    pub(crate) faults: Arc<Faults>,
    /// The submission queue and the head at which a command was asked about: it may have to wait there, and is asked
    /// about once.
    asked: Option<(usize, u16)>,
    late: Vec<Late>,
}

/// A completion that is posted later.
struct Late {
    at: Instant,
    cqid: u16,
    entry: CompletionQueueEntry,
}

impl FaultPoint {
    pub(crate) fn new(faults: Arc<Faults>) -> Self {
        Self { faults, asked: None, late: Vec::new() }
    }

    /// As [`Faults::on_command`], once for the command at this head of a submission queue.
    pub(crate) fn on_command(
        &mut self,
        (index, sqid, head): (usize, u16, u16),
        sqe: &SubmissionQueueEntry,
    ) -> Verdict {
        if self.asked.replace((index, head)) == Some((index, head)) {
            return Verdict::Execute;
        }
        self.faults.on_command(sqid, sqe)
    }

    /// Posts a completion later.
    pub(crate) fn delay(&mut self, time: Duration, cqid: u16, entry: CompletionQueueEntry) {
        self.late.push(Late { at: Instant::now() + time, cqid, entry });
    }

    /// When the next late completion is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.late.iter().map(|late| late.at).min()
    }

    /// A late completion that is due, and its completion queue.
    pub(crate) fn due(&mut self) -> Option<(u16, CompletionQueueEntry)> {
        if self.late.is_empty() {
            return None;
        }
        let now = Instant::now();
        let due = self.late.iter().position(|late| late.at <= now)?;
        let late = self.late.remove(due);
        Some((late.cqid, late.entry))
    }

    /// The controller is reset.
    pub(crate) fn reset(&mut self) {
        self.asked = None;
        self.late.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(script: &str) -> Arc<Faults> {
        Faults::new(&FaultScript::parse(script).unwrap())
    }

    fn read(cid: u16) -> SubmissionQueueEntry {
        SubmissionQueueEntry::new(NvmOpcode::READ, cid).with_nsid(1)
    }

    fn completion(cid: u16) -> CompletionQueueEntry {
        CompletionQueueEntry::new(cid, 1, 0, Status::SUCCESS, false)
    }

    fn enable(faults: &Faults, enabled: bool) -> bool {
        faults.on_write(registers::CC, ControllerConfiguration::new().with_en(enabled).into_bits())
    }

    fn csts(faults: &Faults, rdy: bool) -> ControllerStatus {
        let csts = ControllerStatus::new().with_rdy(rdy);
        ControllerStatus::from_bits(faults.on_read(registers::CSTS, csts.into_bits()))
    }

    #[test]
    fn the_third_read_of_queue_1_is_the_one() {
        let faults = faults("[[fault]]\nqueue = 1\nopcode = 'read'\nnth = 3\ndo = 'ignore'\n");
        assert_eq!(faults.on_command(2, &read(0)), Verdict::Execute);
        assert_eq!(faults.on_command(1, &SubmissionQueueEntry::new(NvmOpcode::WRITE, 0)), Verdict::Execute);
        let verdicts: Vec<_> =
            (0..5).map(|cid| faults.on_command(1, &read(cid)) == Verdict::Ignore).collect();
        assert_eq!(verdicts, [false, false, true, false, false]);
    }

    #[test]
    fn a_completion_is_tampered_with_once_and_not_after_its_identifier_was_used_again() {
        let faults = faults("[[fault]]\ndo = 'drop'\ntimes = 2\n");
        faults.on_command(1, &read(7));
        assert_eq!(faults.on_completion(&completion(6)), None);
        assert_eq!(faults.on_completion(&completion(7)), Some(Tamper::Drop));
        assert_eq!(faults.on_completion(&completion(7)), None);
        faults.on_command(1, &read(7));
        faults.on_command(1, &read(7));
        assert_eq!(faults.on_completion(&completion(7)), None);
    }

    #[test]
    fn a_fatal_error_stops_everything_until_a_reset() {
        let faults = faults("[[fault]]\nopcode = 'read'\nnth = 2\ndo = 'fatal'\n");
        enable(&faults, true);
        assert_eq!(faults.on_command(1, &read(0)), Verdict::Execute);
        assert!(!csts(&faults, true).cfs());
        assert_eq!(faults.on_command(1, &read(1)), Verdict::Ignore);
        assert!(csts(&faults, true).cfs());
        assert_eq!(faults.on_completion(&completion(0)), Some(Tamper::Drop));
        assert!(enable(&faults, false));
        assert!(!csts(&faults, false).cfs());
        assert_eq!(faults.on_command(1, &read(2)), Verdict::Execute);
    }

    #[test]
    fn readiness_is_denied_from_the_second_enable_on_until_it_is_disabled() {
        let faults = faults("[[fault]]\nwhen = 'enable'\nnth = 2\ndo = 'never-ready'\n");
        for (round, ready) in [(1, true), (2, false), (3, true)] {
            enable(&faults, true);
            assert_eq!(csts(&faults, true).rdy(), ready, "enabled for the {round}. time");
            enable(&faults, false);
            assert!(!csts(&faults, false).rdy());
        }
    }

    #[test]
    fn a_controller_that_stays_ready_is_helped_by_a_function_reset_only() {
        let faults = faults("[[fault]]\nwhen = 'disable'\ndo = 'always-ready'\n");
        enable(&faults, true);
        enable(&faults, false);
        assert!(csts(&faults, false).rdy());
        faults.on_function_reset();
        assert!(!csts(&faults, false).rdy());
    }

    #[test]
    fn a_controller_that_has_gone_reads_as_ones_takes_nothing_and_may_come_back() {
        let faults = faults("[[fault]]\ndo = 'gone'\nlasting = '30ms'\n");
        enable(&faults, true);
        assert_eq!(faults.on_command(1, &read(0)), Verdict::Ignore);
        assert_eq!(faults.on_read(registers::CAP, 5), u32::MAX);
        assert!(!enable(&faults, false));
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(faults.on_read(registers::CAP, 5), 5);
        assert!(enable(&faults, false));
    }

    #[test]
    fn the_time_to_get_ready_is_what_the_script_says() {
        let faults = faults("ready-timeout = '2s'\n");
        let cap = registers::Cap::new().with_to(60).with_mqes(1023).with_cqr(true);
        let low = faults.on_read(registers::CAP, cap.into_bits() as u32);
        assert_eq!(low, cap.with_to(4).into_bits() as u32);
        assert_eq!(faults.on_read(registers::CRTO, 60), 4);
    }

    #[test]
    fn chance_is_the_same_with_the_same_seed_and_about_what_it_should_be() {
        let script = |seed| format!("seed = {seed}\n[[fault]]\ntimes = 0\nchance = 0.25\ndo = 'ignore'\n");
        let hits = |seed| {
            let faults = faults(&script(seed));
            (0..4000).map(|_| faults.on_command(1, &read(0)) == Verdict::Ignore).collect::<Vec<_>>()
        };
        assert_eq!(hits(1), hits(1));
        assert_ne!(hits(1), hits(2));
        let count = hits(1).iter().filter(|hit| **hit).count();
        assert!((800..1200).contains(&count), "{count} of 4000");
    }

    #[test]
    fn a_command_that_has_to_wait_is_asked_about_once() {
        let mut point = FaultPoint::new(faults("[[fault]]\nnth = 2\ndo = 'ignore'\n"));
        assert_eq!(point.on_command((0, 1, 5), &read(0)), Verdict::Execute);
        assert_eq!(point.on_command((0, 1, 5), &read(0)), Verdict::Execute);
        assert_eq!(point.on_command((0, 1, 6), &read(1)), Verdict::Ignore);
    }
}
