//! Random fault scripts, as text: what fails can be tried with `ringpair serve --faults`.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::select;

/// A script, which prints as it is written.
#[derive(Clone)]
pub struct Script(pub String);

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the script\n{}", self.0)
    }
}

impl Script {
    /// Whether the controller may refuse commands by itself, or say things about itself that are not true.
    pub fn lies(&self) -> bool {
        self.0.contains("'fail'") || self.0.contains("'corrupt'")
    }
}

/// What is done to commands of any queue, with the keys that it takes. Identifiers are changed in the bits that tell
/// uses of the same index apart: a controller that completes another command in flight lies in a way that nobody can
/// see.
fn to_command() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => select(vec!["ignore", "drop", "duplicate", "wrong-head", "wrong-phase"])
            .prop_map(|what| format!("do = '{what}'\n")),
        2 => (1..200_u32).prop_map(|ms| format!("do = 'delay'\nby = '{ms}ms'\n")),
        1 => select(vec![0x100, 0x4000, 0x8000, 0x7f00])
            .prop_map(|mask| format!("do = 'wrong-cid'\ncid-xor = {mask}\n")),
        1 => select(vec![0, 1, 2, 77, 65535])
            .prop_map(|sqid| format!("do = 'wrong-queue'\nsubmission-queue = {sqid}\n")),
        3 => select(vec!["'unrecovered-read-error'", "'write-fault'", "'internal-error'", "0x2"])
            .prop_map(|status| format!("do = 'fail'\nstatus = {status}\n")),
        1 => select(vec![
            "namespace-attribute-changed", "temperature", "persistent-internal-error", "telemetry-log-changed"
        ]).prop_map(|event| format!("do = 'event'\nevent = '{event}'\n")),
        4 => to_controller(),
    ]
}

/// What happens to the controller.
fn to_controller() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just("do = 'fatal'\n".to_owned()),
        1 => Just("do = 'never-ready'\n".to_owned()),
        1 => Just("do = 'always-ready'\n".to_owned()),
        4 => (1..100_u32).prop_map(|ms| format!("do = 'gone'\nlasting = '{ms}ms'\n")),
        1 => Just("do = 'gone'\n".to_owned()),
    ]
}

/// From when on, and how often.
fn how_often(first: u32) -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (first..first + 60, 1..3_u32).prop_map(|(nth, times)| format!("nth = {nth}\ntimes = {times}\n")),
        2 => (first..first + 60, 0.005..0.1_f64)
            .prop_map(|(nth, chance)| format!("nth = {nth}\nchance = {chance:.3}\n")),
        1 => (first..first + 60).prop_map(|nth| format!("nth = {nth}\ntimes = 0\n")),
    ]
}

fn about_io() -> impl Strategy<Value = String> {
    let queue = select(vec!["queue = 'io'\n", "queue = 1\n", "queue = 2\n"]);
    let opcode = prop_oneof![
        3 => Just(String::new()),
        4 => select(vec!["read", "write", "write-zeroes", "dataset-management", "flush", "compare"])
            .prop_map(|opcode| format!("opcode = '{opcode}'\n")),
    ];
    (queue, opcode, how_often(1), to_command())
        .prop_map(|(queue, opcode, often, what)| format!("[[fault]]\n{queue}{opcode}{often}{what}"))
}

/// Some of these hit the start of the driver, most of them what comes later.
fn about_admin() -> impl Strategy<Value = String> {
    let opcode = prop_oneof![
        2 => Just(String::new()),
        3 => select(vec![
            "identify", "abort", "get-features", "set-features", "get-log-page", "create-io-submission-queue",
            "create-io-completion-queue", "delete-io-submission-queue", "asynchronous-event-request"
        ]).prop_map(|opcode| format!("opcode = '{opcode}'\n")),
    ];
    let one = (opcode, how_often(1), to_command())
        .prop_map(|(opcode, often, what)| format!("[[fault]]\nqueue = 'admin'\n{opcode}{often}{what}"));
    // Of the controller: the vendor, the serial number, MDTS, SQES. Of a namespace: NSZE. Not how long its blocks are:
    // data in other places than it was put to is nothing that a driver could notice.
    let corrupt = (select(vec![0, 4, 5, 77, 512, 513]), 2..8_u32, 1..3_u32, any::<u8>())
        .prop_map(|(offset, nth, times, byte)| format!(
            "[[fault]]\nqueue = 'admin'\nopcode = 'identify'\nnth = {nth}\ntimes = {times}\ndo = 'corrupt'\n\
             offset = {offset}\nbytes = [{byte}]\n"
        ));
    prop_oneof![6 => one, 1 => corrupt]
}

fn about_resets() -> impl Strategy<Value = String> {
    (select(vec!["enable", "disable"]), 1..4_u32, 1..3_u32, to_controller()).prop_map(
        |(when, nth, times, what)| {
            format!(
                "[[fault]]\nwhen = '{when}'\nnth = {}\ntimes = {times}\n{what}",
                nth + u32::from(when == "enable")
            )
        },
    )
}

/// Scripts of one to five faults.
pub fn script() -> impl Strategy<Value = Script> {
    let fault = prop_oneof![6 => about_io().boxed(), 2 => about_admin().boxed(), 1 => about_resets().boxed()];
    (1..u32::MAX, prop::collection::vec(fault, 1..6)).prop_map(|(seed, faults)| {
        Script(format!("seed = {seed}\nready-timeout = '500ms'\n\n{}", faults.join("\n")))
    })
}
