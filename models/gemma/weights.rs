//! How Gemma's weights are stored: as Llama's, but gains of norms, those of
//! queries and keys among them, less one.

use crate::adapter::{Layout, Placement};
use crate::head::Head;
use crate::stored;

/// What the tensor stored under this name is.
pub(super) fn place(stored: &str, head: Head) -> Placement {
    match stored::place(stored, head) {
        Placement::Parameter { name, .. } if name.ends_with("norm.weight") => {
            let layout = Layout::LessOne;
            Placement::Parameter { name, layout }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_stored_less_one() {
        for (name, layout) in [
            ("norm.weight", Layout::LessOne),
            ("layers.0.input_layernorm.weight", Layout::LessOne),
            ("layers.1.post_attention_layernorm.weight", Layout::LessOne),
            ("layers.2.pre_feedforward_layernorm.weight", Layout::LessOne),
            (
                "layers.3.post_feedforward_layernorm.weight",
                Layout::LessOne,
            ),
            ("layers.4.self_attn.q_norm.weight", Layout::LessOne),
            ("layers.5.self_attn.k_norm.weight", Layout::LessOne),
            ("embed_tokens.weight", Layout::AsStored),
            ("layers.6.self_attn.q_proj.weight", Layout::AsStored),
            ("layers.7.self_attn.o_proj.bias", Layout::AsStored),
            ("layers.8.mlp.down_proj.weight", Layout::AsStored),
        ] {
            let wanted = Placement::Parameter {
                name: name.to_owned(),
                layout,
            };
            for prefix in ["", "model."] {
                assert_eq!(place(&format!("{prefix}{name}"), Head::Tied), wanted);
            }
        }
    }

    #[test]
    fn the_head_is_what_the_config_says() {
        let stored = "lm_head.weight";
        assert_eq!(place(stored, Head::Tied), stored::place(stored, Head::Tied));
        assert_eq!(place(stored, Head::None), Placement::Ignored);
    }
}
