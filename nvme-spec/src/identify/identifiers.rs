//! Namespace Identification Descriptor list, CNS 03h (Base 2.0, 5.17.2.3).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A namespace identifier, as a Namespace Identification Descriptor carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NamespaceIdentifier {
    /// NIDT 1h: IEEE Extended Unique Identifier, most significant byte first.
    Eui64([u8; 8]),
    /// NIDT 2h: Namespace Globally Unique Identifier, most significant byte first.
    Nguid([u8; 16]),
    /// NIDT 3h: Namespace UUID, as RFC 4122 writes it.
    Uuid([u8; 16]),
    /// NIDT 4h: Command Set Identifier.
    Csi(u8),
}

impl NamespaceIdentifier {
    /// NIDT, Namespace Identifier Type.
    pub const fn nidt(&self) -> u8 {
        match self {
            Self::Eui64(_) => 0x1,
            Self::Nguid(_) => 0x2,
            Self::Uuid(_) => 0x3,
            Self::Csi(_) => 0x4,
        }
    }

    /// The identifier, NIDL bytes.
    pub fn nid(&self) -> &[u8] {
        match self {
            Self::Eui64(id) => id,
            Self::Nguid(id) | Self::Uuid(id) => id,
            Self::Csi(id) => std::slice::from_ref(id),
        }
    }

    fn decode(nidt: u8, nid: &[u8]) -> Option<Self> {
        match (nidt, nid) {
            (0x1, id) => id.try_into().ok().map(Self::Eui64),
            (0x2, id) => id.try_into().ok().map(Self::Nguid),
            (0x3, id) => id.try_into().ok().map(Self::Uuid),
            (0x4, &[id]) => Some(Self::Csi(id)),
            _ => None,
        }
    }
}

/// Namespace Identification Descriptor list (CNS 03h), 4096 bytes: descriptors up to the first of length 0.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NamespaceIdentificationDescriptors(pub [u8; 4096]);

layout!(NamespaceIdentificationDescriptors, 4096);

/// Bytes before the identifier in a descriptor: NIDT, NIDL, two reserved.
const HEADER: usize = 4;

impl Default for NamespaceIdentificationDescriptors {
    /// The empty list.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl FromIterator<NamespaceIdentifier> for NamespaceIdentificationDescriptors {
    /// The list of those identifiers, up to where the next would not fit. (One of each type always fits.)
    fn from_iter<I: IntoIterator<Item = NamespaceIdentifier>>(identifiers: I) -> Self {
        let mut list = Self::default();
        let mut rest = &mut list.0[..];
        for identifier in identifiers {
            let nid = identifier.nid();
            let Some((descriptor, tail)) = rest.split_at_mut_checked(HEADER + nid.len()) else { break };
            descriptor[0] = identifier.nidt();
            descriptor[1] = nid.len() as u8;
            descriptor[HEADER..].copy_from_slice(nid);
            rest = tail;
        }
        list
    }
}

impl NamespaceIdentificationDescriptors {
    /// The identifiers in the list. Ones of other types or of wrong lengths are passed over.
    pub fn iter(&self) -> impl Iterator<Item = NamespaceIdentifier> + '_ {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let &[nidt, nidl, _, _, ref tail @ ..] = rest else { return None };
            if nidl == 0 {
                return None;
            }
            let (nid, tail) = tail.split_at_checked(nidl.into())?;
            rest = tail;
            Some(NamespaceIdentifier::decode(nidt, nid))
        })
        .flatten()
    }
}

impl std::fmt::Debug for NamespaceIdentificationDescriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDENTIFIERS: [NamespaceIdentifier; 4] = [
        NamespaceIdentifier::Eui64([1; 8]),
        NamespaceIdentifier::Nguid([2; 16]),
        NamespaceIdentifier::Uuid([3; 16]),
        NamespaceIdentifier::Csi(0),
    ];

    #[test]
    fn golden_bytes() {
        let list = NamespaceIdentificationDescriptors::from_iter(IDENTIFIERS);
        let mut expected = vec![1, 8, 0, 0];
        expected.extend([1; 8]);
        expected.extend([2, 16, 0, 0]);
        expected.extend([2; 16]);
        expected.extend([3, 16, 0, 0]);
        expected.extend([3; 16]);
        expected.extend([4, 1, 0, 0, 0]);
        expected.resize(4096, 0);
        assert_eq!(list.as_bytes(), expected);
        assert!(list.iter().eq(IDENTIFIERS));
    }

    #[test]
    fn unknown_types_are_passed_over_and_broken_lists_end() {
        let mut list = NamespaceIdentificationDescriptors::default();
        list.0[..7].copy_from_slice(&[0x77, 3, 0, 0, 9, 9, 9]);
        list.0[7..12].copy_from_slice(&[4, 1, 0, 0, 2]);
        assert!(list.iter().eq([NamespaceIdentifier::Csi(2)]));
        assert_eq!(NamespaceIdentificationDescriptors([0xFF; 4096]).iter().count(), 0);
    }

    #[test]
    fn a_full_list_stays_within_its_4096_bytes() {
        let list: NamespaceIdentificationDescriptors =
            std::iter::repeat_n(NamespaceIdentifier::Uuid([7; 16]), 1000).collect();
        assert_eq!(list.iter().count(), 4096 / 20);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_what_was_read_survives_writing(
            bytes in proptest::collection::vec(prop_oneof![0..20_u8, any::<u8>()], 4096),
        ) {
            let list = NamespaceIdentificationDescriptors::read_from_bytes(&bytes).unwrap();
            let identifiers: Vec<_> = list.iter().collect();
            let written: NamespaceIdentificationDescriptors = identifiers.iter().copied().collect();
            prop_assert!(written.iter().eq(identifiers));
        }
    }
}
