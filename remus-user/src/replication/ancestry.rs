//! Who comes from whom: the one place that compares ancestries.
//!
//! ```text
//!              mine     1 ── 2                    theirs is my
//!              theirs   1 ── 2          Same
//!                       1 ── 2 ── 5     Descendant
//!                       1               Ancestor
//!                       1 ── 3          Split: 2 was spoken in, and 3, and neither knows of the other
//! ```
//!
//! In a split nobody follows anybody and nobody stands down, whatever the numbers: each of the two guests has been heard,
//! so neither state contains what the other has promised. An operator chooses.

use crate::wire::{Ancestry, Hello, TermId, VmId};

/// What another ancestry is to one's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Relation {
    /// Both have heard of the same terms.
    Same,
    /// The other one lacks terms that were spoken in since.
    Ancestor,
    /// The other one goes on from here.
    Descendant,
    /// Each has a term that the other does not come from.
    Split,
}

/// Returns what `theirs` is to `mine`.
///
/// Terms whose speakers are not known, those of records of older releases, are compared as those releases did: by number.
/// A term that is so old that an ancestry no longer has it counts as one that it does not come from.
pub fn judge(mine: &Ancestry, theirs: &Ancestry) -> Relation {
    let (my, their) = match (mine.newest(), theirs.newest()) {
        (None, None) => return Relation::Same,
        (None, Some(_)) => return Relation::Descendant,
        (Some(_), None) => return Relation::Ancestor,
        (Some(my), Some(their)) => (my, their),
    };
    if my.matches(their) {
        Relation::Same
    } else if theirs.contains(my) || by_number(my, their) {
        Relation::Descendant
    } else if mine.contains(their) || by_number(their, my) {
        Relation::Ancestor
    } else {
        Relation::Split
    }
}

/// Whether a speaker is not known, and the second number is the greater one.
fn by_number(first: TermId, second: TermId) -> bool {
    (first.nonce.is_none() || second.nonce.is_none()) && first.term < second.term
}

/// What a host that knows this of the VM says to the primary with which it is in a split.
pub(super) fn split(hello: &Hello, id: Option<VmId>, ours: &Ancestry) -> String {
    let name = |newest: Option<TermId>| newest.map_or("no term".to_owned(), |id| id.to_string());
    let (ours, theirs) = (name(ours.newest()), name(hello.ancestry.newest()));
    let vm = &hello.vm;
    let two_ids = match id {
        Some(id) if id != hello.id => {
            format!("; the ids differ too, {id} here and {} there", hello.id)
        }
        Some(_) | None => String::new(),
    };
    format!(
        "VM {vm} is in a split: its guest was heard in term {ours} here and in term {theirs} at the host that asks, and \
         {}{two_ids}",
        split_advice(vm.as_str())
    )
}

/// How every message about a split of `vm`, after the two terms that it names, ends: what to do.
pub(crate) fn split_advice(vm: &str) -> String {
    format!(
        "neither comes from the other. Choose whose state is given up, and run remus clean {vm} --record there"
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use remus_abi::Term;

    use super::*;
    use crate::wire::Nonce;

    /// An ancestry of (number, nonce); the nonce 0 is not known.
    fn of(terms: &[(u32, u64)]) -> Ancestry {
        terms.iter().fold(Ancestry::none(), |all, (term, nonce)| {
            all.spoken_in(TermId { term: Term::new(*term).unwrap(), nonce: Nonce::new(*nonce) })
        })
    }

    #[test]
    fn the_numbers_of_terms_decide_nothing() {
        let mine = of(&[(1, 7), (2, 8)]);
        for (theirs, relation) in [
            (of(&[(1, 7), (2, 8)]), Relation::Same),
            (of(&[(2, 8)]), Relation::Same),
            (of(&[(1, 7), (2, 8), (9, 3)]), Relation::Descendant),
            (of(&[(1, 7)]), Relation::Ancestor),
            (of(&[]), Relation::Ancestor),
            (of(&[(1, 7), (2, 9)]), Relation::Split),
            (of(&[(1, 7), (3, 8)]), Relation::Split),
            (of(&[(1, 9)]), Relation::Split),
            (of(&[(77, 9)]), Relation::Split),
        ] {
            assert_eq!(judge(&mine, &theirs), relation, "{theirs:?}");
        }
    }

    #[test]
    fn a_record_without_speakers_is_compared_by_number_as_its_release_did() {
        let old = of(&[(3, 0)]);
        assert_eq!(judge(&old, &of(&[(3, 7)])), Relation::Same);
        assert_eq!(judge(&old, &of(&[(3, 7), (4, 8)])), Relation::Descendant);
        assert_eq!(judge(&old, &of(&[(4, 8)])), Relation::Descendant);
        assert_eq!(judge(&old, &of(&[(2, 8)])), Relation::Ancestor);
        assert_eq!(judge(&old, &of(&[(2, 0)])), Relation::Ancestor);
    }

    #[test]
    fn what_has_been_dropped_from_a_long_chain_is_not_taken_for_granted() {
        let long: Vec<_> = (1..=200).map(|n| (n, 7)).collect();
        assert_eq!(judge(&of(&long[..150]), &of(&long)), Relation::Descendant);
        assert_eq!(judge(&of(&long[..100]), &of(&long)), Relation::Split);
    }

    /// A tree of terms: each goes on from one before it, and has a speaker of its own.
    fn line(parents: &[usize], mut at: usize) -> Vec<(u32, u64)> {
        let mut terms = Vec::new();
        loop {
            let number = u64::try_from(at).unwrap() + 1;
            // Numbers count along a line, so that those of two lines coincide.
            terms.push(number);
            if at == 0 {
                break;
            }
            at = parents[at - 1];
        }
        terms.reverse();
        (1..).zip(terms).collect()
    }

    proptest! {
        /// In any history of terms, the judgement is what the history is.
        #[test]
        fn the_judgement_is_what_happened(
            parents in proptest::collection::vec(any::<proptest::sample::Index>(), 1..30),
            a in any::<proptest::sample::Index>(),
            b in any::<proptest::sample::Index>(),
        ) {
            let parents: Vec<_> = (1..).zip(&parents).map(|(n, parent)| parent.index(n)).collect();
            let (a, b) = (a.index(parents.len() + 1), b.index(parents.len() + 1));
            let (mine, theirs) = (line(&parents, a), line(&parents, b));
            let expected = match (mine.starts_with(&theirs), theirs.starts_with(&mine)) {
                (true, true) => Relation::Same,
                (true, false) => Relation::Ancestor,
                (false, true) => Relation::Descendant,
                (false, false) => Relation::Split,
            };
            prop_assert_eq!(judge(&of(&mine), &of(&theirs)), expected);
            let mirrored = match expected {
                Relation::Ancestor => Relation::Descendant,
                Relation::Descendant => Relation::Ancestor,
                same @ (Relation::Same | Relation::Split) => same,
            };
            prop_assert_eq!(judge(&of(&theirs), &of(&mine)), mirrored);
        }
    }
}
