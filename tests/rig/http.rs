//! One HTTP/1.1 connection that is kept alive: a page is asked for, and read whole before the next.
//!
//! As much of HTTP as a static page takes: a status, header fields, a body of the length that they say.

use std::{io, net::SocketAddrV4, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::netns::NetNs;

/// Longer than any gap that could still be called one.
const PATIENCE: Duration = Duration::from_secs(30);
/// More than any page that the rig asks for.
const PAGE_LIMIT: usize = 1 << 20;
const HEAD_LIMIT: usize = 1 << 14;

/// What a server answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Page {
    pub status: u16,
    fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Page {
    /// The value of a header field, whose name is written in any case.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.fields, name)
    }
}

/// A connection to a web server.
#[derive(Debug)]
pub struct Browser {
    stream: TcpStream,
    server: SocketAddrV4,
    received: Vec<u8>,
}

impl Browser {
    /// Connects from `netns`.
    pub async fn open(netns: &NetNs, server: SocketAddrV4) -> io::Result<Self> {
        let connected = timeout(PATIENCE, netns.connect(server)).await;
        let stream = connected.map_err(|_| io::ErrorKind::TimedOut)??;
        Ok(Self { stream, server, received: Vec::new() })
    }

    /// Asks for the page at `path` and waits until all of it is there.
    pub async fn get(&mut self, path: &str) -> io::Result<Page> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.server.ip());
        let exchange = async {
            self.stream.write_all(request.as_bytes()).await?;
            loop {
                let parsed = parse(&self.received).map_err(io::Error::other)?;
                if let Some((page, length)) = parsed {
                    self.received.drain(..length);
                    return Ok(page);
                }
                if self.stream.read_buf(&mut self.received).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        timeout(PATIENCE, exchange).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

/// The page at the head of `bytes` and its length, `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Page, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        let endless = bytes.len() > HEAD_LIMIT;
        return if endless { Err("the head has no end".to_owned()) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "the head is not text")?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| format!("it begins with {first:?}"))?;
    let fields = lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| format!("a field {line:?}"))?;
            Ok((name.to_owned(), value.trim().to_owned()))
        })
        .collect::<Result<Vec<_>, String>>()?;
    let length = field(&fields, "Content-Length").and_then(|length| length.parse().ok());
    let length: usize = length.ok_or_else(|| format!("no length in {head:?}"))?;
    if length > PAGE_LIMIT {
        return Err(format!("a page of {length} bytes"));
    }
    let Some(body) = bytes.get(end + 4..end + 4 + length) else { return Ok(None) };
    Ok(Some((Page { status, fields, body: body.to_vec() }, end + 4 + length)))
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let (_, value) = fields.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &[u8] =
        b"HTTP/1.1 200 OK\r\nServer: nginx\r\ncontent-length: 5\r\nX-Connection: 3 7\r\n\r\nhello";

    #[test]
    fn a_page_is_read_whole_and_never_from_a_part() {
        for part in 0..PAGE.len() {
            assert_eq!(parse(&PAGE[..part]), Ok(None), "{part}");
        }
        let more = [PAGE, b"HTTP/1.1 "].concat();
        let (page, length) = parse(&more).unwrap().unwrap();
        assert_eq!((page.status, &page.body[..], length), (200, &b"hello"[..], PAGE.len()));
        assert_eq!((page.field("x-connection"), page.field("Date")), (Some("3 7"), None));
    }

    #[test]
    fn what_is_no_page_or_has_no_bound_is_refused() {
        for bad in [
            "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n",
            "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(&[b'x'; HEAD_LIMIT + 1]).is_err());
    }
}
