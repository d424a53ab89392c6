//! Requests to the kernel: VFIO's and iommufd's (`linux/vfio.h`, `linux/iommufd.h`).

use std::ffi::c_void;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use iommufd_bindings::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP,
    IOMMUFD_TYPE,
};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
use zerocopy::{FromBytes, IntoBytes};

const fn vfio(number: u8) -> Opcode {
    opcode::none(VFIO_TYPE, VFIO_BASE as u8 + number)
}

const fn iommufd(number: u32) -> Opcode {
    opcode::none(IOMMUFD_TYPE, number as u8)
}

pub(super) const VFIO_GET_API_VERSION: Opcode = vfio(0);
pub(super) const VFIO_CHECK_EXTENSION: Opcode = vfio(1);
pub(super) const VFIO_SET_IOMMU: Opcode = vfio(2);
pub(super) const VFIO_GROUP_GET_STATUS: Opcode = vfio(3);
pub(super) const VFIO_GROUP_SET_CONTAINER: Opcode = vfio(4);
pub(super) const VFIO_GROUP_GET_DEVICE_FD: Opcode = vfio(6);
pub(super) const VFIO_DEVICE_GET_INFO: Opcode = vfio(7);
pub(super) const VFIO_DEVICE_GET_REGION_INFO: Opcode = vfio(8);
pub(super) const VFIO_DEVICE_GET_IRQ_INFO: Opcode = vfio(9);
pub(super) const VFIO_DEVICE_SET_IRQS: Opcode = vfio(10);
pub(super) const VFIO_DEVICE_RESET: Opcode = vfio(11);
pub(super) const VFIO_IOMMU_GET_INFO: Opcode = vfio(12);
pub(super) const VFIO_IOMMU_MAP_DMA: Opcode = vfio(13);
pub(super) const VFIO_IOMMU_UNMAP_DMA: Opcode = vfio(14);
pub(super) const VFIO_DEVICE_BIND_IOMMUFD: Opcode = vfio(18);
pub(super) const VFIO_DEVICE_ATTACH_IOMMUFD_PT: Opcode = vfio(19);

pub(super) const IOMMU_IOAS_ALLOC: Opcode = iommufd(IOMMUFD_CMD_IOAS_ALLOC);
pub(super) const IOMMU_IOAS_IOVA_RANGES: Opcode = iommufd(IOMMUFD_CMD_IOAS_IOVA_RANGES);
pub(super) const IOMMU_IOAS_MAP: Opcode = iommufd(IOMMUFD_CMD_IOAS_MAP);
pub(super) const IOMMU_IOAS_UNMAP: Opcode = iommufd(IOMMUFD_CMD_IOAS_UNMAP);

/// A request as it goes to the kernel; its result is the number that the kernel returns.
struct Request {
    opcode: Opcode,
    argument: *mut c_void,
}

// SAFETY: whoever makes one (the functions below) answers for the argument being what the opcode takes.
unsafe impl Ioctl for Request {
    type Output = IoctlOutput;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.argument
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _argument: *mut c_void) -> Result<IoctlOutput> {
        Ok(output)
    }
}

/// A request whose argument is a number, or nothing (0).
///
/// # Safety
///
/// The request takes no pointer.
pub(super) unsafe fn with_value(fd: impl AsFd, opcode: Opcode, value: usize) -> Result<i32> {
    let argument = std::ptr::without_provenance_mut(value);
    // SAFETY: by this function's condition.
    unsafe { rustix::ioctl::ioctl(fd, Request { opcode, argument }) }
}

/// A request whose argument is a structure, to read and to write.
///
/// # Safety
///
/// It is the structure that the request takes, with its size in it where it has a field for that, and, if what it
/// says makes the kernel reach other memory, that may be reached.
pub(super) unsafe fn with_struct<T>(fd: impl AsFd, opcode: Opcode, argument: &mut T) -> Result<i32> {
    let argument = std::ptr::from_mut(argument).cast();
    // SAFETY: by this function's condition; the structure lives during the call.
    unsafe { rustix::ioctl::ioctl(fd, Request { opcode, argument }) }
}

/// A request whose argument is a structure with something of variable length at its end.
///
/// # Safety
///
/// As [`with_struct`]; there are as many bytes as the structure says in its size.
pub(super) unsafe fn with_words(fd: impl AsFd, opcode: Opcode, argument: &mut [u64]) -> Result<i32> {
    let argument = argument.as_mut_ptr().cast();
    // SAFETY: by this function's condition; they live during the call.
    unsafe { rustix::ioctl::ioctl(fd, Request { opcode, argument }) }
}

/// Takes a request's result for the new descriptor that it is.
///
/// # Safety
///
/// The number came from a request that makes a descriptor, and is used nowhere else.
pub(super) unsafe fn new_descriptor(number: i32) -> Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: by this function's condition.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A query: a structure that begins with `argsz`, which the kernel raises when it has capabilities to add, so that it is
/// asked a second time. Gives the answer's structure, and all of its bytes.
///
/// # Safety
///
/// `T` is the structure that the request takes: it is made of integers, aligned to no more than 8 bytes, begins with
/// a 32-bit `argsz`, and makes the kernel reach no other memory.
pub(super) unsafe fn query<T: Copy>(fd: impl AsFd, opcode: Opcode, request: T) -> Result<(T, Vec<u8>)> {
    const { assert!(align_of::<T>() <= align_of::<u64>() && size_of::<T>() >= size_of::<u32>()) };
    let mut argsz = size_of::<T>() as u32;
    // The answer may grow between two questions.
    for _ in 0..4 {
        let mut words = vec![0u64; (argsz as usize).div_ceil(size_of::<u64>())];
        // SAFETY: there are at least as many bytes as `T` has, which `argsz` never is below.
        unsafe { words.as_mut_ptr().cast::<T>().write(request) };
        words.as_mut_bytes()[..size_of::<u32>()].copy_from_slice(&argsz.to_ne_bytes());
        // SAFETY: by this function's condition; there are `argsz` bytes.
        unsafe { with_words(&fd, opcode, &mut words)? };
        // SAFETY: as above; any bytes are a `T`.
        let answer = unsafe { words.as_ptr().cast::<T>().read() };
        let (needed, _) = u32::read_from_prefix(words.as_bytes()).map_err(|_| Errno::PROTO)?;
        if needed <= argsz {
            return Ok((answer, words.as_bytes().to_vec()));
        }
        argsz = needed;
    }
    Err(Errno::PROTO)
}
