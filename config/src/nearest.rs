//! Which of the known names someone may have meant.

/// The known name with the fewest edits to `name`, if that is few enough to be a slip.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.len() / 3).clamp(1, 3);
    known
        .map(|known| (distance(name, known), known))
        .filter(|(edits, _)| *edits <= limit)
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance: insertions, deletions and replacements of one byte.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, here) in left.bytes().enumerate() {
        let mut next = vec![index + 1];
        for ((other, above_left), above) in right.bytes().zip(&row).zip(row.iter().skip(1)) {
            let before = next.last().copied().unwrap_or_default();
            next.push((above_left + usize::from(here != other)).min(above + 1).min(before + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_other_words_are_not() {
        let known = ["vcpus", "memory_mib", "hugepages"];
        for (slip, meant) in [("vcpu", "vcpus"), ("memory_mb", "memory_mib"), ("huge_pages", "hugepages")] {
            assert_eq!(nearest(slip, known.into_iter()), Some(meant));
        }
        assert_eq!(nearest("colour", known.into_iter()), None);
        assert_eq!(nearest("", known.into_iter()), None);
    }

    #[test]
    fn distances_are_levenshtein_s() {
        for (left, right, edits) in [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)] {
            assert_eq!((distance(left, right), distance(right, left)), (edits, edits), "{left} {right}");
        }
    }
}
