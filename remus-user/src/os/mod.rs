//! What every room takes from the operating system: the time, random names, limits, CPUs, memory, sysfs and cgroups, and
//! channels that wake an event loop.

mod affinity;
mod clock;
mod inbox;
mod limits;
mod meminfo;
mod random;
mod sysfs;

pub(crate) use self::{
    affinity::run_on,
    clock::{boot_now, cpu_time_of, wall_now},
    inbox::{Inbox, Post, inbox},
    limits::use_all_descriptors,
    meminfo::{kib, meminfo},
    random::{fresh_instance, fresh_key, fresh_nonce, fresh_session, fresh_vm_id},
    sysfs::{Cgroups, Sysfs, owned},
};
