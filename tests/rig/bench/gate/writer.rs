//! The guest's side of the tap: a thread on a CPU of its own that writes frames as a VMM's device does, one
//! `write` each, as fast as it goes or at a pace.
//!
//! A paced writer can be made to rest between two frames, as a VMM's device thread does in a pause: whoever
//! asked knows then that every frame written so far is in the gate.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use remus_abi::sink::Probe;

use super::{clocks, frames::Template};
use crate::sys;

/// What to write.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) frame: Template,
    /// [`Probe::tag`] of its frames.
    pub(super) tag: u32,
    /// Nanoseconds between frames; `None`: as fast as it goes, and no frame says when it was sent.
    pub(super) pace_ns: Option<u64>,
    /// It ends by itself after so many.
    pub(super) frames_max: u32,
}

/// What became of an order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) frames: u32,
    /// Writes that the kernel refused; they are among the frames.
    pub(super) refused: u32,
    /// CPU time of the writer's thread, in which the kernel did what a write sets off.
    pub(super) cpu_ns: u64,
}

#[derive(Debug)]
pub(super) struct Writer {
    orders: Option<Sender<Order>>,
    done: Receiver<Written>,
    signals: Arc<Signals>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Signals {
    /// The order is over.
    stop: AtomicBool,
    /// No frame until this is false again.
    rest: AtomicBool,
    /// It is between two frames and will not write while `rest` is set.
    rests: AtomicBool,
    /// Frames written of the present order.
    written: AtomicU32,
}

impl Writer {
    /// A writer into `tap`, on CPU `cpu`, with nothing to do yet.
    pub(super) fn on(cpu: usize, tap: OwnedFd) -> Result<Self> {
        let (orders, todo) = mpsc::channel();
        let (report, done) = mpsc::channel();
        let signals = Arc::new(Signals { rests: AtomicBool::new(true), ..Signals::default() });
        let theirs = Arc::clone(&signals);
        let work = move || {
            let pinned = sys::use_only_cpu(cpu);
            for order in todo {
                if let Err(error) = &pinned {
                    panic!("the writer's CPU {cpu}: {error}");
                }
                if report.send(carry_out(order, &tap, &theirs)).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("writer".to_owned()).spawn(work);
        let thread = Some(thread.context("start the writer")?);
        Ok(Self { orders: Some(orders), done, signals, thread })
    }

    pub(super) fn begin(&self, order: Order) -> Result<()> {
        self.signals.stop.store(false, Ordering::SeqCst);
        self.signals.written.store(0, Ordering::SeqCst);
        let orders = self.orders.as_ref().expect("until it is dropped");
        orders.send(order).context("the writer has died")
    }

    /// Waits until the order is carried out.
    pub(super) fn finish(&self) -> Result<Written> {
        self.done.recv().context("the writer has died")
    }

    /// Ends the order.
    pub(super) fn stop(&self) -> Result<Written> {
        self.signals.stop.store(true, Ordering::SeqCst);
        self.finish()
    }

    /// Lets `act` happen while no frame is on its way into the tap, and tells it how many were written.
    pub(super) fn while_it_rests<T>(&self, act: impl FnOnce(u32) -> T) -> T {
        self.signals.rest.store(true, Ordering::SeqCst);
        while !self.signals.rests.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        let result = act(self.signals.written.load(Ordering::SeqCst));
        self.signals.rest.store(false, Ordering::SeqCst);
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.signals.stop.store(true, Ordering::SeqCst);
        drop(self.orders.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("bench: the writer panicked");
        }
    }
}

impl Signals {
    fn rest_if_asked(&self) {
        while self.rest.load(Ordering::SeqCst) {
            self.rests.store(true, Ordering::SeqCst);
            while self.rest.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            // Whoever asks from here on sees that it works, or is seen by the loop.
            self.rests.store(false, Ordering::SeqCst);
        }
    }
}

fn carry_out(order: Order, tap: &OwnedFd, signals: &Signals) -> Written {
    let Order { mut frame, tag, pace_ns, frames_max } = order;
    let cpu_before_ns = clocks::thread_cpu_ns();
    let mut due_ns = clocks::monotonic_ns();
    let (mut sequence, mut refused) = (0, 0);
    signals.rests.store(false, Ordering::SeqCst);
    while sequence < frames_max && !signals.stop.load(Ordering::Relaxed) {
        signals.rest_if_asked();
        let mut sent_ns = 0;
        if let Some(pace_ns) = pace_ns {
            sent_ns = clocks::monotonic_ns();
            if sent_ns < due_ns {
                std::hint::spin_loop();
                continue;
            }
            due_ns += pace_ns;
        }
        let bytes = frame.with(Probe { tag, sequence, sent_ns });
        if write(tap, bytes).is_err() {
            refused += 1;
        }
        sequence += 1;
        signals.written.store(sequence, Ordering::Release);
    }
    signals.rests.store(true, Ordering::SeqCst);
    Written { frames: sequence, refused, cpu_ns: clocks::thread_cpu_ns() - cpu_before_ns }
}

fn write(tap: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the buffer lives during the call, and is as long as the length says.
    let result = unsafe { libc::write(tap.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
