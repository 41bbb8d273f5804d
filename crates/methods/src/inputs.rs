//! What is kept of a layer's inputs themselves, beside the sums over them: the largest magnitude of each
//! channel, and some tokens.

/// Tokens of a sample, at most; at least half as many are kept of inputs that have them.
const MOST: usize = 512;

/// What is known of the inputs of a site.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// The largest magnitude of each channel over all calibration tokens.
    pub peaks: Vec<f32>,
    /// The inputs of some tokens, row-major `[some, cols]`.
    pub sample: Vec<f32>,
    /// Tokens seen.
    seen: u64,
    /// The keys of the tokens of the sample, each below [`u64::MAX`] `>> halved`.
    keys: Vec<u64>,
    halved: u32,
}

impl Inputs {
    /// Of no tokens yet.
    pub fn new(cols: usize) -> Self {
        Self { peaks: vec![0.0; cols], sample: vec![], seen: 0, keys: vec![], halved: 0 }
    }

    /// The most memory that those of so many channels take.
    pub fn bytes(cols: usize) -> u64 {
        (size_of::<f32>() * cols * (MOST + 2) + size_of::<u64>() * (MOST + 1)) as u64
    }

    /// Adds the inputs of further tokens, `[tokens, cols]`.
    ///
    /// Which tokens are kept follows from their number alone, by a key without any rhythm: the first
    /// tokens of rows are unlike all others, and must not come more often in the sample than in the
    /// text.
    pub fn add(&mut self, inputs: &[f32]) {
        let cols = self.peaks.len().max(1);
        for token in inputs.chunks_exact(cols) {
            for (peak, value) in self.peaks.iter_mut().zip(token) {
                *peak = peak.max(value.abs());
            }
            let key = key(self.seen);
            self.seen += 1;
            if key <= u64::MAX >> self.halved {
                self.sample.extend_from_slice(token);
                self.keys.push(key);
            }
            while self.keys.len() > MOST {
                self.halve(cols);
            }
        }
    }

    /// Drops the tokens with keys in the upper half.
    fn halve(&mut self, cols: usize) {
        self.halved += 1;
        let mut kept = 0;
        for token in 0..self.keys.len() {
            if self.keys[token] <= u64::MAX >> self.halved {
                self.keys[kept] = self.keys[token];
                self.sample.copy_within(token * cols..(token + 1) * cols, kept * cols);
                kept += 1;
            }
        }
        self.keys.truncate(kept);
        self.sample.truncate(kept * cols);
    }

    /// Those of the same inputs, each channel divided by its scale.
    pub(crate) fn scaled(&self, scales: &[f32]) -> Self {
        let divided = |values: &[f32]| -> Vec<f32> {
            let rows = values.chunks_exact(scales.len().max(1));
            rows.flat_map(|row| row.iter().zip(scales).map(|(value, scale)| value / scale))
                .collect()
        };
        Self { peaks: divided(&self.peaks), sample: divided(&self.sample), ..self.clone() }
    }
}

/// The finaliser of `SplitMix64` (Steele et al., 2014), of the number after this one.
fn key(number: u64) -> u64 {
    let mut key = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    key = (key ^ (key >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    key = (key ^ (key >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    key ^ (key >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens whose first channel is their number, and whose second is a power of their number.
    fn tokens(count: usize) -> Vec<f32> {
        (0..count).flat_map(|token| [token as f32, -((token % 7) as f32)]).collect()
    }

    #[test]
    fn peaks_are_of_all_tokens_and_the_sample_of_some() {
        let all = tokens(10_000);
        let mut whole = Inputs::new(2);
        whole.add(&all);
        assert_eq!(whole.peaks, [9999.0, 6.0]);
        let kept = whole.sample.len() / 2;
        assert!((MOST / 2 - 64..=MOST).contains(&kept), "{kept}");
        assert!(whole.sample.chunks(2).all(|token| all.chunks(2).any(|other| other == token)));
        assert!(whole.sample.chunks(2).is_sorted_by(|a, b| a[0] < b[0]));
        // Tokens at every 128th place come as often as others do.
        let firsts =
            whole.sample.chunks(2).filter(|token| (token[0] as usize).is_multiple_of(128)).count();
        assert!(firsts < 16, "{firsts} of {kept}");
        // However the tokens come in pieces.
        let mut pieces = Inputs::new(2);
        all.chunks(2 * 77).for_each(|piece| pieces.add(piece));
        assert_eq!(pieces, whole);
        let mut few = Inputs::new(2);
        few.add(&all[..200]);
        assert_eq!(few.sample, all[..200], "of few tokens all are kept");
    }
}
