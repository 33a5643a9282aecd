//! What a record says, and its form on disk.
//!
//! One file holds who spoke last and what this host itself has said, so that one write changes both: there is no moment at
//! which a crash leaves the one without the other.

use anyhow::{Context, Result, bail};
use remus_abi::{Epoch, Term};
use serde::{Deserialize, Serialize};

use crate::wire::{Ancestor, Ancestry, Nonce, TermId, VmId};

/// How the VM stood on this host when the record was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The guest ended on purpose, and whoever could have taken over knows: the next start is in the next term.
    Ended,
    /// A start in this term began, and was neither accepted by a backup nor heard by anybody.
    Starting,
    /// It ran here, with no backup that could have taken over.
    Unprotected,
    /// It ran here as a primary with a backup that may have taken over since.
    Protected,
    /// This host kept its image as a backup.
    Backup,
    /// This host took over.
    Promoted,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Which VM of that name; `None` in a record of a release before version 7 of the protocol.
    pub id: Option<VmId>,
    /// The newest term that this host has heard of.
    pub term: Term,
    pub standing: Standing,
    /// Who speaks in that term, where it is known: this host, or the primary that it follows.
    pub nonce: Option<Nonce>,
    /// The terms that are known to have been spoken in, and that lead to this one.
    pub ancestry: Ancestry,
    /// The newest term in which this host itself let a frame out, or took over.
    pub spoke: Option<TermId>,
}

impl Record {
    /// A start as `nonce` in `term`, of which nobody has heard yet.
    pub fn starting(self, term: Term, nonce: Nonce) -> Self {
        Self { term, standing: Standing::Starting, nonce: Some(nonce), ..self }
    }

    /// The guest is heard from here on, in the term of this record.
    pub fn speaking(self, standing: Standing) -> Self {
        let ancestry = self.ancestry.spoken_in(TermId { term: self.term, nonce: self.nonce });
        let spoke = ancestry.newest();
        Self { standing, ancestry, spoke, ..self }
    }

    /// The guest has ended on purpose.
    pub fn ended(self) -> Self {
        Self { standing: Standing::Ended, ..self }
    }

    /// Another host speaks, in the newest term of `ancestry`.
    pub fn stood_down(self, ancestry: Ancestry) -> Self {
        let newest = ancestry.newest().unwrap_or(TermId { term: self.term, nonce: self.nonce });
        let TermId { term, nonce } = newest;
        Self { term, standing: Standing::Backup, nonce, ancestry, ..self }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnDisk {
    term: u32,
    standing: Standing,
    /// Releases before version 7 of the protocol call it the owner.
    #[serde(default, alias = "owner", skip_serializing_if = "Option::is_none")]
    nonce: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ancestry: Option<Vec<TermOnDisk>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spoke: Option<TermOnDisk>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TermOnDisk {
    term: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nonce: Option<u64>,
    /// The last epoch, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<u64>,
}

impl TermOnDisk {
    fn of(id: TermId, last: Epoch) -> Self {
        let last = (last != Epoch::NONE).then_some(last.get());
        Self { term: id.term.get(), nonce: id.nonce.map(Nonce::get), last }
    }

    fn read(&self) -> Option<Ancestor> {
        let term = Term::new(self.term).filter(|term| *term != Term::NONE)?;
        let id = TermId { term, nonce: self.nonce.and_then(Nonce::new) };
        Some(Ancestor { id, last: Epoch::new(self.last.unwrap_or(0))? })
    }
}

pub(super) fn encode(record: &Record) -> Result<Vec<u8>> {
    let Record { id, term, standing, nonce, ancestry, spoke } = record;
    let ancestry = ancestry.iter().map(|known| TermOnDisk::of(known.id, known.last)).collect();
    let on_disk = OnDisk {
        term: term.get(),
        standing: *standing,
        nonce: nonce.map(Nonce::get),
        id: id.map(|id| id.to_string()),
        ancestry: Some(ancestry),
        spoke: spoke.map(|id| TermOnDisk::of(id, Epoch::NONE)),
    };
    serde_json::to_vec(&on_disk).context("a record as JSON")
}

/// # Errors
/// When it is no record. Guessing would risk two hosts speaking for one guest.
pub(super) fn decode(text: &str) -> Result<Record> {
    let OnDisk { term, standing, nonce, id, ancestry, spoke } = serde_json::from_str(text)?;
    let term = Term::new(term).context("a term that cannot be")?;
    let nonce = nonce.and_then(Nonce::new);
    let this = TermId { term, nonce };
    let id = id.map(|id| id.parse()).transpose()?;
    let Some(ancestry) = ancestry else { return Ok(of_old_release(this, standing)) };
    let ancestry: Option<Vec<_>> = ancestry.iter().map(TermOnDisk::read).collect();
    let ancestry = ancestry.and_then(Ancestry::of).context("an ancestry that cannot be")?;
    if !ancestry.leads_to(this) {
        bail!("terms that do not lead to the newest");
    }
    let spoke = spoke.map(|spoke| spoke.read().context("a term that cannot be")).transpose()?;
    let spoke = spoke.map(|spoke| spoke.id);
    Ok(Record { id, term, standing, nonce, ancestry, spoke })
}

/// What a record without an ancestry says: one that a release before version 7 of the protocol wrote.
fn of_old_release(this: TermId, standing: Standing) -> Record {
    let none = Ancestry::none();
    let ancestry = match standing {
        // Nobody was heard in this term; who was in the one before is not known.
        Standing::Starting => match this.term.prev() {
            Term::NONE => none,
            term => none.spoken_in(TermId { term, nonce: None }),
        },
        Standing::Backup => none,
        Standing::Ended | Standing::Unprotected | Standing::Protected | Standing::Promoted => {
            none.spoken_in(this)
        }
    };
    let spoke = match standing {
        Standing::Unprotected | Standing::Protected | Standing::Promoted => Some(this),
        Standing::Ended | Standing::Starting | Standing::Backup => None,
    };
    Record { id: None, term: this.term, standing, nonce: this.nonce, ancestry, spoke }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u32, nonce: u64) -> TermId {
        TermId { term: Term::new(term).unwrap(), nonce: Nonce::new(nonce) }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let taken_over = Ancestry::none().spoken_in(id(1, 7)).ended_with(Epoch::new(57).unwrap());
        let record = Record {
            id: VmId::new(0xabc),
            term: Term::new(2).unwrap(),
            standing: Standing::Promoted,
            nonce: Nonce::new(8),
            ancestry: taken_over,
            spoke: None,
        };
        for record in [record.clone(), record.speaking(Standing::Promoted)] {
            let text = String::from_utf8(encode(&record).unwrap()).unwrap();
            assert_eq!(decode(&text).unwrap(), record, "{text}");
        }
    }

    #[test]
    fn a_record_of_the_release_before_is_understood() {
        let old = |text: &str| decode(text).unwrap();
        let promoted = old(r#"{"term":3,"standing":"promoted"}"#);
        assert_eq!((promoted.term.get(), promoted.standing), (3, Standing::Promoted));
        assert_eq!((promoted.id, promoted.nonce), (None, None));
        assert_eq!(promoted.ancestry, Ancestry::none().spoken_in(id(3, 0)));
        assert_eq!(promoted.spoke, Some(id(3, 0)));

        let backup = old(r#"{"term":2,"standing":"backup","owner":5}"#);
        assert_eq!((backup.standing, backup.nonce), (Standing::Backup, Nonce::new(5)));
        assert_eq!((backup.ancestry, backup.spoke), (Ancestry::none(), None));

        let starting = old(r#"{"term":2,"standing":"starting","owner":5}"#);
        assert_eq!((starting.term.get(), starting.nonce), (2, Nonce::new(5)));
        assert_eq!(starting.ancestry, Ancestry::none().spoken_in(id(1, 0)));
        let first = old(r#"{"term":1,"standing":"starting","owner":5}"#);
        assert_eq!((first.ancestry, first.spoke), (Ancestry::none(), None));
    }

    #[test]
    fn what_no_release_writes_is_no_record() {
        for text in [
            "",
            r#"{"term":99999999,"standing":"ended"}"#,
            r#"{"term":1}"#,
            r#"{"term":1,"standing":"ended","more":1}"#,
            r#"{"term":1,"standing":"ended","nonce":1,"owner":1}"#,
            r#"{"term":1,"standing":"ended","id":"0","ancestry":[]}"#,
            r#"{"term":1,"standing":"ended","ancestry":[{"term":0}]}"#,
            r#"{"term":1,"standing":"ended","ancestry":[{"term":2}]}"#,
            r#"{"term":3,"standing":"ended","ancestry":[{"term":2},{"term":1}]}"#,
            r#"{"term":3,"standing":"ended","nonce":7,"ancestry":[{"term":3,"nonce":8}]}"#,
            r#"{"term":3,"standing":"ended","ancestry":[],"spoke":{"term":0}}"#,
        ] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
