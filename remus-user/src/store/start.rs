//! Whether a guest may start on this host, and in which term, by what the record says.

use anyhow::{Result, bail};

use super::{Record, Standing};
use crate::{
    names::VmName,
    os::{fresh_nonce, fresh_vm_id},
    replication::Fenced,
    wire::{Ancestry, Nonce, TermId, VmId},
};

/// Permission to start.
#[derive(Debug)]
pub struct Permission {
    pub fenced: Fenced,
    pub start: Beginning,
}

/// Which VM starts, and as whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Beginning {
    pub id: VmId,
    /// Who this host is in the term. The same for every attempt at one start: a backup that accepted an attempt, of
    /// which this host died before it could note that, knows the next one for the same.
    pub nonce: Nonce,
    /// The terms that were spoken in before.
    pub ancestry: Ancestry,
    /// The newest of them in which this host spoke.
    spoke: Option<TermId>,
}

impl Permission {
    /// What is on disk before anybody is asked. A start of which nothing else is written has spent no term.
    pub fn record(&self) -> Record {
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
pub struct Names {
    pub id: fn() -> VmId,
    pub nonce: fn() -> Nonce,
}

impl Names {
    /// From the kernel's generator.
    pub const FRESH: Self = Self { id: fresh_vm_id, nonce: fresh_nonce };
}

/// Judges by the record, which is what this host knows of the VM.
///
/// A record that says `Protected` is a host that died as a primary, or ended without a word to its backup, which may
/// have taken over. Only the backup knows, so nothing starts here until an operator has looked.
///
/// # Errors
/// When another host may speak for the guest; with what to do.
pub fn permission(vm: &VmName, record: Option<Record>, fresh: Names) -> Result<Permission> {
    let Some(Record { id, term, standing, nonce, ancestry, spoke }) = record else {
        let (id, nonce) = ((fresh.id)(), (fresh.nonce)());
        let start = Beginning { id, nonce, ancestry: Ancestry::none(), spoke: None };
        return Ok(Permission { fenced: Fenced::first_start(), start });
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
    Ok(Permission { fenced, start: Beginning { id, nonce, ancestry, spoke } })
}

#[cfg(test)]
mod tests {
    use remus_abi::Term;

    use super::*;

    fn vm() -> VmName {
        VmName::new("a").unwrap()
    }

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
        permission(&vm(), Some(record), FRESH)
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
        let first = permission(&vm(), None, FRESH).unwrap();
        let Record { id, term, standing, nonce: named, ancestry, spoke } = first.record();
        assert_eq!((term, standing, named), (Term::FIRST, Standing::Starting, Some(nonce(7))));
        assert_eq!((id, ancestry, spoke), (VmId::new(77), Ancestry::none(), None));
        let again = after(Standing::Starting).unwrap();
        let Beginning { id, nonce: named, ancestry, .. } = again.start;
        assert_eq!((again.fenced.term(), named), (Term::FIRST, nonce(5)));
        assert_eq!((id, ancestry), (VmId::new(70).unwrap(), Ancestry::none()));
    }
}
