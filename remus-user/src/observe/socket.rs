//! The status socket: RUN_DIR/VM/status.sock, mode 0600 in a directory of mode 0700.
//!
//! One line in (`status`, or `status since EPOCH`), one JSON document out, closed. A line that is not
//! understood is answered with `{"error": "..."}`. Limits: a request of 64 bytes, two seconds for the whole
//! exchange, 16 clients at once; whoever exceeds them is disconnected.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use remus_abi::Epoch;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};

use super::{
    Shared, VmDir,
    status::Status,
    vm_dir::{below, open_directory},
};
use crate::wire::VmName;

pub(super) const NAME: &str = "status.sock";
const REQUEST_BYTES_MAX: u64 = 64;
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(2);
const CLIENTS_MAX: usize = 16;
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A bound status socket; its file goes when it is dropped.
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Binds in `directory`, in place of what an earlier instance left: the claim says that it is dead.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn bind(directory: &VmDir) -> Result<Self> {
        let path = directory.path().join(NAME);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove the stale {}", path.display()));
            }
            Err(_) | Ok(()) => {}
        }
        let bind = || -> io::Result<UnixListener> {
            let listener = UnixListener::bind(below(&open_directory(directory.path())?, NAME))?;
            // Until here the directory's mode kept others out.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().with_context(|| format!("bind {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Answers from `shared` until it is dropped. Run it as a task of its own.
    ///
    /// # Errors
    /// When the listener cannot be given to this runtime.
    pub async fn serve(self, shared: Arc<Shared>) -> Result<()> {
        let listener = self.listener.try_clone().context("clone the status socket")?;
        let listener = tokio::net::UnixListener::from_std(listener)
            .context("give the status socket to the runtime")?;
        let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // No descriptor is free: they come back, and asking at once would spin.
                    tracing::warn!("accept on the status socket: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&clients).try_acquire_owned() else { continue };
            let shared = Arc::clone(&shared);
            tokio::spawn(async move {
                match tokio::time::timeout(EXCHANGE_TIMEOUT, answer(stream, &shared)).await {
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

async fn answer(mut stream: tokio::net::UnixStream, shared: &Shared) -> io::Result<()> {
    let mut line = Vec::new();
    let (read, mut write) = stream.split();
    let mut read = read.take(REQUEST_BYTES_MAX);
    while !line.contains(&b'\n') && read.read_buf(&mut line).await? > 0 {}
    let mut json = match parse(&line) {
        Ok(since) => serde_json::to_vec(&shared.status(since))?,
        Err(problem) => serde_json::to_vec(&serde_json::json!({ "error": problem }))?,
    };
    json.push(b'\n');
    write.write_all(&json).await?;
    write.shutdown().await
}

/// The epoch after `since`, if the line has one.
fn parse(line: &[u8]) -> Result<Option<Epoch>, String> {
    const USAGE: &str = "ask `status` or `status since EPOCH`, and end the line";
    let line = line.strip_suffix(b"\n").ok_or(USAGE)?;
    let line = std::str::from_utf8(line).map_err(|_| USAGE)?;
    match line.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
        ["status"] => Ok(None),
        ["status", "since", epoch] => {
            let epoch = epoch.parse().ok().and_then(Epoch::new);
            epoch.map(Some).ok_or_else(|| format!("no such epoch; {USAGE}"))
        }
        _ => Err(USAGE.into()),
    }
}

/// Asks the VM `vm` under `run_dir` how it stands. Blocks for at most two seconds.
///
/// # Errors
/// When no such VM runs, this user may not ask, or the answer is late or not understood.
pub fn query(run_dir: &Path, vm: &VmName, since: Option<Epoch>) -> Result<Status> {
    let directory = run_dir.join(vm.as_str());
    let connect = || UnixStream::connect(below(&open_directory(&directory)?, NAME));
    let mut stream = match connect() {
        Ok(stream) => stream,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            bail!("no VM {vm} runs here: there is no {}", directory.join(NAME).display())
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            bail!("VM {vm} does not run: it left its status socket behind when it died")
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            bail!("only the user that runs VM {vm} may ask for its status: try sudo")
        }
        Err(e) => return Err(e).with_context(|| format!("ask VM {vm}")),
    };
    let mut exchange = || -> io::Result<String> {
        stream.set_read_timeout(Some(EXCHANGE_TIMEOUT))?;
        stream.set_write_timeout(Some(EXCHANGE_TIMEOUT))?;
        match since {
            Some(epoch) => stream.write_all(format!("status since {epoch}\n").as_bytes())?,
            None => stream.write_all(b"status\n")?,
        }
        let mut answer = String::new();
        (&mut stream).take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(|| format!("ask VM {vm} for its status"))?;
    serde_json::from_str(&answer).with_context(|| {
        format!("VM {vm} gave no status but {:?}", answer.get(..80).unwrap_or(&answer))
    })
}

#[cfg(test)]
mod tests;
