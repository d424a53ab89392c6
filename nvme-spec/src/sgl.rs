//! Scatter Gather Lists (Base 2.0, 4.1.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An SGL descriptor, 16 bytes. Fields of a type that has none of them are reserved there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address of the data block or of the segment. (Keyed descriptors are not laid out here.)
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// SGL Identifier: descriptor type in bits 7:4, sub type in bits 3:0.
    pub identifier: u8,
}

layout!(SglDescriptor, 16, address @ 0, length @ 8, identifier @ 15);

/// SGL Descriptor Type (Base 2.0, 4.1.2.1), with its number if it has no meaning here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SglDescriptorType {
    /// 0h: data block.
    DataBlock,
    /// 1h: bit bucket: data to be read and thrown away.
    BitBucket,
    /// 2h: where the next segment is.
    Segment,
    /// 3h: where the next and last segment is.
    LastSegment,
    /// 4h: keyed data block.
    KeyedDataBlock,
    /// 5h: transport data block.
    TransportDataBlock,
    /// 6h to Eh: reserved.
    Reserved(u8),
    /// Fh: vendor specific.
    VendorSpecific,
}

impl SglDescriptor {
    /// Sub type: the address field is an address.
    pub const SUB_TYPE_ADDRESS: u8 = 0x0;
    /// Sub type: the address field is an offset.
    pub const SUB_TYPE_OFFSET: u8 = 0x1;

    /// A data block at an address.
    pub const fn data_block(address: u64, length: u32) -> Self {
        Self::of_type(0x0, address, length)
    }

    /// Bytes to be read from the namespace and not transferred.
    pub const fn bit_bucket(length: u32) -> Self {
        Self::of_type(0x1, 0, length)
    }

    /// The next segment, `length` bytes (a multiple of 16) at an address; more follow it.
    pub const fn segment(address: u64, length: u32) -> Self {
        Self::of_type(0x2, address, length)
    }

    /// The last segment, `length` bytes (a multiple of 16) at an address.
    pub const fn last_segment(address: u64, length: u32) -> Self {
        Self::of_type(0x3, address, length)
    }

    const fn of_type(descriptor_type: u8, address: u64, length: u32) -> Self {
        Self { address, length, reserved: [0; 3], identifier: descriptor_type << 4 }
    }

    /// What the descriptor describes.
    pub const fn descriptor_type(&self) -> SglDescriptorType {
        match self.identifier >> 4 {
            0x0 => SglDescriptorType::DataBlock,
            0x1 => SglDescriptorType::BitBucket,
            0x2 => SglDescriptorType::Segment,
            0x3 => SglDescriptorType::LastSegment,
            0x4 => SglDescriptorType::KeyedDataBlock,
            0x5 => SglDescriptorType::TransportDataBlock,
            0xF => SglDescriptorType::VendorSpecific,
            other => SglDescriptorType::Reserved(other),
        }
    }

    /// How the address is meant: [`Self::SUB_TYPE_ADDRESS`], [`Self::SUB_TYPE_OFFSET`] or another.
    pub const fn sub_type(&self) -> u8 {
        self.identifier & 0xF
    }

    /// The descriptor that the two halves of a command's data pointer make.
    pub const fn from_dptr(low: u64, high: u64) -> Self {
        let [_, _, _, _, a, b, c, identifier] = high.to_le_bytes();
        Self { address: low, length: high as u32, reserved: [a, b, c], identifier }
    }

    /// The two halves of a command's data pointer.
    pub const fn to_dptr(self) -> (u64, u64) {
        let [a, b, c] = self.reserved;
        let high = u32::from_le_bytes([a, b, c, self.identifier]);
        (self.address, self.length as u64 | (high as u64) << 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let descriptor = SglDescriptor::last_segment(0x1122_3344_5566_7788, 0x40);
        let expected = [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x40, 0, 0, 0, 0, 0, 0, 0x30];
        assert_eq!(descriptor.as_bytes(), expected);
        assert_eq!(descriptor.descriptor_type(), SglDescriptorType::LastSegment);
        assert_eq!(descriptor.sub_type(), SglDescriptor::SUB_TYPE_ADDRESS);
    }

    #[test]
    fn a_data_pointer_holds_a_descriptor_whole() {
        let bytes: [u8; 16] = std::array::from_fn(|i| i as u8 + 0x51);
        let descriptor = SglDescriptor::read_from_bytes(&bytes).unwrap();
        let (low, high) = descriptor.to_dptr();
        assert_eq!([low, high].as_bytes(), bytes);
        assert_eq!(SglDescriptor::from_dptr(low, high), descriptor);
        assert_eq!(descriptor.descriptor_type(), SglDescriptorType::Reserved(6));
    }
}
