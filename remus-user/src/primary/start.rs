//! Whether a guest may start here, in which term, and whether it may be heard before a backup is there.

use anyhow::{Result, bail};

use crate::{
    config::Start,
    replication::Fenced,
    store::{Record, Standing},
    wire::{Ancestry, Nonce, TermId, VmId},
};

/// Permission to start.
#[derive(Debug)]
pub(super) struct Permission {
    pub(super) fenced: Fenced,
    pub(super) start: Beginning,
    /// The gate opens before a backup has a checkpoint.
    pub(super) open: bool,
}

/// Which VM starts, and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Beginning {
    pub(super) id: VmId,
    /// Who this host is in the term. The same for every attempt at one start: a backup that accepted an attempt, of
    /// which this host died before it could note that, knows the next one for the same.
    pub(super) nonce: Nonce,
    /// The terms that were spoken in before.
    pub(super) ancestry: Ancestry,
    /// The newest of them in which this host spoke.
    spoke: Option<TermId>,
}

impl Permission {
    /// What is on disk before anybody is asked. A start of which nothing else is written has spent no term.
    pub(super) fn record(&self) -> Record {
        let Beginning { id, nonce, ancestry, spoke } = self.start.clone();
        Record {
            id: Some(id),
            term: self.fenced.term(),
            standing: Standing::Starting,
            nonce: Some(nonce),
            ancestry,
            spoke,
        }
    }
}

/// Where names come from that nobody else has.
#[derive(Clone, Copy)]
pub(super) struct Names {
    pub(super) id: fn() -> VmId,
    pub(super) nonce: fn() -> Nonce,
}

/// Judges by what this host knows, its record of the VM, and what the config asks for.
///
/// A record that says `Protected` is a host that died as a primary, or ended without a word to its backup, which may
/// have taken over. Only the backup knows, so nothing starts here until an operator has looked.
///
/// # Errors
/// When another host may speak for the guest; with what to do.
pub(super) fn permission(
    vm: &str,
    record: Option<Record>,
    start: Start,
    fresh: Names,
) -> Result<Permission> {
    let open = start == Start::Unprotected;
    let Some(Record { id, term, standing, nonce, ancestry, spoke }) = record else {
        let (id, nonce) = ((fresh.id)(), (fresh.nonce)());
        let start = Beginning { id, nonce, ancestry: Ancestry::none(), spoke: None };
        return Ok(Permission { fenced: Fenced::first_start(), start, open });
    };
    let (fenced, nonce) = match standing {
        Standing::Starting => (Fenced::start_again(term), nonce.unwrap_or_else(fresh.nonce)),
        Standing::Ended | Standing::Unprotected | Standing::Promoted => {
            (Fenced::restart(term), (fresh.nonce)())
        }
        Standing::Protected => bail!(
            "VM {vm} last ran here protected by a backup, in term {term}, and that backup never acknowledged its end: \
             the backup may have taken over. Look there (remus status). If it has not, and is not running the VM, forget the \
             record here (remus clean {vm} --record) to start the VM anew here"
        ),
        Standing::Backup => bail!(
            "another host spoke for VM {vm} last, in term {term}. End it there first, then forget the record here \
             (remus clean {vm} --record) to start it here"
        ),
    };
    let id = id.unwrap_or_else(fresh.id);
    Ok(Permission { fenced, start: Beginning { id, nonce, ancestry, spoke }, open })
}

#[cfg(test)]
mod tests {
    use remus_abi::Term;

    use super::*;

    fn nonce(n: u64) -> Nonce {
        Nonce::new(n).unwrap()
    }

    const FRESH: Names = Names { id: || VmId::new(77).unwrap(), nonce: || Nonce::new(7).unwrap() };

    fn before() -> Ancestry {
        Ancestry::none().spoken_in(TermId::new(Term::FIRST, nonce(5)))
    }

    fn after(standing: Standing) -> Result<Permission> {
        let record = Record {
            id: VmId::new(70),
            term: Term::FIRST,
            standing,
            nonce: Some(nonce(5)),
            ancestry: if standing == Standing::Starting { Ancestry::none() } else { before() },
            spoke: None,
        };
        permission("a", Some(record), Start::Unprotected, FRESH)
    }

    #[test]
    fn a_host_that_died_as_a_protected_primary_does_not_start_by_itself() {
        let error = after(Standing::Protected).unwrap_err().to_string();
        assert!(error.contains("may have taken over"), "{error}");
        assert!(after(Standing::Backup).is_err());
    }

    #[test]
    fn a_run_that_is_known_to_be_over_is_followed_by_the_next_term() {
        for standing in [Standing::Ended, Standing::Unprotected, Standing::Promoted] {
            let Permission { fenced, start, .. } = after(standing).unwrap();
            assert_eq!((fenced.term(), start.nonce), (Term::FIRST.next(), nonce(7)));
            // The same VM, and its state comes from the term before.
            assert_eq!((start.id, start.ancestry), (VmId::new(70).unwrap(), before()));
        }
    }

    #[test]
    fn a_start_that_came_to_nothing_spends_no_term_and_is_made_again_by_the_same_host() {
        let first = permission("a", None, Start::Protected, FRESH).unwrap();
        let Record { id, term, standing, nonce: named, ancestry, spoke } = first.record();
        assert_eq!((term, standing, named), (Term::FIRST, Standing::Starting, Some(nonce(7))));
        assert_eq!((id, ancestry, spoke), (VmId::new(77), Ancestry::none(), None));
        let again = after(Standing::Starting).unwrap();
        let Beginning { id, nonce: named, ancestry, .. } = again.start;
        assert_eq!((again.fenced.term(), named), (Term::FIRST, nonce(5)));
        assert_eq!((id, ancestry), (VmId::new(70).unwrap(), Ancestry::none()));
    }

    #[test]
    fn the_gate_opens_at_the_start_only_where_the_config_says_so() {
        assert!(permission("a", None, Start::Unprotected, FRESH).unwrap().open);
        assert!(!permission("a", None, Start::Protected, FRESH).unwrap().open);
    }
}
