//! "Did you mean": finds the known word nearest to what was written.

/// Returns the candidate at the least edit distance from `word`, if it is near enough to be a slip of the hand: at
/// most a third of its letters, and never more than three.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    // A key is short, and to compare a text of megabytes with it is a waste of time.
    if word.len() > 64 {
        return None;
    }
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(d, candidate)| *d <= (candidate.len() / 3).clamp(1, 3))
        .min_by_key(|(d, _)| *d)
        .map(|(_, candidate)| candidate)
}

/// Returns Levenshtein's distance over bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_stranger_finds_none() {
        let words = ["memory_mib", "vcpus", "kernel"];
        assert_eq!(nearest("memory_mb", words.into_iter()), Some("memory_mib"));
        assert_eq!(nearest("vcpu", words.into_iter()), Some("vcpus"));
        assert_eq!(nearest("disk", words.into_iter()), None);
    }
}
