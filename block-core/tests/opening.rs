//! What opening a file checks, and what it says to the person who named it.

use block_core::{Disk, DiskInfo, Registry, Unmapped};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// A directory of its own, and the only test that runs: a child that another one is just making would hold the locks
/// of this one's files for a moment, until it is its program.
struct Dir {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Dir {
    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn dir() -> Dir {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    Dir { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), _alone: alone }
}

fn file(dir: &Dir, name: &str, size: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

fn open(path: &Path, options: &str) -> Result<Arc<dyn Disk>, String> {
    let name = format!("{}{options}", path.display());
    name.parse()
        .map_err(block_core::OpenError::from)
        .and_then(|spec| Registry::default().open(spec))
        .map_err(|error| error.to_string())
}

/// The one line that refuses a disk; it names the file and says each of these.
fn refused(path: &Path, options: &str, says: &[&str]) {
    let Err(error) = open(path, options) else { panic!("{} opened", path.display()) };
    assert!(!error.contains('\n'), "{error}");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    for word in says {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

#[test]
fn what_is_not_there_empty_or_no_disk_is_named() {
    let dir = dir();
    refused(&dir.path().join("missing.img"), "", &["cannot open", "No such file"]);
    refused(&file(&dir, "empty.img", 0), "", &["is empty", "truncate -s"]);
    refused(dir.path(), "", &["is a directory"]);
    refused(dir.path(), ",readonly=on", &["neither a regular file nor a block device"]);
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for options in ["", ",readonly=on"] {
        refused(&fifo, options, &["neither a regular file nor a block device"]);
    }
}

#[test]
fn wrong_options_name_themselves_and_what_is_accepted() {
    let dir = dir();
    let path = file(&dir, "disk.img", 4096);
    refused(
        &path,
        ",cache=writearound",
        &["`cache=writearound`", "writeback|none|writethrough|directsync|unsafe"],
    );
    refused(&path, ",aio=native", &["`aio=native`", "auto|io_uring|threads"]);
    refused(&path, ",readonly=yes", &["`readonly=yes`", "on|off"]);
    refused(&path, ",discard=on", &["`discard=on`", "unmap|ignore"]);
    refused(&path, ",format=vmdk", &["`format=vmdk`", "raw|qcow2"]);
    refused(&path, ",detect-zeroes=on", &["unknown option", "format, cache, aio, readonly, discard"]);
}

#[test]
fn format_and_name_and_header_must_agree_or_be_settled() {
    let dir = dir();
    let raw = file(&dir, "disk.img", 4096);
    assert!(open(&raw, ",format=raw").is_ok());
    refused(&raw, ",format=qcow2", &["not a qcow2 image"]);
    let named = file(&dir, "disk.qcow2", 4096);
    refused(&named, "", &["not a qcow2 image", "format=raw"]);
    assert!(open(&named, ",format=raw").is_ok());
    for cache in ["writeback", "none"] {
        // What a guest could do to its raw disk.
        fs::write(&raw, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 4088]].concat()).unwrap();
        match open(&raw, &format!(",cache={cache}")) {
            Err(error) if error.contains("no O_DIRECT") => eprintln!("skipped: {error}"),
            _ => refused(&raw, &format!(",cache={cache}"), &["its header says qcow2", "format="]),
        }
        assert!(open(&raw, ",format=raw").is_ok());
    }
}

#[test]
fn a_second_writer_is_refused_and_a_closed_disk_is_free_at_once() {
    let dir = dir();
    let path = file(&dir, "disk.img", 1 << 20);
    for aio in ["io_uring", "threads"] {
        for _ in 0..20 {
            let disk = open(&path, &format!(",aio={aio}")).unwrap();
            refused(&path, "", &["another process", "end that one first"]);
            refused(&path, ",readonly=on", &["another process"]);
            let mut client = block_core::contract::Client::new(&*disk, 4);
            client.write(3, &[1; 5000]);
            let zeroes =
                client.run(block_core::Operation::WriteZeroes, (0, 100), block_core::RequestFlags::NONE);
            assert_eq!(zeroes, Ok(()));
        }
    }
    let readers = [open(&path, ",readonly=on").unwrap(), open(&path, ",readonly=on").unwrap()];
    refused(&path, "", &["readonly=on"]);
    drop(readers);
    assert!(open(&path, "").is_ok());
}

/// Runs a tool of QEMU's on the file; `None`, and says so, where there is none.
fn qemu(tool: &str, arguments: &[&str], path: &Path) -> Option<(bool, String)> {
    match Command::new(tool).args(arguments).arg(path).output() {
        Ok(output) => {
            let all = [output.stdout, output.stderr].concat();
            Some((output.status.success(), String::from_utf8_lossy(&all).into_owned()))
        }
        Err(error) => {
            eprintln!("skipped: {tool}: {error}");
            None
        }
    }
}

#[test]
fn qemu_sees_our_locks() {
    let dir = dir();
    let path = file(&dir, "disk.img", 1 << 20);
    let write = ["-f", "raw", "-c", "write 0 4096"];
    for options in ["", ",readonly=on"] {
        let disk = open(&path, options).unwrap();
        let Some((written, says)) = qemu("qemu-io", &write, &path) else { return };
        assert!(!written && says.contains("lock"), "{says}");
        drop(disk);
        let (written, says) = qemu("qemu-io", &write, &path).unwrap();
        assert!(written, "{says}");
    }
}

#[test]
fn we_see_the_locks_of_qemu() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;
    let dir = dir();
    let path = file(&dir, "disk.img", 1 << 20);
    for (read_only, options) in [(false, &["-f", "raw"][..]), (true, &["-r", "-f", "raw"])] {
        let spawned = Command::new("qemu-io")
            .args(options)
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: qemu-io: {error}");
                return;
            }
        };
        // Once it answers, it has the file open.
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "read 0 512").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        for options in ["", ",readonly=on"] {
            if read_only {
                // qemu-io shares what it only reads.
                assert!(open(&path, options).is_ok());
            } else {
                refused(&path, options, &["another process writes to it"]);
            }
        }
        drop(stdin);
        child.wait().unwrap();
        assert!(open(&path, "").is_ok());
    }
}

#[test]
fn a_file_that_may_not_be_written_suggests_readonly() {
    let dir = dir();
    let path = file(&dir, "disk.img", 4096);
    let mut permissions = fs::metadata(&path).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).unwrap();
    if File::options().write(true).open(&path).is_ok() {
        eprintln!("skipped: this user may write to read-only files");
        return;
    }
    refused(&path, "", &["readonly=on"]);
    assert!(open(&path, ",readonly=on").unwrap().info().read_only);
}

#[test]
fn what_a_disk_is_like_follows_its_options() {
    let dir = dir();
    let path = file(&dir, "disk.img", (1 << 20) + 100);
    let info = |options: &str| -> Option<DiskInfo> {
        match open(&path, options) {
            Ok(disk) => Some(disk.info()),
            Err(error) => {
                assert!(error.contains("no O_DIRECT"), "{error}");
                None
            }
        }
    };
    for (cache, volatile) in [
        ("writeback", true),
        ("none", true),
        ("unsafe", true),
        ("writethrough", false),
        ("directsync", false),
    ] {
        let Some(info) = info(&format!(",cache={cache}")) else { continue };
        assert_eq!(info.volatile_cache, volatile, "cache={cache}");
        assert_eq!(info.capacity, (1 << 20) + 100);
        let direct = matches!(cache, "none" | "directsync");
        assert_eq!(info.request_alignment > 1, direct, "cache={cache}");
        assert!(info.request_alignment.is_power_of_two() && info.memory_alignment.is_power_of_two());
    }
    assert_eq!(info(",discard=ignore").unwrap().unmapped, Unmapped::Ignored);
    assert!(info(",readonly=on").unwrap().read_only);
}

/// A file system's own view of how much a file takes.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_discard_gives_the_space_back_unless_it_is_ignored() {
    use block_core::{Operation, RequestFlags, contract::Client};
    let dir = dir();
    let path = file(&dir, "disk.img", 4 << 20);
    for (options, given_back) in [(",discard=ignore", false), (",discard=unmap", true)] {
        let disk = open(&path, options).unwrap();
        if given_back && disk.info().unmapped == Unmapped::Ignored {
            eprintln!("skipped: the file system has no holes");
            return;
        }
        let mut client = Client::new(&*disk, 4);
        client.write(0, &vec![0x5a; 4 << 20]);
        disk.flush().unwrap();
        let before = allocated(&path);
        assert!(before >= 4 << 20);
        assert_eq!(client.run(Operation::Discard, (0, 2 << 20), RequestFlags::NONE), Ok(()));
        let expected = if given_back { 2 << 20 } else { 4 << 20 };
        assert!(allocated(&path).abs_diff(expected) < 256 << 10, "{options}: {} allocated", allocated(&path));
    }
}
