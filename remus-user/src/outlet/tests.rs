//! Outlets into files that take everything, nothing, and not for now.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::*;

fn pipe() -> (io::PipeReader, File) {
    let (reader, writer) = io::pipe().unwrap();
    (reader, File::from(OwnedFd::from(writer)))
}

#[test]
fn a_file_that_takes_nothing_costs_bytes_and_no_time() {
    let (mut reader, writer) = pipe();
    let outlet = Outlet::of_console("a pipe", writer).unwrap();
    // More than a pipe and two buffers hold.
    for _ in 0..(3 * CAPACITY / 1024) {
        outlet.put(&[b'x'; 1024]);
    }
    assert!(lost().1 > 0);
    let began = Instant::now();
    drop(outlet);
    assert!(began.elapsed() < 4 * LAST_WORDS, "{:?}", began.elapsed());
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert!(read.len() >= CAPACITY && read.len() < 3 * CAPACITY, "{}", read.len());
}

#[test]
fn bytes_come_out_raw_and_in_order_and_the_rest_of_them_at_the_end() {
    let (mut reader, writer) = pipe();
    let outlet = Outlet::of_console("a pipe", writer).unwrap();
    for byte in 0..=255 {
        outlet.put(&[byte]);
    }
    drop(outlet);
    let mut read = Vec::new();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, (0..=255).collect::<Vec<u8>>());
}

#[test]
fn lines_that_a_stalled_reader_missed_are_told_of_where_they_are_missing() {
    let (mut reader, writer) = pipe();
    let outlet = Outlet::start(Kind::Log, "a pipe", writer).unwrap();
    let line = [&[b'x'; 999][..], b"\n"].concat();
    let put = 3 * CAPACITY / line.len();
    for _ in 0..put {
        outlet.put(&line);
    }
    let read = std::thread::spawn(move || {
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        read
    });
    outlet.wait(Duration::from_secs(10));
    outlet.put(b"the last\n");
    drop(outlet);
    let read = read.join().unwrap();
    let (lines, notices): (Vec<_>, Vec<_>) = read.lines().partition(|line| line.len() == 999);
    let missing = put - lines.len();
    let notice = format!("remus: {missing} lines of the log are missing here");
    assert!(missing > 0);
    assert_eq!(notices, [notice.as_str(), "the last"]);
}

#[test]
fn a_log_whose_reader_has_gone_is_counted_line_by_line() {
    let (reader, writer) = pipe();
    drop(reader);
    let before = lost().0;
    let outlet = Outlet::start(Kind::Log, "a pipe", writer).unwrap();
    outlet.put(b"one\ntwo\n");
    drop(outlet);
    assert!(lost().0 >= before + 2);
}

#[test]
fn a_file_that_somebody_has_made_non_blocking_loses_nothing() {
    let (mut reader, writer) = pipe();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&writer);
    // SAFETY: a descriptor that is open, and flags.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    let outlet = Outlet::of_console("a pipe", writer).unwrap();
    // More than a pipe holds.
    outlet.put(&[b'x'; CAPACITY]);
    let mut read = vec![0; CAPACITY];
    reader.read_exact(&mut read).unwrap();
    drop(outlet);
}
