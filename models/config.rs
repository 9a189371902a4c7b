//! Reading `config.json`: what its errors look like, whatever the model.

use kiln_ir::Activation;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::nn::Heads;

/// The activations by the names that transformers has for them.
pub(crate) const ACTIVATIONS: [(&str, Activation); 9] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("gelu_python", Activation::GeluErf),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// The most blocks that a model may have. Each is built before anything is
/// known of the weights; the deepest models that were ever published have a
/// thousand.
pub(crate) const MAX_LAYERS: usize = 4096;

/// The widest head. The frequencies that it turns by are computed before
/// anything is known of the weights; published models have 256 elements at most.
pub(crate) const MAX_HEAD_DIM: usize = 8192;

/// The name that transformers has for an activation.
pub(crate) fn activation_name(activation: Activation) -> Option<&'static str> {
    let found = ACTIVATIONS.iter().find(|(_, known)| *known == activation);
    found.map(|(name, _)| *name)
}

/// Why a `config.json` does not describe a model that can be built. The
/// messages speak of the file by name, without its folder, which the caller
/// knows.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is no JSON object.
    #[error("config.json cannot be parsed: {reason}; copy it again from where the model came from")]
    NotJson {
        /// What the parser said.
        reason: String,
    },
    /// A setting that has to be there is not.
    #[error("config.json has no `{key}`; {supported}")]
    Missing {
        /// The setting.
        key: String,
        /// What it may be.
        supported: String,
    },
    /// A setting has a value of the wrong kind.
    #[error("config.json sets `{key}` to {found}; it should be {wanted}")]
    Invalid {
        /// The setting.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// A setting has a value that is sound but not supported.
    #[error("config.json sets `{key}` to {found}, which kiln does not support; {supported}")]
    Unsupported {
        /// The setting.
        key: String,
        /// The value, as JSON.
        found: String,
        /// What is supported.
        supported: String,
    },
    /// The settings are sound one by one but not together.
    #[error("config.json describes a model that cannot be built: {reason}; check its sizes")]
    Unbuildable {
        /// The first place where ops do not fit together.
        reason: String,
    },
}

/// The settings of a `config.json`, or those inside one of them.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    map: Map<String, Value>,
    /// What stands before a setting's name in messages.
    inside: String,
}

impl Settings {
    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NotJson`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::from_json(text).map_err(|error| ConfigError::NotJson {
            reason: error.to_string(),
        })
    }

    /// Parses the text of any file of settings. The caller knows which it is.
    pub(crate) fn from_json(text: &str) -> serde_json::Result<Self> {
        // Editors on Windows begin a text with a byte order mark, which is no part of it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let parsed = match serde_json::from_str(text) {
            Ok(map) => Ok(map),
            // What is wrong with the text as it stands is what is told.
            Err(error) => serde_json::from_str(&without_literals(text)).map_err(|_| error),
        };
        Ok(Settings {
            map: parsed?,
            inside: String::new(),
        })
    }

    /// Whether `key` is not there at all. Some settings have a value in
    /// transformers where they are absent, and none where they are `null`.
    pub fn is_absent(&self, key: &str) -> bool {
        !self.map.contains_key(key)
    }

    /// The value of `key`; `None` where it is absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The name of `key` in messages: `rope_scaling.factor` for a `factor`
    /// inside of `rope_scaling`.
    pub fn full_name(&self, key: &str) -> String {
        format!("{}{key}", self.inside)
    }

    /// The settings inside of `key`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn object(&self, key: &str) -> Result<Option<Settings>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Settings {
                map: map.clone(),
                inside: format!("{}.", self.full_name(key)),
            })),
            Some(value) => Err(self.invalid(key, value, "an object")),
        }
    }

    /// The names of all settings.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// The settings, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// The first of `keys` that is set, with its value. The same setting goes
    /// by several names.
    fn first(&self, keys: &[&'static str]) -> Option<(&'static str, &Value)> {
        keys.iter().find_map(|key| Some((*key, self.get(key)?)))
    }

    /// A size, from 1 to 2^31 - 1, under the first of `keys` that is set.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn size(&self, keys: &[&'static str]) -> Result<Option<usize>, ConfigError> {
        self.size_up_to(keys, i32::MAX as usize)
    }

    /// As [`size`](Self::size), but at most `most`: for sizes that make a model
    /// take memory before its description is held against its weights.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn size_up_to(
        &self,
        keys: &[&'static str],
        most: usize,
    ) -> Result<Option<usize>, ConfigError> {
        let Some((key, value)) = self.first(keys) else {
            return Ok(None);
        };
        let in_range = value.as_u64().filter(|n| (1..=most as u64).contains(n));
        match in_range {
            Some(size) => Ok(Some(size as usize)),
            None => Err(self.invalid(key, value, format!("a whole number from 1 to {most}"))),
        }
    }

    /// A switch.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn switch(&self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(value) => Err(self.invalid(key, value, "true or false")),
        }
    }

    /// A positive real number, such as a norm's epsilon.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn positive(&self, key: &'static str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
            Some(x) => Ok(Some(x)),
            None => Err(self.invalid(key, value, "a number greater than 0")),
        }
    }

    /// A name.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn text(&self, key: &'static str) -> Result<Option<&str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.invalid(key, value, "a text")),
        }
    }

    /// A nonlinearity, by the name that transformers has for it.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unsupported`] for one that is not known.
    pub fn activation(&self, key: &'static str) -> Result<Option<Activation>, ConfigError> {
        let Some(name) = self.text(key)? else {
            return Ok(None);
        };
        match ACTIVATIONS.iter().find(|(known, _)| *known == name) {
            Some((_, activation)) => Ok(Some(*activation)),
            None => {
                let known: Vec<&str> = ACTIVATIONS.iter().map(|(known, _)| *known).collect();
                let supported = format!("those it does are {}", known.join(", "));
                Err(self.unsupported(key, format!("\"{name}\""), supported))
            }
        }
    }

    /// Refuses what holds for models of every family: another family's
    /// `model_type`, and weights that are quantised already.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Unsupported`].
    pub fn refuse_others(&self, model_types: &[&str]) -> Result<(), ConfigError> {
        if let Some(model_type) = self.text("model_type")?
            && !model_types.contains(&model_type)
        {
            let quoted: Vec<String> = model_types.iter().map(|t| format!("\"{t}\"")).collect();
            return Err(self.unsupported(
                "model_type",
                format!("\"{model_type}\""),
                format!("it is read here as {}", quoted.join(" or ")),
            ));
        }
        if let Some(method) = self.get("quantization_config") {
            return Err(self.unsupported(
                "quantization_config",
                method.get("quant_method").unwrap_or(method),
                "give it the unquantised model and let kiln quantise it (--dtype q8 or q4)",
            ));
        }
        Ok(())
    }

    /// The error of a value that is sound but not supported.
    pub fn unsupported(
        &self,
        key: &str,
        found: impl ToString,
        supported: impl Into<String>,
    ) -> ConfigError {
        ConfigError::Unsupported {
            key: self.full_name(key),
            found: found.to_string(),
            supported: supported.into(),
        }
    }

    /// The error of a value of the wrong kind.
    pub fn invalid(&self, key: &str, found: &Value, wanted: impl Into<String>) -> ConfigError {
        ConfigError::Invalid {
            key: self.full_name(key),
            found: found.to_string(),
            wanted: wanted.into(),
        }
    }

    /// The class that the model was saved from (`architectures`): the first,
    /// where there are several.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`].
    pub fn architecture(&self) -> Result<Option<&str>, ConfigError> {
        const KEY: &str = "architectures";
        let Some(value) = self.get(KEY) else {
            return Ok(None);
        };
        match value.as_array().map(|names| names.first()) {
            Some(None) => Ok(None),
            Some(Some(Value::String(name))) => Ok(Some(name)),
            _ => Err(self.invalid(KEY, value, "a list with one name")),
        }
    }

    /// The tokens after which a text is over (`eos_token_id`: one, or a list);
    /// `default`, the family's in transformers, where it is absent and a model
    /// of `vocab_size` tokens has that one. Negative ids, which some files have
    /// for "none", are left out.
    pub fn eos_tokens(&self, default: Option<u32>, vocab_size: usize) -> Vec<u32> {
        if self.is_absent("eos_token_id") {
            let default = default.filter(|id| (*id as usize) < vocab_size);
            return default.into_iter().collect();
        }
        let ids = match self.get("eos_token_id") {
            None => &[],
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
        };
        let ids = ids.iter().filter_map(Value::as_u64);
        ids.filter_map(|id| id.try_into().ok()).collect()
    }
}

/// Refuses heads of which groups cannot share keys, or that cannot turn.
pub(crate) fn check_heads(heads: Heads) -> Result<(), ConfigError> {
    let invalid = |key: &str, found: usize, wanted: String| ConfigError::Invalid {
        key: key.to_owned(),
        found: found.to_string(),
        wanted,
    };
    let Heads {
        queries,
        keys,
        width,
    } = heads;
    if !queries.is_multiple_of(keys) {
        let wanted = format!("a divisor of `num_attention_heads`, which is {queries}");
        return Err(invalid("num_key_value_heads", keys, wanted));
    }
    if !width.is_multiple_of(2) {
        let wanted = "even, for its elements turn in pairs".to_owned();
        return Err(invalid("head_dim", width, wanted));
    }
    Ok(())
}

/// The text of a JSON file with `NaN`, `Infinity` and `-Infinity`, which Python
/// writes and JSON does not have, put in quotes. Settings that are not looked at
/// may have them; those that are, are refused by name.
fn without_literals(text: &str) -> String {
    const LITERALS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let (mut quoted, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let literal = LITERALS.iter().find(|l| !quoted && rest.starts_with(**l));
        if let Some(literal) = literal {
            out.push_str(&format!("\"{literal}\""));
            rest = &rest[literal.len()..];
            continue;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert_eq!(
            Settings::parse("[1]").unwrap_err().to_string(),
            "config.json cannot be parsed: invalid type: sequence, expected a map at line 1 column 0; \
             copy it again from where the model came from"
        );
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_text() {
        let s = settings("\u{feff}{\"n\": 3}");
        assert_eq!(s.size(&["n"]), Ok(Some(3)));
        assert!(Settings::parse("{\"n\": \u{feff}3}").is_err());
    }

    #[test]
    fn sizes_are_whole_and_positive() {
        assert_eq!(settings(r#"{"n": 3}"#).size(&["n"]), Ok(Some(3)));
        assert_eq!(
            settings(r#"{"n": null, "m": 4}"#).size(&["n", "m"]),
            Ok(Some(4))
        );
        assert_eq!(settings("{}").size(&["n"]), Ok(None));
        for bad in ["0", "-1", "1.5", "\"3\"", "3000000000", "[]"] {
            assert_eq!(
                settings(&format!(r#"{{"n": {bad}}}"#))
                    .size(&["n"])
                    .unwrap_err()
                    .to_string(),
                format!(
                    "config.json sets `n` to {bad}; it should be a whole number from 1 to 2147483647"
                )
            );
        }
    }

    #[test]
    fn sizes_that_take_memory_are_bounded() {
        let s = settings(r#"{"n": 4097}"#);
        assert_eq!(s.size_up_to(&["n"], 4097), Ok(Some(4097)));
        assert_eq!(
            s.size_up_to(&["n"], MAX_LAYERS).unwrap_err().to_string(),
            "config.json sets `n` to 4097; it should be a whole number from 1 to 4096"
        );
    }

    #[test]
    fn other_kinds_say_what_they_should_be() {
        let s = settings(r#"{"a": 1, "b": "x", "c": 0, "d": 2.5}"#);
        assert_eq!(
            s.switch("a").unwrap_err().to_string(),
            "config.json sets `a` to 1; it should be true or false"
        );
        assert_eq!(
            s.positive("c").unwrap_err().to_string(),
            "config.json sets `c` to 0; it should be a number greater than 0"
        );
        assert_eq!(
            s.text("a").unwrap_err().to_string(),
            "config.json sets `a` to 1; it should be a text"
        );
        assert_eq!(s.positive("d"), Ok(Some(2.5)));
        assert_eq!(s.text("b"), Ok(Some("x")));
    }

    #[test]
    fn settings_inside_of_others_are_named_with_them() {
        let outer = settings(r#"{"rope": {"factor": "x", "kind": "y"}, "n": 1, "none": null}"#);
        let inner = outer.object("rope").unwrap().unwrap();
        assert_eq!(
            inner.positive("factor").unwrap_err().to_string(),
            "config.json sets `rope.factor` to \"x\"; it should be a number greater than 0"
        );
        assert_eq!(inner.text("kind"), Ok(Some("y")));
        assert_eq!(inner.keys().collect::<Vec<_>>(), ["factor", "kind"]);
        assert!(outer.object("none").unwrap().is_none());
        assert_eq!(
            outer.object("n").unwrap_err().to_string(),
            "config.json sets `n` to 1; it should be an object"
        );
    }

    #[test]
    fn literals_that_json_does_not_have_matter_where_they_are_read() {
        let s = settings(
            r#"{"a": NaN, "b": [-Infinity, 1], "c\"NaN": "NaN \\", "d": Infinity, "n": 3}"#,
        );
        assert_eq!(s.size(&["n"]), Ok(Some(3)));
        assert_eq!(s.text("c\"NaN"), Ok(Some("NaN \\")));
        assert_eq!(
            s.positive("d").unwrap_err().to_string(),
            "config.json sets `d` to \"Infinity\"; it should be a number greater than 0"
        );
        assert_eq!(
            Settings::parse(r#"{"a": NaN"#).unwrap_err(),
            ConfigError::NotJson {
                reason: "expected value at line 1 column 7".to_owned()
            }
        );
    }

    #[test]
    fn there_may_be_several_end_tokens() {
        let eos = |text| settings(text).eos_tokens(None, 10);
        assert_eq!(settings("{}").eos_tokens(Some(2), 10), [2]);
        assert!(settings("{}").eos_tokens(Some(10), 10).is_empty());
        let null = settings(r#"{"eos_token_id": null}"#);
        assert!(null.eos_tokens(Some(2), 10).is_empty());
        assert_eq!(eos(r#"{"eos_token_id": 7}"#), [7]);
        assert_eq!(eos(r#"{"eos_token_id": [8, 9]}"#), [8, 9]);
        for none in [r#"{"eos_token_id": null}"#, r#"{"eos_token_id": -1}"#, "{}"] {
            assert!(eos(none).is_empty());
        }
    }
}
