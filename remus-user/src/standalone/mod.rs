//! A gate alone, on any tap, for another checkpointer: `remus gate run`.
//!
//! The checkpointer pauses its guest, takes checkpoints and keeps them as it likes. Over a unix socket it says when an
//! epoch ends and when the epoch's checkpoint is kept. The gate then treats the guest's output as it treats that of our own
//! VMs. docs/gate.md has the protocol.
//!
//! One task owns the gate and follows one request after another, so that the requests of several clients have an order;
//! the tasks for clients only deliver requests. [`request`] and [`answer`] are pure, and so is the brain
//! (`replication::Standalone`).
//!
//! Deliberately absent: any judgement on whether a checkpoint is kept, on silence, or on who may speak for the
//! guest.

mod answer;
mod keeper;
mod request;
mod socket;
mod start;

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Builder,
    select,
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::info;

pub(crate) use self::answer::mode_name;
use self::{
    keeper::{FLUSH_PAUSE, Keeper},
    request::Request,
    socket::{Asked, Socket},
};
use crate::{
    gate::Settings,
    names::{LinkName, VmName},
    observe::VmDir,
    signals::Ends,
};

/// The socket's name in the gate's own directory.
pub const SOCKET: &str = "gate.sock";
/// How often the kernel is asked whether the gate is in front of its tap while no request comes.
const TICK: Duration = Duration::from_millis(20);
/// Requests that wait for the gate's task; each client has at most one.
const WAITING_MAX: usize = 16;

/// What to do with the gate when its controller is told to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum AtExit {
    /// Shut it and leave it on the tap: nothing gets out until another controller takes it over
    Close,
    /// Leave it as it is: it goes on holding frames, for a controller that follows at once
    Keep,
    /// Take it off the tap: frames pass from then on
    Remove,
}

/// The options of `remus gate run`, checked.
#[derive(Clone, Debug)]
pub struct StandaloneOptions {
    pub run_dir: PathBuf,
    /// The gate's directory below `run_dir`.
    pub name: VmName,
    pub tap: LinkName,
    /// The socket for requests; `None` for [`SOCKET`] in the gate's directory.
    pub socket: Option<PathBuf>,
    /// For a gate that is made here; a gate that is taken over keeps its own settings.
    pub settings: Settings,
    /// The longest lease that may be asked for; `None` when releases need no lease.
    pub lease_max: Option<Duration>,
    pub at_exit: AtExit,
}

/// Drives the gate until SIGTERM or SIGINT.
///
/// # Errors
/// When the tap cannot be guarded, another controller has the gate, or the kernel refuses; with what to do.
pub fn run(options: &StandaloneOptions) -> Result<()> {
    let directory = VmDir::claim(&options.run_dir, &options.name)?;
    let keeper = start::keeper(options, &directory)?;
    let socket = options.socket.clone().unwrap_or_else(|| directory.path().join(SOCKET));
    let runtime = Builder::new_current_thread().enable_all().build().context("start tokio")?;
    let keeper = runtime.block_on(async {
        // Before the socket: whoever can reach this process can then also end it in order.
        let ends = Ends::new()?;
        let (requests_in, requests) = mpsc::channel(WAITING_MAX);
        let bound = Socket::bind(&socket)?;
        info!("the gate on {} listens at {}", options.tap, socket.display());
        tokio::spawn(bound.serve(requests_in));
        keep(keeper, requests, ends).await
    })?;
    // The socket goes first, so that nobody is told anything about a gate that is going away.
    drop(runtime);
    match options.at_exit {
        AtExit::Close => keeper.end_closed(),
        AtExit::Keep => keeper.end_kept(),
        AtExit::Remove => keeper.end_removed()?,
    }
    Ok(())
}

/// Runs the loop of the task that owns the gate, until a signal ends it.
async fn keep(
    mut keeper: Keeper,
    mut requests: mpsc::Receiver<Asked>,
    mut ends: Ends,
) -> Result<Keeper> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let bell = bell_of(&keeper)?;
    // The clients that wait for the gate to fill: each waits once at most.
    let mut waiting: Vec<Asked> = Vec::new();
    loop {
        let mut filling = false;
        select! {
            () = ends.next() => return Ok(keeper),
            Some(asked) = requests.recv() => match asked.request {
                Request::Wait if !keeper.is_filling() => {
                    waiting.retain(|asked| !asked.reply.is_closed());
                    waiting.push(asked);
                }
                // What a client has asked for counts even if the client has gone meanwhile.
                request => { asked.reply.send(keeper.handle(request)).ok(); }
            },
            rung = bell.readable() => {
                rung.context("wait for the gate")?.clear_ready();
                filling = keeper.take_filling();
            }
            _ = tick.tick() => keeper.tick(),
            () = sleep(FLUSH_PAUSE), if keeper.is_flushing() => keeper.flush(),
        }
        // A gate that is lost will not fill any more.
        if filling || !waiting.is_empty() && keeper.is_filling() {
            for Asked { request, reply } in waiting.drain(..) {
                reply.send(keeper.handle(request)).ok();
            }
        }
    }
}

/// What wakes the loop when the gate fills.
fn bell_of(keeper: &Keeper) -> Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and the same descriptor, for as long as the AsyncFd has it.
    let bell = unsafe { AsyncFd::register_with_interest(keeper.bell()?, Interest::READABLE) };
    bell.context("wait for the gate")
}
