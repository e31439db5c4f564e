//! Runs `fusermount3`, which mounts and unmounts for users other than root.
//!
//! `fusermount3` opens `/dev/fuse`, mounts, and sends the open device over a Unix socket whose
//! number is in `_FUSE_COMMFD` (fusermount.c of libfuse). The socket is its standard input here, so
//! that no other descriptor has to be passed on.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{MountError, MountResult, NAME};
use crate::host::qemu::drain;
use crate::wait;

pub(super) const PROGRAM: &str = "fusermount3";

/// How long `fusermount3` may take.
const DEADLINE: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(5);

/// How much of its error output is kept, in bytes.
const COMPLAINT_LIMIT: u64 = 4 << 10;

/// Mounts a read-only file system, and returns the open device.
pub(super) fn mount(path: &Path, allow_other: bool) -> MountResult<OwnedFd> {
    let failed = |error: io::Error| MountError::failed("mount on", path, error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(DEADLINE)).map_err(failed)?;
    let mut options = format!("ro,nosuid,nodev,noexec,default_permissions,fsname={NAME},subtype={NAME}");
    if allow_other {
        options.push_str(",allow_other");
    }
    let arguments = ["-o".into(), options.into(), "--".into(), path.into()];
    let running = start(&arguments, Stdio::from(OwnedFd::from(theirs)), path, "mount on")?;
    let received = receive(&ours);
    // It ends by itself after an error, and after it has sent the device.
    let ended = end(running, path, "mount on");
    match (received, ended) {
        (Ok(Some(device)), Ok(())) => Ok(device),
        (_, Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(failed(error)),
        (Ok(None), Ok(())) => Err(MountError::failed("mount on", path, "fusermount3 sent no device")),
    }
}

/// Removes a mount, even if files in it are open.
pub(super) fn unmount(path: &Path) -> MountResult<()> {
    let arguments = ["-u".into(), "-z".into(), "--".into(), path.into()];
    let running = start(&arguments, Stdio::null(), path, "unmount")?;
    end(running, path, "unmount")
}

struct Running {
    child: Child,
    complaints: std::sync::mpsc::Receiver<Vec<u8>>,
}

#[allow(
    clippy::disallowed_methods,
    reason = "this room starts the only child processes"
)]
fn start(arguments: &[OsString], input: Stdio, path: &Path, operation: &'static str) -> MountResult<Running> {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C");
    command.stdin(input).stdout(Stdio::null()).stderr(Stdio::piped());
    // Keeps the terminal's Ctrl-C from it.
    command.process_group(0);
    let started = command.spawn();
    let mut child = started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoProgram,
        _ => MountError::failed(operation, path, format!("cannot start {PROGRAM}: {error}")),
    })?;
    let complaints = drain(child.stderr.take(), COMPLAINT_LIMIT);
    Ok(Running { child, complaints })
}

/// Waits until it has ended, and kills it after the deadline.
fn end(mut running: Running, path: &Path, operation: &'static str) -> MountResult<()> {
    let status = wait::until(DEADLINE, STEP, || running.child.try_wait().transpose());
    let Some(status) = status else {
        // It may have ended just now. A program of root cannot be killed, nor waited for.
        let _ = running.child.kill();
        let what = format!("{PROGRAM} did not finish within {} s", DEADLINE.as_secs());
        return Err(MountError::failed(operation, path, what));
    };
    let status = status.map_err(|error| MountError::failed(operation, path, error))?;
    if status.success() {
        return Ok(());
    }
    let said = running.complaints.recv_timeout(DEADLINE).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = match said.is_empty() {
        true => format!("{PROGRAM} ended with {status}"),
        false => said,
    };
    Err(MountError::failed(operation, path, what))
}

/// Receives the open device; `None` if the other side closed the socket without sending one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let devices = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sent) => sent.next(),
        _ => None,
    });
    Ok(devices.last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::io::{IoSlice, Read, Write};
    use std::os::fd::AsFd;

    #[test]
    fn a_device_comes_over_the_socket_or_it_is_closed() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (mut held, sent) = UnixStream::pair().expect("a pair");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sent_now = [sent.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&sent_now)));
        sendmsg(&theirs, &[IoSlice::new(&[0])], &mut control, SendFlags::empty()).expect("sent");
        drop((theirs, sent));
        let device = receive(&ours).expect("received").expect("it was sent");
        held.write_all(b"x").expect("the other end is open");
        let mut byte = [0];
        UnixStream::from(device)
            .read_exact(&mut byte)
            .expect("it is the other end");
        assert_eq!(&byte, b"x");
        assert!(receive(&ours).expect("closed").is_none());
    }
}
