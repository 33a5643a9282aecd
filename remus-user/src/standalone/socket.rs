//! The socket of the line protocol: lines in, one answer each, in order.
//!
//! Every client has a task of its own that reads one line, hands the request over and waits for the answer before
//! it reads the next: what a client can make us keep is one line. A line that its client did not end is not
//! followed, however much it looks like a request: whoever dies in the middle of `commit 17` has not said
//! `commit 1`.

use std::{
    fs::{self, File, Permissions},
    future::pending,
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::ReadHalf},
    select,
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    answer::{Answer, Code},
    request::{LINE_BYTES_MAX, Request, parse},
};

/// Clients at once: a checkpointer, its tools, and an operator who looks.
const CLIENTS_MAX: usize = 16;
/// A client that does not take its answer for so long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A request, and where its answer goes.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A bound socket, mode 0600; its file goes when it is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds at `path`, in place of a socket that nobody listens at any more. Call it inside the runtime.
    ///
    /// # Errors
    /// When somebody listens there, when the file is no socket, or the file system refuses.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        make_room(path).with_context(|| format!("take the socket {shown}"))?;
        let bind = || -> Result<UnixListener> {
            // A socket's address has 108 bytes, a path may have more: name it from its directory.
            let name =
                path.file_name().context("it names no file")?.to_str().context("not UTF-8")?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let directory = File::open(parent.unwrap_or(Path::new(".")))?;
            let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            let listener = UnixListener::bind(&short)?;
            // Whoever connects before this is asked who he is, as everybody is.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("bind {shown}"))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Hands requests over until it is dropped, or nobody takes them any more. Run it as a task of its own.
    pub(super) async fn serve(self, requests: mpsc::Sender<Asked>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        while !requests.is_closed() {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // No descriptor is free: they come back, and asking at once would spin.
                    warn!("accept on {}: {e}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !is_allowed(&stream) {
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                let full = Answer::error(Code::Busy, format!("{CLIENTS_MAX} clients are served"));
                // Small enough for any socket's buffer; a client that is not there does not miss it.
                stream.try_write(format!("{full}\n").as_bytes()).ok();
                continue;
            };
            let requests = requests.clone();
            tokio::spawn(async move {
                if let Err(e) = converse(stream, &requests).await {
                    debug!("client: {e}");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            debug!("remove {}: {e}", self.path.display());
        }
    }
}

/// Root and the user that we are may drive the gate.
fn is_allowed(stream: &UnixStream) -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let ours = unsafe { libc::geteuid() };
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == ours => true,
        Ok(peer) => {
            warn!("uid {} may not drive this gate", peer.uid());
            false
        }
        Err(e) => {
            debug!("a client of which nobody knows who it is: {e}");
            false
        }
    }
}

/// Serves one client until it hangs up, or nobody takes requests any more.
async fn converse(mut stream: UnixStream, requests: &mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::with_capacity(LINE_BYTES_MAX, read);
    let mut line = Vec::with_capacity(LINE_BYTES_MAX);
    loop {
        line.clear();
        let (answer, last) = match next_line(&mut read, &mut line).await? {
            Line::Whole(bytes) => match parse(bytes) {
                Ok(request) => {
                    let asked = ask(request, requests);
                    let answer = if request == Request::Wait {
                        select! {
                            answer = asked => answer,
                            () = hung_up(&mut read) => None,
                        }
                    } else {
                        // Also to a client that will ask no more: it has ended its side, and listens.
                        asked.await
                    };
                    match answer {
                        Some(answer) => (answer, false),
                        None => return Ok(()),
                    }
                }
                Err(malformed) => (malformed.into(), false),
            },
            // Where the next request begins nobody knows.
            Line::TooLong => {
                let text = format!("a request has at most {LINE_BYTES_MAX} bytes");
                (Answer::error(Code::TooLong, text), true)
            }
            Line::End => return Ok(()),
        };
        timeout(WRITE_TIMEOUT, write.write_all(format!("{answer}\n").as_bytes())).await??;
        if last {
            return Ok(());
        }
    }
}

/// `None` when nobody answers any more: the process is ending.
async fn ask(request: Request, requests: &mpsc::Sender<Asked>) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    requests.send(Asked { request, reply }).await.ok()?;
    answer.await.ok()
}

/// Returns when the client has hung up; never, once it has sent more.
async fn hung_up(read: &mut BufReader<ReadHalf<'_>>) {
    match read.fill_buf().await {
        Ok([]) | Err(_) => {}
        Ok(_) => pending().await,
    }
}

enum Line<'a> {
    /// Without its end.
    Whole(&'a [u8]),
    TooLong,
    /// The client has hung up, perhaps in the middle of a line.
    End,
}

async fn next_line<'a>(
    read: &mut BufReader<ReadHalf<'_>>,
    line: &'a mut Vec<u8>,
) -> io::Result<Line<'a>> {
    read.take(LINE_BYTES_MAX as u64).read_until(b'\n', line).await?;
    Ok(match line.split_last() {
        Some((b'\n', whole)) => Line::Whole(whole),
        Some(_) if line.len() == LINE_BYTES_MAX => Line::TooLong,
        Some(_) | None => Line::End,
    })
}

/// Removes the socket of somebody who has died.
fn make_room(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    ensure!(found.file_type().is_socket(), "it is there, and is no socket");
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("somebody listens there"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(e) => Err(e.into()),
    }
}
