//! `ack`: releases on the word of a datagram, where the backup's acks arrive.
//!
//! It sits at the ingress of the primary's link to its backup. A genuine commit ack raises what is committed and
//! renews the lease, under the flush lock, and flushes at once, in softirq: no thread has to wake up. The same
//! ack on the bulk connection is the truth still, and does what is left.
//!
//! - A stranger's frame costs a comparison of its length and passes untouched. So does a datagram of another
//!   session: it may be of another guest's.
//! - A datagram that names the session is consumed: nobody else has use for a genuine one, whose bytes the flush
//!   has overwritten, and nobody should see the others.
//! - Only the words `Acked` are written here, and only under the flush lock: the controller, `turn` and another CPU's
//!   `ack` do not meet.
//! - A controller that ends a term takes the session out first and then runs `turn`. Whatever a datagram did before
//!   `turn` had the lock is forgotten by it, and no datagram of that session does anything after.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::{bpf_ktime_get_boot_ns, bpf_set_hash_invalid, bpf_skb_adjust_room},
    programs::TcContext,
};
use remus_abi::{
    ack::{
        AckCounter, AckKey, Acked, Claim, DATAGRAM_LEN, DATAGRAM_WORDS, Genuine, Known, Trigger,
        examine,
    },
    gate::Control,
};

use crate::{
    flush,
    maps::{AckedWords, ControlWords, HOLD, RingWords, TriggerWords, count_ack, try_lock, unlock},
};

const ETH_HLEN: usize = 14;
const UDP_HLEN: usize = 8;
const IPV4_HLEN: usize = 20;
const IPV6_HLEN: usize = 40;
const IPPROTO_UDP: u8 = 17;
/// `skb->protocol`, in network order.
const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
/// UDP header and datagram.
#[expect(clippy::cast_possible_truncation, reason = "tens of bytes")]
const UDP_LEN: u16 = (UDP_HLEN + DATAGRAM_LEN) as u16;
#[expect(clippy::cast_possible_truncation, reason = "tens of bytes")]
const IPV4_FRAME: u32 = (ETH_HLEN + IPV4_HLEN + UDP_HLEN + DATAGRAM_LEN) as u32;
#[expect(clippy::cast_possible_truncation, reason = "tens of bytes")]
const IPV6_FRAME: u32 = (ETH_HLEN + IPV6_HLEN + UDP_HLEN + DATAGRAM_LEN) as u32;
/// More-fragments and the offset.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// Taken out of the datagram before frames are written into it: see [`blank`].
const STRIPPED: i32 = 56;

#[inline(always)]
pub fn judge(ctx: &TcContext) -> i32 {
    let Some(trigger) = TriggerWords::get() else { return TC_ACT_UNSPEC };
    let session = trigger.word(Trigger::Session);
    if session == 0 {
        return TC_ACT_UNSPEC;
    }
    let Some(words) = payload(ctx, trigger.word(Trigger::Port)) else { return TC_ACT_UNSPEC };
    let key = AckKey([trigger.word(Trigger::KeyLow), trigger.word(Trigger::KeyHigh)]);
    let Some(control) = ControlWords::get() else { return TC_ACT_UNSPEC };
    let outcome = match examine(&words, session, key) {
        Claim::Foreign => return TC_ACT_UNSPEC,
        Claim::OtherSession => {
            count_ack(AckCounter::OtherSession);
            return TC_ACT_UNSPEC;
        }
        Claim::BadTag => AckCounter::BadTag,
        Claim::Genuine(genuine) => take(ctx, control, trigger, genuine),
    };
    count_ack(outcome);
    TC_ACT_SHOT
}

/// Moves the gate as far as a genuine datagram allows.
#[inline(always)]
fn take(
    ctx: &TcContext,
    control: ControlWords,
    trigger: TriggerWords,
    genuine: Genuine,
) -> AckCounter {
    let (Some(ring), Some(acked)) = (RingWords::get(), AckedWords::get()) else {
        return AckCounter::LeftToController;
    };
    if control.word(Control::Mode) != HOLD || !try_lock() {
        return AckCounter::LeftToController;
    }
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let known = Known { open: control.open(), committed: control.committed(), now_ns };
    let outcome = match genuine.judge(known) {
        // Asked again under the lock: once `turn` has had it, the session that was read before is over.
        Ok(()) if trigger.word(Trigger::Session) == 0 => AckCounter::LeftToController,
        Ok(()) => {
            let until = genuine.sent_ns.saturating_add(trigger.word(Trigger::LeaseNs));
            if until > acked.word(Acked::LeaseUntil) {
                acked.set(Acked::LeaseUntil, until);
            }
            acked.set(Acked::At, now_ns);
            acked.set(Acked::Stamp, genuine.stamp.bits());
            if blank(ctx) {
                // Whatever it leaves behind, the controller's flush of the same ack finds.
                flush::locked(ctx, control, ring);
            }
            AckCounter::Taken
        }
        Err(why) => why,
    };
    unlock();
    outcome
}

/// The words of the datagram in this frame, if it has the form of one: whole, untagged, and to `port`.
#[inline(always)]
fn payload(ctx: &TcContext, port: u64) -> Option<[u64; DATAGRAM_WORDS]> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the context of this run; the verifier turns the reads into those of the skb.
    let (len, protocol, tagged) =
        unsafe { ((*skb).len, (*skb).protocol, (*skb).vlan_present != 0) };
    if tagged {
        return None;
    }
    let udp = match (protocol, len) {
        (ETH_P_IP, IPV4_FRAME) => ipv4_udp(ctx)?,
        (ETH_P_IPV6, IPV6_FRAME) => ipv6_udp(ctx)?,
        _ => return None,
    };
    let [_, _, port_high, port_low, len_high, len_low, _, _] =
        ctx.load::<[u8; UDP_HLEN]>(udp).ok()?;
    if u16::from_be_bytes([port_high, port_low]) as u64 != port
        || u16::from_be_bytes([len_high, len_low]) != UDP_LEN
    {
        return None;
    }
    let words = ctx.load::<[u64; DATAGRAM_WORDS]>(udp + UDP_HLEN).ok()?;
    Some(words.map(u64::from_le))
}

/// Where the UDP header begins behind an IPv4 header without options, of a packet that is no fragment.
#[inline(always)]
fn ipv4_udp(ctx: &TcContext) -> Option<usize> {
    let ip = ctx.load::<[u8; IPV4_HLEN]>(ETH_HLEN).ok()?;
    let whole = u16::from_be_bytes([ip[2], ip[3]]) as usize == IPV4_HLEN + UDP_LEN as usize
        && u16::from_be_bytes([ip[6], ip[7]]) & IPV4_FRAGMENT == 0;
    (ip[0] == 0x45 && whole && ip[9] == IPPROTO_UDP).then_some(ETH_HLEN + IPV4_HLEN)
}

/// The same behind an IPv6 header without extensions.
#[inline(always)]
fn ipv6_udp(ctx: &TcContext) -> Option<usize> {
    let ip = ctx.load::<[u8; IPV6_HLEN]>(ETH_HLEN).ok()?;
    let whole = u16::from_be_bytes([ip[4], ip[5]]) == UDP_LEN;
    (ip[0] >> 4 == 6 && whole && ip[6] == IPPROTO_UDP).then_some(ETH_HLEN + IPV6_HLEN)
}

/// Makes the datagram's buffer as neutral as a fresh one, for frames to be written into: what the stack still
/// believes of it would be believed of them. Taking more than the network and UDP headers out of the front
/// leaves no transport header, below which a frame could not be shortened, and no checksum to be filled in or
/// verified (`bpf_skb_generic_pop` and `__bpf_skb_min_len` in net/core/filter.c, 6.18; on a virtual cable a
/// datagram arrives with both). The hash of the datagram's flow is not that of the frames.
#[inline(always)]
fn blank(ctx: &TcContext) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context of this run; the helpers check the rest.
    unsafe {
        bpf_set_hash_invalid(skb);
        bpf_skb_adjust_room(skb, -STRIPPED, BPF_ADJ_ROOM_MAC, 0) == 0
    }
}
