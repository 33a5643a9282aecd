//! A session with PostgreSQL: Debian's own `psql`, which is told statements and prints rows.
//!
//! psql opens a new connection by itself only where a person types. Here it ends when its connection does, so a session
//! that goes on has kept its one connection.

use std::{
    fs::File,
    io,
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::netns::NetNs;

/// Longer than any gap that could still be called one, and than a server begins a session.
const PATIENCE: Duration = Duration::from_secs(30);
const OPTIONS: [&str; 7] = [
    "--no-psqlrc",
    "--quiet",
    "--tuples-only",
    "--no-align",
    "--no-password",
    "--username=postgres",
    "--dbname=postgres",
];

/// A running psql. Killed when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    statements: ChildStdin,
    rows: BufReader<ChildStdout>,
    /// Where it complains.
    log: PathBuf,
}

impl Session {
    /// Starts psql in `netns`, and waits until the server answers. `log` takes what psql complains of.
    pub async fn open(netns: &NetNs, server: SocketAddrV4, log: &Path) -> Result<Self> {
        let complaints = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new("psql");
        command.args(OPTIONS).arg("--set=ON_ERROR_STOP=1");
        command.arg(format!("--host={}", server.ip())).arg(format!("--port={}", server.port()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints).kill_on_drop(true);
        let mut child = {
            let _entered = netns.enter()?;
            command.spawn().context("start psql (Debian's package postgresql-client)")?
        };
        let statements = child.stdin.take().context("psql has no input")?;
        let rows = BufReader::new(child.stdout.take().context("psql has no output")?);
        let mut session = Self { child, statements, rows, log: log.to_owned() };
        match &session.row("select 'ready'").await?[..] {
            "ready" => Ok(session),
            other => bail!("psql said {other:?}"),
        }
    }

    /// Says a statement that gives one row of one line, and waits for it.
    pub async fn row(&mut self, statement: &str) -> Result<String> {
        let exchange = async {
            self.statements.write_all(format!("{statement};\n").as_bytes()).await?;
            let mut line = String::new();
            if self.rows.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(line.trim_end_matches('\n').to_owned())
        };
        let row: io::Result<String> =
            timeout(PATIENCE, exchange).await.unwrap_or_else(|late| Err(late.into()));
        row.with_context(|| format!("{statement}: psql complains: {}", self.complaints()))
    }

    /// What psql has complained of: errors, and notices of the server.
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the session as psql ends it at the end of its input, and says whether psql found it well.
    pub async fn close(mut self) -> Result<bool> {
        drop(self.statements);
        let ended = timeout(PATIENCE, self.child.wait()).await.context("psql does not end")?;
        Ok(ended.context("wait for psql")?.success())
    }
}
