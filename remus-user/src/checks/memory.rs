//! Whether there is memory for a VM: what the host has available, what this process's cgroups and limits leave to it, and
//! the pool of huge pages. Both roles ask the same question, when a guest is to be made.

use std::fs;

use super::{
    Check,
    cgroup::{self, Limit},
};
use crate::os::{kib, meminfo};

const MIB: u64 = 1 << 20;
/// What a VM takes besides its RAM and its gate: staging, slots, threads.
const BESIDE_MIB: u64 = 64;

/// What a VM needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    pub(crate) ram_mib: u32,
    /// `gate.buffer_mib`.
    pub(crate) buffer_mib: u32,
}

/// The memory that there is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Room {
    /// The tightest limit.
    tightest: Limit,
    /// The bytes that are free in the pool of pages of 2 MiB, from which RAM comes if they suffice.
    pool: u64,
}

impl Needs {
    fn ram(self) -> u64 {
        u64::from(self.ram_mib) * MIB
    }

    /// Returns the bytes that the VM takes beside its RAM; the gate takes 1.6 times its buffer.
    fn beside(self) -> u64 {
        BESIDE_MIB * MIB + u64::from(self.buffer_mib) * MIB * 8 / 5
    }

    /// Returns the bytes that must come from elsewhere than the pool of huge pages.
    fn of(self, room: &Room) -> u64 {
        if room.pool >= self.ram() { self.beside() } else { self.ram() + self.beside() }
    }
}

/// Checks that this host has the memory for a VM that `run` is to start.
pub(super) fn check(needs: Needs) -> Check {
    match room() {
        Some(room) => judge(needs, &room),
        None => Check::warning("memory", "/proc/meminfo has no MemAvailable", "mount /proc"),
    }
}

fn judge(needs: Needs, room: &Room) -> Check {
    const NAME: &str = "memory";
    let (wanted, left, of) = (needs.of(room), room.tightest.left, &room.tightest.of);
    let ram = if wanted < needs.ram() + needs.beside() {
        format!("{} MiB of RAM from the pool of huge pages", needs.ram_mib)
    } else {
        format!("{} MiB of RAM", needs.ram_mib)
    };
    let found = format!(
        "the VM takes {ram} and {} MiB besides; {of} leaves {} MiB",
        needs.beside() / MIB,
        left / MIB
    );
    if left < wanted {
        let remedy = "free memory, raise that limit, or lower machine.memory_mib";
        return Check::refused(NAME, found, remedy);
    }
    if left < wanted + needs.ram() {
        let remedy = "leave room for the copies that checkpoints keep: at worst as much again as the guest's RAM";
        return Check::warning(NAME, found, remedy);
    }
    Check::ok(NAME, found)
}

/// Checks whether this host can hold a VM that another host announces, once `given_back_mib` of RAM are free that an
/// image holds now. The caller asks before it drops that image.
///
/// # Errors
/// When this host cannot; the error tells the primary's operator how much there is.
pub(crate) fn admission(needs: Needs, given_back_mib: u32) -> Result<(), String> {
    // A VM is not refused because the host does not say what it has.
    room().map_or(Ok(()), |room| admit(needs, &room, given_back_mib))
}

fn admit(needs: Needs, room: &Room, given_back_mib: u32) -> Result<(), String> {
    let given_back = u64::from(given_back_mib) * MIB;
    let with = Room { pool: room.pool.saturating_add(given_back), tightest: room.tightest.clone() };
    let left = room.tightest.left.saturating_add(given_back);
    // What is given back may have come from the pool.
    if room.tightest.left >= needs.of(&with) || left >= needs.of(room) {
        return Ok(());
    }
    Err(format!(
        "the VM wants {} MiB, and this host has {} MiB left for it ({}), of which the VM's checkpoints and gate take {}",
        needs.ram_mib,
        left / MIB,
        room.tightest.of,
        needs.beside() / MIB
    ))
}

/// Asks for all limits. Returns `None` if the kernel does not say what is available.
fn room() -> Option<Room> {
    let meminfo = meminfo();
    let available = kib(&meminfo, "MemAvailable:")?;
    let mut limits = cgroup::limits();
    limits.push(Limit { left: available << 10, of: "this host".to_owned() });
    limits.extend(promised(&meminfo));
    limits.extend(own_limits());
    let tightest = limits.into_iter().min_by_key(|limit| limit.left)?;
    Some(Room { tightest, pool: pool() })
}

/// Returns what may still be promised where the kernel promises no more than it has (`vm.overcommit_memory` = 2).
fn promised(meminfo: &str) -> Option<Limit> {
    let mode = fs::read_to_string("/proc/sys/vm/overcommit_memory").ok()?;
    if mode.trim() != "2" {
        return None;
    }
    let (limit, promised) = (kib(meminfo, "CommitLimit:")?, kib(meminfo, "Committed_AS:")?);
    let of = "vm.overcommit_memory = 2".to_owned();
    Some(Limit { left: limit.saturating_sub(promised) << 10, of })
}

/// Returns the limits of this process (`ulimit -v`, `ulimit -d`).
fn own_limits() -> impl Iterator<Item = Limit> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits =
        [(libc::RLIMIT_AS, "VmSize:", "ulimit -v"), (libc::RLIMIT_DATA, "VmData:", "ulimit -d")];
    limits.into_iter().filter_map(move |(resource, used, of)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a place for the answer that lives during the call.
        let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
        if result != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
            return None;
        }
        let used = kib(&status, used)? << 10;
        Some(Limit { left: limit.rlim_cur.saturating_sub(used), of: of.to_owned() })
    })
}

/// Returns the bytes in the pool of pages of 2 MiB that nobody has, and nobody has reserved.
fn pool() -> u64 {
    let pages = |file: &str| -> u64 {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{file}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    pages("free_hugepages").saturating_sub(pages("resv_hugepages")).saturating_mul(2 * MIB)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Outcome;

    const NEEDS: Needs = Needs { ram_mib: 256, buffer_mib: 32 };
    /// Of [`NEEDS`], in MiB.
    const BESIDE: u64 = 64 + 51;

    fn room(left_mib: u64, pool_mib: u64) -> Room {
        let tightest = Limit { left: left_mib * MIB, of: "this host".to_owned() };
        Room { tightest, pool: pool_mib * MIB }
    }

    #[test]
    fn numbers_are_found_in_what_the_kernel_prints() {
        assert_eq!(kib("MemTotal: 1 kB\nMemAvailable:   2048 kB\n", "MemAvailable:"), Some(2048));
        assert_eq!(kib("MemTotal: 1 kB\n", "MemAvailable:"), None);
        assert!(super::room().is_some(), "of this host");
    }

    #[test]
    fn the_gate_and_the_checkpoints_count_beside_the_ram() {
        let outcome = |left, pool| judge(NEEDS, &room(left, pool)).outcome;
        assert_eq!(outcome(256 + BESIDE, 0), Outcome::Refused);
        assert_eq!(outcome(256 + BESIDE + 1, 0), Outcome::Warning);
        assert_eq!(outcome(512 + BESIDE + 1, 0), Outcome::Ok);
        let found = judge(NEEDS, &room(300, 0)).found;
        assert_eq!(
            found,
            "the VM takes 256 MiB of RAM and 115 MiB besides; this host leaves 300 MiB"
        );
    }

    #[test]
    fn ram_comes_from_the_pool_where_that_has_all_of_it() {
        let outcome = |left, pool| judge(NEEDS, &room(left, pool)).outcome;
        assert_eq!(outcome(BESIDE + 1, 256), Outcome::Warning);
        assert_eq!(outcome(BESIDE, 256), Outcome::Refused, "the rest does not");
        assert_eq!(outcome(BESIDE + 1, 254), Outcome::Refused, "all of it, or nothing");
    }

    #[test]
    fn a_vm_is_admitted_by_what_is_there_once_the_old_image_is_gone() {
        let admitted = |left, pool, given_back| admit(NEEDS, &room(left, pool), given_back);
        assert_eq!(admission(Needs { ram_mib: 2, buffer_mib: 1 }, 0), Ok(()), "on this host");
        assert_eq!(admitted(256 + BESIDE + 1, 0, 0), Ok(()));
        assert_eq!(admitted(BESIDE + 1, 0, 256), Ok(()));
        assert_eq!(admitted(BESIDE + 1, 256, 0), Ok(()));
        assert_eq!(
            admitted(300, 0, 0).unwrap_err(),
            "the VM wants 256 MiB, and this host has 300 MiB left for it (this host), of which the VM's checkpoints and \
             gate take 115"
        );
    }
}
