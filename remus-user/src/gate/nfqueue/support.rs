//! Whether this kernel can do the engine, and why not: tried out, in a network namespace that is thrown away.

use std::thread;

use anyhow::{Context, Result};

use super::{
    message::QueueNumber,
    put_in,
    rules::{self, Earlier, Plan, Second, Statement},
    socket::Socket,
    take_queue, xtables,
};

/// What the kernel can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Support {
    /// By nf_tables' own queue statement; else by the target of x_tables.
    pub own_statement: bool,
    /// The rules are safe from `nft flush ruleset`.
    pub owned_tables: bool,
}

/// Finds out what the kernel can do, and whether somebody's rules in the caller's network namespace are in the way.
/// Changes nothing that outlives the call.
///
/// # Errors
/// When the engine cannot work here; says why.
pub fn support() -> Result<Support> {
    let mut earlier = None;
    let here = Socket::open()?;
    for dump in rules::dumps() {
        here.ask(&dump, |reply| {
            if earlier.is_none() {
                earlier = rules::earlier_in(reply);
            }
        })
        .context("read the rules of nf_tables (needs CAP_NET_ADMIN and CONFIG_NF_TABLES)")?;
    }
    if let Some(Earlier { table, chain, priority }) = earlier {
        anyhow::bail!(
            "the nf_tables chain {table} {chain} at prerouting has priority {priority}: it sees frames before they are \
             held, and may change their mark; give it one above {}",
            rules::FIRST_PRIORITY
        );
    }
    // A namespace belongs to a thread, and goes with it.
    thread::scope(|scope| scope.spawn(try_out).join().expect("the trial does not panic"))
}

/// The chain by which netfilter drops what this host forwards, unless a rule accepts it, for people. `None` where there is
/// none, or netfilter cannot be asked.
pub fn forward_policy_drop() -> Option<String> {
    let [_, chains, _] = rules::dumps();
    let mut found = None;
    let asked = Socket::open().and_then(|socket| {
        socket.ask(&chains, |reply| {
            if found.is_none() {
                found = rules::forward_drop_in(reply);
            }
        })
    });
    let by_iptables =
        || xtables::forward_policy_is_drop().then(|| "iptables-legacy, chain FORWARD".to_owned());
    asked.ok().and(found).or_else(by_iptables)
}

fn try_out() -> Result<Support> {
    // SAFETY: concerns this thread alone, which ends with this function.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error())
            .context("make a network namespace to try rules in (needs CAP_SYS_ADMIN)");
    }
    take_queue(&Socket::open()?)?;
    let plan = Plan {
        tap: "trial",
        queue: QueueNumber(0),
        second: Second::Nothing,
        statement: Statement::Queue,
        owned: true,
    };
    let plan = put_in(&Socket::open()?, plan)?;
    Ok(Support { own_statement: plan.statement == Statement::Queue, owned_tables: plan.owned })
}
