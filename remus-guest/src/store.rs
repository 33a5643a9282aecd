//! What the server remembers: keys and their values, in bounded memory.
//!
//! Everything is in ordered maps: the same requests give the same store, the same iteration order and the
//! same [`Store::digest`], in every run and on every host.
//!
//! Invariant: `used <= limit` after every call. Each item is charged its bytes and a constant that stands
//! for what the maps and the allocator add to it, before it is stored; a call that finds no room changes
//! nothing and says [`StoreError::OutOfMemory`].
//!
//! Deliberately absent: expiry, databases beyond 0, persistence.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::mem;
use xxhash_rust::xxh3::Xxh3;

use crate::resp::parse_i64;

/// What a key costs beside its bytes: its place in the map (half-full nodes assumed) and two allocations.
const KEY_COST: usize = 192;
/// What an item of a list, set or hash costs beside its bytes.
const ITEM_COST: usize = 96;

type Bytes = Box<[u8]>;

/// Why a call on the store was refused. The store is as before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The key holds another kind of value.
    WrongType,
    /// The value, or the argument, is not an integer in 64 bits.
    NotAnInteger,
    /// The sum does not fit 64 bits.
    Overflow,
    /// There is no room for what would be stored.
    OutOfMemory,
    /// The string would be longer than one value may be.
    StringTooLong,
}

/// The end of a list at which something happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Left,
    Right,
}

/// A score of a sorted set, ordered as IEEE 754 `totalOrder`.
#[derive(Clone, Copy, Debug)]
pub struct Score(pub f64);

#[derive(Debug)]
enum Value {
    String(Vec<u8>),
    List(VecDeque<Bytes>),
    Set(BTreeSet<Bytes>),
    Hash(BTreeMap<Bytes, Bytes>),
    Sorted { scores: BTreeMap<Bytes, Score>, order: BTreeSet<(Score, Bytes)> },
}

/// The keys and their values.
#[derive(Debug)]
pub struct Store {
    entries: BTreeMap<Bytes, Value>,
    used: usize,
    limit: usize,
    string_max: usize,
}

/// The mutable value of the wanted kind under `$key`, made empty if the key is new.
macro_rules! value_mut {
    ($store:ident, $key:ident, $pattern:pat => $inner:expr, $new:expr) => {{
        if !$store.entries.contains_key($key) {
            $store.used += KEY_COST + $key.len();
            $store.entries.insert($key.into(), $new);
        }
        match $store.entries.get_mut($key).expect("was just inserted") {
            $pattern => $inner,
            _ => return Err(StoreError::WrongType),
        }
    }};
}

/// The value of the wanted kind under `$key`, if the key is there.
macro_rules! value {
    ($entry:expr, $pattern:pat => $inner:expr) => {
        match $entry {
            None => None,
            Some($pattern) => Some($inner),
            Some(_) => return Err(StoreError::WrongType),
        }
    };
}

impl Store {
    /// An empty store that charges at most `limit` bytes and takes strings of at most `string_max` bytes.
    pub fn new(limit: usize, string_max: usize) -> Self {
        Self { entries: BTreeMap::new(), used: 0, limit, string_max }
    }

    /// Keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes charged.
    pub fn used_bytes(&self) -> usize {
        self.used
    }

    /// Bytes that may be charged.
    pub fn limit_bytes(&self) -> usize {
        self.limit
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.entries.contains_key(key)
    }

    /// The kind of a key's value in Redis's words.
    pub fn kind(&self, key: &[u8]) -> &'static str {
        match self.entries.get(key) {
            None => "none",
            Some(Value::String(_)) => "string",
            Some(Value::List(_)) => "list",
            Some(Value::Set(_)) => "set",
            Some(Value::Hash(_)) => "hash",
            Some(Value::Sorted { .. }) => "zset",
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.used = 0;
    }

    /// Forgets a key; whether it was there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let Some(value) = self.entries.remove(key) else { return false };
        self.used -= KEY_COST + key.len() + value.cost();
        true
    }

    // Strings.

    pub fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        Ok(value!(self.entries.get(key), Value::String(s) => s.as_slice()))
    }

    /// Whatever the key held before is replaced.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        if value.len() > self.string_max {
            return Err(StoreError::StringTooLong);
        }
        if let Some(Value::String(old)) = self.entries.get_mut(key) {
            let growth = value.len().saturating_sub(old.len());
            if self.used + growth > self.limit {
                return Err(StoreError::OutOfMemory);
            }
            self.used = self.used - old.len() + value.len();
            if old.capacity() < value.len() || old.capacity() / 2 > value.len() {
                *old = value.into();
            } else {
                old.clear();
                old.extend_from_slice(value);
            }
            return Ok(());
        }
        self.room(KEY_COST + key.len() + value.len())?;
        self.remove(key);
        self.used += KEY_COST + key.len() + value.len();
        self.entries.insert(key.into(), Value::String(value.into()));
        Ok(())
    }

    /// Whether all pairs could be set, so that none is set when one cannot. Counts every key as new.
    pub fn room_for_strings<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError> {
        let mut bytes = 0;
        for (key, value) in pairs {
            if value.len() > self.string_max {
                return Err(StoreError::StringTooLong);
            }
            bytes += KEY_COST + key.len() + value.len();
        }
        self.room(bytes)
    }

    /// Adds `n` to the integer that the string spells (0 if there is none); the sum.
    pub fn add(&mut self, key: &[u8], n: i64) -> Result<i64, StoreError> {
        let old = match self.get(key)? {
            None => 0,
            Some(s) => parse_i64(s).ok_or(StoreError::NotAnInteger)?,
        };
        let sum = old.checked_add(n).ok_or(StoreError::Overflow)?;
        let mut digits = Vec::with_capacity(20);
        core::fmt::write(&mut crate::resp::Appender(&mut digits), format_args!("{sum}"))
            .expect("appending to a Vec cannot fail");
        self.set(key, &digits)?;
        Ok(sum)
    }

    /// Appends to the string; its new length.
    pub fn append(&mut self, key: &[u8], more: &[u8]) -> Result<usize, StoreError> {
        self.room(KEY_COST + key.len() + more.len())?;
        let len = self.get(key)?.map_or(0, <[u8]>::len);
        if len + more.len() > self.string_max {
            return Err(StoreError::StringTooLong);
        }
        let s = value_mut!(self, key, Value::String(s) => s, Value::String(Vec::new()));
        s.reserve_exact(more.len());
        s.extend_from_slice(more);
        self.used += more.len();
        Ok(len + more.len())
    }

    // Lists.

    /// Puts an item at one end; the new length.
    pub fn push(&mut self, key: &[u8], end: End, item: &[u8]) -> Result<usize, StoreError> {
        self.room(KEY_COST + key.len() + ITEM_COST + item.len())?;
        let list = value_mut!(self, key, Value::List(l) => l, Value::List(VecDeque::new()));
        match end {
            End::Left => list.push_front(item.into()),
            End::Right => list.push_back(item.into()),
        }
        self.used += ITEM_COST + item.len();
        Ok(list.len())
    }

    pub fn pop(&mut self, key: &[u8], end: End) -> Result<Option<Bytes>, StoreError> {
        let Some(list) = value!(self.entries.get_mut(key), Value::List(l) => l) else {
            return Ok(None);
        };
        let item = match end {
            End::Left => list.pop_front(),
            End::Right => list.pop_back(),
        };
        let emptied = list.is_empty();
        if let Some(item) = &item {
            self.used -= ITEM_COST + item.len();
        }
        self.remove_if(emptied, key);
        Ok(item)
    }

    /// Length of the list, 0 without one.
    pub fn list_len(&self, key: &[u8]) -> Result<usize, StoreError> {
        Ok(value!(self.entries.get(key), Value::List(l) => l.len()).unwrap_or(0))
    }

    /// The items from `start` to `stop`, both included; negative numbers count from the end.
    pub fn range(
        &self,
        key: &[u8],
        start: i64,
        stop: i64,
    ) -> Result<impl ExactSizeIterator<Item = &[u8]> + use<'_>, StoreError> {
        static NONE: VecDeque<Bytes> = VecDeque::new();
        let list = value!(self.entries.get(key), Value::List(l) => l).unwrap_or(&NONE);
        let len = i64::try_from(list.len()).unwrap_or(i64::MAX);
        let from_end = |n: i64| if n < 0 { n.saturating_add(len).max(0) } else { n.min(len) };
        let start = from_end(start);
        let end = if stop < -len { 0 } else { from_end(stop).saturating_add(1).min(len) };
        let index = |n: i64| usize::try_from(n).expect("is in 0..=len");
        Ok(list.range(index(start.min(end))..index(end)).map(|item| &**item))
    }

    // Sets.

    /// Whether the member is new.
    pub fn set_add(&mut self, key: &[u8], member: &[u8]) -> Result<bool, StoreError> {
        self.room(KEY_COST + key.len() + ITEM_COST + member.len())?;
        let set = value_mut!(self, key, Value::Set(s) => s, Value::Set(BTreeSet::new()));
        let added = set.insert(member.into());
        if added {
            self.used += ITEM_COST + member.len();
        }
        Ok(added)
    }

    /// Takes the first member out. (Redis takes a random one; this guest has no dice.)
    pub fn set_pop(&mut self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some(set) = value!(self.entries.get_mut(key), Value::Set(s) => s) else {
            return Ok(None);
        };
        let member = set.pop_first();
        let emptied = set.is_empty();
        if let Some(member) = &member {
            self.used -= ITEM_COST + member.len();
        }
        self.remove_if(emptied, key);
        Ok(member)
    }

    pub fn set_len(&self, key: &[u8]) -> Result<usize, StoreError> {
        Ok(value!(self.entries.get(key), Value::Set(s) => s.len()).unwrap_or(0))
    }

    pub fn set_contains(&self, key: &[u8], member: &[u8]) -> Result<bool, StoreError> {
        Ok(value!(self.entries.get(key), Value::Set(s) => s.contains(member)).unwrap_or(false))
    }

    // Hashes.

    /// Whether the field is new.
    pub fn hash_set(&mut self, key: &[u8], field: &[u8], value: &[u8]) -> Result<bool, StoreError> {
        self.room(KEY_COST + key.len() + 2 * ITEM_COST + field.len() + value.len())?;
        let hash = value_mut!(self, key, Value::Hash(h) => h, Value::Hash(BTreeMap::new()));
        match hash.get_mut(field) {
            Some(old) => {
                let old = mem::replace(old, value.into());
                self.used = self.used - old.len() + value.len();
                Ok(false)
            }
            None => {
                hash.insert(field.into(), value.into());
                self.used += 2 * ITEM_COST + field.len() + value.len();
                Ok(true)
            }
        }
    }

    pub fn hash_get(&self, key: &[u8], field: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        let hash = value!(self.entries.get(key), Value::Hash(h) => h);
        Ok(hash.and_then(|h| h.get(field)).map(|v| &**v))
    }

    pub fn hash_len(&self, key: &[u8]) -> Result<usize, StoreError> {
        Ok(value!(self.entries.get(key), Value::Hash(h) => h.len()).unwrap_or(0))
    }

    // Sorted sets.

    /// Whether the member is new; an old one gets the new score.
    pub fn sorted_add(
        &mut self,
        key: &[u8],
        score: Score,
        member: &[u8],
    ) -> Result<bool, StoreError> {
        self.room(KEY_COST + key.len() + 2 * (ITEM_COST + member.len()))?;
        let (scores, order) = value_mut!(
            self, key,
            Value::Sorted { scores, order } => (scores, order),
            Value::Sorted { scores: BTreeMap::new(), order: BTreeSet::new() }
        );
        let old = scores.insert(member.into(), score);
        match old {
            Some(old) => {
                order.remove(&(old, member.into()));
            }
            None => self.used += 2 * (ITEM_COST + member.len()),
        }
        order.insert((score, member.into()));
        Ok(old.is_none())
    }

    /// Takes out the member with the lowest score.
    pub fn sorted_pop_min(&mut self, key: &[u8]) -> Result<Option<(Score, Bytes)>, StoreError> {
        let Some((scores, order)) =
            value!(self.entries.get_mut(key), Value::Sorted { scores, order } => (scores, order))
        else {
            return Ok(None);
        };
        let first = order.pop_first();
        let emptied = order.is_empty();
        if let Some((_, member)) = &first {
            scores.remove(member);
            self.used -= 2 * (ITEM_COST + member.len());
        }
        self.remove_if(emptied, key);
        Ok(first)
    }

    pub fn sorted_len(&self, key: &[u8]) -> Result<usize, StoreError> {
        Ok(value!(self.entries.get(key), Value::Sorted { scores, .. } => scores.len()).unwrap_or(0))
    }

    /// A digest of all keys and values: equal stores, equal digests, however they came about.
    pub fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        let mut feed = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (key, value) in &self.entries {
            feed(key);
            feed(self.kind(key).as_bytes());
            feed(&(value.len() as u64).to_le_bytes());
            match value {
                Value::String(s) => feed(s),
                Value::List(l) => l.iter().for_each(|item| feed(item)),
                Value::Set(s) => s.iter().for_each(|member| feed(member)),
                Value::Hash(h) => h.iter().for_each(|(field, value)| {
                    feed(field);
                    feed(value);
                }),
                Value::Sorted { order, .. } => order.iter().for_each(|(score, member)| {
                    feed(&score.0.to_bits().to_le_bytes());
                    feed(member);
                }),
            }
        }
        hash.digest()
    }

    fn room(&self, bytes: usize) -> Result<(), StoreError> {
        if self.used + bytes <= self.limit { Ok(()) } else { Err(StoreError::OutOfMemory) }
    }

    fn remove_if(&mut self, emptied: bool, key: &[u8]) {
        if emptied {
            self.remove(key);
        }
    }
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::String(_) => 1,
            Self::List(l) => l.len(),
            Self::Set(s) => s.len(),
            Self::Hash(h) => h.len(),
            Self::Sorted { scores, .. } => scores.len(),
        }
    }

    /// What the value was charged, beside its key.
    fn cost(&self) -> usize {
        match self {
            Self::String(s) => s.len(),
            Self::List(l) => l.iter().map(|i| ITEM_COST + i.len()).sum(),
            Self::Set(s) => s.iter().map(|m| ITEM_COST + m.len()).sum(),
            Self::Hash(h) => h.iter().map(|(f, v)| 2 * ITEM_COST + f.len() + v.len()).sum(),
            Self::Sorted { scores, .. } => scores.keys().map(|m| 2 * (ITEM_COST + m.len())).sum(),
        }
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Score {}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl StoreError {
    /// The error as Redis words it.
    pub fn text(self) -> &'static str {
        match self {
            Self::WrongType => "WRONGTYPE Operation against a key holding the wrong kind of value",
            Self::NotAnInteger => "ERR value is not an integer or out of range",
            Self::Overflow => "ERR increment or decrement would overflow",
            Self::OutOfMemory => "OOM command not allowed when used memory > 'maxmemory'.",
            Self::StringTooLong => "ERR string exceeds maximum allowed size",
        }
    }
}

#[cfg(test)]
mod tests;
