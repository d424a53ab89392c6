//! Tests of the front door against a device that records what reaches it.

mod client;
mod server;
mod session;

use super::device::Device;
use super::message::Header;
use crate::pci::config_space::Layout;
use crate::pci::function::DoorbellPage;
use crate::pci::{Answer, Call, ConfigSpace, InterruptKind};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use zerocopy::IntoBytes;

pub const BAR0_LEN: u64 = 0x4000;
pub const VECTORS: u32 = 9;

/// A device that remembers. Clones are the same device.
#[derive(Clone)]
pub struct Recorder(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    page: Option<OwnedFd>,
}

pub struct State {
    pub config: ConfigSpace,
    pub bar0: Vec<u8>,
    /// Offset and data of each write to BAR0.
    pub writes: Vec<(u64, Vec<u8>)>,
    /// Each call, as text: what it says of descriptors is how many there are.
    pub calls: Vec<String>,
    /// What calls are answered with, at once; `None` holds the answers back.
    pub answer: Option<Result<(), i32>>,
    pub held: Vec<Answer>,
}

impl Recorder {
    pub fn new() -> Self {
        Self::with_page(None)
    }

    /// With its doorbells in memory.
    pub fn with_doorbell_page() -> Self {
        let page = memfd_create("doorbells", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&page, 0x2000).unwrap();
        Self::with_page(Some(page))
    }

    fn with_page(page: Option<OwnedFd>) -> Self {
        let layout = Layout {
            bar0_len: BAR0_LEN as u32,
            msix_vectors: VECTORS as u16,
            msix_table: 0x2000,
            msix_pba: 0x3000,
            serial: 1,
        };
        let state = State {
            config: ConfigSpace::new(&layout).unwrap(),
            bar0: (0..BAR0_LEN).map(|at| at as u8).collect(),
            writes: Vec::new(),
            calls: Vec::new(),
            answer: Some(Ok(())),
            held: Vec::new(),
        };
        Self(Arc::new(Inner { state: Mutex::new(state), page }))
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// Answers the oldest call that is held back.
    pub fn release(&self, answer: Result<(), i32>) {
        let held = self.state().held.remove(0);
        held(answer);
    }
}

/// A call as text.
pub fn describe(call: &Call) -> String {
    match call {
        Call::MapDma(map) => {
            let mode = format!("{}{}", if map.read { "r" } else { "" }, if map.write { "w" } else { "" });
            let backing =
                map.backing.as_ref().map_or("none".into(), |(_, offset)| format!("file+{offset:#x}"));
            format!("map {:#x}+{:#x} {mode} {backing}", map.iova, map.len)
        }
        Call::UnmapDma { iova, len } => format!("unmap {iova:#x}+{len:#x}"),
        Call::UnmapAllDma => "unmap all".into(),
        Call::SetInterrupts { kind, start, eventfds } => {
            let connected: String = eventfds.iter().map(|fd| if fd.is_some() { '1' } else { '0' }).collect();
            format!("set {kind:?} {start}: {connected}")
        }
        Call::DisableInterrupts(kind) => format!("disable {kind:?}"),
        Call::MaskIntx(masked) => format!("mask {masked}"),
        Call::TriggerInterrupt { kind, start, count } => format!("trigger {kind:?} {start}+{count}"),
        Call::Reset => "reset".into(),
        Call::Disconnect => "disconnect".into(),
    }
}

impl Device for Recorder {
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.state().config.read(offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.state().config.write(offset, data);
    }

    fn bar0_len(&self) -> u64 {
        BAR0_LEN
    }

    fn read_bar0(&self, offset: u64, data: &mut [u8]) {
        let start = offset as usize;
        data.copy_from_slice(&self.state().bar0[start..start + data.len()]);
    }

    fn write_bar0(&self, offset: u64, data: &[u8]) {
        self.state().writes.push((offset, data.to_vec()));
    }

    fn doorbell_page(&self) -> Option<DoorbellPage<'_>> {
        let fd = self.0.page.as_ref()?.as_fd();
        Some(DoorbellPage { fd, bar_offset: 0x1000, len: 0x1000 })
    }

    fn interrupt_vectors(&self, kind: InterruptKind) -> u32 {
        match kind {
            InterruptKind::Intx => 1,
            InterruptKind::Msix => VECTORS,
        }
    }

    fn call(&self, call: Call, answer: Answer) {
        let mut state = self.state();
        state.calls.push(describe(&call));
        match state.answer {
            Some(result) => {
                drop(state);
                answer(result);
            }
            None => state.held.push(answer),
        }
    }
}

/// Command numbers, as the protocol has them.
pub mod commands {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const GET_INFO: u16 = 4;
    pub const GET_REGION_INFO: u16 = 5;
    pub const GET_IRQ_INFO: u16 = 7;
    pub const SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const RESET: u16 = 13;
    pub const WRITE_MULTI: u16 = 15;
}

pub const NO_REPLY: u32 = 0x10;

/// A message as a client would send it.
pub fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { id, command, size: (16 + payload.len()) as u32, flags, error: 0 };
    [header.as_bytes(), payload].concat()
}

/// Words as bytes: payloads are made of these.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The payload of a region access.
pub fn access(region: u32, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    [&offset.to_ne_bytes()[..], &words(&[region, count]), data].concat()
}

/// The payload of `VFIO_USER_DMA_MAP`.
pub fn dma_map(flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let longs: Vec<u8> = [offset, address, size].iter().flat_map(|long| long.to_ne_bytes()).collect();
    [words(&[32, flags]), longs].concat()
}

/// The payload of `VFIO_USER_DMA_UNMAP`.
pub fn dma_unmap(flags: u32, address: u64, size: u64) -> Vec<u8> {
    [&words(&[24, flags])[..], &address.to_ne_bytes(), &size.to_ne_bytes()].concat()
}

/// The payload of `VFIO_USER_VERSION`.
pub fn version(major: u16, minor: u16, json: &[u8]) -> Vec<u8> {
    [&major.to_ne_bytes()[..], &minor.to_ne_bytes(), json].concat()
}

pub fn eventfds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect()
}
