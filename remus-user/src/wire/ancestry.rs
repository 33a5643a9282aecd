//! The chain of terms that a state comes from.

use std::fmt;

use remus_abi::{Epoch, Term};

use super::{
    Nonce, WireError,
    field::{Field, Reader},
};

/// A term and who speaks in it. Numbers alone do not tell terms apart: two hosts that know nothing of each other count
/// alike.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TermId {
    pub term: Term,
    /// `None` where it is not known: records of releases before version 7 of the protocol name nobody.
    pub nonce: Option<Nonce>,
}

/// A term in which somebody spoke.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ancestor {
    pub id: TermId,
    /// The last epoch of it that the next term goes on from; [`Epoch::NONE`] where it is not known.
    pub last: Epoch,
}

/// The terms that a state comes from and that somebody spoke in, oldest first, their numbers growing. A host's own
/// term is the newest of them once its guest may have been heard in it.
///
/// At most [`Ancestry::LEN_MAX`] are kept, the newest. On the wire: their number as a u16, then of each the term u32, the
/// nonce u64 (0: not known), and the last epoch u64 (0: not known).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ancestry(Vec<Ancestor>);

impl TermId {
    pub const fn new(term: Term, nonce: Nonce) -> Self {
        Self { term, nonce: Some(nonce) }
    }

    /// Whether both may name the same term: where a nonce is not known the number has to do.
    pub fn matches(self, other: Self) -> bool {
        let is_known = self.nonce.is_some() && other.nonce.is_some();
        self.term == other.term && (!is_known || self.nonce == other.nonce)
    }
}

impl Ancestry {
    pub const LEN_MAX: usize = 64;

    /// The ancestry of a state that nobody was heard in.
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Makes an ancestry of what was read; `None` when it is too long, or its terms do not grow.
    pub fn of(terms: Vec<Ancestor>) -> Option<Self> {
        let grows = terms.is_sorted_by(|a, b| a.id.term < b.id.term);
        let fits = terms.len() <= Self::LEN_MAX && terms.first().is_none_or(Ancestor::is_a_term);
        (grows && fits).then_some(Self(terms))
    }

    /// Returns the newest term that was spoken in.
    pub fn newest(&self) -> Option<TermId> {
        self.0.last().map(|ancestor| ancestor.id)
    }

    /// Whether `id` may be the newest, or come after it.
    pub fn leads_to(&self, id: TermId) -> bool {
        self.newest().is_none_or(|newest| newest.term < id.term || newest.matches(id))
    }

    /// Whether `id` is one of them.
    pub fn contains(&self, id: TermId) -> bool {
        self.0.iter().any(|ancestor| ancestor.id.matches(id))
    }

    /// Adds the term `id`, in which somebody speaks from now on, unless it is the newest already. Then its speaker is
    /// noted, if that was not known. The oldest term gives way where there are too many.
    ///
    /// # Panics
    /// When a later term was spoken in: [`Ancestry::leads_to`] says so before.
    pub fn spoken_in(mut self, id: TermId) -> Self {
        assert!(self.leads_to(id), "{id} does not come after {:?}", self.newest());
        if let Some(newest) = self.0.last_mut().filter(|newest| newest.id.matches(id)) {
            newest.id.nonce = newest.id.nonce.or(id.nonce);
        } else {
            let too_many = (self.0.len() + 1).saturating_sub(Self::LEN_MAX);
            self.0.drain(..too_many);
            self.0.push(Ancestor { id, last: Epoch::NONE });
        }
        self
    }

    /// The newest term ended with the epoch `last`, or was taken over from there.
    pub fn ended_with(mut self, last: Epoch) -> Self {
        if let Some(newest) = self.0.last_mut() {
            newest.last = last;
        }
        self
    }

    pub fn iter(&self) -> impl Iterator<Item = &Ancestor> {
        self.0.iter()
    }
}

impl Ancestor {
    fn is_a_term(&self) -> bool {
        self.id.term != Term::NONE
    }
}

impl Field for Ancestor {
    fn put(&self, out: &mut Vec<u8>) {
        let Self { id: TermId { term, nonce }, last } = self;
        term.put(out);
        nonce.map_or(0, Nonce::get).put(out);
        last.put(out);
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let (term, nonce) = (Field::take(body)?, Nonce::new(u64::take(body)?));
        Ok(Self { id: TermId { term, nonce }, last: Field::take(body)? })
    }
}

impl Field for Ancestry {
    fn put(&self, out: &mut Vec<u8>) {
        u16::try_from(self.0.len()).expect("at most LEN_MAX").put(out);
        self.0.iter().for_each(|ancestor| ancestor.put(out));
    }

    fn take(body: &mut Reader<'_>) -> Result<Self, WireError> {
        const WRONG: WireError = WireError::Value("Ancestry");
        let len = usize::from(u16::take(body)?);
        if len > Self::LEN_MAX {
            return Err(WRONG);
        }
        let terms = (0..len).map(|_| Field::take(body)).collect::<Result<_, _>>()?;
        Self::of(terms).ok_or(WRONG)
    }
}

impl fmt::Display for TermId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nonce {
            Some(nonce) => write!(f, "{} (nonce {nonce})", self.term),
            None => self.term.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u32, nonce: u64) -> TermId {
        TermId { term: Term::new(term).unwrap(), nonce: Nonce::new(nonce) }
    }

    #[test]
    fn the_newest_terms_are_kept_and_each_once() {
        let all = (1..=100).fold(Ancestry::none(), |all, n| all.spoken_in(id(n, 7)));
        assert_eq!(all.clone().spoken_in(id(100, 7)), all);
        assert_eq!((all.iter().count(), all.newest()), (Ancestry::LEN_MAX, Some(id(100, 7))));
        assert!(all.contains(id(37, 7)) && !all.contains(id(36, 7)) && !all.contains(id(37, 8)));
        assert!(all.contains(id(37, 0)), "a nonce that is not known is no difference");
    }

    #[test]
    fn what_is_too_long_or_does_not_grow_is_refused_before_anything_is_made_of_it() {
        let decode = |len: u16, terms: &[u32]| {
            let mut body = Vec::new();
            len.put(&mut body);
            for term in terms {
                let id = TermId { term: Term::new(*term).unwrap(), nonce: Nonce::new(7) };
                Ancestor { id, last: Epoch::NONE }.put(&mut body);
            }
            Ancestry::take(&mut Reader::new(&body))
        };
        assert_eq!(decode(65, &[]), Err(WireError::Value("Ancestry")));
        assert_eq!(decode(64, &[1]), Err(WireError::Short));
        for wrong in [&[0][..], &[2, 2], &[3, 1]] {
            let len = u16::try_from(wrong.len()).unwrap();
            assert_eq!(decode(len, wrong), Err(WireError::Value("Ancestry")), "{wrong:?}");
        }
        let good = decode(2, &[1, 3]).unwrap();
        assert_eq!(good, Ancestry::none().spoken_in(id(1, 7)).spoken_in(id(3, 7)));
    }
}
