//! The writing end of an outlet: the only place where a file is waited for.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};

use super::{Kind, complaint::Complaint};
use crate::os::boot_now;

/// Writes into an outlet's file, and counts what the file refuses.
pub(super) struct Pump {
    kind: Kind,
    name: String,
    file: File,
    /// For the log: the number of lines that are missing at this place in the file.
    missing: u64,
    /// For the log: whether the file took the beginning of a line and refused the rest.
    is_torn: bool,
    /// For a console.
    complaint: Complaint,
}

impl Pump {
    pub(super) fn new(kind: Kind, name: &str, file: File) -> Self {
        let complaint = Complaint::default();
        Self { kind, name: name.to_owned(), file, missing: 0, is_torn: false, complaint }
    }

    /// Writes `bytes`. After them, `missing` units found no room.
    pub(super) fn write(&mut self, bytes: &[u8], missing: u64) {
        match self.kind {
            Kind::Log => self.write_lines(bytes, missing),
            Kind::Console => self.write_bytes(bytes, missing),
        }
    }

    /// Writes each line by itself, so that other writers of the same pipe come between lines and not into them.
    fn write_lines(&mut self, bytes: &[u8], missing: u64) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let gap = self.missing;
            if gap > 0 {
                // A notice that is lost is not counted as another loss.
                let notice = format!("remus: {gap} lines of the log are missing here\n");
                if self.write_line(notice.as_bytes()) {
                    self.missing = 0;
                }
            }
            if self.missing > 0 || !self.write_line(line) {
                self.missing += 1;
                Kind::Log.count_lost(1);
            }
        }
        // These were counted when they found no room.
        self.missing += missing;
    }

    /// Returns whether the file has the line.
    fn write_line(&mut self, line: &[u8]) -> bool {
        // A torn line is ended before anything else is written.
        if self.is_torn && write_patiently(&self.file, b"\n").is_ok() {
            self.is_torn = false;
        }
        if self.is_torn {
            return false;
        }
        match write_patiently(&self.file, line) {
            Ok(()) => true,
            Err(Unwritten { left, .. }) => {
                self.is_torn = left < line.len();
                false
            }
        }
    }

    fn write_bytes(&mut self, bytes: &[u8], missing: u64) {
        if missing > 0 {
            self.complaint.add(missing, "no room was left");
        }
        if let Err(Unwritten { left, error }) = write_patiently(&self.file, bytes) {
            Kind::Console.count_lost(left as u64);
            self.complaint.add(left as u64, &error.to_string());
        }
        if let Some(text) = self.complaint.poll(boot_now()) {
            tracing::warn!("console: {}: {text}", self.name);
        }
    }
}

/// A write that has failed.
#[derive(Debug)]
pub(crate) struct Unwritten {
    /// Bytes that the file has not taken.
    pub(crate) left: usize,
    pub(crate) error: io::Error,
}

/// Writes all of `bytes`, and waits for the file as long as that takes, even if another process that shares the file has
/// made it non-blocking.
///
/// # Errors
/// When the file refuses.
pub(crate) fn write_patiently(mut file: impl Write + AsFd, bytes: &[u8]) -> Result<(), Unwritten> {
    let mut left = bytes;
    while !left.is_empty() {
        let error = match file.write(left) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(written) => {
                left = &left[written..];
                continue;
            }
            Err(e) => e,
        };
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => wait_for_room(&file),
            _ => return Err(Unwritten { left: left.len(), error }),
        }
    }
    Ok(())
}

fn wait_for_room(file: &impl AsFd) {
    let mut fd = libc::pollfd { fd: file.as_fd().as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd that lives during the call. Whatever it says, the next write says more.
    unsafe { libc::poll(&raw mut fd, 1, -1) };
}
