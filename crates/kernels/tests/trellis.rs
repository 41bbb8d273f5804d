//! Viterbi's path against all paths, and distortion against theory.

use lapidary_kernels::isa::Isa;
use lapidary_kernels::trellis::{Room, Trellis};
use proptest::prelude::*;

fn values(trellis: &Trellis, codes: &[u8], bits: u32, start: u32) -> Vec<f32> {
    let mut state = start;
    let value = |code: &u8| {
        state = trellis.next(state, *code, bits);
        trellis.value(state)
    };
    codes.iter().map(value).collect()
}

fn error(trellis: &Trellis, targets: &[f32], scales: &[f32], codes: &[u8], run: (u32, u32)) -> f64 {
    let values = values(trellis, codes, run.0, run.1);
    let each = targets.iter().zip(scales).zip(values);
    each.map(|((target, scale), value)| f64::from(target - scale * value).powi(2)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_other_path_is_nearer(
        bits in 1_u32..=8, targets in prop::collection::vec(-3.0_f32..3.0, 1..9), start: u32, seed: u64,
    ) {
        let trellis = Trellis::new(12);
        let start = start & 0xfff;
        let length = targets.len().min((9 / bits as usize).max(1));
        let targets = &targets[..length];
        let scales: Vec<f32> =
            (0..length).map(|i| ((seed >> (5 * i)) & 31) as f32 / 16.0).collect();
        let mut codes = vec![0; length];
        let mut room = Room::default();
        trellis.encode(targets, &scales, bits, start, &mut codes, &mut room);
        for isa in Isa::available() {
            let mut same = vec![0; length];
            let values = (targets, &scales[..]);
            trellis.encode_with(isa, values, bits, start, &mut same, &mut room);
            prop_assert_eq!(&same, &codes, "{:?}", isa);
        }
        let found = error(&trellis, targets, &scales, &codes, (bits, start));
        let path = |number: u32| -> Vec<u8> {
            (0..length as u32).map(|i| ((number >> (i * bits)) & ((1 << bits) - 1)) as u8).collect()
        };
        let least = (0..1_u32 << (bits * length as u32))
            .map(|number| error(&trellis, targets, &scales, &path(number), (bits, start)))
            .fold(f64::INFINITY, f64::min);
        prop_assert!(found <= least * (1.0 + 1e-5) + 1e-9, "{found} {least}");
    }
}

/// Files hold codes for this table: it must never change. The numbers were made once, in Python.
#[test]
fn the_table_is_the_same_for_ever() {
    let trellis = Trellis::new(12);
    let values = [0, 1, 2, 3, 4, 4095].map(|state| f64::from(trellis.value(state)));
    assert_eq!(values, [0.6875, -1.44921875, -0.17578125, -0.71484375, 0.625, 1.48046875]);
    assert_eq!(trellis.start(7), 3907);
}

/// Card of QTIP: the table has mean 0 and deviation 1; its distortion of Gaussian values is below
/// that of the best scalar quantizer (Lloyd and Max), and above the bound of any.
#[test]
fn gaussian_values_are_coded_near_the_bound() {
    let trellis = Trellis::new(12);
    let table: Vec<f64> = (0..4096).map(|state| f64::from(trellis.value(state))).collect();
    let mean = table.iter().sum::<f64>() / 4096.0;
    let variance = table.iter().map(|value| value * value).sum::<f64>() / 4096.0;
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    let mut state = 5_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        ((state >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    let samples: Vec<f32> = (0..24 * 192)
        .map(|_| {
            let radius = (-2.0 * uniform().ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        })
        .collect();
    let mut room = Room::default();
    for (bits, reach, lloyd_max) in
        [(1, 0.8, 0.3634), (2, 1.0, 0.1175), (3, 1.1, 0.0345), (4, 1.2, 0.0095)]
    {
        let (mut codes, scales) = (vec![0; 192], vec![reach; 192]);
        let mut sum = 0.0;
        for (sequence, targets) in samples.chunks_exact(192).enumerate() {
            let start = trellis.start(sequence as u64);
            trellis.encode(targets, &scales, bits, start, &mut codes, &mut room);
            sum += error(&trellis, targets, &scales, &codes, (bits, start));
        }
        let distortion = sum / samples.len() as f64;
        let bound = 0.25_f64.powi(bits as i32);
        assert!(distortion < 0.85 * lloyd_max && distortion > bound, "{bits} bits: {distortion}");
    }
}
