//! A takeover: from a term that is on record to a guest that runs and is heard.
//!
//! Everything slow was done when the primary connected ([`Standby`]). What is left, in this order:
//! 1. The new term goes to disk: a host that crashes after it was heard must know, when it comes back, that it
//!    spoke. The follower's part, before it gives up being a backup: until that is done, nothing is lost by waiting.
//! 2. The state beside RAM is put into the machine.
//! 3. The tap joins the bridge and goes up, behind its gate, which is still closed. A bridge that is not there is
//!    joined when it comes ([`Watch`](crate::watch::Watch)): a guest that few reach is better than none.
//! 4. The gate begins the new term and opens; the network is told where the guest is now. The guest's own first frame
//!    might come late.
//! 5. The guest is to be given what the dead primary had given it in vain, then what came while nobody ran it. Not before:
//!    until now frames may have come past the tap.
//! 6. The guest runs: its engine's part.

use std::{thread, time::Duration};

use tracing::{debug, warn};

use crate::{
    checkpoint::MachineState, gate::Held, os::boot_now, replication::Fenced, standby::Standby,
};

/// Between two tries of a step that nothing can go on without.
const RETRY_EVERY: Duration = Duration::from_millis(200);

/// Takes over; returns the number of frames that came while nobody ran the guest. Tries for as long as it takes: the
/// guest is nowhere else.
pub(crate) fn take_over<'a>(
    standby: &mut Standby,
    state: &MachineState,
    given_again: impl Iterator<Item = &'a [u8]>,
    fenced: &Fenced,
) -> usize {
    let mut said = String::new();
    while let Err(e) = standby.machine.restore(state) {
        let why = format!("{e:#}");
        if why != said {
            warn!("the guest's state is not taken by this host's KVM, which is asked again: {why}");
            said = why;
        }
        thread::sleep(RETRY_EVERY);
    }
    debug!("the machine has its state");
    match standby.wiring.connect() {
        Ok(()) => debug!("the tap is connected"),
        Err(e) => warn!("the guest runs on, and clients may not reach it: {e:#}"),
    }
    while let Err(e) = standby.gate.begin_term(fenced, Held::Discard) {
        warn!("the gate does not take the new term, and is asked again: {e:#}");
        thread::sleep(RETRY_EVERY);
    }
    standby.gate.open(fenced);
    debug!("the gate is open");
    standby.announcer.poll(boot_now());
    debug!("the guest is announced");
    let overheard = standby.wiring.take_overheard();
    let came = overheard.len();
    standby.machine.give(given_again.map(Box::from));
    standby.machine.give(overheard.into_iter());
    came
}
