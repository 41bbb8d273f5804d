//! The books of block types whose codes are no integers.

use lapidary_weight::{BookType, SmallFloat, Table};
use std::sync::LazyLock;

/// Levels by their codes, and the way back.
#[derive(Debug)]
pub(super) struct Book {
    /// Its name.
    pub(super) kind: BookType,
    /// The level of each code.
    pub(super) levels: Vec<f32>,
    /// The largest magnitude, which the lowest level has.
    pub(super) reach: f32,
    /// Whether each level has its negative.
    pub(super) is_symmetric: bool,
    /// Codes by rising level, and halfway between each and the next; beyond the last, infinity.
    codes: [u8; 16],
    halfway: [f32; 15],
}

/// `IQ4_NL` and `IQ4_XS`.
pub(super) fn iq4_nl() -> &'static Book {
    static BOOK: LazyLock<Book> = LazyLock::new(|| Book::new(Table::Iq4Nl.into()));
    &BOOK
}

/// `TQ2_0`: −1, 0 and 1.
pub(super) fn ternary() -> &'static Book {
    static BOOK: LazyLock<Book> = LazyLock::new(|| Book::new(Table::Ternary.into()));
    &BOOK
}

/// `TQ1_0`: the same, stored in fewer bits.
pub(super) fn trits() -> &'static Book {
    static BOOK: LazyLock<Book> = LazyLock::new(|| Book::new(Table::Trits.into()));
    &BOOK
}

/// `MXFP4`.
pub(super) fn e2m1() -> &'static Book {
    static BOOK: LazyLock<Book> = LazyLock::new(|| Book::new(SmallFloat::E2M1.into()));
    &BOOK
}

impl Book {
    fn new(kind: BookType) -> Self {
        let levels = kind.fixed().unwrap_or_default();
        let count = match kind {
            BookType::Table(table) => table.levels().len(),
            _ => levels.len(),
        };
        // Of two codes of one level, as ±0 are, the first.
        let is_first = |code: &usize| !levels[..*code].contains(&levels[*code]);
        let mut rising: Vec<usize> = (0..count).filter(is_first).collect();
        rising.sort_by(|a, b| levels[*a].total_cmp(&levels[*b]));
        let (mut codes, mut halfway) = ([0; 16], [f32::INFINITY; 15]);
        for (place, code) in rising.iter().enumerate() {
            codes[place] = *code as u8;
        }
        for (place, pair) in rising.windows(2).enumerate() {
            halfway[place] = 0.5 * (levels[pair[0]] + levels[pair[1]]);
        }
        let reach = levels.iter().fold(0.0_f32, |most, level| most.max(level.abs()));
        let is_symmetric = rising.iter().all(|code| levels.contains(&-levels[*code]));
        Self { kind, levels, reach, is_symmetric, codes, halfway }
    }

    /// The code of the level nearest to a number of steps.
    pub(super) fn code(&self, steps: f32) -> u8 {
        let above = self.halfway.iter().map(|halfway| usize::from(steps > *halfway));
        self.codes[above.sum::<usize>().min(15)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_of_the_nearest_level() {
        for book in [iq4_nl(), ternary(), trits(), e2m1()] {
            for step in -1400..=1400 {
                let steps = step as f32 * 0.1;
                let distance = |level: f32| (f64::from(level) - f64::from(steps)).abs();
                let found = distance(book.levels[usize::from(book.code(steps))]);
                let least = book.levels.iter().map(|level| distance(*level)).fold(1e9, f64::min);
                assert!(found <= least + 1e-6, "{:?} {steps}", book.kind);
            }
        }
        assert!(e2m1().is_symmetric && ternary().is_symmetric && !iq4_nl().is_symmetric);
        assert_eq!((iq4_nl().reach, e2m1().reach, trits().reach), (127.0, 6.0, 1.0));
    }
}
