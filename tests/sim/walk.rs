//! Breadth first, so that the first path to a violation is a shortest one.
//!
//! States are told apart by a 128-bit digest; of each only its parent and the step from there are kept, and a path
//! is shown by taking it again.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hash, Hasher},
};

use xxhash_rust::xxh3::xxh3_128;

use crate::world::{SeenSet, Step, Violation, World};

/// More than this and the bounds are wrong for a test.
const STATES_MAX: usize = 12_000_000;

pub(crate) enum Outcome {
    /// Every state within the bounds was reached, and none is wrong.
    Exhausted { states: usize, depth: usize, seen: SeenSet },
    /// One is; `path` has each step, and how things stood after it.
    Violated { violation: Violation, path: Vec<String> },
}

struct Visit {
    parent: u32,
    step: Step,
}

pub(crate) fn walk(start: &World) -> Outcome {
    let mut known: HashSet<u128, BuildHasherDefault<Given>> = HashSet::default();
    let mut digest = Digest::default();
    known.insert(digest.of(start));
    // The start is its own parent; its step is never taken.
    let mut visits = vec![Visit { parent: 0, step: Step::Tick }];
    let mut frontier = vec![(0u32, start.clone())];
    let mut seen = SeenSet::default();
    let (mut depth, mut steps) = (0, Vec::new());
    while !frontier.is_empty() {
        let mut next = Vec::new();
        for (at, world) in frontier {
            steps.clear();
            world.steps(&mut steps);
            for step in &steps {
                let mut after = world.clone();
                let result = after.take(*step, &mut seen);
                if let Err(violation) = result {
                    let mut taken = path_to(&visits, at);
                    taken.push(*step);
                    return Outcome::Violated { violation, path: retrace(start, &taken) };
                }
                if known.insert(digest.of(&after)) {
                    let id = u32::try_from(visits.len()).expect("below STATES_MAX");
                    assert!(
                        visits.len() < STATES_MAX,
                        "more than {STATES_MAX} states, {depth} steps deep"
                    );
                    visits.push(Visit { parent: at, step: *step });
                    next.push((id, after));
                }
            }
        }
        frontier = next;
        depth += 1;
    }
    Outcome::Exhausted { states: visits.len(), depth, seen }
}

fn path_to(visits: &[Visit], end: u32) -> Vec<Step> {
    let mut path = Vec::new();
    let mut at = end;
    while at != 0 {
        let visit = &visits[at as usize];
        path.push(visit.step);
        at = visit.parent;
    }
    path.reverse();
    path
}

fn retrace(start: &World, steps: &[Step]) -> Vec<String> {
    let (mut world, mut seen) = (start.clone(), SeenSet::default());
    let shown = steps.iter().map(|step| {
        let label = world.describe(*step);
        let ended = world.take(*step, &mut seen).err();
        match ended {
            None => format!("{label:<44} {}", world.summary()),
            Some(violation) => format!("{label:<44} {violation}"),
        }
    });
    shown.collect()
}

/// Collects what a state feeds to its hasher, and digests it in one go.
#[derive(Default)]
struct Digest(Vec<u8>);

impl Digest {
    fn of(&mut self, world: &World) -> u128 {
        self.0.clear();
        world.hash(self);
        xxh3_128(&self.0)
    }
}

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        unreachable!("only the whole is digested")
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// The keys are digests already.
#[derive(Default)]
struct Given(u64);

impl Hasher for Given {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (first, _) = bytes.as_chunks::<8>();
        self.0 = u64::from_ne_bytes(first[0]);
    }
}
