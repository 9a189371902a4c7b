//! Tokens that are found in a text before it is split, and that `tokenizer.json` need
//! not have.
//!
//! As in transformers, those of `added_tokens_decoder` in `tokenizer_config.json` come
//! first, each with its number and how it is found. Then come special tokens that have
//! a name, such as `eos_token`, or are in a list of further ones.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use crate::config::Settings;

/// Tokens by number, in `tokenizer_config.json`.
pub(super) const NUMBERED: &str = "added_tokens_decoder";

/// Where further special tokens are listed. The first list that is not empty counts; tokens with
/// names of a model's own stand in an object, beside which lists count too.
const FURTHER: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// Adds tokens by number, but for those that `tokenizer` has just so; whether there were
/// any others.
pub(super) fn add(
    tokenizer: &mut Tokenizer,
    mut tokens: Vec<(u32, AddedToken)>,
) -> Result<bool, String> {
    let known = tokenizer.get_added_tokens_decoder();
    tokens.retain(|(id, token)| known.get(id) != Some(token));
    if tokens.is_empty() {
        return Ok(false);
    }
    for (id, token) in &tokens {
        let content = &token.content;
        match tokenizer.token_to_id(content) {
            Some(found) if found == *id => {}
            Some(found) => {
                return Err(format!(
                    "`{content}` cannot have id {id}, for the vocabulary has it as {found}"
                ));
            }
            None => {
                if let Some(other) = tokenizer.id_to_token(*id) {
                    return Err(format!(
                        "`{content}` cannot have id {id}, which is `{other}`"
                    ));
                }
            }
        }
    }
    // New ones are numbered as they come. All come at once, for each time the tokenizer
    // prepares for all that it has.
    tokens.sort_by(|(a, x), (b, y)| (a, &x.content).cmp(&(b, &y.content)));
    let added = tokens.iter().map(|(_, token)| token.clone());
    tokenizer.add_tokens(added).map_err(|e| e.to_string())?;
    let wrong =
        |(id, token): &&(u32, AddedToken)| tokenizer.token_to_id(&token.content) != Some(*id);
    match tokens.iter().find(wrong) {
        None => Ok(true),
        Some((id, token)) => Err(format!(
            "`{}` cannot have id {id}, which leaves a gap",
            token.content
        )),
    }
}

/// The tokens that `tokenizer_config.json` has by number, with those that `tokenizer` gives them:
/// of one that the vocabulary has, the vocabulary's. One that would get another number than it
/// should, as that is taken or leaves a gap, is left out; published files have such tokens, which
/// the model does not know by the number that transformers gives them either.
pub(super) fn numbered(
    tokenizer: &Tokenizer,
    config: &Settings,
) -> Result<Vec<(u32, AddedToken)>, String> {
    let entries = match config.get(NUMBERED) {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(format!("`{NUMBERED}` should be an object")),
    };
    let mut tokens = Vec::new();
    for (id, value) in entries {
        if value.get("content").and_then(Value::as_str) == Some("") {
            continue;
        }
        match (id.parse(), token(value, false)) {
            (Ok(id), Some(token)) => tokens.push((id, token)),
            _ => {
                return Err(format!(
                    "the entry `{id}` of `{NUMBERED}` should be a token by its number"
                ));
            }
        }
    }
    tokens.sort_by_key(|(id, _)| *id);
    // What the tokenizer numbers the next new one.
    let added = tokenizer.get_added_tokens_decoder();
    let behind = added.keys().map(|id| id + 1).max().unwrap_or(0);
    let mut next = behind.max(tokenizer.get_vocab_size(false) as u32);
    let mut new: BTreeSet<String> = BTreeSet::new();
    tokens.retain_mut(|(id, token)| match tokenizer.token_to_id(&token.content) {
        Some(found) => {
            *id = found;
            true
        }
        None => {
            let is_next = *id == next && new.insert(token.content.clone());
            next += u32::from(is_next);
            is_next
        }
    });
    Ok(tokens)
}

/// The special tokens of `tokenizer_config.json`, and of the older file for them, whose
/// names go before: those that the vocabulary has and that were not added. Others have no
/// number; to a model they mean nothing.
pub(super) fn named(
    tokenizer: &Tokenizer,
    config: &Settings,
    older: &Settings,
) -> Vec<(u32, AddedToken)> {
    let settings: BTreeMap<&String, &Value> = config.iter().chain(older.iter()).collect();
    let by_name = settings.iter().filter(|(name, _)| name.ends_with("_token"));
    let by_name = by_name.map(|(_, value)| *value);
    let mut further: Vec<&Value> = Vec::new();
    for name in FURTHER {
        match settings.iter().find(|(key, _)| key.as_str() == name) {
            Some((_, Value::Object(tokens))) => further.extend(tokens.values()),
            Some((_, Value::Array(tokens))) if !tokens.is_empty() => {
                further.extend(tokens);
                break;
            }
            _ => {}
        }
    }
    let known = tokenizer.get_added_vocabulary();
    let tokens = by_name
        .chain(further)
        .filter_map(|value| token(value, true));
    let tokens = tokens.filter(|token| !known.get_vocab().contains_key(&token.content));
    let tokens = tokens.filter_map(|token| Some((tokenizer.token_to_id(&token.content)?, token)));
    tokens.collect()
}

/// A token that is a text, or an object with its `content` and how it is found; what that
/// does not say is as in transformers. Names are for special tokens alone.
fn token(value: &Value, is_named: bool) -> Option<AddedToken> {
    let content = value.get("content").unwrap_or(value).as_str()?;
    let content = Some(content).filter(|content| !content.is_empty())?;
    let switch = |key: &str| value.get(key).and_then(Value::as_bool);
    let is_special = is_named || switch("special") == Some(true);
    let token = AddedToken::from(content, is_special);
    let normalized = switch("normalized").unwrap_or(token.normalized);
    Some(
        token
            .normalized(normalized)
            .lstrip(switch("lstrip") == Some(true))
            .rstrip(switch("rstrip") == Some(true))
            .single_word(switch("single_word") == Some(true)),
    )
}
