//! Whether an image's refcounts and references agree; and making them agree.
//!
//! What qemu-img check counts is counted here in the same way (its `block/qcow2-refcount.c`): a cluster whose refcount
//! is higher than the references to it is a leak; everything else is a corruption.

use super::counts::Counts;
use super::image::Image;
use super::refcounts::Refcounts;
use super::references::{Visitor, Walk, Wrong};
use super::{Progress, copied, rebuild};
use crate::qcow2::layout::feature::Incompatible;
use crate::qcow2::layout::l2::{L2Entry, Raw};
use crate::qcow2::layout::{Header, refcount};
use std::fmt;
use std::io;

/// Findings that are kept word by word.
const MAX_FINDINGS: usize = 200;

/// What is to be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    Nothing,
    /// Clusters that nobody refers to are freed.
    Leaks,
    /// Whatever can be without touching data: refcounts, COPIED flags, dirty and corrupt bits.
    All,
}

/// What was found. Counts of clusters are of the active L1 table, as qemu-img's are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Those that have a cluster of the file.
    pub allocated_clusters: u64,
    /// Those that do not follow the one before.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends.
    pub image_end_offset: u64,
    /// Clusters that nobody refers to and that are not free.
    pub leaks: u64,
    /// What is wrong otherwise.
    pub corruptions: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// The first findings, a line each.
    pub findings: Vec<String>,
    /// How many there were in all.
    pub findings_in_all: u64,
    /// What stood in the way of a repair.
    pub not_repaired: Option<String>,
}

impl CheckReport {
    fn find(&mut self, finding: fmt::Arguments<'_>) {
        self.findings_in_all += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding.to_string());
        }
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.leaks == 0 && self.corruptions == 0
    }
}

/// Checks an image, and repairs it if asked to.
///
/// # Errors
///
/// The host failed. What is wrong with the image is in the report.
pub fn check(image: &mut Image, repair: Repair, progress: Progress<'_>) -> io::Result<CheckReport> {
    let mut before = Examination::of(image, None, progress)?;
    if repair == Repair::Nothing {
        return Ok(before.report);
    }
    if !before.report.is_clean() {
        let refused = fix(image, repair, &before, progress)?;
        let mut after = Examination::of(image, None, progress)?.report;
        after.leaks_fixed = before.report.leaks.saturating_sub(after.leaks);
        after.corruptions_fixed = before.report.corruptions.saturating_sub(after.corruptions);
        after.not_repaired = refused;
        after.findings = std::mem::take(&mut before.report.findings);
        after.findings_in_all = before.report.findings_in_all;
        before.report = after;
    }
    let bits = Incompatible::DIRTY | Incompatible::CORRUPT;
    if before.report.corruptions == 0 && image.header().incompatible_features.intersects(bits) {
        image.sync()?;
        image.update_header(|header| header.incompatible_features.remove(bits))?;
    }
    image.sync()?;
    Ok(before.report)
}

/// Repairs, and says what stood in the way.
fn fix(
    image: &mut Image,
    repair: Repair,
    found: &Examination,
    progress: Progress<'_>,
) -> io::Result<Option<String>> {
    // Where a table could not be followed, what it refers to may look free.
    let may_lower = found.lost.is_none();
    let refused = found.lost.as_ref().map(|lost| format!("nothing is freed while {lost}"));
    if repair == Repair::Leaks {
        if may_lower && !found.blocks_wrong {
            Examination::of(image, Some(Change { lower: true, raise: false }), progress)?;
        }
        return Ok(refused);
    }
    if found.blocks_wrong {
        if !may_lower {
            return Ok(refused);
        }
        if let Err(error) = rebuild::rebuild(image) {
            return if error.kind() == io::ErrorKind::InvalidData {
                Ok(Some(error.to_string()))
            } else {
                Err(error)
            };
        }
    } else {
        Examination::of(image, Some(Change { lower: may_lower, raise: true }), progress)?;
    }
    let mut refcounts = Refcounts::load(image)?;
    copied::update(image, &mut refcounts)?;
    image.sync()?;
    Ok(refused)
}

/// How refcounts are changed in place.
#[derive(Clone, Copy)]
struct Change {
    lower: bool,
    raise: bool,
}

/// One look at an image.
struct Examination {
    report: CheckReport,
    /// Refcount blocks are missing, shared, or where they cannot be: refcounts cannot be changed in place.
    blocks_wrong: bool,
    /// The first table that could not be followed.
    lost: Option<String>,
}

impl Examination {
    fn of(image: &Image, change: Option<Change>, progress: Progress<'_>) -> io::Result<Self> {
        let header = image.header();
        let mut refcounts = Refcounts::load(image)?;
        let table = refcounts.table().to_vec();
        let mut examination = Self { report: CheckReport::default(), blocks_wrong: false, lost: None };
        examination.report.total_clusters = header.size.div_ceil(header.cluster_size());
        let mut next = Some(Counts::new());
        while let Some(counts) = next {
            let first = counts.range().start == 0;
            let mut pass = Pass { image, examination, refcounts, counts, progress, first, next_offset: 0 };
            let mut walk = Walk::new(image);
            walk.all(&mut pass)?;
            walk.refcounts(&table, &mut pass);
            if first {
                pass.check_l1_copied()?;
            }
            pass.compare(change)?;
            (examination, refcounts) = (pass.examination, pass.refcounts);
            next = pass.counts.next();
        }
        Ok(examination)
    }
}

/// One pass over the image's metadata.
struct Pass<'a, 'b> {
    image: &'a Image,
    examination: Examination,
    refcounts: Refcounts,
    counts: Counts,
    progress: Progress<'b>,
    first: bool,
    /// Where the next cluster of this L2 table would not be a fragment; 0 at its first.
    next_offset: u64,
}

impl Visitor for Pass<'_, '_> {
    fn reference(&mut self, offset: u64, length: u64, times: u32) {
        let cluster_bits = self.image.header().cluster_bits;
        let first = offset >> cluster_bits;
        let end = offset.saturating_add(length).div_ceil(1 << cluster_bits);
        self.counts.add(first, end - first, times);
    }

    fn wrong(&mut self, what: Wrong, finding: fmt::Arguments<'_>) {
        if !self.first {
            return;
        }
        if what == Wrong::Table {
            self.examination.lost.get_or_insert_with(|| finding.to_string());
        }
        self.examination.report.corruptions += 1;
        self.examination.report.find(finding);
    }

    fn active_entry(&mut self, raw: Raw, entry: L2Entry) -> io::Result<()> {
        if !self.first {
            return Ok(());
        }
        let report = &mut self.examination.report;
        if matches!(entry, L2Entry::Compressed { .. }) {
            // Never where the next one would be read from: qemu-img counts them as fragments.
            report.allocated_clusters += 1;
            report.compressed_clusters += 1;
            report.fragmented_clusters += 1;
            return Ok(());
        }
        let Some(cluster) = entry.cluster() else { return Ok(()) };
        report.allocated_clusters += 1;
        if self.next_offset != 0 && self.next_offset != cluster.offset {
            report.fragmented_clusters += 1;
        }
        let header = self.image.header();
        self.next_offset = cluster.offset.saturating_add(header.cluster_size());
        let once = match header.external_data_file() {
            true => true,
            false => self.refcounts.get(self.image, cluster.offset >> header.cluster_bits)? == 1,
        };
        if once != cluster.copied {
            self.examination.report.corruptions += 1;
            let entry = raw.entry;
            self.examination.report.find(format_args!("L2 entry {entry:#x} has a wrong COPIED flag"));
        }
        Ok(())
    }

    fn table(&mut self, done: u64, of: u64) {
        self.next_offset = 0;
        (self.progress)(done, of);
    }
}

impl Pass<'_, '_> {
    fn check_l1_copied(&mut self) -> io::Result<()> {
        let cluster_bits = self.image.header().cluster_bits;
        for (index, entry) in self.image.read_active_l1()?.into_iter().enumerate() {
            let Some(offset) = entry.l2_table_offset() else { continue };
            let once = self.refcounts.get(self.image, offset >> cluster_bits)? == 1;
            if once != entry.copied() {
                self.examination.report.corruptions += 1;
                self.examination.report.find(format_args!("L1 entry {index} has a wrong COPIED flag"));
            }
        }
        Ok(())
    }

    /// Compares references with refcounts, block by block, as far as this pass and the file go.
    fn compare(&mut self, change: Option<Change>) -> io::Result<()> {
        let range = self.counts.range();
        let end = range.end.min(self.image.file_clusters());
        if range.start >= end {
            return Ok(());
        }
        let entries = self.refcounts.block_entries();
        let blocks = range.start / entries..=(end - 1) / entries;
        let in_table = self.refcounts.table().len() as u64;
        // Blocks that the table has, and those that something refers to.
        for index in *blocks.start()..=(*blocks.end()).min(in_table.saturating_sub(1)) {
            if self.refcounts.table().get(index as usize).is_some_and(|entry| entry.block_offset().is_some())
            {
                self.compare_block(
                    index,
                    (index * entries).max(range.start)..((index + 1) * entries).min(end),
                    change,
                )?;
            }
        }
        let chunks: Vec<u64> = self.counts.chunks().collect();
        for chunk in chunks {
            for cluster in chunk.max(range.start)..(chunk + super::counts::CHUNK).min(end) {
                let index = cluster / entries;
                let there =
                    self.refcounts.table().get(index as usize).is_some_and(|e| e.block_offset().is_some());
                let references = self.counts.get(cluster);
                if !there && references > 0 {
                    self.examination.blocks_wrong = true;
                    self.differs(cluster, 0, references.into());
                }
            }
        }
        Ok(())
    }

    fn compare_block(
        &mut self,
        index: u64,
        clusters: std::ops::Range<u64>,
        change: Option<Change>,
    ) -> io::Result<()> {
        let (image, entries) = (self.image, self.refcounts.block_entries());
        let Header { cluster_bits, refcount_order, .. } = *image.header();
        let mut block = Vec::new();
        let offset = self.refcounts.block_offset(image, index);
        match offset {
            Some(offset) => {
                image.read_cluster(offset, &mut block)?;
                let itself = offset >> cluster_bits;
                if self.counts.range().contains(&itself) && self.counts.get(itself) != 1 {
                    self.examination.blocks_wrong = true;
                    self.examination.report.corruptions += 1;
                    self.examination
                        .report
                        .find(format_args!("refcount block {index} is used for something else as well"));
                }
            }
            None => self.examination.blocks_wrong = true,
        }
        let mut changed = false;
        for cluster in clusters {
            let entry = (cluster % entries) as usize;
            let refcount = refcount::get(&block, entry, refcount_order);
            let references = u64::from(self.counts.get(cluster));
            if refcount != references {
                self.differs(cluster, refcount, references);
                let lower = change.is_some_and(|change| change.lower && references < refcount);
                let raise = change.is_some_and(|change| change.raise && references > refcount);
                if lower || raise {
                    changed |= refcount::set(&mut block, entry, refcount_order, references);
                }
            }
            if refcount > 0 || references > 0 {
                self.used(cluster);
            }
        }
        if let Some(offset) = offset.filter(|_| changed) {
            image.write(offset, &block)?;
        }
        Ok(())
    }

    fn differs(&mut self, cluster: u64, refcount: u64, references: u64) {
        let report = &mut self.examination.report;
        if refcount > references {
            report.leaks += 1;
            report.find(format_args!(
                "cluster {cluster} leaks: refcount {refcount}, referred to {references} times"
            ));
        } else {
            report.corruptions += 1;
            report.find(format_args!(
                "cluster {cluster}: refcount {refcount}, but referred to {references} times"
            ));
        }
        self.used(cluster);
    }

    fn used(&mut self, cluster: u64) {
        let end = (cluster + 1) << self.image.header().cluster_bits;
        let report = &mut self.examination.report;
        report.image_end_offset = report.image_end_offset.max(end);
    }
}
