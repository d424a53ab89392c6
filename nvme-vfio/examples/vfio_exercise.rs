//! Takes a controller through the kernel's VFIO and tries it: for tests in guests, and for a first look at a drive. All
//! but `identify` and `hold` overwrite its first namespace.
//!
//! ```text
//! vfio_exercise [--vfio auto|group|cdev|unsafe-no-iommu] [--queues N] [--interrupts] [--with ADDRESS]… ADDRESS COMMAND
//!
//!   identify       what it is
//!   exercise       write and verify all sizes through all queues at once, and into memory that is not the driver's; of
//!                  all ADDRESSes at the same time
//!   reset          verify data over a reset of the function, and over one of the controller
//!   reopen         close it and open it again, several times, and see what is left over
//!   write FILE     write a file to its beginning
//!   hammer         write until killed; when that fails, say why, and stay
//!   hold           own it until killed
//!   iops DEPTH     read 4 KiB at random for two seconds, through one queue
//! ```

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use nvme_spec::Status;
use nvme_vfio::transport::vfio::{Interface, PciAddress, Vfio};
use nvme_vfio::transport::{DmaMemory, Transport as _};
use nvme_vfio::{Controller, DmaBuffer, DmaRange, Namespace, Options, QueuePair};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio_exercise: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut interface = Interface::Auto;
    let mut options = Options { queues: 4, depth: 64, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &'static str| arguments.next().ok_or(what);
    let mut others = Vec::new();
    let address = loop {
        match next("an address is missing")?.as_str() {
            "--vfio" => interface = next("--vfio: a value is missing")?.parse()?,
            "--queues" => options.queues = next("--queues: a value is missing")?.parse()?,
            "--interrupts" => options.interrupts = true,
            "--with" => others.push(next("--with: an address is missing")?.parse()?),
            address => break address.parse()?,
        }
    };
    let command = next("a command is missing")?;
    let open = |address| -> Result<Controller> {
        let vfio = Vfio::open(address, interface)?;
        say(&format!("{address}: taken by {}", vfio.interface()))?;
        Ok(Controller::open(Box::new(vfio), options.clone())?)
    };
    let controller = open(address)?;
    let others: Vec<_> = others.into_iter().map(open).collect::<Result<_>>()?;
    match command.as_str() {
        "identify" => identify(&controller),
        "exercise" => thread::scope(|scope| {
            let all = others.iter().chain([&controller]);
            let threads: Vec<_> = all
                .map(|controller| scope.spawn(move || exercise(controller, interface != Interface::NoIommu)))
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
        }),
        "reset" => reset(&controller),
        "reopen" => reopen(controller, &open, address),
        "write" => write_file(&controller, &std::fs::read(next("a file is missing")?)?),
        "hammer" => hammer(&controller),
        "hold" => hold(),
        "iops" => iops(&controller, next("a depth is missing")?.parse()?),
        other => Err(format!("{other}: there is no such command").into()),
    }
}

/// Keeps what it has until it is killed.
fn hold() -> ! {
    loop {
        thread::park();
    }
}

/// A line on the standard output, now.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn identify(controller: &Controller) -> Result<()> {
    let identify = controller.identify();
    say(&format!("serial {}, model {}", identify.sn, identify.mn))?;
    for namespace in controller.namespaces()? {
        say(&format!("namespace {}: {} bytes", namespace.nsid(), namespace.capacity()))?;
    }
    Ok(())
}

/// Polls until all in flight has completed well; sleeps in between if there are interrupts.
fn finish(pair: &mut QueuePair) -> Result<()> {
    let mut failed: Option<(u64, Status)> = None;
    pair.kick();
    while pair.in_flight() > 0 {
        let ended = pair.poll(|token, result| {
            if let Err(status) = result {
                failed = Some((token, status));
            }
        })?;
        if ended == 0 {
            sleep(pair)?;
        }
    }
    failed.map_or(Ok(()), |(token, status)| Err(format!("command {token}: {status}").into()))
}

/// Sleeps until an interrupt comes, if there are any.
fn sleep(pair: &QueuePair) -> Result<()> {
    let Some(eventfd) = pair.wait_fd() else { return Ok(()) };
    let mut fds = [rustix::event::PollFd::new(&eventfd, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    if rustix::event::poll(&mut fds, Some(&patience))? == 0 {
        return Err("no interrupt came for ten seconds".into());
    }
    rustix::io::read(eventfd, &mut [0u8; 8])?;
    Ok(())
}

/// Bytes that follow from where they are and how often they were written.
fn pattern(at: u64, generation: u64, data: &mut [u8]) {
    let mut state = (at ^ generation.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in data {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
}

/// Numbers of blocks: all small ones, then around powers of two, up to the largest transfer.
fn sizes(most: u32) -> Vec<u32> {
    let large = (6..).map(|power| 1u32 << power).take_while(|size| *size < most);
    let mut sizes: Vec<u32> = (1..=64).chain(large.flat_map(|size| [size - 1, size, size + 1])).collect();
    sizes.push(most);
    sizes.retain(|size| *size <= most);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

fn exercise(controller: &Controller, has_iommu: bool) -> Result<()> {
    let namespace = controller.namespace(1)?;
    let queues = u64::from(controller.max_queues());
    let share = namespace.capacity_lbas() / queues;
    let verified = thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|number| {
                let namespace = &namespace;
                scope.spawn(move || exercise_queue(controller, namespace, number * share, share))
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked")?);
        ended.sum::<Result<u64>>()
    })?;
    say(&format!("verified {verified} bytes through {queues} queues"))?;
    large_buffer(controller, &namespace)?;
    lend(controller, &namespace, has_iommu)
}

/// Writes and verifies out of a buffer of several huge pages, in pieces that lie across their borders too.
fn large_buffer(controller: &Controller, namespace: &Namespace) -> Result<()> {
    const LEN: usize = 9 << 20;
    let mut pair = controller.queue_pair()?;
    let buffer = controller.alloc_dma(LEN)?;
    let block = namespace.block_size() as usize;
    // Not a divisor of a huge page.
    let piece = (controller.max_transfer() as usize).min(LEN / 8) / block * block - block;
    let mut data = vec![0; LEN];
    pattern(5, 55, &mut data);
    let mut found = vec![0; LEN];
    let pieces = |len: usize| (0..len).step_by(piece).map(move |at| at..(at + piece).min(len));
    buffer.write_at(0, &data);
    for writes in [true, false] {
        for range in pieces(LEN / block * block) {
            let (at, blocks) = ((range.start / block) as u64, (range.len() / block) as u32);
            let range = buffer.range(range);
            if writes {
                pair.write(namespace, at, blocks, range, false, at)?;
            } else {
                pair.read(namespace, at, blocks, range, at)?;
            }
            // Of a shallow queue as well.
            finish(&mut pair)?;
        }
        buffer.read_at(0, &mut found);
        if found != data {
            return Err("a large buffer: not what was written".into());
        }
        buffer.fill(0..LEN, 0xa5);
    }
    say(&format!("verified {LEN} bytes in one buffer"))
}

/// Commands in flight at once.
const SLOTS: usize = 8;

/// Writes and verifies all sizes in a part of the namespace.
fn exercise_queue(controller: &Controller, namespace: &Namespace, first: u64, lbas: u64) -> Result<u64> {
    let mut pair = controller.queue_pair()?;
    let block = namespace.block_size();
    let most = controller.max_transfer() / block;
    // Room to begin anywhere in the first page.
    let room = (most * block) as usize + 4096;
    let buffers: Vec<DmaBuffer> =
        (0..SLOTS).map(|_| controller.alloc_dma(room)).collect::<std::result::Result<_, _>>()?;
    let (mut verified, mut at, mut generation) = (0, first, u64::from(pair.qid()));
    for batch in sizes(most).chunks(SLOTS) {
        let mut pieces = Vec::new();
        for (slot, blocks) in batch.iter().enumerate() {
            if at + u64::from(*blocks) > first + lbas {
                at = first;
            }
            generation += 1;
            // PRPs begin at any dword.
            let offset = (generation as usize * 1021 * 4) % 4096;
            let mut data = vec![0; (blocks * block) as usize];
            pattern(at, generation, &mut data);
            buffers[slot].write_at(offset, &data);
            let range = buffers[slot].range(offset..offset + data.len());
            pair.write(namespace, at, *blocks, range, generation.is_multiple_of(2), at)?;
            pieces.push((at, *blocks, 4092 - offset, data));
            at += u64::from(*blocks);
        }
        finish(&mut pair)?;
        for (slot, (at, blocks, offset, data)) in pieces.iter().enumerate() {
            buffers[slot].fill(0..room, 0xa5);
            let range = buffers[slot].range(*offset..offset + data.len());
            pair.read(namespace, *at, *blocks, range, *at)?;
        }
        finish(&mut pair)?;
        for (slot, (at, _, offset, data)) in pieces.iter().enumerate() {
            let mut found = vec![0; data.len()];
            buffers[slot].read_at(*offset, &mut found);
            if found != *data {
                return Err(format!("queue {}: block {at}: not what was written", pair.qid()).into());
            }
            verified += data.len() as u64;
        }
    }
    Ok(verified)
}

/// Reads into memory that is not the driver's, as a guest's is not.
fn lend(controller: &Controller, namespace: &Namespace, has_iommu: bool) -> Result<()> {
    const LEN: usize = 1 << 20;
    let mut pair = controller.queue_pair()?;
    let block = namespace.block_size();
    let buffer = controller.alloc_dma(LEN)?;
    let mut data = vec![0; LEN];
    pattern(0, 77, &mut data);
    buffer.write_at(0, &data);
    let blocks = controller.max_transfer().min(LEN as u32) / block;
    let len = blocks * block;
    pair.write(namespace, 0, blocks, buffer.range(0..len as usize), false, 0)?;
    finish(&mut pair)?;

    let layout = std::alloc::Layout::from_size_align(LEN, 4096)?;
    // SAFETY: the layout has a size.
    let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or("out of memory")?;
    // SAFETY: the memory is freed after it has been taken back, and never referenced.
    let mapping = unsafe { controller.map_dma(&DmaMemory { base: memory, len: LEN as u64, backing: None }) };
    if !has_iommu {
        return match mapping {
            Err(_) => say("ordinary memory cannot be lent without an IOMMU"),
            Ok(_) => Err("ordinary memory was lent without an IOMMU".into()),
        };
    }
    let mapping = mapping?;
    let range = mapping.translate(memory.as_ptr(), len).ok_or("the memory is not in its mapping")?;
    pair.read(namespace, 0, blocks, range, 1)?;
    finish(&mut pair)?;
    let mut found = vec![0; len as usize];
    // SAFETY: both are as long as that, the command into the memory has ended.
    unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), found.as_mut_ptr(), found.len()) };
    if found != data[..found.len()] {
        return Err("lent memory: not what was written".into());
    }
    mapping.unmap()?;
    // What has been taken back is out of reach: the IOMMU stops the controller, which may or may not report it.
    // SAFETY: the memory is as long as that, and nobody else's.
    unsafe { std::ptr::write_bytes(memory.as_ptr(), 0xa5, LEN) };
    pair.read(namespace, 0, blocks, range, 2)?;
    let _ = finish(&mut pair);
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(memory.as_ptr(), found.as_mut_ptr(), found.len()) };
    // SAFETY: allocated above with this layout, and out of the controller's reach.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    if found.iter().any(|byte| *byte != 0xa5) {
        return Err("memory that was taken back was still read into".into());
    }
    say("lent memory was read into, and out of reach when taken back")
}

/// What was written is there after resets, and queues go on.
fn reset(controller: &Controller) -> Result<()> {
    let namespace = controller.namespace(1)?;
    let mut pair = controller.queue_pair()?;
    let buffer = controller.alloc_dma(4096)?;
    let blocks = 4096 / namespace.block_size();
    let (mut data, mut found) = ([0; 4096], [0; 4096]);
    for turn in 0..3 {
        pattern(turn, 9, &mut data);
        buffer.write_at(0, &data);
        pair.write(&namespace, 0, blocks, buffer.range(0..4096), true, turn)?;
        finish(&mut pair)?;
        controller.reset()?;
        buffer.fill(0..4096, 0);
        pair.read(&namespace, 0, blocks, buffer.range(0..4096), turn)?;
        finish(&mut pair)?;
        buffer.read_at(0, &mut found);
        if found != data {
            return Err("after a reset: not what was written".into());
        }
    }
    say(&format!("verified over {} resets", controller.recovery_counters().resets))
}

/// Descriptors and KiB of locked memory that this process has.
fn belongings() -> Result<(usize, String)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let locked = status.lines().find(|line| line.starts_with("VmLck:")).ok_or("no VmLck")?;
    Ok((std::fs::read_dir("/proc/self/fd")?.count(), locked.to_owned()))
}

fn reopen(
    controller: Controller,
    open: &dyn Fn(PciAddress) -> Result<Controller>,
    address: PciAddress,
) -> Result<()> {
    drop(controller);
    let before = belongings()?;
    for _ in 0..4 {
        let controller = open(address)?;
        let buffer = controller.alloc_dma(1 << 20)?;
        let mut pair = controller.queue_pair()?;
        let namespace = controller.namespace(1)?;
        pair.read(&namespace, 0, 1, buffer.range(0..namespace.block_size() as usize), 0)?;
        finish(&mut pair)?;
    }
    // The function itself, without the controller.
    let vfio = Vfio::open(address, Interface::Auto)?;
    match vfio.reset() {
        Ok(()) => say("the function was reset")?,
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => say("it has no reset")?,
        Err(error) => return Err(error.into()),
    }
    drop(Controller::open(Box::new(vfio), Options::default())?);
    let after = belongings()?;
    if before != after {
        return Err(format!("left over: {after:?} instead of {before:?}").into());
    }
    say("nothing is left over")
}

fn write_file(controller: &Controller, data: &[u8]) -> Result<()> {
    let namespace = controller.namespace(1)?;
    let mut pair = controller.queue_pair()?;
    let block = namespace.block_size() as usize;
    let buffer = controller.alloc_dma(controller.max_transfer() as usize)?;
    let mut at = 0;
    for piece in data.chunks(buffer.len()) {
        let len = piece.len().next_multiple_of(block);
        buffer.fill(0..len, 0);
        buffer.write_at(0, piece);
        pair.write(&namespace, at, (len / block) as u32, buffer.range(0..len), false, at)?;
        finish(&mut pair)?;
        at += (len / block) as u64;
    }
    pair.flush(&namespace, 0)?;
    finish(&mut pair)?;
    say(&format!("wrote {} bytes", data.len()))
}

fn hammer(controller: &Controller) -> Result<()> {
    let namespace = controller.namespace(1)?;
    let mut pair = controller.queue_pair()?;
    let blocks = 65536 / namespace.block_size();
    let buffer = controller.alloc_dma(65536)?;
    let places = namespace.capacity_lbas() / u64::from(blocks);
    let (mut turn, mut said) = (0u64, false);
    loop {
        while pair.in_flight() < usize::from(pair.depth()) {
            let slba = turn % places * u64::from(blocks);
            // What it cannot take, the poll below says why.
            if pair.write(&namespace, slba, blocks, buffer.range(0..65536), false, turn).is_err() {
                break;
            }
            turn += 1;
        }
        pair.kick();
        if let Err(fault) = pair.poll(|_, _| {}) {
            say(&fault.to_string())?;
            hold();
        }
        if !said && turn > 4 * u64::from(pair.depth()) {
            say("hammering")?;
            said = true;
        }
    }
}

fn iops(controller: &Controller, depth: usize) -> Result<()> {
    const RUN: Duration = Duration::from_secs(2);
    let namespace = controller.namespace(1)?;
    let mut pair = controller.queue_pair()?;
    let blocks = 4096 / namespace.block_size();
    let places = namespace.capacity_lbas() / u64::from(blocks);
    let buffer = controller.alloc_dma(depth * 4096)?;
    let slot = |slot: u64| -> DmaRange { buffer.range(slot as usize * 4096..(slot as usize + 1) * 4096) };
    let mut free: Vec<u64> = (0..depth as u64).collect();
    let (mut state, mut done, start) = (1u64, 0u64, Instant::now());
    while start.elapsed() < RUN {
        while let Some(token) = free.pop() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pair.read(&namespace, (state >> 33) % places * u64::from(blocks), blocks, slot(token), token)?;
        }
        pair.kick();
        let mut bad = None;
        done += pair.poll(|token, result| {
            free.push(token);
            bad = bad.or(result.err());
        })? as u64;
        if let Some(status) = bad {
            return Err(status.to_string().into());
        }
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    finish(&mut pair)?;
    say(&format!("iodepth {depth}: {rate:.0} IOPS; shadow doorbells: {}", controller.shadow_doorbells()))
}
