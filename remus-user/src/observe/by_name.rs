//! A table's counters in JSON: a key for each, by its name. For `#[serde(flatten, with = "by_name")]`.
//!
//! A document of another version may have more counters, or fewer: a key that the table does not have is passed over,
//! and a counter without a key is 0.

use std::{fmt, marker::PhantomData};

use remus_abi::counters::{Counted, Counts};
use serde::{
    Deserializer, Serializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

pub(super) fn serialize<T: Counted, S: Serializer, const N: usize>(
    counts: &Counts<T, N>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(counts.iter().map(|(counter, n)| (counter.name(), n)))
}

pub(super) fn deserialize<'de, T: Counted, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<Counts<T, N>, D::Error> {
    deserializer.deserialize_map(Names(PhantomData))
}

struct Names<T, const N: usize>(PhantomData<T>);

impl<'de, T: Counted, const N: usize> Visitor<'de> for Names<T, N> {
    type Value = Counts<T, N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("counters by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut counts = Counts::default();
        while let Some(name) = map.next_key::<String>()? {
            match T::all().iter().find(|counter| counter.name() == name) {
                Some(counter) => counts.set(*counter, map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(counts)
    }
}
