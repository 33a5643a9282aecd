//! The status socket: RUN_DIR/VM/status.sock, mode 0600 in a directory of mode 0700.
//!
//! A client sends one line (`status`, `status since EPOCH`, or an [`Order`]), gets one JSON document, and is disconnected.
//! The answer to an order that was followed is `{"done": "..."}`. The answer to an order that is refused, and to a line that
//! is not understood, is `{"error": "..."}`. A client that exceeds a limit is disconnected: 128 bytes for the request, two
//! seconds for the whole exchange, 16 clients at once.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use remus_abi::Epoch;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, oneshot},
};

use super::{
    Asked, Order, Shared, VmDir,
    status::Status,
    vm_dir::{Holder, STATUS_SOCKET, below, holder, open_directory},
};
use crate::names::VmName;

const REQUEST_BYTES_MAX: u64 = 128;
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);
const CLIENTS_MAX: usize = 16;
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A bound status socket. Its file is removed when it is dropped.
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Binds in `directory`, in place of the socket that an earlier instance left: the claim proves that instance dead.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn bind(directory: &VmDir) -> Result<Self> {
        let path = directory.path().join(STATUS_SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove the stale {}", path.display()));
            }
            Err(_) | Ok(()) => {}
        }
        let bind = || -> io::Result<UnixListener> {
            let listener =
                UnixListener::bind(below(&open_directory(directory.path())?, STATUS_SOCKET))?;
            // Up to here the directory's mode has kept others out.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("bind {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Answers from `shared` until the future is dropped; an operator's order goes to `follow`. Run it as a task of its own.
    ///
    /// # Errors
    /// When this runtime does not take the listener.
    pub async fn serve(
        self,
        shared: Arc<Shared>,
        follow: impl Fn(Asked) + Clone + Send + 'static,
    ) -> Result<()> {
        let listener = self.listener.try_clone().context("clone the status socket")?;
        let listener = tokio::net::UnixListener::from_std(listener)
            .context("give the status socket to the runtime")?;
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // No descriptor is free. One will be, and to ask at once would spin.
                    tracing::warn!("accept on the status socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else { continue };
            let (shared, follow) = (Arc::clone(&shared), follow.clone());
            tokio::spawn(async move {
                let answered = answer(stream, &shared, follow);
                match tokio::time::timeout(EXCHANGE_TIMEOUT, answered).await {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => tracing::debug!("status client: {e}"),
                    Err(_) => tracing::debug!("status client: too slow"),
                }
                drop(permit);
            });
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::debug!("remove {}: {e}", self.path.display());
        }
    }
}

async fn answer(
    mut stream: tokio::net::UnixStream,
    shared: &Shared,
    follow: impl Fn(Asked),
) -> io::Result<()> {
    let mut line = Vec::new();
    let (read, mut write) = stream.split();
    let mut read = read.take(REQUEST_BYTES_MAX);
    while !line.contains(&b'\n') && read.read_buf(&mut line).await? > 0 {}
    let error = |problem: String| serde_json::to_vec(&serde_json::json!({ "error": problem }));
    let mut json = match parse(&line) {
        Ok(Request::Status(since)) => serde_json::to_vec(&shared.status(since))?,
        Ok(Request::Order(order)) => {
            let (answer, answered) = oneshot::channel();
            follow(Asked { order, answer });
            match answered.await {
                Ok(Ok(done)) => serde_json::to_vec(&serde_json::json!({ "done": done }))?,
                Ok(Err(refused)) => error(refused)?,
                Err(_) => error("the VM ends".to_owned())?,
            }
        }
        Err(problem) => error(problem)?,
    };
    json.push(b'\n');
    write.write_all(&json).await?;
    write.shutdown().await
}

/// What a line asks for.
enum Request {
    /// With the epoch after `since`, if the line has one.
    Status(Option<Epoch>),
    Order(Order),
}

fn parse(line: &[u8]) -> Result<Request, String> {
    const USAGE: &str = "ask `status`, `status since EPOCH` or `unprotect HOST`, and end the line";
    let line = line.strip_suffix(b"\n").ok_or(USAGE)?;
    let line = std::str::from_utf8(line).map_err(|_| USAGE)?;
    match line.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
        ["status"] => Ok(Request::Status(None)),
        ["status", "since", epoch] => {
            let epoch = epoch.parse().ok().and_then(Epoch::new);
            let epoch = epoch.ok_or_else(|| format!("no such epoch; {USAGE}"))?;
            Ok(Request::Status(Some(epoch)))
        }
        words => Order::parse(words).map(Request::Order).ok_or_else(|| USAGE.into()),
    }
}

/// Asks the VM `vm` under `run_dir` for its status. Blocks for a few seconds at most.
///
/// # Errors
/// When no such VM runs, this user may not ask, the VM's process does not answer, or the answer is not a status.
pub fn query(run_dir: &Path, vm: &VmName, since: Option<Epoch>) -> Result<Status> {
    let directory = run_dir.join(vm.as_str());
    let line = match since {
        Some(epoch) => format!("status since {epoch}\n"),
        None => "status\n".to_owned(),
    };
    let answer = match exchange(&directory, &line) {
        Ok(answer) => answer,
        Err(e) => bail!("{}", unanswered(run_dir, vm, &e)),
    };
    serde_json::from_str(&answer).with_context(|| {
        format!(
            "VM {vm} did not answer with a status, but with {:?}",
            answer.get(..80).unwrap_or(&answer)
        )
    })
}

/// Orders the VM `vm` under `run_dir` to do something; returns what was done, in words. Blocks for at most some seconds.
///
/// # Errors
/// As those of [`query`], and when the order is refused; says why.
pub fn order(run_dir: &Path, vm: &VmName, order: &Order) -> Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Answer {
        Done(String),
        Error(String),
    }
    let answer = match exchange(&run_dir.join(vm.as_str()), &order.line()) {
        Ok(answer) => answer,
        Err(e) => bail!("{}", unanswered(run_dir, vm, &e)),
    };
    match serde_json::from_str(&answer) {
        Ok(Answer::Done(done)) => Ok(done),
        Ok(Answer::Error(why)) => bail!("VM {vm}: {why}"),
        Err(_) => bail!("VM {vm} gave no answer but {:?}", answer.get(..80).unwrap_or(&answer)),
    }
}

fn exchange(directory: &Path, line: &str) -> io::Result<String> {
    let mut stream = connect(&below(&open_directory(directory)?, STATUS_SOCKET))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    (&mut stream).take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// Connects, with a limit on every wait from the beginning: where no process accepts, the kernel lets the hundredth caller
/// wait for a place.
fn connect(path: &Path) -> io::Result<UnixStream> {
    // SAFETY: plain socket(2); the result is checked.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let stream = UnixStream::from(crate::os::owned(fd)?);
    stream.set_read_timeout(Some(EXCHANGE_TIMEOUT))?;
    stream.set_write_timeout(Some(EXCHANGE_TIMEOUT))?;
    // SAFETY: sockaddr_un is plain data.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    let path = path.as_os_str().as_bytes();
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: a whole address with a terminated path, which lives during the call.
    let result = unsafe { libc::connect(stream.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(stream) } else { Err(io::Error::last_os_error()) }
}

/// Says why a VM has not answered.
fn unanswered(run_dir: &Path, vm: &VmName, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound if !run_dir.is_dir() => {
            format!("no VM {vm} runs here: there is no directory {}", run_dir.display())
        }
        io::ErrorKind::NotFound => {
            let socket = run_dir.join(vm.as_str()).join(STATUS_SOCKET);
            format!("no VM {vm} runs here: there is no {}", socket.display())
        }
        io::ErrorKind::ConnectionRefused => {
            format!("VM {vm} does not run: it left its status socket behind when it died")
        }
        io::ErrorKind::PermissionDenied => {
            format!("only the user that runs VM {vm} may see its status: try sudo")
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => match holder(run_dir, vm) {
            Ok(Holder::Process(Some(pid))) if is_stopped(pid) => format!(
                "VM {vm} does not answer: its process {pid} is stopped (kill -CONT {pid} lets it go on)"
            ),
            Ok(Holder::Process(Some(pid))) => format!(
                "VM {vm} does not answer: its process {pid} is alive, and has sent nothing for {} s",
                EXCHANGE_TIMEOUT.as_secs()
            ),
            Ok(Holder::Process(None) | Holder::Nobody) | Err(_) => format!(
                "VM {vm} does not answer: it has sent nothing for {} s",
                EXCHANGE_TIMEOUT.as_secs()
            ),
        },
        _ => format!("VM {vm} cannot be asked for its status: {error}"),
    }
}

/// Returns whether a signal or a debugger has stopped the process.
fn is_stopped(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['T', 't']))
}

#[cfg(test)]
mod tests;
