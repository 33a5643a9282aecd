//! A takeover: from the permission to speak to a guest that runs and is heard.
//!
//! Everything slow was done when the primary connected ([`Standby`]). What is left, in this order:
//! 1. The new term goes to disk: a host that crashes after it was heard must know, when it comes back, that it
//!    spoke.
//! 2. The state beside RAM is put into the machine.
//! 3. The tap joins the bridge and goes up, behind its gate, which is still closed.
//! 4. The gate opens; the network is told where the guest is now. The guest's own first frame might come late.
//! 5. The guest is to be given what the dead primary had given it in vain, then what came while nobody ran it. Not before:
//!    until now frames may have come past the tap.
//! 6. The guest runs: its engine's part.

use anyhow::Result;
use tracing::debug;

use crate::{
    checkpoint::MachineState,
    replication::Fenced,
    standby::Standby,
    store::{Record, Standing, Store},
};

/// Takes over. How many frames came while nobody ran the guest.
///
/// # Errors
/// When a step fails; the gate may be open then, but no guest runs behind it.
pub(crate) fn take_over<'a>(
    standby: &mut Standby,
    state: &MachineState,
    given_again: impl Iterator<Item = &'a [u8]>,
    fenced: &Fenced,
    store: &Store,
) -> Result<usize> {
    let record = Record { term: fenced.term(), standing: Standing::Promoted, owner: None };
    store.write(&standby.plan().vm, record)?;
    debug!("the new term is on disk");
    standby.machine.restore(state)?;
    debug!("the machine has its state");
    standby.wiring.connect()?;
    debug!("the tap is connected");
    standby.gate.open(fenced);
    debug!("the gate is open");
    standby.wiring.announce();
    debug!("the guest is announced");
    let overheard = standby.wiring.take_overheard();
    let came = overheard.len();
    standby.machine.give(given_again.map(Box::from));
    standby.machine.give(overheard.into_iter());
    Ok(came)
}
