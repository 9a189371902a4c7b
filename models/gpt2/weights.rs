//! How GPT-2's weights are stored.
//!
//! - Names may or may not begin with `transformer.`.
//! - The four matrices of a block are stored `[in, out]`: the layer that wrote
//!   them first was a convolution of width one.
//! - Causal masks were once saved as if they were weights.
//! - A head that shares the embedding may be stored a second time.

use crate::adapter::{Layout, Placement};
use crate::head::{HEAD_WEIGHT, Head};

/// The matrices of a block that are stored `[in, out]`.
const TRANSPOSED: [&str; 4] = [
    "attn.c_attn.weight",
    "attn.c_proj.weight",
    "mlp.c_fc.weight",
    "mlp.c_proj.weight",
];

/// The masks that were saved with a block.
const MASKS: [&str; 2] = ["attn.bias", "attn.masked_bias"];

/// What the tensor stored under this name is.
pub(super) fn place(stored: &str, head: Head) -> Placement {
    if stored == HEAD_WEIGHT {
        return head.place(stored, "wte.weight");
    }
    let name = stored.strip_prefix("transformer.").unwrap_or(stored);
    if name == HEAD_WEIGHT {
        // The head stands beside the body that the prefix is for.
        return Placement::Unknown;
    }
    match in_block(name) {
        Some(rest) if MASKS.contains(&rest) => Placement::Ignored,
        Some(rest) if TRANSPOSED.contains(&rest) => parameter(name, Layout::Transposed),
        _ => parameter(name, Layout::AsStored),
    }
}

fn parameter(name: &str, layout: Layout) -> Placement {
    Placement::Parameter {
        name: name.to_owned(),
        layout,
    }
}

/// What follows `h.3.` in a name.
fn in_block(name: &str) -> Option<&str> {
    let (number, rest) = name.strip_prefix("h.")?.split_once('.')?;
    number.parse::<usize>().is_ok().then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_of_blocks_are_transposed_and_nothing_else_is() {
        for prefix in ["", "transformer."] {
            for name in ["h.0.attn.c_attn.weight", "h.11.mlp.c_proj.weight"] {
                let stored = format!("{prefix}{name}");
                assert_eq!(
                    place(&stored, Head::Tied),
                    parameter(name, Layout::Transposed)
                );
            }
            for name in [
                "wte.weight",
                "wpe.weight",
                "ln_f.weight",
                "h.0.attn.c_attn.bias",
            ] {
                let stored = format!("{prefix}{name}");
                assert_eq!(
                    place(&stored, Head::Tied),
                    parameter(name, Layout::AsStored)
                );
            }
        }
    }

    #[test]
    fn masks_are_ignored_in_blocks_alone() {
        assert_eq!(place("h.0.attn.bias", Head::Tied), Placement::Ignored);
        let stored = "transformer.h.3.attn.masked_bias";
        assert_eq!(place(stored, Head::None), Placement::Ignored);
        for other in ["attn.bias", "h.x.attn.bias", "h.0.attn.bias.more"] {
            assert_eq!(
                place(other, Head::Tied),
                parameter(other, Layout::AsStored),
                "no parameter is called that, so it is reported"
            );
        }
    }

    #[test]
    fn the_head_is_what_the_config_says() {
        let copy = Placement::Copy {
            of: "wte.weight".to_owned(),
            setting: "tie_word_embeddings",
        };
        assert_eq!(place("lm_head.weight", Head::Tied), copy);
        assert_eq!(
            place("lm_head.weight", Head::Own),
            parameter("lm_head.weight", Layout::AsStored)
        );
        assert_eq!(place("lm_head.weight", Head::None), Placement::Ignored);
        assert_eq!(
            place("transformer.lm_head.weight", Head::Own),
            Placement::Unknown
        );
    }
}
