//! How the elements of a parameter are laid out in a weight buffer.
//!
//! A parameter with two or more axes is a matrix `[rows, k]` here: the last axis
//! is `k`, the others are its rows. Each row is padded with zeros to whole
//! *groups*, so that a kernel reads 16 bytes at a time and never straddles rows.
//!
//! | packing | group | bytes a group | value |
//! |---|---|---|---|
//! | `f32` | 16 weights | 64 | as it is |
//! | `f16` | 16 weights | 32 | rounded to nearest even, two in a word, first low |
//! | `q8`  | 32 weights | 32 + 2 | `scale * q`, `q` in -127..=127 |
//! | `q4`  | 32 weights | 16 + 2 | `scale * q`, `q` in -8..=7, stored plus 8 |
//!
//! The quantised packings keep an `f16` scale a group in a buffer of their own.
//! In a `q4` word, weights 0 to 3 are the low nibbles of its bytes, 4 to 7 the
//! high ones.
//!
//! In an image the matrix lies in *bands* of [`BAND_ROWS`] rows, so that whoever reads
//! the rows of a band side by side reads memory from front to back: the first groups of
//! its rows one after the other, then, with scales, the eight of them in 16 bytes, then
//! the second groups, and so on. Rows of texels begin with bands where those are not too
//! long, see [`crate::plan::ImageSize`].

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::plan::TEXEL_BYTES;

/// The layout of a matrix in a weight buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Packing {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8-bit integers with a scale per 32.
    Q8,
    /// 4-bit integers with a scale per 32.
    Q4,
}

/// Rows of a band of a matrix in an image.
pub const BAND_ROWS: usize = 8;

/// A packed matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// The weights, whole words.
    pub data: Vec<u8>,
    /// The scales of a quantised packing, `f16`, whole words; else empty.
    pub scales: Vec<u8>,
}

impl Packing {
    /// Every packing.
    pub const ALL: [Packing; 4] = [Packing::F32, Packing::F16, Packing::Q8, Packing::Q4];

    /// The name, as in `--dtype`.
    pub fn name(self) -> &'static str {
        match self {
            Packing::F32 => "f32",
            Packing::F16 => "f16",
            Packing::Q8 => "q8",
            Packing::Q4 => "q4",
        }
    }

    /// The packing of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Weights in a group.
    pub const fn group(self) -> usize {
        match self {
            Packing::F32 | Packing::F16 => 16,
            Packing::Q8 | Packing::Q4 => 32,
        }
    }

    /// Bytes of a group without its scale.
    pub const fn group_bytes(self) -> usize {
        match self {
            Packing::F32 => 64,
            Packing::F16 | Packing::Q8 => 32,
            Packing::Q4 => 16,
        }
    }

    /// The largest weight that it holds: of a group with a scale, which is an `f16`, the
    /// largest of what that may be multiplied by.
    pub fn most(self) -> f32 {
        let half = f16::MAX.to_f32();
        match self {
            Packing::F32 => f32::MAX,
            Packing::F16 => half,
            Packing::Q8 => 127.0 * half,
            Packing::Q4 => 8.0 * half,
        }
    }

    /// Whether groups have a scale.
    pub const fn has_scales(self) -> bool {
        matches!(self, Packing::Q8 | Packing::Q4)
    }

    /// Groups in a row of `k` weights.
    pub fn groups(self, k: usize) -> usize {
        k.div_ceil(self.group())
    }

    /// Bytes of the weights of a `[rows, k]` matrix.
    pub fn data_bytes(self, rows: usize, k: usize) -> usize {
        rows * self.groups(k) * self.group_bytes()
    }

    /// Bytes of the scales of a `[rows, k]` matrix, whole words; 0 without.
    pub fn scale_bytes(self, rows: usize, k: usize) -> usize {
        if self.has_scales() {
            (rows * self.groups(k)).div_ceil(2) * 4
        } else {
            0
        }
    }

    /// Bytes of a group of each row of a band, with their scales.
    pub const fn band_group_bytes(self) -> usize {
        let scales = if self.has_scales() { 2 * BAND_ROWS } else { 0 };
        BAND_ROWS * self.group_bytes() + scales
    }

    /// Texels of a band of rows of `k` weights.
    pub const fn band_texels(self, k: u64) -> u64 {
        let groups = k.div_ceil(self.group() as u64);
        groups.saturating_mul(self.band_group_bytes() as u64 / TEXEL_BYTES)
    }

    /// Makes `out` the whole bands of a packed `[rows, k]` matrix, as they lie in an
    /// image.
    pub fn bands(self, data: &[u8], scales: &[u8], k: usize, out: &mut Vec<u8>) {
        let (row_groups, bytes) = (self.groups(k), self.group_bytes());
        let scale_bytes = if self.has_scales() { 2 } else { 0 };
        let rows = data.chunks_exact((BAND_ROWS * row_groups * bytes).max(1));
        out.resize(rows.len() * row_groups * self.band_group_bytes(), 0);
        out.par_chunks_mut((row_groups * self.band_group_bytes()).max(1))
            .zip(data.par_chunks_exact((BAND_ROWS * row_groups * bytes).max(1)))
            .enumerate()
            .for_each(|(band, (out, rows))| {
                let groups = out.chunks_exact_mut(self.band_group_bytes());
                for (group, out) in groups.enumerate() {
                    let (weights, of_scales) = out.split_at_mut(BAND_ROWS * bytes);
                    for (row, out) in weights.chunks_exact_mut(bytes).enumerate() {
                        let at = (row * row_groups + group) * bytes;
                        out.copy_from_slice(&rows[at..at + bytes]);
                    }
                    for (row, out) in of_scales.chunks_exact_mut(2).enumerate() {
                        let at = ((band * BAND_ROWS + row) * row_groups + group) * scale_bytes;
                        out.copy_from_slice(scales.get(at..at + 2).unwrap_or(&[0; 2]));
                    }
                }
            });
    }

    /// Packs `[rows, k]` values; a trailing incomplete row is dropped.
    pub fn pack(self, values: &[f32], k: usize) -> Packed {
        let k = k.max(1);
        let rows = values.len() / k;
        let row_bytes = self.groups(k) * self.group_bytes();
        let mut data = vec![0u8; rows * row_bytes];
        let mut scales = vec![0u16; self.scale_bytes(rows, k) / 2];
        let row_groups = self.groups(k);
        if self.has_scales() {
            data.par_chunks_mut(row_bytes)
                .zip(scales.par_chunks_mut(row_groups))
                .zip(values.par_chunks(k))
                .for_each(|((bytes, scales), row)| self.quantise_row(row, bytes, scales));
        } else {
            data.par_chunks_mut(row_bytes)
                .zip(values.par_chunks(k))
                .for_each(|(bytes, row)| match self {
                    Packing::F16 => {
                        let mut half = vec![f16::ZERO; row.len()];
                        half.convert_from_f32_slice(row);
                        for (out, v) in bytes.chunks_exact_mut(2).zip(half) {
                            out.copy_from_slice(&v.to_le_bytes());
                        }
                    }
                    _ => {
                        for (out, v) in bytes.chunks_exact_mut(4).zip(row) {
                            out.copy_from_slice(&v.to_le_bytes());
                        }
                    }
                });
        }
        Packed {
            data,
            scales: scales.iter().flat_map(|s| s.to_le_bytes()).collect(),
        }
    }

    fn quantise_row(self, row: &[f32], bytes: &mut [u8], scales: &mut [u16]) {
        let groups = row.chunks(self.group());
        for ((group, out), scale_out) in groups
            .zip(bytes.chunks_exact_mut(self.group_bytes()))
            .zip(scales)
        {
            // The weight of the largest magnitude. For q4 it is mapped to -8,
            // the end of the range that its mirror image lacks.
            let peak = group
                .iter()
                .copied()
                .fold(0.0f32, |m, v| if v.abs() > m.abs() { v } else { m });
            let full = if self == Packing::Q8 {
                peak.abs() / 127.0
            } else {
                peak / -8.0
            };
            let scale = scale_of(full);
            *scale_out = scale.to_bits();
            let scale = scale.to_f32();
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let quantum =
                |v: f32, low: f32, high: f32| (v * inverse).round().clamp(low, high) as i32;
            if self == Packing::Q8 {
                for (o, v) in out.iter_mut().zip(group) {
                    *o = quantum(*v, -127.0, 127.0) as i8 as u8;
                }
            } else {
                for i in 0..self.group() {
                    let v = group.get(i).copied().unwrap_or(0.0);
                    let nibble = (quantum(v, -8.0, 7.0) + 8) as u8;
                    let (byte, shift) = q4_place(i);
                    out[byte] |= nibble << shift;
                }
            }
        }
    }

    /// The values of a packed `[rows, k]` matrix. Missing bytes read as zero.
    pub fn unpack(self, data: &[u8], scales: &[u8], rows: usize, k: usize) -> Vec<f32> {
        let row_groups = self.groups(k);
        let row_bytes = row_groups * self.group_bytes();
        let half = |bytes: &[u8], i: usize| {
            let pair = bytes.get(2 * i..2 * i + 2).and_then(|b| b.try_into().ok());
            f16::from_le_bytes(pair.unwrap_or([0; 2])).to_f32()
        };
        let mut out = vec![0.0f32; rows * k];
        out.par_chunks_mut(k.max(1))
            .enumerate()
            .for_each(|(r, row)| {
                let bytes = data.get(r * row_bytes..(r + 1) * row_bytes).unwrap_or(&[]);
                for (i, v) in row.iter_mut().enumerate() {
                    let scale = || half(scales, r * row_groups + i / self.group());
                    *v = match self {
                        Packing::F32 => {
                            let word = bytes.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok());
                            f32::from_le_bytes(word.unwrap_or([0; 4]))
                        }
                        Packing::F16 => half(bytes, i),
                        Packing::Q8 => {
                            f32::from(bytes.get(i).copied().unwrap_or(0) as i8) * scale()
                        }
                        Packing::Q4 => {
                            let (byte, shift) = q4_place(i % 32);
                            let byte = bytes.get(i / 32 * 16 + byte).copied().unwrap_or(0);
                            (f32::from((byte >> shift) & 15) - 8.0) * scale()
                        }
                    };
                }
            });
        out
    }
}

/// The `f16` that stands for a scale: the nearest, but of what is small for an `f16`, whose
/// neighbours are far from it, the next away from 0, or the largest weights would be cut off.
fn scale_of(full: f32) -> f16 {
    const LEAST_STEP: f32 = 1.0 / (1 << 24) as f32;
    match full.abs() < f16::MIN_POSITIVE.to_f32() {
        true => {
            f16::from_bits((full.abs() / LEAST_STEP).ceil() as u16).copysign(f16::from_f32(full))
        }
        false => f16::from_f32(full),
    }
}

/// The byte and shift of weight `i` of a `q4` group.
fn q4_place(i: usize) -> (usize, u32) {
    (i / 8 * 4 + i % 4, if i % 8 < 4 { 0 } else { 4 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0)
            .collect()
    }

    /// How far the nearest weight of a packing may be from `a`, in a group of this scale.
    fn nearest(packing: Packing, a: f32, scale: f32) -> f32 {
        match packing {
            Packing::F32 => 0.0,
            Packing::F16 => a.abs() / 2048.0,
            // There is no 8 of four bits: what lies beyond is 7.
            Packing::Q4 if a / scale > 7.5 => 1.0001 * scale.abs(),
            Packing::Q8 | Packing::Q4 => 0.5001 * scale.abs(),
        }
    }

    #[test]
    fn every_weight_becomes_the_nearest_that_a_packing_has() {
        for packing in Packing::ALL {
            for k in [1, 5, 16, 31, 32, 33, 96] {
                let x = values(3 * k);
                let packed = packing.pack(&x, k);
                assert_eq!(packed.data.len(), packing.data_bytes(3, k));
                assert_eq!(packed.scales.len(), packing.scale_bytes(3, k));
                let y = packing.unpack(&packed.data, &packed.scales, 3, k);
                let scale = |i: usize| {
                    if !packing.has_scales() {
                        return 1.0;
                    }
                    let at = 2 * (i / k * packing.groups(k) + i % k / packing.group());
                    f16::from_le_bytes([packed.scales[at], packed.scales[at + 1]]).to_f32()
                };
                for (i, (a, b)) in x.iter().zip(&y).enumerate() {
                    let most = nearest(packing, *a, scale(i));
                    assert!((a - b).abs() <= most, "{packing:?} {k}: {a} {b} {most}");
                }
            }
        }
    }

    #[test]
    fn small_groups_keep_their_weights() {
        for packing in [Packing::Q8, Packing::Q4] {
            for by in [1e-3, 1e-5, 1e-6, 3e-7] {
                let x: Vec<f32> = values(32).iter().map(|v| v * by).collect();
                let packed = packing.pack(&x, 32);
                let y = packing.unpack(&packed.data, &packed.scales, 1, 32);
                let scale = f16::from_le_bytes([packed.scales[0], packed.scales[1]]).to_f32();
                for (a, b) in x.iter().zip(&y) {
                    let most = nearest(packing, *a, scale);
                    assert!((a - b).abs() <= most, "{packing:?} {by}: {a} {b} {most}");
                }
                assert!(
                    scale != 0.0 && scale.abs() <= by.max(6e-8),
                    "{packing:?} {by}"
                );
            }
        }
    }

    #[test]
    fn the_largest_weight_is_held() {
        for packing in Packing::ALL {
            for most in [packing.most(), -packing.most()] {
                let packed = packing.pack(&[most; 32], 32);
                let back = packing.unpack(&packed.data, &packed.scales, 1, 32);
                assert_eq!(back, [most; 32], "{packing:?}");
            }
        }
    }

    #[test]
    fn bands_hold_groups_of_eight_rows_side_by_side() {
        for packing in Packing::ALL {
            let (k, rows) = (70, 3 * BAND_ROWS);
            let packed = packing.pack(&values(rows * k), k);
            // What is left of a band is not taken.
            let short = packing.group_bytes();
            let data = &packed.data[..packed.data.len() - short];
            let mut bands = vec![1; 10];
            packing.bands(data, &packed.scales, k, &mut bands);
            let (groups, bytes) = (packing.groups(k), packing.group_bytes());
            assert_eq!(bands.len(), 2 * groups * packing.band_group_bytes());
            let mut rest = bands.as_slice();
            for (band, group) in (0..2).flat_map(|b| (0..groups).map(move |g| (b, g))) {
                let place = |row: usize| (band * BAND_ROWS + row) * groups + group;
                for row in 0..BAND_ROWS {
                    let (found, others) = rest.split_at(bytes);
                    let wanted = &packed.data[place(row) * bytes..][..bytes];
                    assert_eq!(found, wanted, "{packing:?} {band} {group} {row}");
                    rest = others;
                }
                for row in (0..BAND_ROWS).filter(|_| packing.has_scales()) {
                    let (found, others) = rest.split_at(2);
                    let wanted = &packed.scales[place(row) * 2..][..2];
                    assert_eq!(found, wanted, "{packing:?} {band} {group} {row}");
                    rest = others;
                }
            }
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn packing_the_unpacked_changes_nothing() {
        for packing in Packing::ALL {
            let once = packing.pack(&values(70), 35);
            let back = packing.unpack(&once.data, &once.scales, 2, 35);
            let twice = packing.pack(&back, 35);
            assert_eq!(once.data, twice.data, "{packing:?}");
        }
    }
}
