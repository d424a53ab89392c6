//! Physical Region Pages (NVM Express Base Specification 2.0, 4.1.1).

use super::Walker;
use crate::memory::Access;
use nvme_spec::Status;

/// List entries copied out of guest memory at a time: enough for 256 KiB, and not so many that clearing the place for them
/// takes longer than reading them.
const CHUNK: usize = 64;

/// Walks PRP1 and PRP2 for `len` bytes.
#[inline]
pub(super) fn walk(
    walker: &mut Walker<'_>,
    prp1: u64,
    prp2: u64,
    len: usize,
    access: Access,
) -> Result<(), Status> {
    let page = walker.page_size;
    if prp1 & 3 != 0 {
        return Err(Status::PRP_OFFSET_INVALID);
    }
    let first = len.min((page - (prp1 & (page - 1))) as usize);
    if first > 0 {
        walker.add(prp1, first, access)?;
    }
    let rest = len - first;
    if rest == 0 {
        return Ok(());
    }
    if rest as u64 <= page {
        if prp2 & (page - 1) != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        return walker.add(prp2, rest, access);
    }
    walk_list(walker, prp2, rest, access)
}

/// Walks a chain of lists. Each but the last is filled to the end of its memory page, and ends with a pointer to the
/// next; the first may begin anywhere in a page.
fn walk_list(walker: &mut Walker<'_>, mut list: u64, mut len: usize, access: Access) -> Result<(), Status> {
    let page = walker.page_size;
    let mut entries = [0u64; CHUNK];
    let mut run = Run { iova: 0, len: 0 };
    while len > 0 {
        if list & 7 != 0 {
            return Err(Status::PRP_OFFSET_INVALID);
        }
        let in_page = ((page - (list & (page - 1))) / 8) as usize;
        let needed = len.div_ceil(page as usize);
        let pointer_follows = needed > in_page;
        let data_entries = if pointer_follows { in_page - 1 } else { needed };
        let mut at = list;
        let mut left = data_entries;
        while left > 0 {
            let count = left.min(CHUNK);
            copy_entries(walker, at, &mut entries[..count])?;
            for &entry in &entries[..count] {
                if entry & (page - 1) != 0 {
                    return Err(Status::PRP_OFFSET_INVALID);
                }
                let part = len.min(page as usize);
                run.extend(walker, entry, part, access)?;
                len -= part;
            }
            // Stays in the page.
            at += count as u64 * 8;
            left -= count;
        }
        if pointer_follows {
            copy_entries(walker, at, &mut entries[..1])?;
            list = entries[0];
            if list & (page - 1) != 0 {
                return Err(Status::PRP_OFFSET_INVALID);
            }
        }
    }
    run.end(walker, access)
}

/// Pages that follow each other in the guest's address space: they are looked up together.
struct Run {
    iova: u64,
    len: usize,
}

impl Run {
    #[inline]
    fn extend(
        &mut self,
        walker: &mut Walker<'_>,
        iova: u64,
        len: usize,
        access: Access,
    ) -> Result<(), Status> {
        if self.len > 0 && self.iova.wrapping_add(self.len as u64) == iova {
            self.len += len;
            return Ok(());
        }
        self.end(walker, access)?;
        *self = Self { iova, len };
        Ok(())
    }

    #[inline]
    fn end(&self, walker: &mut Walker<'_>, access: Access) -> Result<(), Status> {
        if self.len == 0 { Ok(()) } else { walker.add(self.iova, self.len, access) }
    }
}

/// Copies list entries, which lie in one memory page and so in one region.
fn copy_entries(walker: &mut Walker<'_>, iova: u64, entries: &mut [u64]) -> Result<(), Status> {
    let len = size_of_val(entries);
    let range = walker
        .map
        .translate(iova, len, Access::Read, walker.hint)
        .map_err(|_| Status::DATA_TRANSFER_ERROR)?;
    // SAFETY: a checked range of `len` bytes in a live mapping; `entries` is that long and not guest memory. The copy
    // is all that is looked at afterwards.
    unsafe { std::ptr::copy_nonoverlapping(range.base(), entries.as_mut_ptr().cast(), len) };
    Ok(())
}
