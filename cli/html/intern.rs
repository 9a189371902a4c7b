//! Texts that are kept once and named by their number.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// Distinct items in the order of their first appearance; serialised as a list.
#[derive(Debug)]
pub struct Interner<T> {
    numbers: BTreeMap<T, usize>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner {
            numbers: BTreeMap::new(),
        }
    }
}

impl<T: Ord> Interner<T> {
    /// The number of `item`.
    pub fn number(&mut self, item: T) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(item).or_insert(next)
    }

    /// The items, by number.
    pub fn items(&self) -> Vec<&T> {
        let mut items: Vec<(&T, &usize)> = self.numbers.iter().collect();
        items.sort_by_key(|(_, number)| **number);
        items.into_iter().map(|(item, _)| item).collect()
    }
}

impl<T: Ord + Serialize> Serialize for Interner<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.items())
    }
}

/// Numbers as runs: `[4, 5, 6, 9]` is `[4, 3, 9, 1]`, each start followed by how
/// many follow each other.
pub fn runs(numbers: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::new();
    for number in numbers {
        match out.as_mut_slice() {
            [.., start, length] if *start + *length == number => *length += 1,
            _ => out.extend([number, 1]),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_numbered_as_they_appear() {
        let mut interner = Interner::default();
        let numbers = ["b", "a", "b", "c"].map(|text| interner.number(text));
        assert_eq!(numbers, [0, 1, 0, 2]);
        assert_eq!(
            serde_json::to_string(&interner).unwrap(),
            r#"["b","a","c"]"#
        );
    }

    #[test]
    fn runs_hold_what_follows_each_other() {
        assert_eq!(runs([4, 5, 6, 9, 2, 3]), [4, 3, 9, 1, 2, 2]);
        assert_eq!(runs([]), [0; 0]);
    }
}
