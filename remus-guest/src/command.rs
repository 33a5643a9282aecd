//! The commands: a table of names, argument counts and functions.
//!
//! Errors are worded as Redis words them, so that its clients recognise them. Beside Redis's own:
//!
//! ```text
//! WORK START shape region_pages bytes_per_page pages_per_second
//! WORK STOP
//! WORK STAT          [running, progress, shape, region_pages, bytes_per_page, pages_per_second]
//! BEACON START period_ms
//! BEACON STOP
//! BEACON             the newest counter
//! DIGEST             16 hexadecimal digits over the whole store
//! TIME               nanoseconds of the paravirtual clock, an integer
//! POWEROFF           replies, then ends the machine on purpose
//! REBOOT             replies, then begins anew with nothing
//! INFO               has a section "Remus": clock_ns, vcpus, vcpus_started, work_*, beacon_*, retransmits_forced,
//!                    doorbells, sleeps; work_progress is the sum of work_progress_0, _1 ..., one a vCPU
//! ```
//!
//! `WORK START` replies at once and first touches the region's new pages; progress grows after that.
//! Shapes, and what a rate of 0 means: [`work`](crate::work); who does which part: [`crew`](crate::crew).

use alloc::string::String;
use core::fmt::Write;
use core::str::FromStr;

use remus_abi::boot::PowerOff;

use crate::info;
use crate::node::{Node, Outcome};
use crate::resp::{Args, Reply, parse_i64};
use crate::store::{End, Score, StoreError};
use crate::work::{Plan, PlanError, Shape};

/// One line of the table.
struct Command {
    /// In lower case.
    name: &'static str,
    /// Arguments with the name: exactly `n`, or at least `-n` if negative. Redis counts so.
    arity: i32,
    run: Run,
}

/// What a command may need. The kinds keep the functions' signatures to what they use.
enum Run {
    /// Answers from its arguments, the node and the time.
    Plain(fn(&mut Node<'_>, Args<'_>, &mut Reply<'_>, u64)),
    /// Works on the store; a refusal is the reply.
    Store(fn(&mut Node<'_>, Args<'_>, &mut Reply<'_>) -> Result<(), StoreError>),
    /// Replies `OK` and ends something.
    End(Outcome),
}

/// Sorted by name.
const COMMANDS: &[Command] = &[
    Command { name: "append", arity: 3, run: Run::Store(append) },
    Command { name: "beacon", arity: -1, run: Run::Plain(beacon) },
    Command { name: "client", arity: -2, run: Run::Plain(client) },
    Command { name: "command", arity: -1, run: Run::Plain(|_, _, reply, _| reply.array(0)) },
    Command { name: "config", arity: -2, run: Run::Plain(config) },
    Command { name: "dbsize", arity: 1, run: Run::Plain(dbsize) },
    Command { name: "decr", arity: 2, run: Run::Store(|n, a, r| add(n, a, r, -1)) },
    Command { name: "del", arity: -2, run: Run::Plain(del) },
    Command { name: "digest", arity: 1, run: Run::Plain(digest) },
    Command {
        name: "echo",
        arity: 2,
        run: Run::Plain(|_, args, reply, _| reply.bulk(args.get(1))),
    },
    Command { name: "exists", arity: -2, run: Run::Plain(exists) },
    Command { name: "flushall", arity: -1, run: Run::Plain(flushall) },
    Command { name: "flushdb", arity: -1, run: Run::Plain(flushall) },
    Command { name: "get", arity: 2, run: Run::Store(get) },
    Command { name: "getset", arity: 3, run: Run::Store(getset) },
    Command { name: "hget", arity: 3, run: Run::Store(hget) },
    Command {
        name: "hlen",
        arity: 2,
        run: Run::Store(|n, a, r| len(n.store.hash_len(a.get(1)), r)),
    },
    Command { name: "hset", arity: -4, run: Run::Store(hset) },
    Command { name: "incr", arity: 2, run: Run::Store(|n, a, r| add(n, a, r, 1)) },
    Command { name: "incrby", arity: 3, run: Run::Store(incrby) },
    Command { name: "info", arity: -1, run: Run::Plain(info) },
    Command {
        name: "llen",
        arity: 2,
        run: Run::Store(|n, a, r| len(n.store.list_len(a.get(1)), r)),
    },
    Command { name: "lpop", arity: 2, run: Run::Store(|n, a, r| pop(n, a, r, End::Left)) },
    Command { name: "lpush", arity: -3, run: Run::Store(|n, a, r| push(n, a, r, End::Left)) },
    Command { name: "lrange", arity: 4, run: Run::Store(lrange) },
    Command { name: "mget", arity: -2, run: Run::Plain(mget) },
    Command { name: "mset", arity: -3, run: Run::Store(mset) },
    Command { name: "ping", arity: -1, run: Run::Plain(ping) },
    Command { name: "poweroff", arity: 1, run: Run::End(Outcome::Leave(PowerOff::Done)) },
    Command { name: "quit", arity: -1, run: Run::End(Outcome::Close) },
    Command { name: "reboot", arity: 1, run: Run::End(Outcome::Leave(PowerOff::Reset)) },
    Command { name: "rpop", arity: 2, run: Run::Store(|n, a, r| pop(n, a, r, End::Right)) },
    Command { name: "rpush", arity: -3, run: Run::Store(|n, a, r| push(n, a, r, End::Right)) },
    Command { name: "sadd", arity: -3, run: Run::Store(sadd) },
    Command {
        name: "scard",
        arity: 2,
        run: Run::Store(|n, a, r| len(n.store.set_len(a.get(1)), r)),
    },
    Command { name: "select", arity: 2, run: Run::Plain(select) },
    Command { name: "set", arity: -3, run: Run::Store(set) },
    Command { name: "sismember", arity: 3, run: Run::Store(sismember) },
    Command { name: "spop", arity: 2, run: Run::Store(spop) },
    Command { name: "strlen", arity: 2, run: Run::Store(strlen) },
    Command {
        name: "time",
        arity: 1,
        run: Run::Plain(|_, _, reply, now_ns| unsigned(now_ns, reply)),
    },
    Command { name: "type", arity: 2, run: Run::Plain(kind) },
    Command { name: "work", arity: -2, run: Run::Plain(work) },
    Command { name: "zadd", arity: 4, run: Run::Store(zadd) },
    Command {
        name: "zcard",
        arity: 2,
        run: Run::Store(|n, a, r| len(n.store.sorted_len(a.get(1)), r)),
    },
    Command { name: "zpopmin", arity: -2, run: Run::Store(zpopmin) },
];

const SYNTAX: &str = "ERR syntax error";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";

/// Looks the command up and runs it. `args` is not empty.
pub(crate) fn execute(
    node: &mut Node<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    now_ns: u64,
) -> Outcome {
    let Some(command) = find(args.get(0)) else {
        reply.error(&unknown(args));
        return Outcome::Continue;
    };
    let count = i32::try_from(args.len()).unwrap_or(i32::MAX);
    let fits = if command.arity < 0 { count >= -command.arity } else { count == command.arity };
    if !fits {
        wrong_number(command.name, reply);
        return Outcome::Continue;
    }
    match &command.run {
        Run::Plain(run) => run(node, args, reply, now_ns),
        Run::Store(run) => {
            if let Err(e) = run(node, args, reply) {
                reply.error(e.text());
            }
        }
        Run::End(outcome) => {
            reply.ok();
            return *outcome;
        }
    }
    Outcome::Continue
}

fn find(name: &[u8]) -> Option<&'static Command> {
    let by_name = |c: &Command| c.name.bytes().cmp(name.iter().map(u8::to_ascii_lowercase));
    COMMANDS.binary_search_by(by_name).ok().map(|i| &COMMANDS[i])
}

fn unknown(args: Args<'_>) -> String {
    let mut text = String::from("ERR unknown command '");
    text.extend(printable(args.get(0)));
    text.push_str("', with args beginning with: ");
    for arg in args.from(1).take(3) {
        text.push('\'');
        text.extend(printable(arg));
        text.push_str("' ");
    }
    text
}

/// The beginning of an argument, fit for an error line.
fn printable(bytes: &[u8]) -> impl Iterator<Item = char> {
    let shown = |b: &u8| if b.is_ascii_graphic() { char::from(*b) } else { '?' };
    bytes.iter().take(64).map(shown)
}

fn wrong_number(name: &str, reply: &mut Reply<'_>) {
    let mut text = String::from("ERR wrong number of arguments for '");
    text.push_str(name);
    text.push_str("' command");
    reply.error(&text);
}

fn number<T: FromStr>(arg: &[u8]) -> Option<T> {
    core::str::from_utf8(arg).ok()?.parse().ok()
}

fn unsigned(n: u64, reply: &mut Reply<'_>) {
    reply.integer(i64::try_from(n).unwrap_or(i64::MAX));
}

fn count(n: usize, reply: &mut Reply<'_>) {
    reply.integer(i64::try_from(n).unwrap_or(i64::MAX));
}

fn optional(value: Option<&[u8]>, reply: &mut Reply<'_>) {
    match value {
        Some(v) => reply.bulk(v),
        None => reply.null(),
    }
}

// Connection and server.

fn ping(_: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    match args.len() {
        1 => reply.simple("PONG"),
        2 => reply.bulk(args.get(1)),
        _ => wrong_number("ping", reply),
    }
}

fn select(_: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    match args.get(1) {
        b"0" => reply.ok(),
        _ => reply.error("ERR DB index is out of range"),
    }
}

fn client(_: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    let is = |name: &[u8]| args.get(1).eq_ignore_ascii_case(name);
    if is(b"setname") || is(b"setinfo") {
        reply.ok();
    } else if is(b"getname") {
        reply.null();
    } else {
        reply.error("ERR unknown subcommand or wrong number of arguments for CLIENT");
    }
}

fn config(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    if !args.get(1).eq_ignore_ascii_case(b"get") || args.len() < 3 {
        return reply.error("ERR only CONFIG GET is served here");
    }
    let maxmemory = alloc::format!("{}", node.store.limit_bytes());
    let known: [(&str, &str); 4] =
        [("appendonly", "no"), ("databases", "1"), ("maxmemory", &maxmemory), ("save", "")];
    let wanted =
        |name: &str| args.from(2).any(|a| a == b"*" || a.eq_ignore_ascii_case(name.as_bytes()));
    reply.array(2 * known.iter().filter(|(name, _)| wanted(name)).count());
    for (name, value) in known.iter().filter(|(name, _)| wanted(name)) {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    }
}

fn info(node: &mut Node<'_>, _: Args<'_>, reply: &mut Reply<'_>, now_ns: u64) {
    reply.bulk(info::text(node, now_ns).as_bytes());
}

// Keys.

fn dbsize(node: &mut Node<'_>, _: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    count(node.store.len(), reply);
}

fn del(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    let removed = args.from(1).filter(|key| node.store.remove(key)).count();
    count(removed, reply);
}

fn exists(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    let found = args.from(1).filter(|key| node.store.contains(key)).count();
    count(found, reply);
}

fn kind(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    reply.simple(node.store.kind(args.get(1)));
}

fn flushall(node: &mut Node<'_>, _: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    node.store.clear();
    reply.ok();
}

fn digest(node: &mut Node<'_>, _: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    let mut text = String::new();
    write!(text, "{:016x}", node.store.digest()).expect("writing to a String cannot fail");
    reply.bulk(text.as_bytes());
}

// Strings.

fn get(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    optional(node.store.get(args.get(1))?, reply);
    Ok(())
}

fn set(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    // No option is known: a SET that would expire must not pretend to.
    if args.len() > 3 {
        reply.error(SYNTAX);
        return Ok(());
    }
    node.store.set(args.get(1), args.get(2))?;
    reply.ok();
    Ok(())
}

fn getset(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    let old = node.store.get(args.get(1))?.map(<[u8]>::to_vec);
    node.store.set(args.get(1), args.get(2))?;
    optional(old.as_deref(), reply);
    Ok(())
}

fn append(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    len(node.store.append(args.get(1), args.get(2)), reply)
}

fn strlen(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    count(node.store.get(args.get(1))?.map_or(0, <[u8]>::len), reply);
    Ok(())
}

fn add(
    node: &mut Node<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    n: i64,
) -> Result<(), StoreError> {
    reply.integer(node.store.add(args.get(1), n)?);
    Ok(())
}

fn incrby(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    let n = parse_i64(args.get(2)).ok_or(StoreError::NotAnInteger)?;
    add(node, args, reply, n)
}

fn mget(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    reply.array(args.len() - 1);
    // To MGET a key of another kind is a key without a string.
    args.from(1).for_each(|key| optional(node.store.get(key).unwrap_or(None), reply));
}

fn mset(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    if args.len().is_multiple_of(2) {
        wrong_number("mset", reply);
        return Ok(());
    }
    let pairs = || args.from(1).step_by(2).zip(args.from(2).step_by(2));
    node.store.room_for_strings(pairs())?;
    for (key, value) in pairs() {
        node.store.set(key, value)?;
    }
    reply.ok();
    Ok(())
}

// Lists.

fn push(
    node: &mut Node<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    end: End,
) -> Result<(), StoreError> {
    let mut len = 0;
    for item in args.from(2) {
        len = node.store.push(args.get(1), end, item)?;
    }
    count(len, reply);
    Ok(())
}

fn pop(
    node: &mut Node<'_>,
    args: Args<'_>,
    reply: &mut Reply<'_>,
    end: End,
) -> Result<(), StoreError> {
    optional(node.store.pop(args.get(1), end)?.as_deref(), reply);
    Ok(())
}

fn len(len: Result<usize, StoreError>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    count(len?, reply);
    Ok(())
}

fn lrange(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    let start = parse_i64(args.get(2)).ok_or(StoreError::NotAnInteger)?;
    let stop = parse_i64(args.get(3)).ok_or(StoreError::NotAnInteger)?;
    let items = node.store.range(args.get(1), start, stop)?;
    reply.array(items.len());
    items.for_each(|item| reply.bulk(item));
    Ok(())
}

// Sets, hashes, sorted sets.

fn sadd(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    let mut added = 0;
    for member in args.from(2) {
        added += usize::from(node.store.set_add(args.get(1), member)?);
    }
    count(added, reply);
    Ok(())
}

fn sismember(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    reply.integer(node.store.set_contains(args.get(1), args.get(2))?.into());
    Ok(())
}

fn spop(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    optional(node.store.set_pop(args.get(1))?.as_deref(), reply);
    Ok(())
}

fn hset(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    if !args.len().is_multiple_of(2) {
        wrong_number("hset", reply);
        return Ok(());
    }
    let mut added = 0;
    for (field, value) in args.from(2).step_by(2).zip(args.from(3).step_by(2)) {
        added += usize::from(node.store.hash_set(args.get(1), field, value)?);
    }
    count(added, reply);
    Ok(())
}

fn hget(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    optional(node.store.hash_get(args.get(1), args.get(2))?, reply);
    Ok(())
}

fn zadd(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    match number(args.get(2)).filter(|score: &f64| !score.is_nan()) {
        Some(score) => {
            reply.integer(node.store.sorted_add(args.get(1), Score(score), args.get(3))?.into());
        }
        None => reply.error("ERR value is not a valid float"),
    }
    Ok(())
}

fn zpopmin(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), StoreError> {
    if args.len() > 2 {
        reply.error(SYNTAX);
        return Ok(());
    }
    match node.store.sorted_pop_min(args.get(1))? {
        None => reply.array(0),
        Some((score, member)) => {
            reply.array(2);
            reply.bulk(&member);
            reply.bulk(alloc::format!("{}", score.0).as_bytes());
        }
    }
    Ok(())
}

// What is not Redis's.

fn work(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, _: u64) {
    let is = |name: &[u8]| args.get(1).eq_ignore_ascii_case(name);
    if is(b"start") && args.len() == 6 {
        work_start(node, args, reply);
    } else if is(b"stop") && args.len() == 2 {
        node.work.stop();
        reply.ok();
    } else if is(b"stat") && args.len() == 2 {
        let plan = node.work.plan();
        reply.array(6);
        reply.integer(plan.is_some().into());
        unsigned(node.work.progress(), reply);
        reply.bulk(plan.map_or("none", |p| p.shape.name()).as_bytes());
        count(plan.map_or(0, |p| p.region_pages), reply);
        count(plan.map_or(0, |p| p.bytes_per_page), reply);
        unsigned(plan.map_or(0, |p| p.pages_per_second), reply);
    } else {
        reply.error("ERR use WORK START shape region_pages bytes_per_page pages_per_second, WORK STOP or WORK STAT");
    }
}

fn work_start(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>) {
    let Some(shape) = Shape::from_name(args.get(2)) else {
        return reply.error("ERR shape is seq, random or hot");
    };
    let (Some(region_pages), Some(bytes_per_page), Some(pages_per_second)) =
        (number(args.get(3)), number(args.get(4)), number(args.get(5)))
    else {
        return reply.error(NOT_AN_INTEGER);
    };
    match node.work.start(Plan { shape, region_pages, bytes_per_page, pages_per_second }) {
        Ok(()) => reply.ok(),
        Err(PlanError::RegionPages { arena }) => {
            reply.error(&alloc::format!("ERR region_pages is 1 to {arena} in this machine"));
        }
        Err(PlanError::BytesPerPage) => reply.error("ERR bytes_per_page is 8 to 4096"),
    }
}

fn beacon(node: &mut Node<'_>, args: Args<'_>, reply: &mut Reply<'_>, now_ns: u64) {
    let sub = (args.len() > 1).then(|| args.get(1));
    let is = |name: &[u8]| sub.is_some_and(|s| s.eq_ignore_ascii_case(name));
    if sub.is_none() {
        unsigned(node.beacon.counter(), reply);
    } else if is(b"stop") && args.len() == 2 {
        node.beacon.stop();
        reply.ok();
    } else if is(b"start") && args.len() == 3 {
        match number::<u64>(args.get(2)).filter(|ms| (1..=3_600_000).contains(ms)) {
            Some(ms) => {
                node.beacon.start(ms * 1_000_000, now_ns);
                reply.ok();
            }
            None => reply.error("ERR period_ms is 1 to 3600000"),
        }
    } else {
        reply.error("ERR use BEACON START period_ms, BEACON STOP or BEACON");
    }
}

#[cfg(test)]
mod tests;
