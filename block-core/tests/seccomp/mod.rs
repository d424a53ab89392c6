//! Makes the kernel refuse chosen system calls to this thread and those that it starts from now on: how tests get an
//! fdatasync that fails, a file system without `RWF_DSYNC`, or a sandbox without io_uring. Needs no privileges.

use std::io;
use std::mem::offset_of;

/// A system call to refuse.
#[derive(Clone, Copy)]
pub struct Refused {
    /// Its number (`libc::SYS_…`).
    pub call: i64,
    /// Only when this argument has this value (its low 32 bits).
    pub only_if: Option<(usize, u32)>,
    /// What it fails with.
    pub errno: i32,
}

/// Runs `body` on a thread to which the kernel refuses these calls.
pub fn with_refused<T: Send>(refused: &[Refused], body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(refused).expect("seccomp");
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Skips `otherwise` statements unless what was loaded is `k`.
fn unless_equal(k: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: otherwise, k }
}

fn load(offset: usize) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset as u32)
}

fn refuse(refused: &[Refused]) -> io::Result<()> {
    let mut program = Vec::new();
    for Refused { call, only_if, errno } in refused {
        let fail = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | *errno as u32);
        program.push(load(offset_of!(libc::seccomp_data, nr)));
        match only_if {
            None => program.extend([unless_equal(*call as u32, 1), fail]),
            Some((argument, value)) => {
                // The low half of a 64-bit argument.
                let low = if cfg!(target_endian = "little") { 0 } else { 4 };
                let offset = offset_of!(libc::seccomp_data, args) + 8 * argument + low;
                program.extend([unless_equal(*call as u32, 3), load(offset), unless_equal(*value, 1), fail]);
            }
        }
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: plain system calls; the kernel copies the program.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) != 0
    };
    if refused { Err(io::Error::last_os_error()) } else { Ok(()) }
}
