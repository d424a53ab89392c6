//! `ringpair io`: one command at a time, for tests and for looking closely.

mod pattern;

use crate::controller::Opened;
use crate::failure::{OutputClosed, Usage};
use crate::interruption::Interruption;
use crate::target::Target;
use anyhow::{Context, Result, anyhow, ensure};
use block_core::spec::{SIZE, parse_size};
use nvme_spec::Status;
use nvme_spec::nvm_command::{CopySourceRange, DatasetManagement, DatasetManagementRange};
use nvme_vfio::{DmaBuffer, Namespace, Options, QueuePair, SubmitError};
use pattern::Pattern;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::PathBuf;

/// Options of `ringpair io`.
#[derive(clap::Args)]
pub struct Arguments {
    /// nvme://BDF[/NSID], vfio-user:SOCKET[/NSID], or a DISK, for which a controller is started in this process
    #[arg(value_name = "TARGET")]
    target: Target,
    #[command(subcommand)]
    operation: Operation,
}

#[derive(clap::Subcommand)]
enum Operation {
    /// Read, and print a CRC-32 of the data
    Read {
        #[command(flatten)]
        range: Range,
        /// Also write the data to a file
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Write, and print a CRC-32 of the data
    Write {
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        source: Source,
        /// Durably (Force Unit Access)
        #[arg(long)]
        fua: bool,
    },
    /// Read, and fail if it is not what a write of the same pattern or file left there
    Verify {
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        source: Source,
    },
    /// Have the controller compare, with the Compare command
    Compare {
        #[command(flatten)]
        range: Range,
        #[command(flatten)]
        source: Source,
    },
    /// Have the controller copy to elsewhere on the same namespace, with the Copy command
    Copy {
        #[command(flatten)]
        range: Range,
        /// First byte of where it goes
        #[arg(long, value_name = "SIZE", value_parser = size)]
        to: u64,
        /// Durably (Force Unit Access)
        #[arg(long)]
        fua: bool,
    },
    /// Make everything that was written durable
    Flush,
    /// Deallocate, with Dataset Management
    Discard {
        #[command(flatten)]
        range: Range,
    },
    /// Make the range read as zeroes, with Write Zeroes
    WriteZeroes {
        #[command(flatten)]
        range: Range,
        /// The range may be deallocated
        #[arg(long)]
        deallocate: bool,
        /// Durably (Force Unit Access)
        #[arg(long)]
        fua: bool,
    },
}

#[derive(Clone, Copy, clap::Args)]
struct Range {
    /// First byte
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    offset: u64,
    /// Length in bytes [default: up to the end]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    length: Option<u64>,
    /// Bytes a command [default: as many as one takes; of data that is transferred, at most 1M]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bs: Option<u64>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// Bytes that follow from this number and from where they lie
    #[arg(long, value_name = "SEED")]
    pattern: Option<u64>,
    /// Bytes from a file, zeroes past its end
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("expected {SIZE}"))
}

/// Carries it out.
///
/// # Errors
///
/// The target cannot be reached, a command fails, or data is not what it should be.
pub fn run(arguments: &Arguments) -> Result<()> {
    let interruption = Interruption::watch()?;
    let opened = Opened::target(&arguments.target, Options::default())?;
    let done = Session::new(&opened, &arguments.target, interruption)
        .and_then(|mut session| session.run(&arguments.operation));
    let summary = opened.explain(done).and_then(|summary| opened.close().map(|()| summary));
    let summary = summary.with_context(|| arguments.target.to_string())?;
    writeln!(std::io::stdout(), "{summary}").context(OutputClosed)
}

/// A namespace and a queue pair to it.
struct Session {
    pair: QueuePair,
    // After the queues: nothing may be in flight into it when it goes.
    buffer: DmaBuffer,
    namespace: Namespace,
    /// Whether the controller has a Copy command.
    copies: bool,
    interruption: Interruption,
}

/// Most bytes a command transfers unless told otherwise.
const TRANSFER: u32 = 1 << 20;

impl Session {
    fn new(opened: &Opened, target: &Target, interruption: Interruption) -> Result<Self> {
        let controller = &opened.controller;
        let namespace = opened.namespace(target)?;
        let buffer = controller.alloc_dma(controller.max_transfer().min(TRANSFER) as usize)?;
        let copies = controller.identify().oncs.copy();
        Ok(Self { pair: controller.queue_pair()?, buffer, namespace, copies, interruption })
    }

    fn run(&mut self, operation: &Operation) -> Result<String> {
        match operation {
            Operation::Read { range, output } => self.read(*range, output.as_ref()),
            Operation::Write { range, source, fua } => self.write(*range, source, *fua),
            Operation::Verify { range, source } => self.verify(*range, source),
            Operation::Compare { range, source } => self.compare(*range, source),
            Operation::Copy { range, to, fua } => {
                ensure!(
                    self.copies,
                    "the controller does not offer the Copy command (Identify Controller, ONCS)"
                );
                self.copy(*range, *to, *fua)
            }
            Operation::Flush => {
                self.command("flush", |session| session.pair.flush(&session.namespace, 0))?;
                Ok("flushed".to_owned())
            }
            Operation::Discard { range } => self.discard(*range),
            Operation::WriteZeroes { range, deallocate, fua } => self.write_zeroes(*range, *deallocate, *fua),
        }
    }

    fn read(&mut self, range: Range, output: Option<&PathBuf>) -> Result<String> {
        let mut file = match output {
            Some(path) => {
                Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
            }
            None => None,
        };
        let mut checksum = crc32fast::Hasher::new();
        let total = self.each(range, |session, piece| {
            let data = session.read_piece(piece)?;
            checksum.update(&data);
            file.as_mut().map_or(Ok(()), |file| file.write_all(&data)).context("writing the output")
        })?;
        Ok(format!("read {total} bytes at {}: crc32 {:08x}", range.offset, checksum.finalize()))
    }

    fn write(&mut self, range: Range, source: &Source, fua: bool) -> Result<String> {
        let mut source = OpenSource::new(source)?;
        let mut checksum = crc32fast::Hasher::new();
        let total = self.each(range, |session, piece| {
            let data = source.next(piece)?;
            checksum.update(&data);
            session.buffer.write_at(0, &data);
            session.command(&format!("write at {}", piece.offset), |session| {
                let (slba, blocks) = session.blocks(piece);
                let data = [session.buffer.range(0..piece.len)];
                session.pair.write(&session.namespace, slba, blocks, data, fua, 0)
            })
        })?;
        Ok(format!("wrote {total} bytes at {}: crc32 {:08x}", range.offset, checksum.finalize()))
    }

    fn verify(&mut self, range: Range, source: &Source) -> Result<String> {
        let mut source = OpenSource::new(source)?;
        let total = self.each(range, |session, piece| {
            let expected = source.next(piece)?;
            let found = session.read_piece(piece)?;
            match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
                None => Ok(()),
                Some(at) => Err(anyhow!(
                    "byte {} is {:#04x} instead of {:#04x}",
                    piece.offset + at as u64,
                    found[at],
                    expected[at]
                )),
            }
        })?;
        Ok(format!("verified {total} bytes at {}", range.offset))
    }

    fn compare(&mut self, range: Range, source: &Source) -> Result<String> {
        let mut source = OpenSource::new(source)?;
        let total = self.each(range, |session, piece| {
            session.buffer.write_at(0, &source.next(piece)?);
            session.command(&format!("compare at {}", piece.offset), |session| {
                let (slba, blocks) = session.blocks(piece);
                let data = [session.buffer.range(0..piece.len)];
                session.pair.compare(&session.namespace, slba, blocks, data, 0)
            })
        })?;
        Ok(format!("compared {total} bytes at {}", range.offset))
    }

    fn discard(&mut self, range: Range) -> Result<String> {
        let (slba, lbas) = self.check(range)?;
        let step = self.step(range, u32::MAX.into())?;
        let mut done = 0;
        while done < lbas {
            // At most `u32::MAX`.
            let now = (lbas - done).min(step) as u32;
            let range = DatasetManagementRange { context_attributes: 0, length_lbas: now, slba: slba + done };
            self.command("discard", |session| {
                let deallocate = DatasetManagement::new().with_ad(true);
                session.pair.dataset_management(&session.namespace, deallocate, &[range], 0)
            })?;
            done += u64::from(now);
        }
        Ok(format!("discarded {} bytes at {}", lbas * u64::from(self.namespace.block_size()), range.offset))
    }

    fn write_zeroes(&mut self, range: Range, deallocate: bool, fua: bool) -> Result<String> {
        let (slba, lbas) = self.check(range)?;
        ensure!(
            !deallocate || self.namespace.identify().dlfeat.write_zeroes_deallocate(),
            "the namespace cannot deallocate with Write Zeroes (Identify Namespace, DLFEAT); without --deallocate it can be zeroed"
        );
        let step = self.step(range, 1 << 16)?;
        let mut done = 0;
        while done < lbas {
            let now = (lbas - done).min(step) as u32;
            self.command("write-zeroes", |session| {
                session.pair.write_zeroes(&session.namespace, slba + done, now, deallocate, fua, 0)
            })?;
            done += u64::from(now);
        }
        Ok(format!("zeroed {} bytes at {}", lbas * u64::from(self.namespace.block_size()), range.offset))
    }

    fn copy(&mut self, range: Range, to: u64, fua: bool) -> Result<String> {
        let (from, lbas) = self.check(range)?;
        let (to, _) = self.check(Range {
            offset: to,
            length: Some(lbas * u64::from(self.namespace.block_size())),
            bs: None,
        })?;
        if from.abs_diff(to) < lbas {
            return Err(Usage("--to is inside of what is copied, or the other way round".to_owned()).into());
        }
        let limits =
            self.namespace.copy_limits().context("the namespace does not say how much a Copy takes")?;
        let step = self.step(range, limits.blocks.into())?;
        let mut done = 0;
        while done < lbas {
            let (mut ranges, mut now) = (Vec::new(), 0);
            while ranges.len() < limits.ranges && done + now < lbas && now < step {
                let left = (lbas - done - now).min(step - now);
                let blocks = left.min(limits.range_blocks.into()) as u32;
                ranges.push(CopySourceRange::new(from + done + now, blocks));
                now += u64::from(blocks);
            }
            self.command("copy", |session| {
                session.pair.copy(&session.namespace, to + done, &ranges, fua, 0)
            })?;
            done += now;
        }
        let block_size = u64::from(self.namespace.block_size());
        Ok(format!("copied {} bytes at {} to {}", lbas * block_size, range.offset, to * block_size))
    }

    fn read_piece(&mut self, piece: Piece) -> Result<Vec<u8>> {
        self.command(&format!("read at {}", piece.offset), |session| {
            let (slba, blocks) = session.blocks(piece);
            let data = [session.buffer.range(0..piece.len)];
            session.pair.read(&session.namespace, slba, blocks, data, 0)
        })?;
        let mut data = vec![0; piece.len];
        self.buffer.read_at(0, &mut data);
        Ok(data)
    }

    /// Calls `each` for every command's part of a range, and says how long the range is.
    fn each(&mut self, range: Range, mut each: impl FnMut(&mut Self, Piece) -> Result<()>) -> Result<u64> {
        let (slba, lbas) = self.check(range)?;
        let block_size = u64::from(self.namespace.block_size());
        let step = self.step(range, self.buffer.len() as u64 / block_size)? * block_size;
        let (mut offset, end) = (slba * block_size, (slba + lbas) * block_size);
        while offset < end {
            let len = (end - offset).min(step);
            // At most the buffer's length.
            each(self, Piece { offset, len: len as usize })?;
            offset += len;
        }
        Ok(lbas * block_size)
    }

    /// How many logical blocks a command is to have, of which it may have so many.
    fn step(&self, range: Range, most: u64) -> Result<u64> {
        let block_size = u64::from(self.namespace.block_size());
        let Some(bytes) = range.bs else { return Ok(most) };
        if bytes == 0 || bytes / block_size > most || !bytes.is_multiple_of(block_size) {
            let most = most * block_size;
            let message =
                format!("--bs {bytes} is not a multiple of {block_size} from {block_size} to {most}");
            return Err(Usage(message).into());
        }
        Ok(bytes / block_size)
    }

    /// A range in logical blocks: the first, and how many.
    fn check(&self, range: Range) -> Result<(u64, u64)> {
        let (block_size, capacity) = (u64::from(self.namespace.block_size()), self.namespace.capacity());
        let wrong = |message| Err(Usage(message).into());
        let length = range.length.unwrap_or(capacity.saturating_sub(range.offset));
        for (name, value) in [("--offset", range.offset), ("--length", length)] {
            if !value.is_multiple_of(block_size) {
                return wrong(format!("{name} {value} is not a multiple of the block of {block_size} bytes"));
            }
        }
        if range.offset.checked_add(length).is_none_or(|end| end > capacity) {
            return wrong(format!(
                "--offset {} --length {length} is past the end of {capacity} bytes",
                range.offset
            ));
        }
        Ok((range.offset / block_size, length / block_size))
    }

    fn blocks(&self, piece: Piece) -> (u64, u32) {
        let block_size = self.namespace.block_size();
        // The buffer is not as large as 4 GiB.
        (piece.offset / u64::from(block_size), piece.len as u32 / block_size)
    }

    /// Submits one command, unless the program was told to end, and waits for the command's end.
    fn command(
        &mut self,
        what: &str,
        submit: impl FnOnce(&mut Self) -> Result<(), SubmitError>,
    ) -> Result<()> {
        self.interruption.check()?;
        submit(self).with_context(|| what.to_owned())?;
        self.pair.kick();
        let mut ended: Option<Result<(), Status>> = None;
        while ended.is_none() {
            self.pair.poll(|_, result| ended = Some(result)).with_context(|| what.to_owned())?;
        }
        ensure!(ended == Some(Ok(())), "{what}: {}", ended.and_then(Result::err).unwrap_or(Status::SUCCESS));
        Ok(())
    }
}

/// What one command transfers.
#[derive(Clone, Copy)]
struct Piece {
    offset: u64,
    len: usize,
}

/// Where data comes from, piece after piece.
enum OpenSource {
    Pattern(Pattern),
    File(File, PathBuf),
}

impl OpenSource {
    fn new(source: &Source) -> Result<Self> {
        match &source.input {
            Some(path) => {
                let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
                Ok(Self::File(file, path.clone()))
            }
            None => Ok(Self::Pattern(Pattern(source.pattern.unwrap_or_default()))),
        }
    }

    fn next(&mut self, piece: Piece) -> Result<Vec<u8>> {
        let mut data = vec![0; piece.len];
        match self {
            Self::Pattern(pattern) => pattern.fill(piece.offset, &mut data),
            Self::File(file, path) => {
                let mut filled = 0;
                while filled < data.len() {
                    let read = file.read(&mut data[filled..]);
                    match read.with_context(|| format!("reading {}", path.display()))? {
                        0 => break,
                        read => filled += read,
                    }
                }
            }
        }
        Ok(data)
    }
}
