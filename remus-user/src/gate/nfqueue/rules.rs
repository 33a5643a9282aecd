//! The rules that bring stamped frames into the queue and, behind it, before the second lock.
//!
//! Tables of our own in nf_tables, by the tap's name. Those of IPv4 and IPv6, at prerouting:
//!
//! ```text
//! hold   from this tap, stamped           -> queue, no bypass: without a listener the frame is dropped
//! lock   from this tap, `lock` refuses it -> drop
//!        from this tap, stamped           -> clear the mark
//! stray  stamped                          -> drop: no gate took it, it came by a way that none watches
//! ```
//!
//! "From this tap" is by its own name, and as the bridge's port that the frame came in by (br_netfilter). They
//! come before all that hosts usually have there, defragmentation above all: fragments of two epochs must
//! not be joined before they are held. Other gates' tables have the same priorities, so that every `hold` and every
//! `lock` is passed before the first `stray`.
//!
//! The third table is the bridge's: what leaves it, to another port or to the host, is dropped if it is still stamped.
//! That is so when br_netfilter was turned off, and nothing else about a bridge can bring it about.
//!
//! All goes in, and out, in one transaction. Nothing of anybody else's rules is read, rewritten or depended upon. Where
//! the kernel can (6.9), the tables have an owner, our socket, and outlive it: `nft flush ruleset` by a firewall
//! that restarts then leaves them alone.
//!
//! Pure.

use super::{
    message::QueueNumber,
    netlink::{ACK, APPEND, CREATE, DUMP, Reply, Requests, attributes},
};

use remus_abi::queue::{QUEUE_TAG, QUEUE_TAG_MASK};

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Families of tables, as nf_tables numbers them.
const BRIDGE: u8 = 7;
/// IPv4 and IPv6. Not both in one (`inet`): some matches of x_tables exist for each, and not for that.
const IP: [u8; 2] = [2, 10];
const FAMILIES: [u8; 3] = [BRIDGE, IP[0], IP[1]];
const PREROUTING: u32 = 0;
/// Of the first chain; conntrack's defragmentation has -400.
pub(super) const FIRST_PRIORITY: i32 = -10_000;
const CHAINS: [&str; 3] = ["hold", "lock", "stray"];
/// Where frames leave a bridge: chain, and hook.
const BRIDGE_EXITS: [(&str, u32); 2] = [("local", 1), ("forward", 2)];

/// Attribute 1 of messages about tables, chains and rules is the table's name.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const GENERATION_ID: u16 = 1;

const OWNED: u32 = 2;
const OUTLIVES_OWNER: u32 = 4;

const VERDICT_DROP: u32 = 0;
const POLICY_DROP: u32 = 0;
const POLICY_ACCEPT: u32 = 1;
/// NFPROTO_INET, NFPROTO_IPV4.
const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
/// NF_INET_FORWARD.
const FORWARD: u32 = 2;
const VERDICT_REGISTER: u32 = 0;
/// A register of 16 bytes.
const REGISTER: u32 = 1;
const META_MARK: u32 = 3;
const META_IN_NAME: u32 = 6;

/// How a rule says "into the queue".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Statement {
    /// nf_tables' own statement (CONFIG_NFT_QUEUE).
    Queue,
    /// The target of x_tables, through nf_tables' compatibility layer (CONFIG_NFT_COMPAT).
    Target,
}

/// What the second lock asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Second {
    /// The eBPF program with this descriptor in our process.
    Program(i32),
    /// A program that refuses nothing: to find out whether the kernel takes such a rule.
    Nothing,
}

/// What the tables are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Plan<'a> {
    pub(super) tap: &'a str,
    pub(super) queue: QueueNumber,
    pub(super) second: Second,
    pub(super) statement: Statement,
    /// Whether the kernel knows tables that have an owner and outlive it.
    pub(super) owned: bool,
}

/// One transaction that puts the tables in, in the place of those that an earlier gate of this tap may have left.
pub(super) fn install(plan: &Plan<'_>) -> Requests {
    let table = table_of(plan.tap);
    transaction(|batch| {
        for family in FAMILIES {
            clear(batch, family, &table, plan.owned);
            new_table(batch, family, &table, plan.owned);
        }
        for family in IP {
            for (at, name) in (0..).zip(CHAINS) {
                new_chain(batch, family, &table, name, PREROUTING, FIRST_PRIORITY + at);
            }
            for from in [From::Link(plan.tap), From::Port(plan.tap)] {
                rule(batch, family, &table, "hold", |list| {
                    from.expressions(list);
                    stamped(list);
                    to_queue(list, plan.statement, plan.queue);
                });
                rule(batch, family, &table, "lock", |list| {
                    from.expressions(list);
                    refused_by(list, plan.second);
                    drop_frame(list);
                });
                rule(batch, family, &table, "lock", |list| {
                    from.expressions(list);
                    stamped(list);
                    clear_mark(list);
                });
            }
            rule(batch, family, &table, "stray", drop_stamped);
        }
        for (name, hook) in BRIDGE_EXITS {
            new_chain(batch, BRIDGE, &table, name, hook, FIRST_PRIORITY);
            rule(batch, BRIDGE, &table, name, drop_stamped);
        }
    })
}

/// One transaction that takes the tables of `tap` out, if they are there.
pub(super) fn remove(tap: &str, owned: bool) -> Requests {
    let table = table_of(tap);
    transaction(|batch| {
        for family in FAMILIES {
            clear(batch, family, &table, owned);
        }
    })
}

/// Asks for the number of the last transaction of anybody in this network namespace.
pub(super) fn get_generation() -> Requests {
    let mut requests = Requests::default();
    requests.message(kind(GET_GENERATION), 0, 0, 0);
    requests
}

/// The number that a reply to [`get_generation`] tells.
pub(super) fn generation_in(reply: &Reply<'_>) -> Option<u32> {
    let Reply::Data { kind: found, attributes: bytes, .. } = reply else { return None };
    let (_, value) = attributes(bytes)
        .find(|(attribute, _)| *found == kind(NEW_GENERATION) && *attribute == GENERATION_ID)?;
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// Asks for all tables, all chains, all rules: one after another, a socket has one dump at a time.
pub(super) fn dumps() -> [Requests; 3] {
    [GET_TABLE, GET_CHAIN, GET_RULE].map(|what| {
        let mut requests = Requests::default();
        requests.message(kind(what), DUMP, 0, 0);
        requests
    })
}

/// What stands for one of the tables of `tap`, a chain or a rule of it in a dump, without what changes by itself.
/// Two dumps that give the same are of the same rules, in force.
pub(super) fn ours_in(reply: &Reply<'_>, tap: &str) -> Option<Vec<u8>> {
    let Reply::Data { kind: found, family, attributes: bytes, .. } = reply else { return None };
    let lasting: &[u16] = match *found {
        found if found == kind(NEW_TABLE) => &[TABLE_FLAGS],
        found if found == kind(NEW_CHAIN) => &[CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE],
        found if found == kind(NEW_RULE) => &[RULE_CHAIN, RULE_EXPRESSIONS],
        _ => return None,
    };
    let (_, name) = attributes(bytes).find(|(attribute, _)| *attribute == TABLE)?;
    if name.strip_suffix(&[0]) != Some(table_of(tap).as_bytes()) {
        return None;
    }
    let mut standing = vec![*family];
    standing.extend(found.to_ne_bytes());
    for (attribute, value) in attributes(bytes).filter(|(it, _)| lasting.contains(it)) {
        standing.extend(attribute.to_ne_bytes());
        standing.extend(value);
    }
    Some(standing)
}

/// A chain of somebody else's that sees, and may mark, a frame before our first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Earlier {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) priority: i32,
}

/// The chain in a dump that comes before those of any gate.
pub(super) fn earlier_in(reply: &Reply<'_>) -> Option<Earlier> {
    let chain = BaseChain::in_dump(reply)?;
    let BaseChain { hook, priority, .. } = chain;
    let earlier = Earlier { table: chain.text(TABLE)?, chain: chain.text(CHAIN_NAME)?, priority };
    let ours = earlier.table.starts_with(TABLE_PREFIX) && priority == FIRST_PRIORITY;
    (hook == PREROUTING && priority <= FIRST_PRIORITY && !ours).then_some(earlier)
}

/// The chain in a dump that drops whatever IPv4 packet is forwarded and no rule of its own accepts: its table's name and
/// its own.
pub(super) fn forward_drop_in(reply: &Reply<'_>) -> Option<String> {
    let chain = BaseChain::in_dump(reply)?;
    let is_asked = matches!(chain.family, FAMILY_INET | FAMILY_IPV4) && chain.hook == FORWARD;
    let policy = u32::from_be_bytes(chain.value(CHAIN_POLICY)?.try_into().ok()?);
    if !is_asked || policy != POLICY_DROP {
        return None;
    }
    Some(format!("table {}, chain {}", chain.text(TABLE)?, chain.text(CHAIN_NAME)?))
}

/// A chain in a dump that netfilter calls by itself.
struct BaseChain<'a> {
    family: u8,
    hook: u32,
    priority: i32,
    attributes: &'a [u8],
}

impl<'a> BaseChain<'a> {
    fn in_dump(reply: &Reply<'a>) -> Option<Self> {
        let Reply::Data { kind: found, family, attributes, .. } = *reply else { return None };
        if found != kind(NEW_CHAIN) {
            return None;
        }
        let chain = Self { family, hook: 0, priority: 0, attributes };
        let hook = chain.value(CHAIN_HOOK)?;
        let in_hook = |wanted: u16| {
            let (_, value) = self::attributes(hook).find(|(it, _)| *it == wanted)?;
            Some(u32::from_be_bytes(value.try_into().ok()?))
        };
        let priority = in_hook(HOOK_PRIORITY)?.cast_signed();
        Some(Self { hook: in_hook(HOOK_NUMBER)?, priority, ..chain })
    }

    fn value(&self, wanted: u16) -> Option<&'a [u8]> {
        attributes(self.attributes).find(|(it, _)| *it == wanted).map(|(_, value)| value)
    }

    fn text(&self, wanted: u16) -> Option<String> {
        Some(String::from_utf8_lossy(self.value(wanted)?.strip_suffix(&[0])?).into_owned())
    }
}

const TABLE_PREFIX: &str = "remus-";

fn table_of(tap: &str) -> String {
    format!("{TABLE_PREFIX}{tap}")
}

fn kind(message: u16) -> u16 {
    SUBSYSTEM << 8 | message
}

fn transaction(body: impl FnOnce(&mut Requests)) -> Requests {
    let mut batch = Requests::default();
    batch.message(BATCH_BEGIN, 0, 0, SUBSYSTEM);
    body(&mut batch);
    batch.message(BATCH_END, 0, 0, SUBSYSTEM);
    batch
}

/// No table of this name, whether there was one or not: a table that is made first can be deleted in any case. Making
/// one that is there and whose owner has died takes it over.
fn clear(batch: &mut Requests, family: u8, table: &str, owned: bool) {
    new_table(batch, family, table, owned);
    batch.message(kind(DELETE_TABLE), ACK, family, 0).string(TABLE, table);
}

fn new_table(batch: &mut Requests, family: u8, table: &str, owned: bool) {
    let flags = if owned { OWNED | OUTLIVES_OWNER } else { 0 };
    let message = batch.message(kind(NEW_TABLE), ACK | CREATE, family, 0);
    message.string(TABLE, table).number(TABLE_FLAGS, flags);
}

fn new_chain(batch: &mut Requests, family: u8, table: &str, name: &str, hook: u32, priority: i32) {
    let message = batch.message(kind(NEW_CHAIN), ACK | CREATE, family, 0);
    message.string(TABLE, table).string(CHAIN_NAME, name);
    message.nest(CHAIN_HOOK, |it| {
        it.number(HOOK_NUMBER, hook).number(HOOK_PRIORITY, priority.cast_unsigned());
    });
    message.number(CHAIN_POLICY, POLICY_ACCEPT).string(CHAIN_TYPE, "filter");
}

fn rule(
    batch: &mut Requests,
    family: u8,
    table: &str,
    chain: &str,
    expressions: impl FnOnce(&mut Requests),
) {
    let message = batch.message(kind(NEW_RULE), ACK | CREATE | APPEND, family, 0);
    message.string(TABLE, table).string(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, expressions);
}

/// The two ways in which a frame comes from a tap. By name: a tap that was made again has another index.
#[derive(Clone, Copy)]
enum From<'a> {
    Link(&'a str),
    /// Through the bridge that the tap is a port of.
    Port(&'a str),
}

impl From<'_> {
    /// Goes on only with such frames.
    fn expressions(self, list: &mut Requests) {
        match self {
            Self::Link(tap) => {
                load(list, META_IN_NAME);
                equals(list, &padded(tap));
            }
            Self::Port(tap) => expression(list, "match", |it| {
                // struct xt_physdev_info: name in, mask, name out, mask, inverted, which to look at; aligned to 8.
                const WHERE_FROM: u8 = 1;
                let mut info = [0; 72];
                info[..16].copy_from_slice(&padded(tap));
                info[16..32].fill(0xff);
                info[65] = WHERE_FROM;
                it.string(1, "physdev").number(2, 0).attribute(3, &info);
            }),
        }
    }
}

fn padded(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn drop_stamped(list: &mut Requests) {
    stamped(list);
    drop_frame(list);
}

fn expression(list: &mut Requests, name: &str, data: impl FnOnce(&mut Requests)) {
    list.nest(1, |element| {
        element.string(1, name).nest(2, data);
    });
}

/// Goes on only with frames that have the mark of this engine.
fn stamped(list: &mut Requests) {
    load(list, META_MARK);
    expression(list, "bitwise", |it| {
        it.number(1, REGISTER).number(2, REGISTER).number(3, 4);
        it.nest(4, |mask| {
            mask.attribute(1, &QUEUE_TAG_MASK.to_ne_bytes());
        });
        it.nest(5, |xor| {
            xor.attribute(1, &[0; 4]);
        });
    });
    equals(list, &QUEUE_TAG.to_ne_bytes());
}

fn load(list: &mut Requests, key: u32) {
    expression(list, "meta", |it| {
        it.number(1, REGISTER).number(2, key);
    });
}

fn equals(list: &mut Requests, value: &[u8]) {
    expression(list, "cmp", |it| {
        it.number(1, REGISTER).number(2, 0).nest(3, |data| {
            data.attribute(1, value);
        });
    });
}

fn to_queue(list: &mut Requests, statement: Statement, queue: QueueNumber) {
    match statement {
        Statement::Queue => expression(list, "queue", |it| {
            it.attribute(1, &queue.0.to_be_bytes()).attribute(2, &1u16.to_be_bytes());
        }),
        Statement::Target => expression(list, "target", |it| {
            // struct xt_NFQ_info, aligned to 8.
            let mut info = [0; 8];
            info[..2].copy_from_slice(&queue.0.to_ne_bytes());
            it.string(1, "NFQUEUE").number(2, 0).attribute(3, &info);
        }),
    }
}

/// Goes on only with frames that the second lock refuses: x_tables' `bpf` match, revision 1.
fn refused_by(list: &mut Requests, second: Second) {
    // struct xt_bpf_info_v1: mode u16, instructions u16, descriptor s32, 512 bytes of program or path, a
    // pointer that the kernel fills in.
    const INFO: usize = 8 + 512 + 8;
    const BYTECODE: u16 = 0;
    const DESCRIPTOR: u16 = 2;
    // BPF_RET | BPF_K, and 0: matches nothing.
    const RETURN_0: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0];

    let mut info = [0; INFO];
    match second {
        Second::Program(descriptor) => {
            info[..2].copy_from_slice(&DESCRIPTOR.to_ne_bytes());
            info[4..8].copy_from_slice(&descriptor.to_ne_bytes());
        }
        Second::Nothing => {
            info[..2].copy_from_slice(&BYTECODE.to_ne_bytes());
            info[2..4].copy_from_slice(&1u16.to_ne_bytes());
            info[8..16].copy_from_slice(&RETURN_0);
        }
    }
    expression(list, "match", |it| {
        it.string(1, "bpf").number(2, 1).attribute(3, &info);
    });
}

fn drop_frame(list: &mut Requests) {
    expression(list, "immediate", |it| {
        it.number(1, VERDICT_REGISTER).nest(2, |data| {
            data.nest(2, |verdict| {
                verdict.number(1, VERDICT_DROP);
            });
        });
    });
}

fn clear_mark(list: &mut Requests) {
    expression(list, "immediate", |it| {
        it.number(1, REGISTER).nest(2, |data| {
            data.attribute(1, &[0; 4]);
        });
    });
    expression(list, "meta", |it| {
        it.number(2, META_MARK).number(3, REGISTER);
    });
}
