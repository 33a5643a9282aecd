//! The socket of the line protocol: each line gets one answer, in order.
//!
//! Every client has a task of its own, which reads one line, hands the request over and waits for the answer before it
//! reads the next line: a client can make this process keep no more than one line. A line that its client did not end is
//! not followed, however much it looks like a request: a client that dies in the middle of `commit 17` has not said
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

/// How many clients are served at once: a checkpointer, its tools, and an operator who looks.
const CLIENTS_MAX: usize = 16;
/// A client that does not take its answer for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A request, and where its answer goes.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// A bound socket, mode 0600. Its file is removed when it is dropped.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds at `path`, in place of a socket at which no process listens any more. Call it inside the runtime.
    ///
    /// # Errors
    /// When another process listens there, when the file is not a socket, or the file system refuses.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        let shown = path.display();
        make_room(path).with_context(|| format!("take the socket {shown}"))?;
        let bind = || -> Result<UnixListener> {
            // A socket's address has 108 bytes and a path may have more: so the socket is named from its directory.
            let name =
                path.file_name().context("it names no file")?.to_str().context("not UTF-8")?;
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let directory = File::open(parent.unwrap_or(Path::new(".")))?;
            let short = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            let listener = UnixListener::bind(&short)?;
            // A client that connects before this is checked like every other.
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("bind {shown}"))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Hands requests over until the future is dropped, or nobody takes requests any more. Run it as a task of its own.
    pub(super) async fn serve(self, requests: mpsc::Sender<Asked>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        while !requests.is_closed() {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // No descriptor is free. One will be, and to ask at once would spin.
                    warn!("accept on {}: {e}", self.path.display());
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !is_allowed(&stream) {
                continue;
            }
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                let full = Answer::error(
                    Code::Busy,
                    format!("{CLIENTS_MAX} clients are connected already"),
                );
                // The answer fits any socket's buffer, and a client that has gone does not miss it.
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

/// Returns whether the client may run the gate: root may, and this process's own user.
fn is_allowed(stream: &UnixStream) -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    let ours = unsafe { libc::geteuid() };
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == ours => true,
        Ok(peer) => {
            warn!("a client was refused: uid {} may not control this gate", peer.uid());
            false
        }
        Err(e) => {
            debug!("a client was refused, since its user is unknown: {e}");
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
                        // Also for a client that has ended its side and only listens.
                        asked.await
                    };
                    match answer {
                        Some(answer) => (answer, false),
                        None => return Ok(()),
                    }
                }
                Err(malformed) => (malformed.into(), false),
            },
            // Nobody knows where the next request begins.
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

/// Hands a request over, and returns the answer; `None` when the process is ending and nobody answers.
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
    /// A line, without its end.
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

/// Removes the socket of a process that has died.
fn make_room(path: &Path) -> Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    ensure!(found.file_type().is_socket(), "there is a file that is not a socket");
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
        Err(e) => Err(e.into()),
    }
}
