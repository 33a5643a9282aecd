//! Whether a guest may start here, in which term, and whether it may be heard before a backup is there.

use anyhow::{Result, bail};

use crate::{
    config::Start,
    replication::Fenced,
    store::{Record, Standing},
};

/// Permission to start.
pub(super) struct Permission {
    pub(super) fenced: Fenced,
    /// The gate opens at once.
    pub(super) open: bool,
}

/// Judges by what this host knows, its record of the VM, and what the config asks for.
///
/// A record that says `Protected` is a host that died as a primary: its backup may have taken over. Only the
/// backup knows, so nothing starts here until an operator has looked.
///
/// # Errors
/// When another host may speak for the guest; with what to do.
pub(super) fn permission(vm: &str, record: Option<Record>, start: Start) -> Result<Permission> {
    let fenced = match record {
        None => Fenced::first_start(),
        Some(Record {
            term,
            standing: Standing::Ended | Standing::Unprotected | Standing::Promoted,
            ..
        }) => Fenced::restart(term),
        Some(Record { term, standing: Standing::Protected, .. }) => bail!(
            "VM {vm} last ran here protected by a backup, in term {term}, and did not end on purpose: the backup \
             may have taken over. Look there (remus status); if it has not, and is not running it, remove {vm}.json \
             from the state directory to start the VM anew here"
        ),
        Some(Record { term, standing: Standing::Backup, .. }) => bail!(
            "another host spoke for VM {vm} last, in term {term}. End it there first, then remove {vm}.json from \
             the state directory to start it here"
        ),
    };
    Ok(Permission { fenced, open: start == Start::Unprotected })
}

#[cfg(test)]
mod tests {
    use remus_abi::Term;

    use super::*;

    fn after(standing: Standing) -> Result<Permission> {
        permission(
            "a",
            Some(Record { term: Term::FIRST, standing, owner: None }),
            Start::Unprotected,
        )
    }

    #[test]
    fn a_host_that_died_as_a_protected_primary_does_not_start_by_itself() {
        let error = after(Standing::Protected).err().unwrap().to_string();
        assert!(error.contains("may have taken over"), "{error}");
        assert!(after(Standing::Backup).is_err());
    }

    #[test]
    fn a_run_that_is_known_to_be_over_is_followed_by_the_next_term() {
        for standing in [Standing::Ended, Standing::Unprotected, Standing::Promoted] {
            assert_eq!(after(standing).unwrap().fenced.term(), Term::FIRST.next());
        }
    }

    #[test]
    fn the_gate_opens_at_the_start_only_where_the_config_says_so() {
        assert!(permission("a", None, Start::Unprotected).unwrap().open);
        assert!(!permission("a", None, Start::Protected).unwrap().open);
    }
}
