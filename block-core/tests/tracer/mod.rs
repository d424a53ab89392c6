//! What a process asks of the kernel for one file, seen from outside by `ptrace`: its system calls, and the entries of
//! its io_uring submission rings, read out of its memory when it enters the kernel with them.
//!
//! Works without root and without `strace`, wherever a process may trace its own children.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// One thing that the kernel was asked to do with the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `openat` of the file, with its flags.
    Open(i32),
    /// A write by a system call, with its `RWF_` flags.
    Write { rwf: i32 },
    /// A write by an entry of a ring, with its `RWF_` flags.
    RingWrite { rwf: i32 },
    /// `fdatasync`.
    Fdatasync,
    /// A sync by an entry of a ring, with its `IORING_FSYNC_` flags.
    RingFsync { flags: i32 },
    /// `io_uring_enter` on a ring that has the file, with the number of entries handed over.
    Enter { submitted: u32 },
    /// `fallocate`, with its mode.
    Fallocate { mode: i32 },
    /// Anything else that changes the file or makes it durable, or an entry of a ring that is none of the above.
    Other(String),
}

/// What was asked between one marker of the traced process and the next.
pub type Phases = Vec<(String, Vec<Asked>)>;

/// Environment variable that tells a test that it runs in the traced process.
const TRACED: &str = "RINGPAIR_TRACED_FILE";

/// The file to work on, if this is the traced process.
pub fn traced_file() -> Option<String> {
    std::env::var(TRACED).ok()
}

/// In the traced process: begins a phase. The kernel refuses the call, the tracer reads it.
pub fn mark(phase: &str) {
    // SAFETY: a write to no descriptor, from a string.
    unsafe { libc::write(-1, phase.as_ptr().cast(), phase.len()) };
}

/// Runs the test `name` of this executable again, traced, with `file` to work on. `None`, and says so, where tracing is
/// not allowed.
pub fn trace(name: &str, file: &str) -> Option<Phases> {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.stdout(Stdio::null());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(TRACED, file);
    let stop_for_tracer = || {
        // SAFETY: plain system calls on this process. Should the tracer fail, the alarm ends it.
        unsafe {
            libc::alarm(60);
            if libc::ptrace(libc::PTRACE_TRACEME) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes two system calls, which is allowed between fork and exec.
    let child = match unsafe { command.pre_exec(stop_for_tracer) }.spawn() {
        Ok(child) => child,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            eprintln!("skipped: this process may not trace its children: {error}");
            return None;
        }
        Err(error) => panic!("cannot run myself: {error}"),
    };
    Some(Tracer::new(file).follow(child.id() as i32))
}

/// A ring of the traced process. Offsets are of `struct io_uring_params` and `struct io_uring_sqe` in Linux's
/// `include/uapi/linux/io_uring.h`.
#[derive(Default)]
struct Ring {
    head_offset: u64,
    tail_offset: u64,
    mask_offset: u64,
    array_offset: u64,
    rings_at: u64,
    entries_at: u64,
    files: Vec<i32>,
}

struct Tracer {
    file: String,
    fds: BTreeSet<i32>,
    rings: HashMap<i32, Ring>,
    /// System calls that threads are in.
    entered: HashMap<i32, (i64, [u64; 6])>,
    phases: Phases,
}

impl Tracer {
    fn new(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            fds: BTreeSet::new(),
            rings: HashMap::new(),
            entered: HashMap::new(),
            phases: vec![("start".to_owned(), Vec::new())],
        }
    }

    fn note(&mut self, asked: Asked) {
        self.phases.last_mut().expect("never empty").1.push(asked);
    }

    /// Follows the process and its threads to its end, which has to be a good one.
    fn follow(mut self, child: i32) -> Phases {
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACESYSGOOD;
        let mut first = true;
        loop {
            let mut status = 0;
            // Only children of this thread: other tests trace theirs.
            // SAFETY: `status` is written.
            let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
            assert!(thread > 0, "waitpid: {}", io::Error::last_os_error());
            if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
                self.entered.remove(&thread);
                if thread == child {
                    assert!(libc::WIFEXITED(status), "the traced process was killed: status {status:#x}");
                    assert_eq!(libc::WEXITSTATUS(status), 0, "the traced process failed");
                    return self.phases;
                }
                continue;
            }
            let mut signal = libc::WSTOPSIG(status);
            if std::mem::take(&mut first) {
                // The stop at exec.
                // SAFETY: sets options of a stopped tracee.
                unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, options) };
                signal = 0;
            } else if signal == libc::SIGTRAP | 0x80 {
                self.system_call(thread);
                signal = 0;
            } else if signal == libc::SIGTRAP || signal == libc::SIGSTOP {
                // A clone, or the first stop of what was cloned.
                signal = 0;
            }
            // SAFETY: continues a stopped tracee.
            unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, signal) };
        }
    }

    fn system_call(&mut self, thread: i32) {
        // `struct ptrace_syscall_info`: the operation, then from the 4th word on number and arguments, or the result.
        let mut info = [0u64; 11];
        // SAFETY: the buffer has the size that is passed.
        let n = unsafe {
            libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size_of_val(&info), info.as_mut_ptr())
        };
        assert!(n > 0, "PTRACE_GET_SYSCALL_INFO: {}", io::Error::last_os_error());
        match info[0].to_ne_bytes()[0] {
            libc::PTRACE_SYSCALL_INFO_ENTRY => {
                let call = (info[3] as i64, std::array::from_fn(|i| info[4 + i]));
                self.entered.insert(thread, call);
                self.before(thread, call.0, call.1);
            }
            libc::PTRACE_SYSCALL_INFO_EXIT => {
                if let Some((number, args)) = self.entered.remove(&thread) {
                    self.after(thread, number, args, info[3] as i64);
                }
            }
            _ => {}
        }
    }

    fn before(&mut self, thread: i32, number: i64, args: [u64; 6]) {
        let on_file = self.fds.contains(&(args[0] as i32));
        match number {
            libc::SYS_write if args[0] as i32 == -1 => {
                let name = read(thread, args[1], args[2] as usize);
                self.phases.push((String::from_utf8(name).expect("a marker"), Vec::new()));
            }
            libc::SYS_io_uring_enter => self.entries(thread, args[0] as i32, args[1] as u32),
            _ if !on_file => {}
            libc::SYS_pwritev2 => self.note(Asked::Write { rwf: args[5] as i32 }),
            libc::SYS_pwritev | libc::SYS_pwrite64 | libc::SYS_write | libc::SYS_writev => {
                self.note(Asked::Write { rwf: 0 });
            }
            libc::SYS_fdatasync => self.note(Asked::Fdatasync),
            libc::SYS_fallocate => self.note(Asked::Fallocate { mode: args[1] as i32 }),
            libc::SYS_fsync | libc::SYS_sync_file_range | libc::SYS_syncfs | libc::SYS_ftruncate => {
                self.note(Asked::Other(format!("system call {number}")));
            }
            _ => {}
        }
    }

    fn after(&mut self, thread: i32, number: i64, args: [u64; 6], result: i64) {
        if result < 0 {
            return;
        }
        if let Some((path, flags)) = opened(number, args) {
            let path = read_string(thread, path);
            let again = path.strip_prefix("/proc/self/fd/").and_then(|fd| fd.parse().ok());
            if path == self.file || again.is_some_and(|fd| self.fds.contains(&fd)) {
                self.fds.insert(result as i32);
                self.note(Asked::Open(flags));
            }
            return;
        }
        match number {
            libc::SYS_close => {
                self.fds.remove(&(args[0] as i32));
                self.rings.remove(&(args[0] as i32));
            }
            libc::SYS_io_uring_setup => {
                let params = read(thread, args[1], 120);
                // `sq_off` begins at 40: head, tail, ring_mask, ring_entries, flags, dropped, array.
                let offset = |i: usize| u64::from(word(&params[40 + 4 * i..]));
                let ring = Ring {
                    head_offset: offset(0),
                    tail_offset: offset(1),
                    mask_offset: offset(2),
                    array_offset: offset(6),
                    ..Ring::default()
                };
                self.rings.insert(result as i32, ring);
            }
            libc::SYS_mmap => {
                if let Some(ring) = self.rings.get_mut(&(args[4] as i32)) {
                    match args[5] {
                        0 => ring.rings_at = result as u64,
                        0x1000_0000 => ring.entries_at = result as u64,
                        _ => {}
                    }
                }
            }
            libc::SYS_io_uring_register => {
                const REGISTER_FILES: u64 = 2;
                if let Some(ring) = self.rings.get_mut(&(args[0] as i32))
                    && args[1] == REGISTER_FILES
                {
                    ring.files = read(thread, args[2], 4 * args[3] as usize)
                        .chunks(4)
                        .map(|n| word(n) as i32)
                        .collect();
                }
            }
            _ => {}
        }
    }

    /// The entries that a thread is about to submit.
    fn entries(&mut self, thread: i32, fd: i32, count: u32) {
        let ring = self.rings.get(&fd).expect("a ring whose setup was seen");
        if ring.files.iter().any(|fd| self.fds.contains(fd)) {
            self.note(Asked::Enter { submitted: count });
        }
        let ring = &self.rings[&fd];
        let at = |offset| word(&read(thread, ring.rings_at + offset, 4));
        let (head, tail, mask) = (at(ring.head_offset), at(ring.tail_offset), at(ring.mask_offset));
        let mut found = Vec::new();
        for i in 0..count.min(tail.wrapping_sub(head)) {
            let index = at(ring.array_offset + 4 * u64::from(head.wrapping_add(i) & mask));
            let entry = read(thread, ring.entries_at + 64 * u64::from(index), 64);
            // `struct io_uring_sqe`: opcode, flags, ioprio, fd, off, addr, len, rw_flags and others.
            let (opcode, flags, fd) = (entry[0], entry[1], word(&entry[4..]) as i32);
            const FIXED_FILE: u8 = 1;
            let fd = if flags & FIXED_FILE != 0 { ring.files[fd as usize] } else { fd };
            if !self.fds.contains(&fd) {
                continue;
            }
            let op_flags = word(&entry[28..]) as i32;
            const READV: u8 = 1;
            const WRITEV: u8 = 2;
            const FSYNC: u8 = 3;
            const READ: u8 = 22;
            const WRITE: u8 = 23;
            match opcode {
                READ | READV => {}
                WRITE | WRITEV => found.push(Asked::RingWrite { rwf: op_flags }),
                FSYNC => found.push(Asked::RingFsync { flags: op_flags }),
                other => found.push(Asked::Other(format!("ring entry {other}"))),
            }
        }
        found.into_iter().for_each(|asked| self.note(asked));
    }
}

/// Address of the path, and flags, of a call that opens a file.
fn opened(number: i64, args: [u64; 6]) -> Option<(u64, i32)> {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_open {
        return Some((args[0], args[1] as i32));
    }
    (number == libc::SYS_openat).then_some((args[1], args[2] as i32))
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// Memory of the traced process.
fn read(thread: i32, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: at as *mut libc::c_void, iov_len: len };
    // SAFETY: `local` is `bytes`; the kernel checks the other side.
    let n = unsafe { libc::process_vm_readv(thread, &local, 1, &remote, 1, 0) };
    assert_eq!(n, len as isize, "memory of the traced process at {at:#x}: {}", io::Error::last_os_error());
    bytes
}

fn read_string(thread: i32, mut at: u64) -> String {
    let mut bytes = Vec::new();
    loop {
        // Not across a page, which may be the last.
        let chunk = read(thread, at, (64 - at % 64) as usize);
        at += chunk.len() as u64;
        match chunk.iter().position(|&b| b == 0) {
            Some(end) => {
                bytes.extend(&chunk[..end]);
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            None => bytes.extend(chunk),
        }
    }
}
