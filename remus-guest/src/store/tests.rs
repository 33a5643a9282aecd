use super::*;
use alloc::vec;
use proptest::prelude::*;

fn recount(store: &Store) -> usize {
    store.entries.iter().map(|(k, v)| KEY_COST + k.len() + v.cost()).sum()
}

fn range(store: &Store, start: i64, stop: i64) -> Vec<Vec<u8>> {
    store.range(b"l", start, stop).unwrap().map(<[u8]>::to_vec).collect()
}

#[test]
fn ranges_count_from_either_end() {
    let mut store = Store::new(1 << 20, 1 << 10);
    for item in [b"a", b"b", b"c"] {
        store.push(b"l", End::Right, item).unwrap();
    }
    let all = vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()];
    assert_eq!(range(&store, 0, -1), all);
    assert_eq!(range(&store, -100, 100), all);
    assert_eq!(range(&store, 1, 1), all[1..2]);
    assert_eq!(range(&store, -2, -1), all[1..]);
    assert_eq!(range(&store, 2, 1), all[..0]);
    assert_eq!(range(&store, 5, 9), all[..0]);
    assert_eq!(range(&store, 0, -4), all[..0]);
    assert_eq!(range(&store, i64::MIN, i64::MAX), all);
}

#[test]
fn a_full_store_refuses_and_stays_as_it_was() {
    let mut store = Store::new(4 * KEY_COST, 1 << 20);
    store.set(b"a", b"1").unwrap();
    let digest = store.digest();
    assert_eq!(store.set(b"b", &[0; 4 * KEY_COST]), Err(StoreError::OutOfMemory));
    assert_eq!(store.set(b"a", &[0; 4 * KEY_COST]), Err(StoreError::OutOfMemory));
    assert_eq!(store.append(b"a", &[0; 4 * KEY_COST]), Err(StoreError::OutOfMemory));
    assert_eq!(store.push(b"l", End::Left, &[0; 4 * KEY_COST]), Err(StoreError::OutOfMemory));
    assert_eq!(store.digest(), digest);
    assert_eq!(store.len(), 1);
}

#[test]
fn a_value_of_another_kind_is_left_alone() {
    let mut store = Store::new(1 << 20, 1 << 10);
    store.set(b"s", b"x").unwrap();
    assert_eq!(store.push(b"s", End::Left, b"i"), Err(StoreError::WrongType));
    assert_eq!(store.set_add(b"s", b"i"), Err(StoreError::WrongType));
    assert_eq!(store.hash_set(b"s", b"f", b"v"), Err(StoreError::WrongType));
    assert_eq!(store.add(b"s", 1), Err(StoreError::NotAnInteger));
    assert_eq!(store.get(b"s"), Ok(Some(b"x".as_slice())));
    store.set(b"n", b"9223372036854775807").unwrap();
    assert_eq!(store.add(b"n", 1), Err(StoreError::Overflow));
}

#[test]
fn a_sorted_set_pops_in_the_order_of_its_scores() {
    let mut store = Store::new(1 << 20, 1 << 10);
    store.sorted_add(b"z", Score(2.0), b"two").unwrap();
    store.sorted_add(b"z", Score(1.0), b"one").unwrap();
    assert!(!store.sorted_add(b"z", Score(-1.0), b"two").unwrap());
    assert_eq!(&*store.sorted_pop_min(b"z").unwrap().unwrap().1, b"two");
    assert_eq!(&*store.sorted_pop_min(b"z").unwrap().unwrap().1, b"one");
    assert!(store.sorted_pop_min(b"z").unwrap().is_none());
    assert!(store.is_empty());
}

/// One call with small numbers as arguments, so that keys and kinds collide.
fn step(store: &mut Store, op: u8, key: u8, size: u8) {
    let key = [key % 4];
    let bytes = vec![size; usize::from(size)];
    // What is checked is the accounting, whether or not the call was refused.
    match op % 9 {
        0 => drop(store.set(&key, &bytes)),
        1 => drop(store.append(&key, &bytes)),
        2 => drop(store.push(&key, End::Left, &bytes)),
        3 => drop(store.pop(&key, End::Right)),
        4 => drop(store.set_add(&key, &bytes)),
        5 => drop(store.set_pop(&key)),
        6 => drop(store.hash_set(&key, &bytes[..bytes.len() / 2], &bytes)),
        7 => drop(store.sorted_add(&key, Score(f64::from(size)), &bytes)),
        _ => drop(store.remove(&key)),
    }
}

proptest! {
    #[test]
    fn what_is_charged_is_what_is_there(
        steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..200)
    ) {
        let mut store = Store::new(8000, 200);
        for (op, key, size) in steps {
            step(&mut store, op, key, size);
            prop_assert!(store.used_bytes() <= store.limit_bytes());
        }
        prop_assert_eq!(store.used_bytes(), recount(&store));
    }

    #[test]
    fn the_same_steps_give_the_same_digest(
        steps in proptest::collection::vec(any::<(u8, u8, u8)>(), 0..50)
    ) {
        let mut a = Store::new(8000, 200);
        let mut b = Store::new(8000, 200);
        b.set(b"gone", b"x").unwrap();
        for (op, key, size) in &steps {
            step(&mut a, *op, *key, *size);
        }
        b.remove(b"gone");
        for (op, key, size) in &steps {
            step(&mut b, *op, *key, *size);
        }
        prop_assert_eq!(a.digest(), b.digest());
    }
}
