//! What the controller's part of a command costs, stage by stage: [`nvme_emu::bench::stages`].
//!
//! A disk's part is in `file.rs` (`submit`), the driver's in `driver.rs`, and what all of it takes together, in
//! instructions, in `instructions.rs`.

use criterion::{Criterion, criterion_group, criterion_main};
use nvme_emu::bench::stages::stages;

fn controller(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("controller");
    for mut stage in stages().expect("memory for the stages") {
        group.bench_function(stage.name, |bencher| bencher.iter(|| (stage.run)()));
    }
}

criterion_group!(benches, controller);
criterion_main!(benches);
