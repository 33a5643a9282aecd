//! The rig: a client, a switch and two hosts in network namespaces, and the words with which tests and
//! `cargo xtask run` speak about them.
//!
//! ```text
//!            client 10.77.0.1            guest 10.77.0.10, behind tap0 on br0 of whoever runs it
//!              | eth0
//!   switch   [sw0]------- primary -------- eth0 [br0] primary host  repl0 10.99.0.1
//!              |                                                      |  replication, a link of its own
//!              +--------- backup --------- eth0 [br0] backup host   repl0 10.99.0.2
//! ```
//!
//! Read it in this order: [`netns`] and [`links`] hold namespaces and talk to the kernel about links;
//! [`host`] is a machine that can die; [`topology`] is the drawing above; [`nest`] puts all of it into a PID
//! namespace, so that nothing can be left behind. [`client`] keeps a history of every request and reply and
//! judges it, [`http`] and [`psql`] are other clients, [`sniffer`] sees what leaves the hosts. [`remus`] starts the
//! daemons, [`pair`] is what tests say of them, [`peer`] is whoever speaks to them byte by byte, [`permits`]
//! earns what a gate wants to be shown, [`pty`] is a terminal
//! for one, [`story`] tells what `remus-rig run` does, [`report`] what came of it.
//! [`mod@bench`] is another thing: what the gate costs, what checkpoints do, and what others need for the same: [`qemu`]
//! and [`qmp`] drive QEMU, [`colo`] a pair of them. [`outlet`] brings what was written out of the lab.
//!
//! What it does not do: emulate delay or loss (the machines it runs on have no netem).

pub mod bench;
pub mod client;
pub mod colo;
pub mod guest;
pub mod host;
pub mod http;
pub mod links;
pub mod nest;
pub mod netns;
pub mod outlet;
pub mod pair;
pub mod peer;
pub mod permits;
pub mod progress;
pub mod psql;
pub mod pty;
pub mod qemu;
pub mod qmp;
pub mod remus;
pub mod report;
pub mod resp;
pub mod sniffer;
pub mod story;
pub mod sys;
pub mod topology;
