//! Pairs of sentences of a text, by a rule: neighbours, and the same sentences with others from anywhere.
//!
//! A paragraph is a line that is no heading (`= … =`). A sentence ends where a full stop, question or
//! exclamation mark is followed by a space and a capital letter, and is used when it has from 8 to 40
//! words. Neighbours are two used sentences that stand one after the other in a paragraph, no sentence in
//! two pairs; of all of them so many are taken, evenly from the whole text. The other half of the pairs
//! joins the first sentence of each with the second of another, drawn at random.

use crate::random::Random;
use std::ops::RangeInclusive;

/// Words of a sentence.
const WORDS: RangeInclusive<usize> = 8..=40;

/// Sentences, and which of them are compared.
pub(super) struct Pairs {
    pub(super) sentences: Vec<String>,
    /// Indices into the sentences: neighbours first, then the pairs that were drawn.
    pub(super) pairs: Vec<(usize, usize)>,
}

/// At most `count` pairs of neighbours of a text, and as many drawn ones.
pub(super) fn pairs(text: &str, count: usize, seed: u64) -> Pairs {
    let mut neighbours: Vec<(&str, &str)> = vec![];
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('=')) {
        let mut waiting = None;
        for sentence in sentences(line) {
            let is_used = WORDS.contains(&sentence.split_whitespace().count());
            waiting = match (waiting, is_used) {
                (_, false) => None,
                (None, true) => Some(sentence),
                (Some(before), true) => {
                    neighbours.push((before, sentence));
                    None
                }
            };
        }
    }
    let taken = count.min(neighbours.len());
    let chosen = (0..taken).map(|i| neighbours[i * neighbours.len() / taken]);
    let sentences: Vec<String> =
        chosen.flat_map(|(first, second)| [first.to_owned(), second.to_owned()]).collect();
    let mut random = Random::new(seed);
    let mut pairs: Vec<(usize, usize)> = (0..taken).map(|i| (2 * i, 2 * i + 1)).collect();
    for i in (0..taken).filter(|_| taken > 1) {
        let steps = 1 + (random.unit() * (taken - 1) as f64) as usize;
        pairs.push((2 * i, 2 * ((i + steps) % taken) + 1));
    }
    Pairs { sentences, pairs }
}

/// The sentences of a paragraph.
fn sentences(paragraph: &str) -> Vec<&str> {
    let mut sentences = vec![];
    let mut start = 0;
    for (at, _) in paragraph.match_indices(['.', '!', '?']) {
        let mut after = paragraph[at + 1..].chars();
        if after.next() == Some(' ') && after.next().is_some_and(char::is_uppercase) {
            sentences.push(paragraph[start..=at].trim());
            start = at + 1;
        }
    }
    sentences.push(paragraph[start..].trim());
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_ends_at_a_mark_before_a_capital() {
        let found = sentences("In 2.5 years it grew . Did it ? Yes ! e.g. so. The end");
        assert_eq!(found, ["In 2.5 years it grew .", "Did it ?", "Yes ! e.g. so.", "The end"]);
    }

    #[test]
    fn pairs_are_neighbours_first_and_strangers_then() {
        let sentence = |i: usize| format!("Number {i} has just as many words as it needs to .");
        let paragraph =
            |i: usize| format!("{} {} Short one .", sentence(2 * i), sentence(2 * i + 1));
        let text: String =
            (0..50).map(|i| format!(" = Heading {i} = \n\n {} \n", paragraph(i))).collect();
        let found = pairs(&text, 20, 7);
        assert_eq!((found.sentences.len(), found.pairs.len()), (40, 40));
        let number = |i: usize| -> usize {
            found.sentences[i].split(' ').nth(1).unwrap_or_default().parse().unwrap_or(usize::MAX)
        };
        for (at, (first, second)) in found.pairs.iter().enumerate() {
            let are_neighbours = number(*first) + 1 == number(*second) && number(*first) % 2 == 0;
            assert_eq!(are_neighbours, at < 20, "{at}: {} {}", number(*first), number(*second));
        }
        let places: Vec<usize> = (0..20).map(|i| number(2 * i)).collect();
        assert!(places.is_sorted() && places[19] >= 90, "{places:?}");
        assert_eq!(found.pairs, pairs(&text, 20, 7).pairs);
        assert!(pairs("", 20, 7).pairs.is_empty());
    }
}
