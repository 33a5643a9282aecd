//! `stamp`: the engine `nfqueue` at the tap's ingress. Marks a fresh IP frame with its epoch and passes it;
//! netfilter holds it. Everything else is the business of `hold`.
//!
//! Untagged IPv4 and IPv6 always meet the IP layer's prerouting hook, through br_netfilter where the tap is a
//! bridge's port. ARP, LLDP, anything with a VLAN tag do not: the buffer takes them. Which way a frame goes
//! depends on nothing but its ethertype, so that frames of one flow keep their order.
//!
//! A marked frame that comes by a way without that hook (somebody has turned br_netfilter off) is dropped by the rules'
//! last chain, where nothing may be marked any more.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, programs::TcContext};
use remus_abi::{
    gate::{Control, Counter, MARK_TAG, MARK_TAG_MASK},
    queue,
};

use crate::{
    hold,
    maps::{ControlWords, HOLD, OPEN, count},
};

const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(control) = ControlWords::get() else { return hold::judge(ctx) };
    // SAFETY: the context of this run; the verifier turns each into a read of the frame's own fields.
    let (mark, protocol, tagged) =
        unsafe { ((*skb).mark, (*skb).protocol, (*skb).vlan_present != 0) };
    let mode = control.word(Control::Mode);
    let queued = (mode == HOLD || mode == OPEN) && control.word(Control::Queueing) != 0;
    if queued && mark & MARK_TAG_MASK != MARK_TAG && is_ip(protocol) && !tagged {
        ctx.skb.set_mark(queue::mark(control.open(), control.turns()));
        count(Counter::Held);
        return TC_ACT_UNSPEC;
    }
    hold::judge(ctx)
}

/// Whether `protocol`, as `__sk_buff` has it, is IPv4 or IPv6.
#[inline(always)]
pub fn is_ip(protocol: u32) -> bool {
    protocol == ETH_P_IP || protocol == ETH_P_IPV6
}
