//! The output commit gateway: what runs in the kernel.
//!
//! `hold` sits at the ingress of the guest's tap, where the guest's frames enter the host. A fresh frame is
//! stamped with the open epoch, copied into the buffer and dropped. `flush`, run by the controller under
//! BPF_PROG_TEST_RUN after a commit ack, sends what is committed back into the same ingress; `hold` sees it
//! a second time, proves it against the slot it came from, and lets it pass to bridge, router and firewall
//! as if it had only now arrived. Where the operator has named an uplink, `flush` sends straight out of it
//! instead, and `guard` at the uplink's egress is the one who proves.
//!
//! ```text
//! guest -> tap ingress -> hold --copy--> buffer --committed--> flush -----> uplink egress -> guard -> wire
//!                          ^ |                                  |
//!                          | +--proven--> bridge                |
//!                          +------------ BPF_F_INGRESS ---------+
//! ```
//!
//! The engine `nfqueue` puts `stamp` where `hold` sits. It is `hold` with one more branch: an IP frame is not
//! copied but marked and passed on to netfilter, which keeps it in a queue; once a batch verdict of the
//! controller lets it go on, `lock` proves its mark.
//!
//! ```text
//! guest -> tap ingress -> stamp --mark--> prerouting -> queue --verdict--> lock --> bridge or router
//!                           `--what is not plain IP: as `hold` does
//! ```
//!
//! Invariants (the names are those of `remus_abi::gate`):
//! - A frame passes `hold` only when the mode is `Open` and nothing is held, or when its slot is `Sent`, of the
//!   number in the mark, and [`remus_abi::may_leave`] lets its stamp leave. `guard` lets a frame with our mark pass
//!   by the same proof, and does not touch any other.
//! - Two programs judge every release: a mistake in one loses a frame, which TCP repairs; only the same
//!   mistake in both would leak one, which nothing repairs.
//! - `tail <= next <= head`; slots in `[tail, next)` are Free or Sent, in `[next, head)` Held. One producer
//!   moves `head` (the one queue of the tap); `next` and `tail` are moved by whoever has the flush lock (a try-lock).
//! - The guest's bytes are in a map of their own and are only ever copied.
//! - Zeroed maps are a closed gate.
//!
//! `ack`, where the operator wants it, sits at the ingress of the link to the backup and does what the
//! controller would do a moment later: it raises what is committed, and flushes. `turn`, run by the controller when a
//! term ends, forgets what `ack` was told in it, and throws away what is not to be kept for the next one.
//!
//! Deliberately absent: reordering, rate limits, any look into the payload. What the guest sent comes out,
//! as it was, in order, later.
#![no_std]
#![no_main]
#![allow(
    unreachable_pub,
    reason = "the programs' entry points are found by their section, not by path"
)]

mod ack;
mod flush;
mod guard;
mod hold;
mod lock;
mod maps;
mod stamp;
mod turn;

use aya_ebpf::{
    macros::{classifier, socket_filter},
    programs::{SkBuffContext, TcContext},
};

#[classifier]
pub fn hold(ctx: TcContext) -> i32 {
    hold::judge(&ctx)
}

#[classifier]
pub fn flush(ctx: TcContext) -> i32 {
    flush::run(&ctx) as i32
}

#[classifier]
pub fn turn(ctx: TcContext) -> i32 {
    turn::run(&ctx) as i32
}

#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    guard::judge(&ctx)
}

#[classifier]
pub fn ack(ctx: TcContext) -> i32 {
    ack::judge(&ctx)
}

#[classifier]
pub fn stamp(ctx: TcContext) -> i32 {
    stamp::judge(&ctx)
}

#[socket_filter]
pub fn lock(ctx: SkBuffContext) -> i64 {
    lock::judge(&ctx).into()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would not load a program with a loop that never ends.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
