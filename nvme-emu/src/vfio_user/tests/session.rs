//! The protocol without the socket: each line of what clients do, as they do it.

use super::commands::*;
use super::*;
use crate::vfio_user::receive::Descriptors;
use crate::vfio_user::session::{Progress, Session, Violation};
use proptest::prelude::*;
use zerocopy::FromBytes;

const EINVAL: u32 = libc::EINVAL as u32;
const ENOTSUP: u32 = libc::ENOTSUP as u32;

/// What QEMU 11.1 sends.
const QEMU_JSON: &[u8] =
    b"{\"capabilities\": {\"migration\": {\"max_bitmap_size\": 268435456, \"pgsize\": 4096}, \
    \"max_msg_fds\": 16, \"max_data_xfer_size\": 1048576, \"pgsizes\": 4096, \"max_dma_maps\": 65535, \
    \"write_multiple\": true}}\0";

#[derive(Debug, PartialEq)]
struct Reply {
    id: u16,
    /// `Ok`: the payload. `Err`: the errno.
    result: Result<Vec<u8>, u32>,
}

/// One client and its session; calls are answered as the recorder says.
struct Talk {
    session: Session,
    device: Recorder,
    fds: Vec<OwnedFd>,
    next_id: u16,
}

impl Talk {
    fn new(device: Recorder) -> Self {
        Self { session: Session::default(), device, fds: Vec::new(), next_id: 100 }
    }

    /// After the handshake, as QEMU does it.
    fn qemu(device: Recorder) -> Self {
        let mut talk = Self::new(device);
        talk.ask(VERSION, &version(0, 0, QEMU_JSON)).unwrap();
        talk
    }

    fn run(&mut self) -> Progress {
        loop {
            match self.session.advance(&self.device) {
                Progress::Call(call) => {
                    let mut state = self.device.state();
                    state.calls.push(describe(&call));
                    match state.answer {
                        Some(answer) => self.session.answered(answer),
                        None => return Progress::Call(call),
                    }
                }
                other => return other,
            }
        }
    }

    fn feed(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> Progress {
        self.session.receiver.feed(bytes, Descriptors { fds, lost: false });
        self.run()
    }

    fn replies(&mut self) -> Vec<Reply> {
        let (bytes, fds) = self.session.outbox.drain();
        self.fds.extend(fds);
        let mut rest = &bytes[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (header, _) = Header::read_from_prefix(rest).unwrap();
            let (reply, next) = rest.split_at(header.size as usize);
            let result = match header.flags {
                0x01 => Ok(reply[16..].to_vec()),
                0x21 => {
                    assert_eq!(reply.len(), 16, "an error is a header and nothing else");
                    Err(header.error)
                }
                flags => panic!("reply flags {flags:#x}"),
            };
            replies.push(Reply { id: header.id, result });
            rest = next;
        }
        replies
    }

    /// Sends a command with descriptors, expects one reply.
    fn ask_with(&mut self, command: u16, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Vec<u8>, u32> {
        self.next_id += 1;
        let progress = self.feed(&message(self.next_id, command, 0, payload), fds);
        assert!(matches!(progress, Progress::Empty), "{progress:?}");
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1, "{replies:?}");
        let reply = replies.remove(0);
        assert_eq!(reply.id, self.next_id);
        reply.result
    }

    fn ask(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask_with(command, payload, Vec::new())
    }

    /// Sends something after which the server hangs up; says why, and what it replied first.
    fn offend(&mut self, bytes: &[u8]) -> (Violation, Vec<Reply>) {
        match self.feed(bytes, Vec::new()) {
            Progress::Close(violation) => (violation, self.replies()),
            other => panic!("{other:?}"),
        }
    }
}

fn as_words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect()
}

mod handshake {
    use super::*;

    #[test]
    fn qemu_gets_a_short_reply_in_json_that_ends_with_a_nul() {
        let mut talk = Talk::new(Recorder::new());
        let reply = talk.ask(VERSION, &version(0, 0, QEMU_JSON)).unwrap();
        assert_eq!(&reply[..4], [0, 0, 0, 0], "version 0.0");
        let (json, nul) = (&reply[4..reply.len() - 1], reply[reply.len() - 1]);
        assert_eq!(nul, 0);
        assert!(reply.len() <= 4 + QEMU_JSON.len(), "QEMU makes room for no more than it sent");
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let expected = serde_json::json!({"capabilities":
            {"max_msg_fds": 16, "max_data_xfer_size": 65536, "write_multiple": true}});
        assert_eq!(json, expected);
    }

    #[test]
    fn spdk_sends_no_json_and_a_higher_minor_version() {
        let mut talk = Talk::new(Recorder::new());
        let reply = talk.ask(VERSION, &version(0, 1, b"")).unwrap();
        assert_eq!(&reply[..4], [0, 0, 0, 0]);
        assert!(!reply.ends_with(b"write_multiple\":true}}\0"), "it was not proposed");
        assert!(talk.ask(GET_INFO, &words(&[16, 0, 0, 0])).is_ok());
    }

    #[test]
    fn unknown_and_empty_capabilities_are_accepted() {
        for json in
            [&b"\0"[..], b"{}\0", b"{\"capabilities\":{}}\0", b"{\"x\":1,\"capabilities\":{\"y\":[2]}}\0"]
        {
            let mut talk = Talk::new(Recorder::new());
            assert!(talk.ask(VERSION, &version(0, 0, json)).is_ok(), "{}", json.escape_ascii());
        }
    }

    #[test]
    fn a_version_that_makes_no_sense_is_refused_and_hung_up_on() {
        let nested = [&b"[".repeat(10_000)[..], b"\0"].concat();
        for (major, json) in [
            (1, &b""[..]),
            (0, b"{}"),
            (0, b"{\0"),
            (0, b"1\0"),
            (0, b"{}\0x\0"),
            (0, b"{\"capabilities\":{\"write_multiple\":\"maybe\"}}\0"),
            (0, &nested),
        ] {
            let mut talk = Talk::new(Recorder::new());
            let refused = talk.offend(&message(1, VERSION, 0, &version(major, 0, json)));
            assert_eq!(refused, (Violation::Version, vec![Reply { id: 1, result: Err(EINVAL) }]));
        }
        let mut talk = Talk::new(Recorder::new());
        assert_eq!(talk.offend(&message(1, VERSION, 0, &[0, 0])).0, Violation::Version, "too short");
    }

    #[test]
    fn nothing_goes_before_the_version_and_it_goes_only_once() {
        let mut talk = Talk::new(Recorder::new());
        let (violation, replies) = talk.offend(&message(1, RESET, 0, b""));
        assert_eq!(violation, Violation::NoVersion(RESET));
        assert_eq!(replies, [Reply { id: 1, result: Err(EINVAL) }]);
        assert!(talk.device.calls().is_empty());
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(talk.ask(VERSION, &version(0, 0, QEMU_JSON)), Err(EINVAL));
        assert!(talk.ask(GET_INFO, &words(&[16, 0, 0, 0])).is_ok(), "and life goes on");
    }
}

mod information {
    use super::*;

    #[test]
    fn the_device_is_pci_resettable_and_has_eight_regions_and_three_interrupt_indexes() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(as_words(&talk.ask(GET_INFO, &words(&[16, 0, 0, 0])).unwrap()), [16, 0b11, 8, 3]);
        // The vfio_user crate counts the header in.
        assert!(talk.ask(GET_INFO, &words(&[32, 0, 0, 0])).is_ok());
        assert_eq!(talk.ask(GET_INFO, &words(&[15, 0, 0, 0])), Err(EINVAL));
        assert_eq!(talk.ask(GET_INFO, &words(&[16])), Err(EINVAL));
    }

    fn region(talk: &mut Talk, argsz: u32, index: u32) -> Result<Vec<u32>, u32> {
        talk.ask(GET_REGION_INFO, &words(&[argsz, 0, index, 0, 0, 0, 0, 0])).map(|reply| as_words(&reply))
    }

    #[test]
    fn regions_are_bar0_and_configuration_space() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(region(&mut talk, 32, 0).unwrap(), [32, 0b11, 0, 0, BAR0_LEN as u32, 0, 0, 0]);
        assert_eq!(region(&mut talk, 32, 7).unwrap(), [32, 0b11, 7, 0, 4096, 0, 0, 0]);
        for absent in 1..7 {
            assert_eq!(region(&mut talk, 32, absent).unwrap(), [32, 0, absent, 0, 0, 0, 0, 0]);
        }
        assert_eq!(region(&mut talk, 32, 8), Err(EINVAL));
        assert_eq!(region(&mut talk, 31, 0), Err(EINVAL));
        assert!(talk.fds.is_empty());
    }

    #[test]
    fn doorbells_in_memory_are_told_of_when_there_is_room_and_not_before() {
        let mut talk = Talk::qemu(Recorder::with_doorbell_page());
        let first = region(&mut talk, 32, 0).unwrap();
        assert_eq!(first, [64, 0b11, 0, 0, BAR0_LEN as u32, 0, 0, 0], "no capabilities past its end");
        assert!(talk.fds.is_empty());
        let second = region(&mut talk, first[0], 0).unwrap();
        assert_eq!(second[..8], [64, 0b1111, 0, 32, BAR0_LEN as u32, 0, 0, 0]);
        assert_eq!(second[8..], [1 << 16 | 1, 0, 1, 0, 0x1000, 0, 0x1000, 0], "one area: the doorbells");
        assert_eq!(talk.fds.len(), 1, "a descriptor for the area");
        assert_eq!(
            region(&mut talk, 64, 7).unwrap()[..2],
            [32, 0b11],
            "configuration space cannot be mapped"
        );
        assert_eq!(talk.fds.len(), 1);
    }

    #[test]
    fn spdk_asks_for_region_info_with_a_page_of_zeroes() {
        let mut talk = Talk::qemu(Recorder::with_doorbell_page());
        let mut payload = words(&[4064, 0, 0, 0]);
        payload.resize(4064, 0);
        assert_eq!(talk.ask(GET_REGION_INFO, &payload).unwrap().len(), 64);
        assert_eq!(talk.fds.len(), 1);
    }

    #[test]
    fn the_mapped_doorbells_are_in_the_file_where_they_are_in_the_region() {
        let device = Recorder::with_doorbell_page();
        let mut talk = Talk::qemu(device.clone());
        region(&mut talk, 64, 0).unwrap();
        rustix::io::pwrite(&talk.fds[0], b"ring", 0x1000).unwrap();
        let mut seen = [0; 4];
        rustix::io::pread(device.doorbell_page().unwrap().fd, &mut seen, 0x1000).unwrap();
        assert_eq!(&seen, b"ring");
    }

    #[test]
    fn interrupts_are_intx_and_msix() {
        let mut talk = Talk::qemu(Recorder::new());
        let mut info =
            |index| talk.ask(GET_IRQ_INFO, &words(&[16, 0, index, 0])).map(|reply| as_words(&reply));
        assert_eq!(info(0).unwrap(), [16, 0b111, 0, 1], "eventfd, maskable, masks itself");
        assert_eq!(info(1).unwrap(), [16, 0, 1, 0]);
        assert_eq!(info(2).unwrap(), [16, 0b001, 2, VECTORS]);
        assert_eq!(info(3), Err(EINVAL));
        assert_eq!(talk.ask(GET_IRQ_INFO, &words(&[12, 0, 0, 0])), Err(EINVAL));
    }
}

mod regions {
    use super::*;

    #[test]
    fn configuration_space_is_read_whole_and_then_in_pieces() {
        let mut talk = Talk::qemu(Recorder::new());
        let whole = talk.ask(REGION_READ, &access(7, 0, 4096, b"")).unwrap();
        assert_eq!(&whole[..16], access(7, 0, 4096, b""));
        assert_eq!(whole.len(), 16 + 4096);
        for (offset, count) in [(0, 2), (0, 4), (0x34, 1), (0xffc, 4), (0x3d, 1)] {
            let piece = talk.ask(REGION_READ, &access(7, offset, count, b"")).unwrap();
            let at = 16 + offset as usize;
            assert_eq!(piece[16..], whole[at..at + count as usize]);
        }
        assert_eq!(talk.ask(REGION_WRITE, &access(7, 4, 2, &[6, 4])), Ok(access(7, 4, 2, b"")));
        assert!(talk.device.state().config.bus_master_enabled());
    }

    #[test]
    fn bar0_reads_and_writes_reach_the_device_in_order() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(talk.ask(REGION_READ, &access(0, 0x10, 4, b"")).unwrap()[16..], [0x10, 0x11, 0x12, 0x13]);
        talk.ask(REGION_WRITE, &access(0, 0x14, 4, b"abcd")).unwrap();
        talk.ask(REGION_WRITE, &access(0, 0x28, 8, b"efghijkl")).unwrap();
        assert_eq!(talk.device.state().writes, [(0x14, b"abcd".to_vec()), (0x28, b"efghijkl".to_vec())]);
    }

    #[test]
    fn posted_doorbells_get_no_reply_and_many_come_in_one_read() {
        let mut talk = Talk::qemu(Recorder::new());
        let doorbell = |tail: u32| {
            message(tail as u16, REGION_WRITE, NO_REPLY, &access(0, 0x1008, 4, &tail.to_ne_bytes()))
        };
        let stream: Vec<u8> = (0..1000).flat_map(doorbell).collect();
        assert!(matches!(talk.feed(&stream, Vec::new()), Progress::Empty));
        assert!(talk.replies().is_empty());
        let writes = &talk.device.state().writes;
        assert_eq!(writes.len(), 1000);
        assert!(writes.iter().enumerate().all(|(n, (_, data))| *data == (n as u32).to_ne_bytes()));
    }

    #[test]
    fn accesses_outside_of_a_region_are_refused() {
        let mut talk = Talk::qemu(Recorder::new());
        for (region, offset, count) in [
            (0, BAR0_LEN, 4),
            (0, BAR0_LEN - 2, 4),
            (0, u64::MAX - 1, 4),
            (0, 0, 0),
            (0, 0, u32::MAX),
            (1, 0, 4),
            (6, 0, 4),
            (7, 4093, 4),
            (8, 0, 4),
            (u32::MAX, 0, 4),
        ] {
            assert_eq!(talk.ask(REGION_READ, &access(region, offset, count, b"")), Err(EINVAL));
            if count == 4 {
                assert_eq!(talk.ask(REGION_WRITE, &access(region, offset, 4, b"data")), Err(EINVAL));
            }
        }
        assert_eq!(talk.ask(REGION_WRITE, &access(0, 0, 4, b"short".get(..3).unwrap())), Err(EINVAL));
        assert_eq!(talk.ask(REGION_WRITE, &access(0, 0, 4, b"longer")), Err(EINVAL));
        assert_eq!(talk.ask(REGION_READ, &[0; 15]), Err(EINVAL));
        assert!(talk.device.state().writes.is_empty());
    }

    fn multi(count: u64, writes: &[(u64, u32, u32)]) -> Vec<u8> {
        let writes =
            writes.iter().flat_map(|&(offset, region, count)| access(region, offset, count, b"12345678"));
        count.to_ne_bytes().into_iter().chain(writes).collect()
    }

    #[test]
    fn several_writes_in_one_message_if_that_was_agreed_on() {
        let mut talk = Talk::qemu(Recorder::new());
        let writes = multi(2, &[(0x1000, 0, 4), (0x1008, 0, 8)]);
        assert_eq!(talk.ask(WRITE_MULTI, &writes), Ok(2_u64.to_ne_bytes().to_vec()));
        assert_eq!(talk.device.state().writes, [(0x1000, b"1234".to_vec()), (0x1008, b"12345678".to_vec())]);
        for wrong in
            [multi(1, &[(0, 0, 9)]), multi(2, &[(0, 0, 4)]), multi(u64::MAX, &[]), multi(1, &[(0, 3, 4)])]
        {
            assert_eq!(talk.ask(WRITE_MULTI, &wrong), Err(EINVAL));
        }
        let mut talk = Talk::new(Recorder::new());
        talk.ask(VERSION, &version(0, 0, b"")).unwrap();
        assert_eq!(talk.ask(WRITE_MULTI, &writes), Err(ENOTSUP));
    }
}

mod memory {
    use super::*;

    #[test]
    fn memory_is_mapped_with_a_descriptor_or_without() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(talk.ask_with(DMA_MAP, &dma_map(3, 0x2000, 0x10_0000, 0x1000), eventfds(1)), Ok(vec![]));
        assert_eq!(talk.ask(DMA_MAP, &dma_map(1, 0, 0xfffc_0000, 0x4_0000)), Ok(vec![]));
        assert_eq!(talk.ask_with(DMA_MAP, &dma_map(0b111, 0, 0, 0x1000), eventfds(1)), Ok(vec![]));
        assert_eq!(
            talk.device.calls(),
            [
                "map 0x100000+0x1000 rw file+0x2000",
                "map 0xfffc0000+0x40000 r none",
                "map 0x0+0x1000 rw file+0x0"
            ]
        );
    }

    #[test]
    fn pipelined_maps_are_answered_in_order_each_with_its_own_descriptor() {
        let mut talk = Talk::qemu(Recorder::new());
        let rom = message(1, DMA_MAP, 0, &dma_map(1, 0, 0x1000, 0x1000));
        let ram = message(2, DMA_MAP, 0, &dma_map(3, 0, 0x2000, 0x1000));
        // One read brings both: it ends where the message with the descriptor ends.
        talk.feed(&[rom, ram].concat(), eventfds(1));
        talk.feed(&message(3, DMA_MAP, 0, &dma_map(3, 0, 0x3000, 0x1000)), eventfds(1));
        let ids: Vec<u16> = talk.replies().iter().map(|reply| reply.id).collect();
        assert_eq!(ids, [1, 2, 3]);
        let maps =
            ["map 0x1000+0x1000 r none", "map 0x2000+0x1000 rw file+0x0", "map 0x3000+0x1000 rw file+0x0"];
        assert_eq!(talk.device.calls(), maps);
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        let mut talk = Talk::qemu(Recorder::new());
        let map = dma_map(3, 0, 0x1000, 0x1000);
        assert_eq!(talk.ask_with(DMA_MAP, &map, eventfds(2)), Err(EINVAL));
        assert_eq!(talk.ask(DMA_MAP, &map[..31]), Err(EINVAL));
        assert_eq!(
            talk.ask_with(DMA_MAP, &dma_map(0b1011, 0, 0, 0x1000), eventfds(1)),
            Err(ENOTSUP),
            "file I/O"
        );
        assert!(talk.device.calls().is_empty());
    }

    #[test]
    fn what_the_controller_says_of_a_map_is_passed_on() {
        let mut talk = Talk::qemu(Recorder::new());
        for errno in [libc::EEXIST, libc::EINVAL, libc::ENOMEM] {
            talk.device.state().answer = Some(Err(errno));
            assert_eq!(talk.ask(DMA_MAP, &dma_map(3, 0, 0, 0x1000)), Err(errno as u32));
        }
        talk.device.state().answer = Some(Err(-7));
        assert_eq!(talk.ask(DMA_MAP, &dma_map(3, 0, 0, 0x1000)), Err(libc::EIO as u32), "not an errno");
    }

    #[test]
    fn unmap_replies_with_what_was_asked() {
        let mut talk = Talk::qemu(Recorder::new());
        let unmap = dma_unmap(0, 0x1000, 0x2000);
        assert_eq!(talk.ask(DMA_UNMAP, &unmap), Ok(unmap.clone()));
        assert_eq!(
            talk.ask_with(DMA_UNMAP, &unmap, eventfds(1)),
            Ok(unmap),
            "SPDK sends the descriptor again"
        );
        let all = dma_unmap(2, 0, 0);
        assert_eq!(talk.ask(DMA_UNMAP, &all), Ok(all));
        assert_eq!(talk.device.calls(), ["unmap 0x1000+0x2000", "unmap 0x1000+0x2000", "unmap all"]);
        assert_eq!(talk.ask(DMA_UNMAP, &dma_unmap(1, 0, 0)), Err(ENOTSUP), "dirty pages");
        assert!(talk.device.calls().is_empty());
    }
}

mod interrupts {
    use super::*;

    /// `VFIO_USER_DEVICE_SET_IRQS`.
    fn set(
        talk: &mut Talk,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        fds: usize,
    ) -> Result<Vec<u8>, u32> {
        talk.ask_with(SET_IRQS, &words(&[20, flags, index, start, count]), eventfds(fds))
    }

    #[test]
    fn eventfds_come_in_pieces_and_go_without_descriptors() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(set(&mut talk, 0x24, 2, 0, 8, 8), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x24, 2, 8, 1, 1), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x24, 2, 3, 2, 0), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x24, 0, 0, 1, 1), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x21, 2, 0, 0, 0), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x21, 0, 0, 0, 0), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x21, 1, 0, 0, 0), Ok(vec![]), "MSI is off already");
        let calls = [
            "set Msix 0: 11111111",
            "set Msix 8: 1",
            "set Msix 3: 00",
            "set Intx 0: 1",
            "disable Msix",
            "disable Intx",
        ];
        assert_eq!(talk.device.calls(), calls);
    }

    #[test]
    fn intx_is_masked_and_unmasked_by_message() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(set(&mut talk, 0x09, 0, 0, 1, 0), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x11, 0, 0, 1, 0), Ok(vec![]));
        assert_eq!(talk.device.calls(), ["mask true", "mask false"]);
        assert_eq!(set(&mut talk, 0x14, 0, 0, 1, 1), Err(ENOTSUP), "QEMU falls back to messages");
        assert_eq!(set(&mut talk, 0x09, 2, 0, 1, 0), Err(EINVAL), "MSI-X masks in its table");
    }

    #[test]
    fn a_client_may_trigger_some_vectors_itself() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(set(&mut talk, 0x21, 2, 1, 3, 0), Ok(vec![]));
        let chosen = [words(&[25, 0x22, 2, 2, 5]), vec![1, 1, 0, 0, 1]].concat();
        assert_eq!(talk.ask(SET_IRQS, &chosen), Ok(vec![]), "one reply for all");
        assert_eq!(talk.device.calls(), ["trigger Msix 1+3", "trigger Msix 2+2", "trigger Msix 6+1"]);
        let none = [words(&[22, 0x22, 2, 0, 2]), vec![0, 0]].concat();
        assert_eq!(talk.ask(SET_IRQS, &none), Ok(vec![]));
        assert!(talk.device.calls().is_empty());
    }

    #[test]
    fn an_error_ends_what_is_left_of_a_command() {
        let mut talk = Talk::qemu(Recorder::new());
        talk.device.state().answer = Some(Err(libc::EINVAL));
        let chosen = [words(&[23, 0x22, 2, 0, 3]), vec![1, 0, 1]].concat();
        assert_eq!(talk.ask(SET_IRQS, &chosen), Err(EINVAL));
        assert_eq!(talk.device.calls(), ["trigger Msix 0+1"]);
    }

    #[test]
    fn forms_that_make_no_sense_are_refused() {
        let mut talk = Talk::qemu(Recorder::new());
        for (flags, index, start, count, fds) in [
            (0x24, 2, 0, 2, 1),
            (0x24, 2, 0, 1, 2),
            (0x24, 2, 0, 0, 0),
            (0x24, 2, VECTORS, 1, 1),
            (0x24, 2, 0, VECTORS + 1, 0),
            (0x24, 2, u32::MAX, 2, 0),
            (0x24, 2, 0, u32::MAX, 0),
            (0x24, 0, 0, 2, 2),
            (0x24, 1, 0, 1, 1),
            (0x24, 3, 0, 1, 1),
            (0x24, u32::MAX, 0, 1, 1),
            (0x21, 2, 3, 0, 0),
            (0x25, 2, 0, 1, 1),
            (0x34, 2, 0, 1, 1),
            (0x04, 2, 0, 1, 1),
            (0x20, 2, 0, 1, 0),
            (0x64, 2, 0, 1, 1),
            (0x22, 2, 0, 1, 0),
            (0x09, 0, 0, 0, 0),
        ] {
            let refused = set(&mut talk, flags, index, start, count, fds);
            assert_eq!(refused, Err(EINVAL), "{flags:#x} {index} {start} {count} {fds}");
        }
        assert_eq!(talk.ask(SET_IRQS, &words(&[20, 0x21, 2, 0])), Err(EINVAL));
        assert!(talk.device.calls().is_empty());
    }

    /// The vfio_user crate sends them all at once, whatever `max_msg_fds` says.
    #[test]
    fn more_descriptors_than_asked_for_are_all_right_if_there_are_vectors() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(set(&mut talk, 0x24, 2, 0, VECTORS, VECTORS as usize), Ok(vec![]));
        assert_eq!(set(&mut talk, 0x24, 2, 0, 17, 17), Err(EINVAL));
    }
}

mod stream {
    use super::*;

    #[test]
    fn reset_is_a_call() {
        let mut talk = Talk::qemu(Recorder::new());
        assert_eq!(talk.ask(RESET, b""), Ok(vec![]));
        assert_eq!(talk.device.calls(), ["reset"]);
    }

    #[test]
    fn what_is_not_supported_is_refused_and_its_payload_skipped() {
        let mut talk = Talk::qemu(Recorder::new());
        for command in [0, 6, 11, 12, 14, 16, 17, 18, 19, 0xffff] {
            assert_eq!(talk.ask_with(command, &[0xab; 3000], eventfds(2)), Err(ENOTSUP), "command {command}");
        }
        assert!(talk.ask(GET_INFO, &words(&[16, 0, 0, 0])).is_ok());
    }

    #[test]
    fn no_reply_is_kept_to_even_for_errors_and_calls() {
        let mut talk = Talk::qemu(Recorder::new());
        let stream = [
            message(1, REGION_WRITE, NO_REPLY, &access(0, BAR0_LEN, 4, b"data")),
            message(2, 99, NO_REPLY, b"what?"),
            message(3, DMA_MAP, NO_REPLY, &dma_map(3, 0, 0, 0x1000)),
            message(4, REGION_READ, NO_REPLY, &access(0, 0, 4, b"")),
            message(5, GET_REGION_INFO, NO_REPLY, &words(&[64, 0, 0, 0, 0, 0, 0, 0])),
            message(6, RESET, 0, b""),
        ];
        talk.feed(&stream.concat(), Vec::new());
        assert_eq!(talk.replies(), [Reply { id: 6, result: Ok(vec![]) }]);
        assert_eq!(talk.device.calls(), ["map 0x0+0x1000 rw none", "reset"]);
    }

    #[test]
    fn nothing_is_carried_out_while_a_call_is_on_its_way() {
        let mut talk = Talk::qemu(Recorder::new());
        talk.device.state().answer = None;
        let stream = [
            message(1, REGION_WRITE, 0, &access(0, 0x1000, 4, b"befo")),
            message(2, RESET, 0, b""),
            message(3, REGION_WRITE, 0, &access(0, 0x1000, 4, b"afte")),
        ];
        assert!(matches!(talk.feed(&stream.concat(), Vec::new()), Progress::Call(Call::Reset)));
        assert!(matches!(talk.run(), Progress::Waiting));
        assert_eq!(talk.device.state().writes.len(), 1);
        assert_eq!(talk.replies().len(), 1);
        talk.session.answered(Ok(()));
        assert!(matches!(talk.run(), Progress::Empty));
        assert_eq!(talk.device.state().writes.len(), 2);
        assert_eq!(talk.replies().iter().map(|reply| reply.id).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_client_that_does_not_read_its_replies_is_not_listened_to() {
        let mut talk = Talk::qemu(Recorder::new());
        let read = message(1, REGION_READ, 0, &access(0, 0, BAR0_LEN as u32, b""));
        let progress = talk.feed(&read.repeat(100), Vec::new());
        assert!(matches!(progress, Progress::Full));
        let mut replies = talk.replies().len();
        assert!(replies < 10, "{replies} replies of 16 KiB");
        while let Progress::Full = talk.run() {
            replies += talk.replies().len();
        }
        assert_eq!(replies + talk.replies().len(), 100);
    }

    #[test]
    fn lost_descriptors_are_an_error_and_not_a_message_without() {
        let mut talk = Talk::qemu(Recorder::new());
        let map = message(1, DMA_MAP, 0, &dma_map(3, 0, 0, 0x1000));
        talk.session.receiver.feed(&map, Descriptors { fds: Vec::new(), lost: true });
        assert!(matches!(talk.run(), Progress::Empty));
        assert_eq!(talk.replies(), [Reply { id: 1, result: Err(libc::EMFILE as u32) }]);
        assert!(talk.device.calls().is_empty());
    }

    #[test]
    fn a_stream_that_cannot_be_followed_is_an_error_and_the_end() {
        for size in [0, 15, 1 << 20, u32::MAX] {
            let mut talk = Talk::qemu(Recorder::new());
            let header = Header { id: 5, command: RESET, size, flags: 0, error: 0 };
            let (violation, replies) = talk.offend(header.as_bytes());
            assert_eq!(violation, Violation::Size { size, command: RESET, id: 5 });
            assert_eq!(replies, [Reply { id: 5, result: Err(EINVAL) }]);
        }
    }

    #[test]
    fn replies_to_nothing_and_unknown_types_are_the_end() {
        for flags in [1, 2, 0xf] {
            let mut talk = Talk::qemu(Recorder::new());
            let (violation, replies) = talk.offend(&message(5, RESET, flags, b""));
            assert_eq!(violation, Violation::NoCommand { flags, command: RESET });
            assert!(replies.is_empty());
        }
    }
}

/// A message that is likely to get somewhere: a known command, fields that are small or at an edge.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0_u32..40, Just(64), Just(u32::MAX), any::<u32>()];
    let payload = proptest::collection::vec(word, 0..12);
    let flags = prop_oneof![9 => Just(0_u32), 3 => Just(NO_REPLY), 1 => any::<u32>()];
    (0_u16..20, flags, payload, proptest::collection::vec(any::<u8>(), 0..4)).prop_map(
        |(command, flags, payload, tail)| message(1, command, flags, &[words(&payload), tail].concat()),
    )
}

proptest! {
    /// Whatever a client sends, however it is cut: each command gets exactly the reply that it is due, in order.
    #[test]
    fn every_command_is_replied_to_once_and_in_order(
        messages in proptest::collection::vec(plausible(), 1..40),
        cuts in proptest::collection::vec(1_usize..80, 1..60),
        answers in proptest::collection::vec(prop_oneof![Just(Ok(())), Just(Err(libc::EINVAL))], 1..8),
        page in any::<bool>(),
    ) {
        let device = if page { Recorder::with_doorbell_page() } else { Recorder::new() };
        let mut talk = Talk::qemu(device);
        let mut stream = Vec::new();
        let mut due = Vec::new();
        for (id, bytes) in messages.iter().enumerate() {
            let mut bytes = bytes.clone();
            bytes[..2].copy_from_slice(&(id as u16).to_ne_bytes());
            let (header, _) = Header::read_from_prefix(&bytes).unwrap();
            stream.extend(bytes);
            if !header.is_command() {
                break;
            }
            if !header.no_reply() {
                due.push(id as u16);
            }
        }
        let mut got = Vec::new();
        let mut rest = &stream[..];
        let (mut cuts, mut answers) = (cuts.iter().cycle(), answers.iter().cycle());
        'stream: while !rest.is_empty() {
            let (read, next) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            rest = next;
            talk.device.state().answer = Some(*answers.next().unwrap());
            let mut progress = talk.feed(read, eventfds(read.len() % 3));
            loop {
                got.extend(talk.replies().iter().map(|reply| reply.id));
                match progress {
                    Progress::Empty => break,
                    Progress::Full => progress = talk.run(),
                    Progress::Close(_) => break 'stream,
                    ref other => prop_assert!(false, "{:?}", other),
                }
            }
        }
        prop_assert_eq!(got, due);
    }

    #[test]
    fn garbage_never_panics_and_always_ends(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        greet in any::<bool>(),
    ) {
        let mut talk = if greet { Talk::qemu(Recorder::new()) } else { Talk::new(Recorder::new()) };
        for piece in bytes.chunks(7) {
            if matches!(talk.feed(piece, eventfds(1)), Progress::Close(_)) {
                break;
            }
        }
    }
}
