//! Write zeroes and discards, and giving away what was discarded.

use super::allocation::Source;
use super::{Metadata, end_writing};
use crate::file::transfer::Transfer;
use crate::qcow2::disk::Shared;
use crate::qcow2::image::Run;
use crate::qcow2::mapping::{Kind, Mapping};
use crate::qcow2::zeroed::{Fate, Zeroed};
use crate::request::RequestFlags;
use std::io;
use std::sync::atomic::Ordering;

impl Metadata {
    /// Makes a range read as zeroes, as far as that is a matter of metadata; what is left is data of one cluster that the
    /// queue can zero where it is.
    pub(super) fn write_zeroes(
        &mut self,
        shared: &Shared,
        transfer: &mut Transfer,
        flags: RequestFlags,
    ) -> io::Result<Mapping> {
        let bits = shared.cluster_bits;
        let cluster_size = 1 << bits;
        while transfer.left > 0 {
            self.trim(shared)?;
            let cluster = transfer.offset >> bits;
            let end = transfer.offset + transfer.left;
            let whole_end = if end == shared.info.capacity {
                end.next_multiple_of(cluster_size)
            } else {
                end >> bits << bits
            };
            if transfer.offset == cluster << bits && whole_end > transfer.offset {
                let n = self.zero_clusters(shared, cluster, (whole_end >> bits) - cluster, flags)?;
                transfer.advance((n << bits).min(transfer.left));
                continue;
            }
            let mapping = self.look_up(shared, cluster)?;
            let n = ((cluster + 1) << bits).min(end) - transfer.offset;
            match mapping.kind() {
                Kind::Data => return Ok(mapping),
                Kind::Zero => {}
                _ => self.copy(shared, transfer.offset, n, &Source::Zeroes)?,
            }
            transfer.advance(n);
        }
        Ok(Mapping::ZERO)
    }

    /// Makes some of these clusters read as zeroes, from the first one on; says how many.
    fn zero_clusters(
        &mut self,
        shared: &Shared,
        cluster: u64,
        count: u64,
        flags: RequestFlags,
    ) -> io::Result<u64> {
        let bits = shared.cluster_bits;
        let may_unmap = flags.contains(RequestFlags::MAY_UNMAP);
        let (mapping, count) = self.resolve(shared, cluster, count)?;
        let image = self.image()?;
        match mapping.kind() {
            Kind::Zero => return Ok(count),
            Kind::Data if !image.has_zero_clusters() || image.data_file_is_raw() => {
                self.data().zero_at(mapping.offset(), count << bits, may_unmap)?;
                return Ok(count);
            }
            _ if !image.has_zero_clusters() => {
                self.copy(shared, cluster << bits, 1 << bits, &Source::Zeroes)?;
                return Ok(1);
            }
            _ => {}
        }
        self.before_allocating(shared)?;
        shared.dirty.store(true, Ordering::SeqCst);
        let zeroed = self.image()?.zero(cluster << bits, count << bits);
        let len = zeroed.inspect_err(|error| end_writing(shared, error))?;
        let count = len.div_ceil(1 << bits);
        shared.table.correct(cluster, count, Mapping::ZERO);
        let range = cluster << bits..(cluster + count) << bits;
        let fate = if may_unmap && shared.info.unmapped != crate::Unmapped::Ignored {
            let host = (mapping.kind() == Kind::Data).then_some(mapping.offset());
            shared.to_give_away.store(true, Ordering::Relaxed);
            Fate::GivenAway { host }
        } else {
            self.zeroed.forget_passed(&shared.clock);
            Fate::Stays
        };
        self.zeroed.add(range, fate, shared.clock.wind());
        Ok(count)
    }

    /// Gives away the clusters that nobody uses any more.
    pub fn give_away(&mut self, shared: &Shared) -> io::Result<()> {
        if !self.zeroed.any_to_give_away() || shared.writable().is_err() {
            return Ok(());
        }
        let passed = self.zeroed.take_passed(&shared.clock);
        shared.to_give_away.store(self.zeroed.any_to_give_away(), Ordering::Relaxed);
        for Zeroed { guest, fate, .. } in passed {
            let Fate::GivenAway { host } = fate else { continue };
            let mut at = guest.start;
            while at < guest.end {
                self.trim(shared)?;
                let image = self.image()?;
                let (run, mut len) = image.look_up(at, guest.end - at)?;
                // Unless it has been written again since.
                if run == Run::Zero {
                    shared.dirty.store(true, Ordering::SeqCst);
                    // SAFETY: no request is under way that found it in the table, and it reads as zeroes since.
                    let given = unsafe { image.give_away(at, len) };
                    len = given.inspect_err(|error| end_writing(shared, error))?;
                    let clusters = (len >> shared.cluster_bits) as usize;
                    shared.counters().given_away.fetch_add(clusters, Ordering::Relaxed);
                    if let Some(host) = host
                        && let Err(error) = self.data().zero_at(host + (at - guest.start), len, true)
                    {
                        tracing::warn!(%error, "cannot give discarded clusters back to the file system");
                    }
                }
                at += len;
            }
        }
        Ok(())
    }
}
