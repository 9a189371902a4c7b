//! How checkpoints store weights whose modules are called what Llama's are, whatever
//! their family.
//!
//! - Names may or may not begin with `model.`.
//! - Queries, keys and values have a matrix each, and perhaps a bias each, where
//!   kiln has one for all three.
//! - The frequencies of the rotary embedding were once saved as if they were
//!   weights.
//! - A head that shares the embedding may be stored a second time.

use crate::adapter::{Layout, Part, Placement};
use crate::head::{HEAD_WEIGHT, Head};
use crate::nn::Heads;

/// What the tensor stored under this name is.
pub(crate) fn place(stored: &str, head: Head) -> Placement {
    if stored == HEAD_WEIGHT {
        return head.place(stored, "embed_tokens.weight");
    }
    let name = stored.strip_prefix("model.").unwrap_or(stored);
    if name == HEAD_WEIGHT {
        // The head stands beside the body that the prefix is for.
        return Placement::Unknown;
    }
    if name.ends_with("rotary_emb.inv_freq") {
        return Placement::Ignored;
    }
    Placement::Parameter {
        name: name.to_owned(),
        layout: Layout::AsStored,
    }
}

/// The parts in which a parameter is stored, if it is.
pub(crate) fn parts(parameter: &str, heads: Heads) -> Vec<Part> {
    let Some((attention, kind)) = parameter.split_once(".qkv_proj.") else {
        return Vec::new();
    };
    let (queries, keys) = (heads.query_width(), heads.key_width());
    [("q", queries), ("k", keys), ("v", keys)]
        .map(|(part, rows)| Part::new(format!("{attention}.{part}_proj.{kind}"), rows))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameter(name: &str) -> Placement {
        Placement::Parameter {
            name: name.to_owned(),
            layout: Layout::AsStored,
        }
    }

    #[test]
    fn everything_lies_as_it_is_stored() {
        for name in [
            "embed_tokens.weight",
            "norm.weight",
            "layers.11.mlp.down_proj.weight",
            "layers.0.self_attn.k_proj.bias",
        ] {
            for prefix in ["", "model."] {
                let stored = format!("{prefix}{name}");
                assert_eq!(place(&stored, Head::Tied), parameter(name));
            }
        }
    }

    #[test]
    fn frequencies_are_ignored() {
        for stored in [
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.rotary_emb.inv_freq",
            "rotary_emb.inv_freq",
        ] {
            assert_eq!(place(stored, Head::Own), Placement::Ignored);
        }
    }

    #[test]
    fn the_head_is_what_the_config_says() {
        let stored = "lm_head.weight";
        let copy = Placement::Copy {
            of: "embed_tokens.weight".to_owned(),
            setting: "tie_word_embeddings",
        };
        assert_eq!(place(stored, Head::Tied), copy);
        assert_eq!(place(stored, Head::Own), parameter(stored));
        assert_eq!(place(stored, Head::None), Placement::Ignored);
        assert_eq!(place("model.lm_head.weight", Head::Own), Placement::Unknown);
    }

    #[test]
    fn queries_keys_and_values_are_parts_of_one_parameter() {
        let heads = Heads {
            queries: 4,
            keys: 2,
            width: 4,
        };
        let found = parts("layers.3.self_attn.qkv_proj.bias", heads);
        let wanted = [("q", 16), ("k", 8), ("v", 8)];
        let wanted = wanted
            .map(|(part, rows)| Part::new(format!("layers.3.self_attn.{part}_proj.bias"), rows));
        assert_eq!(found, wanted);
        assert_eq!(parts("layers.3.self_attn.o_proj.weight", heads), []);
    }
}
