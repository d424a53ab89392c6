//! Identify. Offsets are the specification's, written out: what nvme-cli reads.

use super::*;
use block_core::Unmapped;

fn identified(bench: &mut Bench, cns: u8, nsid: u32) -> Vec<u8> {
    bench.succeed(identify(cns, nsid));
    assert_eq!(bench.host.data.len(), 4096);
    bench.host.data.clone()
}

fn nsids(data: &[u8]) -> Vec<u32> {
    data.chunks_exact(4).map(|chunk| u32_at(chunk, 0)).take_while(|&nsid| nsid != 0).collect()
}

#[test]
fn controller_says_who_it_is() {
    let mut bench = Bench::new();
    let data = identified(&mut bench, 1, 0);
    assert_eq!((u16_at(&data, 0), u16_at(&data, 2)), (0x1234, 0x5678), "VID, SSVID");
    assert_eq!(&data[4..24], b"SERIAL              ", "SN");
    assert!(data[24..64].starts_with(b"ringpair NVMe Controller  "), "MN");
    assert_eq!(&data[64..72], b"0.1.0   ", "FR");
    assert_eq!(data[73..76], [b'N', b'I', b'R'], "IEEE, least significant byte first");
    assert_eq!(u16_at(&data, 78), bench.admin.cntlid(), "CNTLID");
    assert_eq!(u32_at(&data, 80), 0x0002_0000, "VER");
    assert_eq!(data[111], 1, "CNTRLTYPE");
    let nqn = bench.admin.subsystem().nqn().to_owned();
    assert_eq!(&data[768..768 + nqn.len()], nqn.as_bytes(), "SUBNQN");
    assert_eq!(data[768 + nqn.len()], 0, "SUBNQN ends with a null");
}

#[test]
fn controller_says_what_it_can_do() {
    let mut bench = Bench::new();
    let data = identified(&mut bench, 1, 0);
    assert_eq!(data[77], 5, "MDTS");
    assert_eq!(u32_at(&data, 92), 0x100, "OAES");
    assert_eq!(u16_at(&data, 256), 0x100, "OACS");
    assert_eq!(data[258], ABORT_LIMIT - 1, "ACL");
    assert_eq!(data[259], EVENT_REQUEST_LIMIT - 1, "AERL");
    assert_eq!(data[260], 3, "FRMW");
    assert_eq!(data[261], 0x26, "LPA");
    assert_eq!(data[262], 63, "ELPE");
    assert_eq!((u16_at(&data, 266), u16_at(&data, 268)), (343, 353), "WCTEMP, CCTEMP");
    assert_eq!(u16_at(&data, 320), 0, "KAS");
    assert_eq!((data[512], data[513]), (0x66, 0x44), "SQES, CQES");
    assert_eq!(u32_at(&data, 516), 3, "NN");
    assert_eq!(u16_at(&data, 520), 0xdd, "ONCS");
    assert_eq!(data[525], 7, "VWC");
    assert_eq!((u16_at(&data, 526), u16_at(&data, 528)), (0, 0), "AWUN, AWUPF");
    assert_eq!(u32_at(&data, 536), 1, "SGLS");
}

#[test]
fn volatile_write_cache_is_there_if_any_disk_has_one() {
    let cacheless = || DiskInfo { volatile_cache: false, ..described() };
    let none = vec![namespace(1, cacheless(), None), namespace(2, cacheless(), None)];
    let one = vec![namespace(1, cacheless(), None), namespace(2, described(), None)];
    for (namespaces, vwc) in [(none, 6), (one, 7)] {
        let subsystem = Subsystem::new(SubsystemOptions::default(), namespaces).unwrap();
        let mut admin = Admin::new(&subsystem, options()).unwrap();
        let mut host = Host::default();
        assert_eq!(admin.execute(&identify(1, 0), &mut host, &FakeMachine::default()), Outcome::DONE);
        assert_eq!(host.data[525], vwc);
    }
}

#[test]
fn shared_namespaces_are_announced_where_there_may_be_several_controllers() {
    let several = SubsystemOptions { max_controllers: 2, ..Default::default() };
    let subsystem = Subsystem::new(several, vec![namespace(1, described(), None)]).unwrap();
    let mut admin = Admin::new(&subsystem, options()).unwrap();
    let _other = Admin::new(&subsystem, options()).unwrap();
    let mut host = Host::default();
    let machine = FakeMachine::default();
    assert_eq!(admin.execute(&identify(1, 0), &mut host, &machine), Outcome::DONE);
    assert_eq!(host.data[76], 2, "CMIC");
    assert_eq!(admin.execute(&identify(0, 1), &mut host, &machine), Outcome::DONE);
    assert_eq!(host.data[30], 1, "NMIC");
    assert_eq!(admin.execute(&identify(0x13, 0), &mut host, &machine), Outcome::DONE);
    assert_eq!([u16_at(&host.data, 0), u16_at(&host.data, 2), u16_at(&host.data, 4)], [2, 1, 2]);
    let dwords = admin_command::Identify::new().with_cns(0x12).with_cntid(2);
    let from_two = identify(0x12, 1).with_dwords(dwords);
    assert_eq!(admin.execute(&from_two, &mut host, &machine), Outcome::DONE);
    assert_eq!([u16_at(&host.data, 0), u16_at(&host.data, 2), u16_at(&host.data, 4)], [1, 2, 0]);
}

#[test]
fn namespace_has_its_size_and_one_format() {
    let mut bench = Bench::new();
    let data = identified(&mut bench, 0, 1);
    let blocks = (1 << 30) / 512;
    assert_eq!([u64_at(&data, 0), u64_at(&data, 8), u64_at(&data, 16)], [blocks; 3], "NSZE, NCAP, NUSE");
    assert_eq!((data[25], data[26]), (0, 0), "NLBAF, FLBAS");
    assert_eq!(u32_at(&data, 128), 9 << 16, "LBAF0");
    assert!(data[132..384].iter().all(|&byte| byte == 0), "no other format");
    let data = identified(&mut bench, 0, 3);
    assert_eq!(u64_at(&data, 0), (1 << 30) / 4096);
    assert_eq!(u32_at(&data, 128), 12 << 16);
}

#[test]
fn namespace_hints_come_from_the_disk() {
    let info = DiskInfo {
        physical_block_size: 4096,
        discard_granularity: 65536,
        optimal_io: 1 << 20,
        read_only: true,
        ..described()
    };
    let mut bench = Bench::on(info, options());
    let data = identified(&mut bench, 0, 1);
    assert_eq!(data[24], 1 << 4, "NSFEAT.OPTPERF");
    assert_eq!((u16_at(&data, 64), u16_at(&data, 66)), (7, 7), "NPWG, NPWA: 4096 bytes");
    assert_eq!((u16_at(&data, 68), u16_at(&data, 70)), (127, 127), "NPDG, NPDA: 64 KiB");
    assert_eq!(u16_at(&data, 72), 2047, "NOWS: 1 MiB");
    assert_eq!(data[99], 1, "NSATTR: write protected");
    let data = identified(&mut bench, 0, 3);
    assert_eq!((u16_at(&data, 64), u16_at(&data, 72)), (0, 0), "one block of 4096 bytes");
    assert_eq!(data[99], 0);
}

#[test]
fn a_namespace_is_as_atomic_as_its_disk() {
    let atomic = |atomic_write, nsid| {
        let mut bench = Bench::on(DiskInfo { atomic_write, ..described() }, options());
        let data = identified(&mut bench, 0, nsid);
        (data[24] >> 1 & 1, u16_at(&data, 34), u16_at(&data, 36))
    };
    assert_eq!(atomic(512, 1), (0, 0, 0), "one block: what the controller says (AWUN, AWUPF)");
    assert_eq!(atomic(16384, 1), (1, 31, 31), "NSABP, NAWUN, NAWUPF");
    assert_eq!(atomic(u32::MAX, 1), (1, u16::MAX, u16::MAX));
}

#[test]
fn dlfeat_says_what_discarded_blocks_read_as() {
    for (unmapped, dlfeat) in [
        (Unmapped::Zeroes, 9),
        (Unmapped::ZeroesIfFreed, 9),
        (Unmapped::Unspecified, 8),
        (Unmapped::Ignored, 0),
    ] {
        let mut bench = Bench::on(DiskInfo { unmapped, ..described() }, options());
        assert_eq!(identified(&mut bench, 0, 1)[33], dlfeat);
    }
}

#[test]
fn inactive_namespaces_are_all_zero_and_impossible_ones_are_invalid() {
    let mut bench = Bench::new();
    for cns in [0x00, 0x05, 0x08, 0x11] {
        assert!(identified(&mut bench, cns, 2).iter().all(|&byte| byte == 0), "CNS {cns:02x}h");
        for nsid in [0, 4, 0xffff_fffe, NSID_BROADCAST] {
            assert_eq!(bench.fail(identify(cns, nsid)), Status::INVALID_NAMESPACE, "CNS {cns:02x}h, {nsid}");
        }
    }
    assert_eq!(bench.fail(identify(0x03, 2)), Status::INVALID_FIELD);
    assert_eq!(bench.fail(identify(0x03, 4)), Status::INVALID_NAMESPACE);
    assert_eq!(bench.fail(identify(0x03, 0)), Status::INVALID_NAMESPACE);
}

#[test]
fn namespace_lists_go_on_above_the_given_one() {
    let mut bench = Bench::new();
    for cns in [0x02, 0x07, 0x10] {
        assert_eq!(nsids(&identified(&mut bench, cns, 0)), [1, 3]);
        assert_eq!(nsids(&identified(&mut bench, cns, 1)), [3]);
        assert_eq!(nsids(&identified(&mut bench, cns, 0xffff_fffd)), [0_u32; 0]);
        assert_eq!(bench.fail(identify(cns, 0xffff_fffe)), Status::INVALID_NAMESPACE);
        assert_eq!(bench.fail(identify(cns, NSID_BROADCAST)), Status::INVALID_NAMESPACE);
    }
}

#[test]
fn identification_descriptors_agree_with_identify_namespace() {
    let mut bench = Bench::new();
    let namespace = identified(&mut bench, 0, 1);
    let data = identified(&mut bench, 3, 1);
    assert_eq!(data[..4], [1, 8, 0, 0], "EUI-64");
    assert_eq!(data[4..12], namespace[120..128]);
    assert_eq!(data[12..16], [2, 16, 0, 0], "NGUID");
    assert_eq!(data[16..32], namespace[104..120]);
    assert_eq!(data[32..36], [3, 16, 0, 0], "UUID");
    assert_eq!(&data[36..52], bench.admin.subsystem().namespace(1).unwrap().uuid().as_bytes());
    assert_eq!(data[52..57], [4, 1, 0, 0, 0], "CSI: NVM");
    assert!(data[57..].iter().all(|&byte| byte == 0));
}

#[test]
fn the_nvm_command_set_is_the_only_one() {
    let mut bench = Bench::new();
    for cns in [0x05, 0x06, 0x07] {
        let other = admin_command::Identify::new().with_cns(cns).with_csi(2);
        assert_eq!(bench.fail(identify(cns, 1).with_dwords(other)), Status::INVALID_FIELD);
    }
    let this = admin_command::Identify::new().with_cns(0x1c).with_cntid(0xffff);
    bench.succeed(identify(0x1c, 0).with_dwords(this));
    assert_eq!(u64_at(&bench.host.data, 0), 1);
    assert!(bench.host.data[8..].iter().all(|&byte| byte == 0));
    let stranger = admin_command::Identify::new().with_cns(0x1c).with_cntid(9);
    assert_eq!(bench.fail(identify(0x1c, 0).with_dwords(stranger)), Status::INVALID_FIELD);
}

#[test]
fn write_zeroes_is_unlimited_or_as_large_as_a_command_can_be() {
    let limit = |namespaces| {
        let subsystem = Subsystem::new(SubsystemOptions::default(), namespaces).unwrap();
        let mut admin = Admin::new(&subsystem, options()).unwrap();
        let mut host = Host::default();
        assert_eq!(admin.execute(&identify(6, 0), &mut host, &FakeMachine::default()), Outcome::DONE);
        host.data[1]
    };
    let slow = || DiskInfo { fast_write_zeroes: false, ..described() };
    assert_eq!(limit(vec![namespace(1, described(), None)]), 13, "32 MiB");
    assert_eq!(limit(vec![namespace(1, described(), Some(4096))]), 16, "256 MiB");
    assert_eq!(limit(vec![namespace(1, slow(), None)]), 0);
    assert_eq!(limit(vec![namespace(1, described(), None), namespace(2, described(), Some(4096))]), 0);
}

#[test]
fn namespaces_are_ready() {
    let mut bench = Bench::new();
    assert_eq!(identified(&mut bench, 8, 1)[14], 1, "NSTAT.NRDY");
}

#[test]
fn other_structures_are_an_invalid_field() {
    let mut bench = Bench::new();
    for cns in [0x04, 0x09, 0x0a, 0x14, 0x15, 0x17, 0x1a, 0x1d, 0x20, 0xff] {
        assert_eq!(bench.fail(identify(cns, 1)), Status::INVALID_FIELD, "CNS {cns:02x}h");
    }
}
