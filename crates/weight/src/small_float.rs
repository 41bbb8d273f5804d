//! Floats of at most eight bits: the codes of FP8 and FP4 weights and of their scales.
//!
//! E4M3 and E2M1 as the OCP formats define them (OFP8, 2023; Microscaling, 2023): no infinities, and
//! in E4M3 one code of each sign that is no number. E8M0 is a power of two and nothing else.

use serde::{Deserialize, Serialize};

/// A float of at most eight bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SmallFloat {
    /// A sign, four bits of exponent, three of fraction: up to 448.
    E4M3,
    /// A sign, two bits of exponent, one of fraction: 0, ½, 1, 1½, 2, 3, 4, 6.
    E2M1,
    /// Eight bits of exponent: `2^(code − 127)`; 255 is no number.
    E8M0,
}

impl SmallFloat {
    /// Bits of a code.
    pub fn bits(self) -> u8 {
        match self {
            Self::E4M3 | Self::E8M0 => 8,
            Self::E2M1 => 4,
        }
    }

    /// Bits of the fraction, and the exponent of the smallest normal number.
    fn layout(self) -> (i32, i32) {
        match self {
            Self::E4M3 => (3, -6),
            Self::E2M1 => (1, 0),
            Self::E8M0 => (0, -127),
        }
    }

    /// The largest number.
    pub fn largest(self) -> f32 {
        match self {
            Self::E4M3 => 448.0,
            Self::E2M1 => 6.0,
            Self::E8M0 => 127_f32.exp2(),
        }
    }

    /// The smallest number above zero.
    pub fn smallest(self) -> f32 {
        let (fraction, exponent) = self.layout();
        ((exponent - fraction) as f32).exp2()
    }

    /// Whether a code stands for a number.
    pub fn is_number(self, code: u8) -> bool {
        match self {
            Self::E4M3 => code & 0x7f != 0x7f,
            Self::E2M1 => code < 16,
            Self::E8M0 => code != 255,
        }
    }

    /// The number of a code; NaN where it stands for none.
    pub fn decode(self, code: u8) -> f32 {
        if !self.is_number(code) {
            return f32::NAN;
        }
        if self == Self::E8M0 {
            return ((f32::from(code)) - 127.0).exp2();
        }
        let (fraction_bits, least) = self.layout();
        let sign_bit = self.bits() - 1;
        let magnitude = code & ((1 << sign_bit) - 1);
        let exponent = i32::from(magnitude >> fraction_bits);
        let fraction = f32::from(magnitude & ((1 << fraction_bits) - 1));
        let one = f32::from(1_u8 << fraction_bits);
        let value = match exponent {
            0 => fraction * self.smallest(),
            _ => (one + fraction) * ((exponent - 1 + least - fraction_bits) as f32).exp2(),
        };
        if code >> sign_bit == 1 { -value } else { value }
    }

    /// The code of the nearest number, ties to the even code; what is beyond the largest becomes the
    /// largest. E8M0 has no sign and no zero: it takes the magnitude, and the power of two that is
    /// nearest to it as a ratio. The value must be a number.
    pub fn encode(self, value: f32) -> u8 {
        let magnitude = value.abs().min(self.largest());
        if self == Self::E8M0 {
            let magnitude = magnitude.max(self.smallest());
            return (magnitude.log2().round() as i32 + 127).clamp(0, 254) as u8;
        }
        let (fraction_bits, least) = self.layout();
        // The exponent from the bits; f32's subnormals are far below the least of these.
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(least);
        // Times a power of two: exact.
        let steps = magnitude * f32::from_bits(((127 + fraction_bits - exponent) as u32) << 23);
        let code = ((exponent - least) << fraction_bits) + steps.round_ties_even() as i32;
        code as u8 | u8::from(value.is_sign_negative()) << (self.bits() - 1)
    }

    /// All numbers by their codes; zero in the place of a code that stands for none.
    pub fn book(self) -> Vec<f32> {
        let number = |code| if self.is_number(code) { self.decode(code) } else { 0.0 };
        (0..=u8::MAX >> (8 - self.bits())).map(number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The number of a code by the definition, in f64.
    fn number(float: SmallFloat, code: u8) -> f64 {
        let (exponent_bits, fraction_bits, bias) = match float {
            SmallFloat::E4M3 => (4, 3, 7),
            SmallFloat::E2M1 => (2, 1, 1),
            SmallFloat::E8M0 => return 2.0_f64.powi(i32::from(code) - 127),
        };
        let exponent = i32::from(code >> fraction_bits) & ((1 << exponent_bits) - 1);
        let fraction = f64::from(code & ((1 << fraction_bits) - 1)) / f64::from(1 << fraction_bits);
        let magnitude = match exponent {
            0 => fraction * 2.0_f64.powi(1 - bias),
            _ => (1.0 + fraction) * 2.0_f64.powi(exponent - bias),
        };
        if code >> (exponent_bits + fraction_bits) & 1 == 1 { -magnitude } else { magnitude }
    }

    #[test]
    fn every_code_decodes_by_the_definition_and_comes_back() {
        for float in [SmallFloat::E4M3, SmallFloat::E2M1, SmallFloat::E8M0] {
            for code in (0..=u8::MAX).filter(|code| float.is_number(*code)) {
                assert_eq!(f64::from(float.decode(code)), number(float, code), "{float:?} {code}");
                assert_eq!(float.encode(float.decode(code)), code, "{float:?} {code}");
            }
            assert_eq!(float.book().len(), 1 << float.bits());
            assert_eq!(float.encode(f32::MAX), float.encode(float.largest()));
        }
        assert!(SmallFloat::E4M3.decode(0x7f).is_nan() && SmallFloat::E4M3.decode(0xff).is_nan());
        assert!(SmallFloat::E8M0.decode(255).is_nan());
        let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        assert_eq!(SmallFloat::E2M1.book()[..8], levels);
    }

    proptest! {
        /// Nearest by trying every code; of two as near, the even one.
        #[test]
        fn encoding_is_to_the_nearest(bits: u32, near in -10.0_f32..10.0, eight: bool, tie: bool) {
            let float = if eight { SmallFloat::E4M3 } else { SmallFloat::E2M1 };
            let any = f32::from_bits(bits);
            let mut value = if bits % 2 == 1 && any.abs() < 1e6 { any } else { near };
            if tie {
                let low = float.encode(value) & !(1 << (float.bits() - 1));
                if float.is_number(low + 1) && low + 1 < 1 << (float.bits() - 1) {
                    value = 0.5 * (float.decode(low) + float.decode(low + 1));
                }
            }
            let code = float.encode(value);
            let distance = |code: u8| (number(float, code) - f64::from(value)).abs();
            let sign = |code: u8| code >> (float.bits() - 1) == u8::from(value.is_sign_negative());
            let codes = (0..=u8::MAX >> (8 - float.bits())).filter(|c| float.is_number(*c) && sign(*c));
            let least = codes.clone().map(distance).fold(f64::INFINITY, f64::min);
            let nearest: Vec<u8> = codes.filter(|code| distance(*code) == least).collect();
            let want = nearest.iter().find(|code| nearest.len() == 1 || **code % 2 == 0);
            prop_assert_eq!(Some(&code), want);
        }
    }
}
