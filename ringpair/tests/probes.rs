//! The program's static probes are those that docs/probes.md tells of.

use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::collections::BTreeMap;

/// Type of a probe's note (sys/sdt.h).
const NT_STAPSDT: NoteType = NoteType(3);

/// Name and number of arguments of each probe of the provider `ringpair`, as tracers find them.
fn probes_of_the_program() -> BTreeMap<String, usize> {
    let data = std::fs::read(env!("CARGO_BIN_EXE_ringpair")).expect("the program");
    let header = FileHeader64::<object::Endianness>::parse(&*data).expect("ELF");
    let endian = header.endian().expect("its byte order");
    let sections = header.sections(endian, &*data).expect("sections");
    let (_, section) = sections.section_by_name(endian, b".note.stapsdt").expect("probes");
    let mut notes = section.notes(endian, &*data).expect("notes").expect("notes");
    let mut probes = BTreeMap::new();
    while let Some(note) = notes.next().expect("a note") {
        assert_eq!((note.name(), note.n_type(endian)), (&b"stapsdt"[..], NT_STAPSDT));
        // Three addresses, then provider, name and arguments.
        let strings = &note.desc()[3 * size_of::<u64>()..];
        let mut strings = strings.split(|byte| *byte == 0).map(|text| str::from_utf8(text).expect("text"));
        let mut next = || strings.next().expect("three strings");
        let (provider, name, arguments) = (next(), next(), next());
        if provider == "ringpair" {
            let arguments = arguments.split_whitespace().count();
            let other = probes.insert(name.to_owned(), arguments);
            assert!(other.is_none_or(|other| other == arguments), "{name} differs from place to place");
        }
    }
    probes
}

/// The same of the table in the documentation.
fn probes_of_the_documentation() -> BTreeMap<String, usize> {
    let text = include_str!("../../docs/probes.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let (name, rest) = row.split_once('`').expect("a name");
        let arguments = rest.trim_end_matches(" |").rsplit_once('|').expect("cells").1;
        // "microseconds at most, or -1" is one.
        (name.to_owned(), arguments.replace(", or ", " or ").split(',').count())
    })
    .collect()
}

#[test]
fn they_are_those_of_the_documentation() {
    let documented = probes_of_the_documentation();
    assert_eq!(documented.len(), 8);
    assert_eq!(probes_of_the_program(), documented);
}
