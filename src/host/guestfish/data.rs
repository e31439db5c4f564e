//! The content of files, as it comes through the named pipe while a command runs.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::io::Errno;

use super::{Guestfish, HostError, News, Result};

/// Reads the bytes that a command writes to the pipe, and its answer. The inner error is that of
/// `read`; after it, `guestfish` can no longer be used.
pub(super) fn receive<T>(
    fish: &mut Guestfish<'_>,
    command: &[&[u8]],
    read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
) -> Result<io::Result<T>> {
    let mut data = Data {
        fish,
        command,
        is_answered: false,
        failure: None,
    };
    let result = read(&mut data);
    let result = match result {
        // A format may end before its stream does. Only after the answer it is known to be whole.
        Ok(value) => io::copy(&mut data, &mut io::sink()).map(|_| value),
        Err(error) => Err(error),
    };
    match data.failure {
        Some(failure) => Err(failure),
        None => Ok(result),
    }
}

/// What a command writes. It ends when the command has answered and the pipe is empty.
struct Data<'s, 'a> {
    fish: &'s mut Guestfish<'a>,
    command: &'s [&'s [u8]],
    is_answered: bool,
    /// The first failure, which every later read repeats.
    failure: Option<HostError>,
}

impl Data<'_, '_> {
    fn try_read(&mut self, out: &mut [u8]) -> Result<usize> {
        loop {
            if self.fish.setup.stop.requested() {
                return Err(HostError::Stopped);
            }
            let Some(pipe) = &self.fish.pipe else {
                return Err(self.fish.failure("read"));
            };
            match rustix::io::read(pipe, &mut *out) {
                Ok(length) if length > 0 => {
                    self.fish.last_news = Instant::now();
                    return Ok(length);
                }
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => {
                    return Err(HostError::io("read", &self.fish.pipe_path, errno.into()));
                }
            }
            if self.is_answered {
                return Ok(0);
            }
            // guestfish answers after it has closed its end of the pipe. So after the answer, the
            // pipe holds the rest.
            match self.fish.look(self.command)? {
                News::Answered => self.is_answered = true,
                News::Waiting => self
                    .fish
                    .wait_for_news(self.fish.pipe.as_ref().map(AsFd::as_fd))?,
            }
        }
    }
}

impl Read for Data<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.failure.is_none() {
            match self.try_read(out) {
                Ok(length) => return Ok(length),
                Err(error) => self.failure = Some(error),
            }
        }
        Err(io::Error::other("guestfish failed"))
    }
}
