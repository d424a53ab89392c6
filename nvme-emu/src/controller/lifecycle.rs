//! Enable, disable, resets, shutdown (NVM Express Base Specification 2.0, 3.5 to 3.7).
//!
//! ```text
//!             CC.EN=1                     all reactors ready: CSTS.RDY=1
//!  Disabled ───────────▶ Enabling ─────────────────────────────────────▶ Enabled
//!      ▲                                                                    │ CC.EN=0, function or
//!      └──────────── nothing in flight: CSTS=0 ──────── Disabling ◀─────────┘ subsystem reset
//! ```
//!
//! What CC says is the goal, and [`Control::reconcile`] takes one step towards it whenever it changed or a step has
//! ended. A reset never waits in line: it is the next step whatever else was asked for.

use super::control::{Control, State, Then};
use crate::pci::function::Answer;
use crate::reactor::completion_queue::CompletionQueueParameters;
use crate::reactor::message::{ControllerIndex, EnableParameters, ShardRequest};
use crate::reactor::submission_queue::SubmissionQueueParameters;
use nvme_spec::registers::{ControllerConfiguration, ShutdownNotification, ShutdownStatus};
use std::sync::{Arc, PoisonError};

impl Control {
    /// Takes the next step from what the controller does to what CC asks for.
    pub(super) fn reconcile(&mut self, index: ControllerIndex) {
        let controller = &mut self.controllers[index];
        let registers = &controller.shared.registers;
        if matches!(controller.state, State::Enabling | State::Disabling) {
            // The end of that step comes back here.
            return;
        }
        let disables = registers.disables();
        let reset = disables != controller.handled_disables;
        controller.handled_disables = disables;
        let cc = registers.cc();
        match controller.state {
            State::Enabled if reset || !cc.en() => self.disable(index),
            State::Disabled if reset => {
                registers.reset_status();
                self.reconcile(index);
            }
            State::Disabled if cc.en() => self.enable(index, cc),
            _ => self.shut_down(index, cc),
        }
    }

    fn enable(&mut self, index: ControllerIndex, cc: ControllerConfiguration) {
        let controller = &mut self.controllers[index];
        let registers = &controller.shared.registers;
        let page_size = cc.memory_page_size();
        let valid = page_size <= registers.cap().memory_page_size_maximum()
            && matches!(cc.css(), ControllerConfiguration::CSS_NVM | ControllerConfiguration::CSS_ALL)
            && cc.ams() == 0
            && registers.aqa().submission_queue_entries() >= 2
            && registers.aqa().completion_queue_entries() >= 2
            && (registers.asq() | registers.acq()) & (page_size - 1) == 0;
        if !valid {
            tracing::warn!(
                controller = index,
                "the host enabled the controller with settings it cannot have"
            );
            registers.set_fatal();
            controller.state = State::Enabled;
            return;
        }
        controller.state = State::Enabling;
        let tuning = controller.tuning();
        let subsystem = controller.subsystem();
        let max_transfer = controller.max_transfer;
        let parameters = || {
            ShardRequest::Enable(Box::new(EnableParameters {
                subsystem: subsystem.clone(),
                page_size,
                max_transfer,
                tuning: tuning.clone(),
            }))
        };
        let then: Then = Box::new(move |control, result| match result {
            Ok(()) => control.add_admin_queue(index),
            Err(_) => control.enabled(index, result),
        });
        self.ask_all(index, parameters, then);
    }

    fn add_admin_queue(&mut self, index: ControllerIndex) {
        let controller = &self.controllers[index];
        let (home, registers) = (controller.shared.home, &controller.shared.registers);
        let aqa = registers.aqa();
        let cq = CompletionQueueParameters {
            id: 0,
            size: aqa.completion_queue_entries(),
            base: registers.acq(),
            vector: 0,
            interrupts: true,
        };
        let sq = SubmissionQueueParameters {
            id: 0,
            size: aqa.submission_queue_entries(),
            base: registers.asq(),
            cqid: 0,
        };
        controller.to_home(ShardRequest::AddCompletionQueue(cq));
        let then: Then = Box::new(move |control, result| control.enabled(index, result));
        self.ask(index, home, ShardRequest::AddSubmissionQueue(sq), then);
    }

    fn enabled(&mut self, index: ControllerIndex, result: Result<(), i32>) {
        let controller = &mut self.controllers[index];
        controller.state = State::Enabled;
        match result {
            Ok(()) => controller.shared.registers.set_ready(),
            Err(_) => controller.shared.registers.set_fatal(),
        }
        self.reconcile(index);
    }

    fn disable(&mut self, index: ControllerIndex) {
        let controller = &mut self.controllers[index];
        controller.state = State::Disabling;
        self.ask_all(index, || ShardRequest::Drain, Box::new(move |control, _| control.disabled(index)));
    }

    fn disabled(&mut self, index: ControllerIndex) {
        let controller = &mut self.controllers[index];
        controller.queues.clear();
        controller.take_reports();
        controller.admin.reset();
        controller.shared.registers.reset_status();
        controller.shared.counters.resets.add(1);
        controller.state = State::Disabled;
        for then in std::mem::take(&mut controller.after_reset) {
            then(self, Ok(()));
        }
        self.reconcile(index);
    }

    /// Goes on with `then` when the controller is reset, now if there is nothing to reset.
    fn after_reset(&mut self, index: ControllerIndex, then: Then) {
        let controller = &mut self.controllers[index];
        controller.after_reset.push(then);
        if controller.state == State::Disabled {
            for then in std::mem::take(&mut controller.after_reset) {
                then(self, Ok(()));
            }
        }
    }

    /// CC.SHN: makes what has completed durable, then says so in CSTS.SHST.
    fn shut_down(&mut self, index: ControllerIndex, cc: ControllerConfiguration) {
        let controller = &mut self.controllers[index];
        let (home, registers) = (controller.shared.home, &controller.shared.registers);
        if !matches!(cc.shn(), ShutdownNotification::Normal | ShutdownNotification::Abrupt)
            || registers.csts().shst() != ShutdownStatus::Normal
        {
            return;
        }
        registers.set_shutdown(ShutdownStatus::Occurring);
        let disables = controller.handled_disables;
        let then: Then = Box::new(move |control, _| {
            let controller = &control.controllers[index];
            // Unless a reset has overtaken it.
            if controller.shared.registers.disables() == disables {
                controller.shared.registers.set_shutdown(ShutdownStatus::Complete);
            }
        });
        self.ask(index, home, ShardRequest::FlushAll, then);
    }

    /// A function level reset: as a controller reset, and the registers go too.
    pub(super) fn function_reset(&mut self, index: ControllerIndex) {
        let shared = &self.controllers[index].shared;
        shared.config.lock().unwrap_or_else(PoisonError::into_inner).reset();
        shared.pin.reset();
        shared.faults.iter().for_each(|faults| faults.on_function_reset());
        shared.registers.reset_function();
        self.reconcile(index);
    }

    /// Resets every controller of the subsystem that this one belongs to.
    pub(super) fn subsystem_reset(&mut self, index: ControllerIndex) {
        let subsystem = self.controllers[index].subsystem();
        for other in 0..self.controllers.len() {
            if Arc::ptr_eq(&self.controllers[other].subsystem(), &subsystem) {
                let registers = &self.controllers[other].shared.registers;
                registers.reset_function();
                registers.set_subsystem_reset();
                self.reconcile(other);
            }
        }
    }

    /// Guest memory turned out to be gone: this controller is over until it is reset.
    pub(super) fn fault(&mut self, index: ControllerIndex) {
        let controller = &mut self.controllers[index];
        if controller.state == State::Enabled && !controller.shared.registers.csts().cfs() {
            tracing::error!(controller = index, "the client has truncated memory that it shares");
            controller.shared.registers.set_fatal();
            self.ask_all(index, || ShardRequest::Drain, Box::new(|_, _| {}));
        }
    }

    /// The client has gone: its I/O ends, then its memory and its interrupts go, then the next client may come.
    pub(super) fn disconnect(&mut self, index: ControllerIndex, answer: Answer) {
        let controller = &self.controllers[index];
        let csts = controller.shared.registers.csts();
        let orderly = controller.state == State::Disabled || csts.shst() == ShutdownStatus::Complete;
        self.function_reset(index);
        let then: Then = Box::new(move |control, _| {
            let controller = &mut control.controllers[index];
            controller.admin.power_cycle(orderly);
            controller.write_cache.allow();
            let then: Answer = Box::new(move |_| answer(Ok(())));
            control.drop_interrupts(index);
            control.unmap_dma(index, None, then);
        });
        self.after_reset(index, then);
    }

    /// Resets every controller, then answers.
    pub(super) fn stop(&mut self, answer: crossbeam::channel::Sender<()>) {
        let left = Arc::new(());
        for index in 0..self.controllers.len() {
            let left = left.clone();
            self.function_reset(index);
            self.after_reset(index, Box::new(move |_, _| drop(left)));
        }
        self.stopping = Some((left, answer));
        self.finish_stop();
    }

    /// Ends a stop when all controllers have been reset.
    pub(super) fn finish_stop(&mut self) {
        let Some((left, answer)) = &self.stopping else { return };
        if Arc::strong_count(left) > 1 {
            return;
        }
        let _ = answer.send(());
        self.stopping = None;
    }

    /// Makes what was completed on every disk durable.
    pub(super) fn flush(&self) {
        for controller in &self.controllers {
            for namespace in controller.admin.subsystem().namespaces() {
                if let Err(error) = namespace.disk().flush() {
                    tracing::error!("flush at shutdown failed: {error}");
                }
            }
        }
    }
}
