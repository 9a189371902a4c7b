//! What a plan says of sizes.

use super::*;

#[test]
fn images_hold_as_few_bands_in_a_row_as_they_can() {
    let bands = 8;
    for (packing, rows, k, across, down, bands_across) in [
        (Packing::Q8, 50_257, 768, 408, 6_283, Some(1)),
        (Packing::F32, 1, 1, 32, 1, Some(1)),
        // A band that is as long as an image is wide, and one group more.
        (Packing::F32, 20, 4_096, 8_192, 3, Some(1)),
        (Packing::F32, 20, 4_097, 4_096, 7, None),
        // As many bands as an image is high, and one more.
        (Packing::F16, bands * MOST_TEXELS, 16, 16, 8_192, Some(1)),
        (
            Packing::F16,
            bands * MOST_TEXELS + 1,
            16,
            32,
            4_097,
            Some(2),
        ),
        (
            Packing::Q4,
            2 * bands * MOST_TEXELS + 1,
            64,
            54,
            5_462,
            Some(3),
        ),
        // Two bands that are together as wide as an image, and wider.
        (
            Packing::F32,
            bands * MOST_TEXELS + 1,
            2_048,
            8_192,
            4_097,
            Some(2),
        ),
        (
            Packing::F32,
            bands * MOST_TEXELS + 1,
            2_064,
            4_096,
            8_258,
            None,
        ),
        (Packing::F32, u64::MAX, u64::MAX, 4_096, 1 << 48, None),
    ] {
        let found = ImageSize::of_matrix(packing, rows, k);
        let wanted = ImageSize {
            across,
            down,
            bands_across,
        };
        assert_eq!(found, wanted, "{packing:?} [{rows}, {k}]");
        let fits = down <= MOST_TEXELS;
        assert_eq!(found.fits_everywhere(), fits);
        let packed = rows.div_ceil(bands).saturating_mul(packing.band_texels(k));
        assert!(found.bytes() >= packed.saturating_mul(TEXEL_BYTES));
    }
}
