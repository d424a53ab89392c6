//! Lists of namespaces, controllers and I/O command sets (Base 2.0, 4.4 and 5.17.2).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Namespace List: up to 1024 NSIDs in ascending order, the rest 0 (Base 2.0, 4.4.2). What CNS 02h, 07h, 10h and
/// 1Ah and log page 04h return.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct NamespaceList(pub [u32; 1024]);

layout!(NamespaceList, 4096);

impl Default for NamespaceList {
    /// The empty list.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl FromIterator<u32> for NamespaceList {
    /// The list of the first 1024 of those NSIDs, which have to come in ascending order.
    fn from_iter<I: IntoIterator<Item = u32>>(nsids: I) -> Self {
        let mut list = Self::default();
        for (entry, nsid) in list.0.iter_mut().zip(nsids) {
            *entry = nsid;
        }
        list
    }
}

impl NamespaceList {
    /// The log page 04h of a controller on which more than 1024 namespaces changed.
    pub fn overflowed() -> Self {
        Self::from_iter([crate::NSID_BROADCAST])
    }

    /// The NSIDs in the list.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied().take_while(|&nsid| nsid != 0)
    }
}

impl std::fmt::Debug for NamespaceList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Controller List: up to 2047 controller IDs in ascending order (Base 2.0, 4.4.1). What CNS 12h and 13h return.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ControllerList {
    /// Number of Identifiers.
    pub number: u16,
    /// Controller IDs, of which `number` are valid.
    pub identifiers: [u16; 2047],
}

layout!(ControllerList, 4096, number @ 0, identifiers @ 2);

impl Default for ControllerList {
    /// The empty list.
    fn default() -> Self {
        Self::new_zeroed()
    }
}

impl FromIterator<u16> for ControllerList {
    /// The list of the first 2047 of those controller IDs, which have to come in ascending order.
    fn from_iter<I: IntoIterator<Item = u16>>(identifiers: I) -> Self {
        let mut list = Self::default();
        for (entry, identifier) in list.identifiers.iter_mut().zip(identifiers) {
            *entry = identifier;
            list.number += 1;
        }
        list
    }
}

impl ControllerList {
    /// The controller IDs in the list.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.identifiers.iter().copied().take(self.number.into())
    }
}

impl std::fmt::Debug for ControllerList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Identify I/O Command Set (CNS 1Ch), 4096 bytes (Base 2.0, 5.17.2.21): combinations of I/O command sets, one bit per CSI; the I/O Command
/// Set Profile feature selects one by its index.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct IoCommandSetCombinations(pub [u64; 512]);

layout!(IoCommandSetCombinations, 4096);

impl IoCommandSetCombinations {
    /// Bit of the NVM command set.
    pub const NVM: u64 = 1 << crate::identify::csi::NVM;

    /// The combinations of a controller that has the NVM command set and no other.
    pub fn nvm_only() -> Self {
        let mut combinations = Self::new_zeroed();
        combinations.0[0] = Self::NVM;
        combinations
    }
}

impl std::fmt::Debug for IoCommandSetCombinations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().take_while(|&&combination| combination != 0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_list_golden_bytes() {
        let list = NamespaceList::from_iter([1, 0x0102_0304]);
        assert_eq!(list.as_bytes()[..12], [1, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
        assert!(list.iter().eq([1, 0x0102_0304]));
        assert_eq!(NamespaceList::from_iter(1..=5000).iter().last(), Some(1024));
        assert_eq!(NamespaceList::overflowed().as_bytes()[..8], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    }

    #[test]
    fn controller_list_golden_bytes() {
        let list = ControllerList::from_iter([0, 0x0203]);
        assert_eq!(list.as_bytes()[..8], [2, 0, 0, 0, 3, 2, 0, 0]);
        assert!(list.iter().eq([0, 0x0203]));
        assert_eq!(ControllerList::from_iter(0..5000).number, 2047);
        assert_eq!(ControllerList { number: u16::MAX, ..Default::default() }.iter().count(), 2047);
    }

    #[test]
    fn io_command_sets_golden_bytes() {
        assert_eq!(IoCommandSetCombinations::nvm_only().as_bytes()[..9], [1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
