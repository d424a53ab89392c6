//! Asynchronous events (NVMe Base 2.0c, 5.2): the requests that a host keeps outstanding, and the events that
//! complete them.

use nvme_spec::async_event::AsynchronousEvent;
use nvme_spec::log_page::lid;
use std::collections::VecDeque;

/// Asynchronous Event Requests that a host may have outstanding (AERL + 1).
pub const EVENT_REQUEST_LIMIT: u8 = 4;

/// What a host is told without having asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A doorbell of a queue that does not exist was written.
    InvalidDoorbellRegister,
    /// A doorbell was written with a value outside of its queue, or one that leaves a queue more than full.
    InvalidDoorbellValue,
    /// A temperature is past its threshold.
    Temperature,
    /// Identify Namespace data of some namespace has changed.
    NamespaceAttributeChanged,
}

/// The type of an event. Reporting one masks its type until the log page that goes with it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventType {
    Error = 0,
    Smart = 1,
    Notice = 2,
}

const TYPES: [EventType; 3] = [EventType::Error, EventType::Smart, EventType::Notice];

impl AsyncEvent {
    pub(super) fn event_type(self) -> EventType {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue => EventType::Error,
            Self::Temperature => EventType::Smart,
            Self::NamespaceAttributeChanged => EventType::Notice,
        }
    }

    /// As the completion's Dword 0 tells it.
    fn on_the_wire(self) -> AsynchronousEvent {
        match self {
            Self::InvalidDoorbellRegister => AsynchronousEvent::INVALID_DOORBELL_REGISTER,
            Self::InvalidDoorbellValue => AsynchronousEvent::INVALID_DOORBELL_VALUE,
            Self::Temperature => AsynchronousEvent::TEMPERATURE_THRESHOLD,
            Self::NamespaceAttributeChanged => AsynchronousEvent::NAMESPACE_ATTRIBUTE_CHANGED,
        }
    }
}

impl EventType {
    /// The log page whose reading clears events of this type.
    fn log_page(self) -> u8 {
        match self {
            Self::Error => lid::ERROR_INFORMATION,
            Self::Smart => lid::SMART_HEALTH_INFORMATION,
            Self::Notice => lid::CHANGED_NAMESPACE_LIST,
        }
    }
}

/// A completion that the core posts to the admin completion queue, with status Successful Completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventCompletion {
    /// Command identifier of the Asynchronous Event Request.
    pub cid: u16,
    /// The event.
    pub dw0: u32,
}

/// Where an event type stands.
///
/// An event that comes while its type is masked is dropped: the log page that clears the mask tells of it too. So
/// is one that comes while another of its type waits for a request to report it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TypeState {
    #[default]
    Quiet,
    /// To be reported as soon as a request is outstanding.
    Pending(AsyncEvent),
    /// Reported, and masked until its log page has been read.
    Masked,
}

/// More requests were outstanding than there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LimitExceeded;

/// Requests and events of one controller.
#[derive(Debug, Default)]
pub(super) struct AsyncEvents {
    /// Command identifiers, oldest first; at most [`EVENT_REQUEST_LIMIT`].
    requests: VecDeque<u16>,
    types: [TypeState; 3],
}

impl AsyncEvents {
    /// Parks a request.
    pub(super) fn request(&mut self, cid: u16) -> Result<(), LimitExceeded> {
        if self.requests.len() >= usize::from(EVENT_REQUEST_LIMIT) {
            return Err(LimitExceeded);
        }
        self.requests.push_back(cid);
        Ok(())
    }

    /// Takes a parked request back, because it is being aborted. Says whether it was there.
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let position = self.requests.iter().position(|&parked| parked == cid);
        position.and_then(|position| self.requests.remove(position)).is_some()
    }

    /// Takes the oldest parked request, to complete it with anything at all.
    pub(super) fn take_request(&mut self) -> Option<u16> {
        self.requests.pop_front()
    }

    /// Notes an event. It is reported at once, later or, while its type is masked, not at all.
    pub(super) fn raise(&mut self, event: AsyncEvent) {
        let state = &mut self.types[event.event_type() as usize];
        if *state == TypeState::Quiet {
            *state = TypeState::Pending(event);
        }
    }

    /// Drops what waits to be reported and is not wanted (any more).
    pub(super) fn retain(&mut self, wanted: impl Fn(AsyncEvent) -> bool) {
        for state in &mut self.types {
            if matches!(state, TypeState::Pending(event) if !wanted(*event)) {
                *state = TypeState::Quiet;
            }
        }
    }

    /// A log page was read without Retain Asynchronous Event: clears the events that it tells of.
    pub(super) fn log_page_read(&mut self, log_page: u8) {
        for event_type in TYPES {
            if event_type.log_page() == log_page {
                self.types[event_type as usize] = TypeState::Quiet;
            }
        }
    }

    /// The next completion to post, if an event waits and a request is outstanding.
    pub(super) fn take_completion(&mut self) -> Option<EventCompletion> {
        for state in &mut self.types {
            if let TypeState::Pending(event) = *state {
                let cid = self.requests.pop_front()?;
                *state = TypeState::Masked;
                return Some(EventCompletion { cid, dw0: event.on_the_wire().into_bits() });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(events: &mut AsyncEvents) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| events.take_completion()).map(|done| (done.cid, done.dw0)).collect()
    }

    #[test]
    fn dword_0_names_type_information_and_log_page() {
        let dw0 = |event: AsyncEvent| event.on_the_wire().into_bits();
        assert_eq!(dw0(AsyncEvent::InvalidDoorbellRegister), 0x0001_0000);
        assert_eq!(dw0(AsyncEvent::InvalidDoorbellValue), 0x0001_0100);
        assert_eq!(dw0(AsyncEvent::Temperature), 0x0002_0101);
        assert_eq!(dw0(AsyncEvent::NamespaceAttributeChanged), 0x0004_0002);
    }

    #[test]
    fn a_request_waits_for_an_event_and_an_event_for_a_request() {
        let mut events = AsyncEvents::default();
        events.request(7).unwrap();
        assert_eq!(reported(&mut events), []);
        events.raise(AsyncEvent::Temperature);
        assert_eq!(reported(&mut events), [(7, 0x0002_0101)]);
        events.raise(AsyncEvent::InvalidDoorbellValue);
        assert_eq!(reported(&mut events), []);
        events.request(8).unwrap();
        assert_eq!(reported(&mut events), [(8, 0x0001_0100)]);
    }

    #[test]
    fn requests_complete_in_the_order_they_came() {
        let mut events = AsyncEvents::default();
        events.request(5).unwrap();
        events.request(3).unwrap();
        events.raise(AsyncEvent::NamespaceAttributeChanged);
        events.raise(AsyncEvent::InvalidDoorbellRegister);
        assert_eq!(reported(&mut events), [(5, 0x0001_0000), (3, 0x0004_0002)]);
    }

    #[test]
    fn one_request_more_than_the_limit_is_refused() {
        let mut events = AsyncEvents::default();
        for cid in 0..u16::from(EVENT_REQUEST_LIMIT) {
            events.request(cid).unwrap();
        }
        assert_eq!(events.request(99), Err(LimitExceeded));
        events.raise(AsyncEvent::Temperature);
        assert!(events.take_completion().is_some());
        events.request(99).unwrap();
    }

    #[test]
    fn a_reported_type_is_masked_until_its_log_page_is_read() {
        let mut events = AsyncEvents::default();
        for cid in 0..4 {
            events.request(cid).unwrap();
        }
        events.raise(AsyncEvent::InvalidDoorbellRegister);
        assert_eq!(reported(&mut events).len(), 1);
        events.raise(AsyncEvent::InvalidDoorbellValue);
        assert_eq!(reported(&mut events), []);
        events.log_page_read(0x02);
        events.raise(AsyncEvent::InvalidDoorbellValue);
        assert_eq!(reported(&mut events), []);
        events.log_page_read(0x01);
        events.raise(AsyncEvent::InvalidDoorbellValue);
        assert_eq!(reported(&mut events), [(1, 0x0001_0100)]);
    }

    #[test]
    fn reading_the_log_page_clears_an_event_that_was_not_reported_yet() {
        let mut events = AsyncEvents::default();
        events.raise(AsyncEvent::NamespaceAttributeChanged);
        events.log_page_read(0x04);
        events.request(1).unwrap();
        assert_eq!(reported(&mut events), []);
    }

    #[test]
    fn events_that_are_no_longer_wanted_are_dropped() {
        let mut events = AsyncEvents::default();
        events.raise(AsyncEvent::NamespaceAttributeChanged);
        events.raise(AsyncEvent::InvalidDoorbellRegister);
        events.retain(|event| event.event_type() == EventType::Error);
        events.request(1).unwrap();
        events.request(2).unwrap();
        assert_eq!(reported(&mut events), [(1, 0x0001_0000)]);
    }

    #[test]
    fn an_aborted_request_is_not_completed_by_an_event() {
        let mut events = AsyncEvents::default();
        events.request(1).unwrap();
        events.request(2).unwrap();
        assert!(events.abort(1));
        assert!(!events.abort(1));
        events.raise(AsyncEvent::Temperature);
        assert_eq!(reported(&mut events), [(2, 0x0002_0101)]);
    }
}
