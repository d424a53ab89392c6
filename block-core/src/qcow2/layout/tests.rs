//! The structures against each other and against hostile bytes; against QEMU's they are held where images are read.

use super::feature::{Autoclear, Compatible, FeatureName, Incompatible, Kind};
use super::l2::{L2Format, Raw};
use super::*;
use proptest::prelude::*;

fn plain() -> Header {
    Header {
        version: Version::V3,
        backing_file: None,
        cluster_bits: 16,
        size: 1 << 30,
        crypt_method: Crypt::None,
        l1_size: 4,
        l1_table_offset: 0x30000,
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        nb_snapshots: 0,
        snapshots_offset: 0,
        incompatible_features: Incompatible::empty(),
        compatible_features: Compatible::empty(),
        autoclear_features: Autoclear::empty(),
        refcount_order: 4,
        compression_type: 0,
        unknown_fields: vec![0; 7],
        extensions: Vec::new(),
    }
}

fn refused(header: &Header) -> String {
    Header::parse(&header.encode().unwrap()).unwrap_err().to_string()
}

fn headers() -> impl Strategy<Value = Header> {
    let name = proptest::option::of("[a-z/.é]{1,40}");
    let extension = prop_oneof![
        "[a-z0-9]{0,9}".prop_map(Extension::BackingFormat),
        "[a-z/]{0,30}".prop_map(Extension::DataFile),
        (1000u32.., proptest::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(kind, data)| Extension::Unknown { kind, data }),
        (0u8..64, "[a-z ]{1,46}").prop_map(|(bit, name)| Extension::FeatureNames(vec![FeatureName {
            kind: Kind::Compatible,
            bit,
            name
        }])),
    ];
    let extensions = proptest::collection::vec(extension, 0..3).prop_filter("each once", |extensions| {
        extensions.len() < 2
            || std::mem::discriminant(&extensions[0]) != std::mem::discriminant(&extensions[1])
    });
    (any::<bool>(), name, 9u32..=21, 0u64..1 << 40, 0u32..=6, extensions).prop_map(
        |(three, backing_file, cluster_bits, size, refcount_order, extensions)| {
            let mut header = Header { backing_file, cluster_bits, extensions, ..plain() };
            header.size = size.min(1 << (header.l2_table_bits() + 22));
            header.l1_size = header.l1_entries_for(header.size) as u32;
            header.l1_table_offset = 0x3000 << cluster_bits;
            header.refcount_table_offset = 1 << cluster_bits;
            match three {
                true => header.refcount_order = refcount_order,
                false => (header.version, header.unknown_fields) = (Version::V2, Vec::new()),
            }
            header
        },
    )
}

proptest! {
    #[test]
    fn a_header_is_read_as_it_was_written(header in headers()) {
        // A cluster of 512 bytes has no room for everything.
        if let Ok(bytes) = header.encode() {
            prop_assert_eq!(Header::parse(&bytes).unwrap(), header);
        } else {
            prop_assert_eq!(header.cluster_bits, 9);
        }
    }

    #[test]
    fn a_header_with_wrong_bytes_is_refused_or_checked(
        header in headers(),
        changes in proptest::collection::vec((0usize..400, any::<u8>()), 0..12),
        length in 0usize..600,
    ) {
        let Ok(mut bytes) = header.encode() else { return Ok(()) };
        bytes.resize(length, 0);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(header) = Header::parse(&bytes) {
            let tables = u64::from(header.l1_size) * 8;
            prop_assert!(tables <= MAX_L1_SIZE && header.l1_table_offset.is_multiple_of(header.cluster_size()));
            prop_assert!(header.l1_table_offset.checked_add(tables).is_some());
            let _ = header.unsupported().map(|unsupported| unsupported.to_string());
        }
    }

    #[test]
    fn hostile_tables_are_refused_or_read(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        count in any::<u32>(),
        bits in 9u32..=21,
    ) {
        let _ = Snapshot::parse_table(&bytes, count, bits);
        let _ = Bitmap::parse_directory(&bytes, count, bits);
    }

    #[test]
    fn snapshots_are_read_as_they_were_written(
        names in proptest::collection::vec(("[0-9]{1,3}", "[a-zé]{0,9}", any::<u64>(), 0u32..1 << 20), 0..6),
        bits in 9u32..=21,
    ) {
        let snapshots: Vec<Snapshot> = names.into_iter().map(|(id, name, number, l1_size)| Snapshot {
            l1_table_offset: (number % 1000) << bits,
            l1_size,
            id,
            name,
            date: (number as u32, 5),
            vm_clock_nsec: number,
            vm_state_size: number,
            disk_size: Some(number),
            icount: Some(number).filter(|n| n % 2 == 0),
            unknown_extra: vec![7; number as usize % 9],
        }).collect();
        let bytes = Snapshot::encode_table(&snapshots).unwrap();
        let parsed = Snapshot::parse_table(&bytes, snapshots.len() as u32, bits).unwrap();
        prop_assert_eq!(parsed, (snapshots, bytes.len()));
    }

    #[test]
    fn refcounts_of_every_width_are_kept_beside_each_other(
        order in 0u32..=6,
        writes in proptest::collection::vec((0usize..64, any::<u64>()), 0..100),
    ) {
        let mut block = vec![0; 512];
        let mut model = vec![0u64; 64];
        for (index, value) in writes {
            let value = value & refcount::max(order);
            prop_assert!(refcount::set(&mut block, index, order, value));
            model[index] = value;
        }
        for (index, value) in model.iter().enumerate() {
            prop_assert_eq!(refcount::get(&block, index, order), *value);
        }
        let entries = refcount::block_entries(9, order) as usize;
        prop_assert!(refcount::set(&mut block, entries - 1, order, 1));
        prop_assert!(!refcount::set(&mut block, entries, order, 1), "beyond the block");
        prop_assert!(order == 6 || !refcount::set(&mut block, 0, order, refcount::max(order) + 1), "too large");
    }

    #[test]
    fn any_l2_entry_means_something(entry in any::<u64>(), bitmap in any::<u64>(), bits in 9u32..=21) {
        let mut header = Header { cluster_bits: bits, ..plain() };
        for extended in [false, true] {
            header.incompatible_features.set(Incompatible::EXTENDED_L2, extended);
            let format = L2Format::of(&header);
            let raw = Raw { entry, bitmap };
            let reserved = format.reserved(raw);
            let decoded = format.decode(raw);
            if let L2Entry::Compressed { offset, length } = decoded {
                prop_assert!(offset.checked_add(length).is_some_and(|end| end.is_multiple_of(512)));
            }
            if let Some(encoded) = format.encode(decoded) {
                prop_assert!(reserved || encoded == entry, "written as it was read");
            } else {
                let has_data = matches!(decoded, L2Entry::Data(_) | L2Entry::Compressed { .. });
                prop_assert!(extended || !has_data);
            }
        }
    }
}

#[test]
fn refcounts_narrower_than_a_byte_begin_at_its_least_significant_bit() {
    assert_eq!(
        (0..8).map(|i| refcount::get(&[0b0000_0110], i, 0)).collect::<Vec<_>>(),
        [0, 1, 1, 0, 0, 0, 0, 0]
    );
    assert_eq!((0..4).map(|i| refcount::get(&[0b0001_1011], i, 1)).collect::<Vec<_>>(), [3, 2, 1, 0]);
    assert_eq!(refcount::get(&[0, 0, 0x12, 0x34], 1, 4), 0x1234);
}

#[test]
fn l2_entries_say_what_the_specification_says() {
    let format = L2Format::of(&plain());
    let decode = |entry| format.decode(Raw { entry, bitmap: 0 });
    let at = |offset, copied| HostCluster { offset, copied };
    assert_eq!(decode(0), L2Entry::Unallocated);
    assert_eq!(decode(1), L2Entry::Zero(None));
    assert_eq!(decode(COPIED | 0x50001), L2Entry::Zero(Some(at(0x50000, true))));
    assert_eq!(decode(0x50000), L2Entry::Data(at(0x50000, false)));
    // With 64 KiB clusters x is 54: two more sectors behind the one that the data begins in.
    let compressed = 1 << 62 | 2 << 54 | 0x50010;
    assert_eq!(decode(compressed), L2Entry::Compressed { offset: 0x50010, length: 3 * 512 - 0x10 });
    assert!(format.reserved(Raw { entry: 2, bitmap: 0 }));
    assert!(format.reserved(Raw { entry: COPIED | compressed, bitmap: 0 }));
}

#[test]
fn extended_l2_entries_say_which_subclusters_are_there() {
    let mut header = plain();
    header.incompatible_features |= Incompatible::EXTENDED_L2;
    let format = L2Format::of(&header);
    let cluster = HostCluster { offset: 0x50000, copied: true };
    let decode = |entry, bitmap| format.decode(Raw { entry, bitmap });
    assert_eq!(decode(0, 0), L2Entry::Unallocated);
    assert_eq!(decode(COPIED | 0x50000, 0xffff_ffff), L2Entry::Data(cluster));
    assert_eq!(decode(0, 0xffff_ffff_0000_0000), L2Entry::Zero(None));
    assert_eq!(
        decode(COPIED | 0x50000, 0x2_0000_0001),
        L2Entry::Subclusters { cluster: Some(cluster), allocated: 1, zero: 2 }
    );
    assert!(
        format.reserved(Raw { entry: COPIED | 0x50000, bitmap: 0x1_0000_0001 }),
        "allocated and zero at once"
    );
}

#[test]
fn fields_out_of_range_are_named() {
    for (header, wanted) in [
        (
            Header { l1_table_offset: 0x30200, ..plain() },
            "l1_table_offset is 0x30200, which is not a multiple",
        ),
        (Header { l1_size: 1, ..plain() }, "l1_size is 1, which is too small for the virtual size"),
        (Header { l1_size: 1 << 23, ..plain() }, "l1_size is 8388608, which is more than 32 MiB hold"),
        (Header { refcount_order: 7, ..plain() }, "refcount_order is 7, which is more than 6"),
        (Header { refcount_table_clusters: 0, ..plain() }, "refcount_table_clusters is 0"),
        (Header { refcount_table_clusters: 129, ..plain() }, "refcount_table_clusters is 129"),
        (Header { nb_snapshots: 65537, ..plain() }, "nb_snapshots is 65537, which is more than 65536"),
        (Header { size: 1 << 63, ..plain() }, "size is 9223372036854775808"),
        (Header { cluster_bits: 22, ..plain() }, "cluster_bits is 22, which is not between 9 and 21"),
        (Header { compression_type: 1, ..plain() }, "compression_type is 1, which contradicts"),
        (Header { l1_table_offset: 1 << 56, ..plain() }, "is beyond the largest file"),
    ] {
        let error = refused(&header);
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(Header::parse(b"QFI\xfb").unwrap_err().to_string(), "the header is cut off");
    assert_eq!(Header::parse(b"KDMV").unwrap_err().to_string(), "not a qcow2 image");
}

#[test]
fn what_is_not_supported_is_named() {
    let named = |name: &str| {
        Extension::FeatureNames(vec![FeatureName { kind: Kind::Incompatible, bit: 7, name: name.to_owned() }])
    };
    let with = |bits| Header { incompatible_features: Incompatible::from_bits_retain(bits), ..plain() };
    assert_eq!(plain().unsupported(), None);
    assert_eq!(with(4).unsupported(), None, "external data files are supported");
    assert_eq!(Header { compression_type: 1, ..with(8) }.unsupported(), None, "and so is zstd");
    for (header, wanted) in [
        (
            Header { crypt_method: Crypt::Luks, ..plain() },
            "image uses LUKS encryption, which ringpair does not",
        ),
        (
            Header { crypt_method: Crypt::Aes, ..plain() },
            "image uses AES encryption, which ringpair does not",
        ),
        (
            Header { compression_type: 2, ..with(8) },
            "image uses compression type 2, which ringpair does not support",
        ),
        (with(16), "image uses extended L2 entries (subclusters), which ringpair reads and does not write"),
        (with(1), "dirty bit"),
        (with(3), "corrupt bit"),
        (with(1 << 7), "image uses features that ringpair does not know: incompatible feature 7"),
        (Header { extensions: vec![named("warp")], ..with(1 << 7) }, "ringpair does not know: warp"),
    ] {
        let said = Header::parse(&header.encode().unwrap()).unwrap().unsupported().unwrap().to_string();
        assert!(said.contains(wanted), "{said}");
    }
}
