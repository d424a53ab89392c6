//! The socket file: made, found stale, found in use, and removed.

use rustix::fs::{FileType, Mode, Stat, fchmod, lstat, unlink};
use rustix::io::{self, Errno};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why there is no server at a path.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("socket {} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// There is something, and it is not ours to replace.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// UNIX sockets have short names.
    #[error("socket path {} is too long: a UNIX socket's has at most 107 bytes", .0.display())]
    TooLong(PathBuf),
    /// Anything else.
    #[error("socket {}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BindError {
    pub(super) fn io(path: &Path, errno: Errno) -> Self {
        Self::Io { path: path.to_owned(), source: errno.into() }
    }
}

/// A listening socket, which only its owner may connect to, and its file.
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file that we made: somebody may have put another there since.
    identity: (u64, u64),
    /// Given up for a moment to turn a client away when no other descriptor can be had.
    reserve: Option<OwnedFd>,
}

impl Listener {
    /// Listens at `path`. The file that a dead server has left there is replaced.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |errno: Errno| BindError::io(path, errno);
        let address = SocketAddrUnix::new(path).map_err(|errno| match errno {
            Errno::NAMETOOLONG => BindError::TooLong(path.to_owned()),
            other => io(other),
        })?;
        let socket = stream_socket().map_err(io)?;
        // A socket file gets its mode from the socket: there is no moment at which others could connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io)?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&socket, &address).map_err(|errno| match errno {
                    Errno::ADDRINUSE => BindError::InUse(path.to_owned()),
                    other => io(other),
                })?;
            }
            other => other.map_err(io)?,
        }
        let identity = lstat(path).map(|stat| identity(&stat)).map_err(io)?;
        let reserve = socket.try_clone().ok();
        let listener = Self { socket, path: path.to_owned(), identity, reserve };
        listen(&listener.socket, 16).map_err(io)?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client, if there is one waiting.
    pub fn accept(&mut self) -> io::Result<Option<OwnedFd>> {
        match self.try_accept() {
            Err(Errno::MFILE | Errno::NFILE) => {
                // Left alone, it would keep the listener readable for ever.
                self.reserve = None;
                drop(self.try_accept());
                self.reserve = self.socket.try_clone().ok();
                Err(Errno::MFILE)
            }
            other => other,
        }
    }

    /// Accepts the next client only to hang up on it. Says whether there was one.
    pub fn turn_away(&mut self) -> io::Result<bool> {
        self.accept().map(|client| client.is_some())
    }

    fn try_accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => Ok(Some(client)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.identity) {
            // Whoever removes it before we do has done our work.
            let _ = unlink(&self.path);
        }
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes the file of a server that is no more: a socket that refuses connections.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), BindError> {
    let io = |errno: Errno| BindError::io(path, errno);
    match lstat(path) {
        // It has just gone.
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(io(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match connect(stream_socket().map_err(io)?, address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the socket of a server that is no more");
            unlink(path).or_else(|errno| if errno == Errno::NOENT { Ok(()) } else { Err(io(errno)) })
        }
        Err(Errno::NOENT) => Ok(()),
        // Connected, or the queue is full: somebody lives there.
        Ok(()) | Err(Errno::AGAIN) => Err(BindError::InUse(path.to_owned())),
        Err(errno) => Err(io(errno)),
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn error(path: &Path) -> String {
        Listener::bind(path).err().unwrap().to_string()
    }

    #[test]
    fn only_the_owner_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = Listener::bind(&path).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_file_goes_with_the_listener_unless_it_is_another_ones_by_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(Listener::bind(&path).unwrap());
        assert!(!path.exists());
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves its socket behind");
        let mut listener = Listener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
        assert!(listener.accept().unwrap().is_none());
    }

    #[test]
    fn a_live_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _other = UnixListener::bind(&path).unwrap();
        assert_eq!(error(&path), format!("socket {} is in use by another server", path.display()));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        assert_eq!(error(&path), format!("{} exists and is not a socket", path.display()));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn errors_name_the_path() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(200)));
        assert!(error(&long).contains("is too long"), "{}", error(&long));
        let missing = Path::new("/nonexistent/dir/s");
        assert!(error(missing).starts_with("socket /nonexistent/dir/s: No such file"), "{}", error(missing));
    }
}
