//! Distortion of the trellis at every number of bits, over scales of its table; and its speed.

use lapidary_kernels::trellis::{Room, Trellis};
use std::time::Instant;

fn main() {
    let mut seed = 7_u64;
    let mut gauss = move || {
        let mut uniform = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        };
        ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    let length = 192;
    let columns = 60;
    let samples: Vec<f32> = (0..columns * length).map(|_| gauss()).collect();
    let state_bits = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(12);
    let trellis = Trellis::new(state_bits);
    let (mut room, mut codes) = (Room::default(), vec![0; length]);
    for bits in 1..=8 {
        let mut best = (f64::INFINITY, 0.0);
        let clock = Instant::now();
        let scales: Vec<f32> = (0..14).map(|i| 0.85 + 0.05 * i as f32).collect();
        for scale in &scales {
            let all = vec![*scale; length];
            let mut error = 0.0;
            for (column, values) in samples.chunks_exact(length).enumerate() {
                let mut state = trellis.start(column as u64);
                trellis.encode(values, &all, bits, state, &mut codes, &mut room);
                for (code, value) in codes.iter().zip(values) {
                    state = trellis.next(state, *code, bits);
                    error += f64::from(value - scale * trellis.value(state)).powi(2);
                }
            }
            let error = error / samples.len() as f64;
            if error < best.0 {
                best = (error, *scale);
            }
        }
        let each = clock.elapsed().as_secs_f64() * 1e6 / (samples.len() * scales.len()) as f64;
        let bound = 0.25_f64.powi(bits as i32);
        println!(
            "{bits} bits: {:.6} at scale {:.2}, bound {bound:.6}, {each:.2} us",
            best.0, best.1
        );
    }
}
