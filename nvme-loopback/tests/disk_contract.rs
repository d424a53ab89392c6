//! A drive's namespace keeps the block layer's contract.

mod drive;

use std::sync::Arc;

use block_core::{Disk, Unmapped};
use drive::{Emulated, open, options};
use nvme_emu::{ControllerOptions, FaultScript};
use nvme_vfio::Options;

fn on_memory(read_only: bool, block_size: u32, mdts: u8, options: Options) -> Option<Arc<dyn Disk>> {
    let read_only = if read_only { "on" } else { "off" };
    let disk = open(&format!("mem:16M,readonly={read_only}"));
    let emulated = ControllerOptions { mdts, ..ControllerOptions::default() };
    Some(Emulated::new(vec![disk], block_size, &emulated, options).into_disk())
}

block_core::contract_suite!(blocks_of_512, |read_only| on_memory(read_only, 512, 8, options()));
block_core::contract_suite!(blocks_of_4096, |read_only| on_memory(read_only, 4096, 8, options()));
// 8 KiB at a time, so that nearly everything is split.
block_core::contract_suite!(small_transfers, |read_only| on_memory(read_only, 512, 1, options()));
block_core::contract_suite!(polled, |read_only| on_memory(
    read_only,
    512,
    8,
    Options { interrupts: false, ..options() }
));

/// A file, whose requests take their time.
fn on_file(read_only: bool, block_size: u32) -> Option<Arc<dyn Disk>> {
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let read_only = if read_only { "on" } else { "off" };
    let disk = open(&format!("{},readonly={read_only}", file.path().display()));
    Some(Emulated::new(vec![disk], block_size, &ControllerOptions::default(), options()).into_disk())
}

block_core::contract_suite!(file, |read_only| on_file(read_only, 512));
block_core::contract_suite!(file_of_4096, |read_only| on_file(read_only, 4096));

/// A drive that has a volatile cache, and nothing that is optional: no SGLs, no Write Zeroes, no Dataset Management; and
/// that does not like it when requests cross multiples of 12 KiB.
fn on_little(read_only: bool) -> Option<Arc<dyn Disk>> {
    let identify = "queue = 'admin'\nopcode = 'identify'\ndo = 'corrupt'\n";
    // From ONCS to SGLS, with nothing but VWC set; then NOIOB.
    let script = format!(
        "[[fault]]\n{identify}offset = 520\nbytes = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n\
         [[fault]]\n{identify}namespace = 1\noffset = 46\nbytes = [24, 0]\n"
    );
    let read_only = if read_only { "on" } else { "off" };
    let disk = open(&format!("mem:16M,readonly={read_only}"));
    let faults = Some(FaultScript::parse(&script).unwrap());
    let emulated =
        Emulated::new(vec![disk], 512, &ControllerOptions { faults, ..Default::default() }, options());
    let controller = emulated.drive.controller().identify();
    assert!(controller.vwc.present() && !controller.oncs.write_zeroes() && controller.sgls.support() == 0);
    let disk = emulated.into_disk();
    assert!(disk.info().volatile_cache && disk.info().unmapped == Unmapped::Ignored);
    Some(disk)
}

block_core::contract_suite!(with_little, on_little);
