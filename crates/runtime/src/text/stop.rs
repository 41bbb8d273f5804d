//! Strings that end a text, found however they are cut into tokens.

/// Watches a growing text for the first of several strings.
#[derive(Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of one of them.
    held: String,
}

impl StopStrings {
    /// Watches for these; empty ones are passed over.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Adds text. What comes back can be handed on; with `true`, it ends where the string begins
    /// that was complete first (of those complete at once, the longest).
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.held.truncate(start);
            return (std::mem::take(&mut self.held), true);
        }
        let certain = self.held.len() - self.longest_beginning();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when no text follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the text that a stop string begins with.
    fn longest_beginning(&self) -> usize {
        let longest = |stop: &String| {
            let bytes = stop.as_bytes();
            let most = (bytes.len() - 1).min(self.held.len());
            (1..=most).rev().find(|count| self.held.as_bytes().ends_with(&bytes[..*count]))
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where the text ends by the definition: character by character, the first end of any string.
    fn brute_force(text: &str, stops: &[String]) -> Option<usize> {
        let ends = text.char_indices().map(|(at, character)| at + character.len_utf8());
        ends.into_iter().find_map(|end| {
            let ending = stops.iter().filter(|stop| !stop.is_empty());
            let starts = ending.filter(|stop| text[..end].ends_with(stop.as_str()));
            starts.map(|stop| end - stop.len()).min()
        })
    }

    proptest! {
        #[test]
        fn cuts_where_the_definition_does(
            pieces in prop::collection::vec("[abé€]{0,4}", 0..12),
            stops in prop::collection::vec("[abé€]{0,4}", 0..4),
        ) {
            let text = pieces.concat();
            let mut watch = StopStrings::new(&stops);
            let (mut out, mut stopped) = (String::new(), false);
            for piece in &pieces {
                let (certain, end) = watch.push(piece);
                out += &certain;
                if end {
                    stopped = true;
                    break;
                }
                // Nothing is held back that cannot become a stop string.
                let held = &watch.held;
                prop_assert!(
                    held.is_empty() || stops.iter().any(|stop| stop.starts_with(held.as_str()))
                );
            }
            if !stopped {
                out += &watch.finish();
            }
            let expected = brute_force(&text, &stops);
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(out, &text[..expected.unwrap_or(text.len())]);
        }
    }
}
