//! Whether a guest may start on this host, and in which term, by what the record says.

use anyhow::{Result, bail};

use super::{Record, Standing};
use crate::{
    names::{Instance, VmName},
    replication::Fenced,
};

/// Permission to start.
#[derive(Debug)]
pub struct Permission {
    pub fenced: Fenced,
    /// Who this host is in that term. The same for every attempt at one start: a backup that accepted an attempt, of
    /// which this host died before it could note that, knows the next one for the same.
    pub instance: Instance,
}

impl Permission {
    /// What is on disk before anybody is asked. A start of which nothing else is written has spent no term.
    pub fn record(&self) -> Record {
        let Self { fenced, instance } = self;
        Record { term: fenced.term(), standing: Standing::Starting, owner: Some(*instance) }
    }
}

/// Judges by the record, which is what this host knows of the VM.
///
/// A record that says `Protected` is a host that died as a primary, or ended without a word to its backup, which may
/// have taken over. Only the backup knows, so nothing starts here until an operator has looked.
///
/// # Errors
/// When another host may speak for the guest; with what to do.
pub fn permission(
    vm: &VmName,
    record: Option<Record>,
    fresh: impl Fn() -> Instance,
) -> Result<Permission> {
    let (fenced, instance) = match record {
        None => (Fenced::first_start(), fresh()),
        Some(Record { term, standing: Standing::Starting, owner }) => {
            (Fenced::start_again(term), owner.unwrap_or_else(fresh))
        }
        Some(Record {
            term,
            standing: Standing::Ended | Standing::Unprotected | Standing::Promoted,
            ..
        }) => (Fenced::restart(term), fresh()),
        Some(Record { term, standing: Standing::Protected, .. }) => bail!(
            "VM {vm} last ran here protected by a backup, in term {term}, and that backup never acknowledged its end: \
             the backup may have taken over. Look there (remus status). If it has not, and is not running the VM, forget the \
             record here (remus clean {vm} --record) to start the VM anew here"
        ),
        Some(Record { term, standing: Standing::Backup, .. }) => bail!(
            "another host spoke for VM {vm} last, in term {term}. End it there first, then forget the record here \
             (remus clean {vm} --record) to start it here"
        ),
    };
    Ok(Permission { fenced, instance })
}

#[cfg(test)]
mod tests {
    use remus_abi::Term;

    use super::*;

    fn vm() -> VmName {
        VmName::new("a").unwrap()
    }

    fn fresh() -> Instance {
        Instance::new(7).unwrap()
    }

    fn after(standing: Standing) -> Result<Permission> {
        let owner = Instance::new(5);
        permission(&vm(), Some(Record { term: Term::FIRST, standing, owner }), fresh)
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
            let Permission { fenced, instance } = after(standing).unwrap();
            assert_eq!((fenced.term(), instance), (Term::FIRST.next(), fresh()));
        }
    }

    #[test]
    fn a_start_that_came_to_nothing_spends_no_term_and_is_made_again_by_the_same_host() {
        let first = permission(&vm(), None, fresh).unwrap();
        let Record { term, standing, owner } = first.record();
        assert_eq!((term, standing, owner), (Term::FIRST, Standing::Starting, Some(fresh())));
        let again = after(Standing::Starting).unwrap();
        assert_eq!((again.fenced.term(), again.instance), (Term::FIRST, Instance::new(5).unwrap()));
    }
}
