//! Decoding one id at a time.

use super::{Decoding, Tokenizer, TokenizerError, bytes_of};

/// How many ids a contextual decoder may hold back while its text ends in the
/// middle of a character. No character takes more bytes than four.
const HELD_BACK: usize = 4;

/// Gives out the text of ids as they come, never half a character.
///
/// A token may end in the middle of a character; those bytes are held back
/// until the character is whole or can no longer become one.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes that may yet become a character.
    pending: Vec<u8>,
    /// For a contextual decoder: the ids of the last piece given out (at first,
    /// of the prompt), which are the context of the next, and those not yet
    /// given out.
    ids: Vec<u32>,
    context: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Self {
        let ids = match tokenizer.decoding {
            // Bytes need no context.
            Decoding::Bytes(_) => Vec::new(),
            Decoding::Contextual => prompt.to_vec(),
        };
        DecodeStream {
            tokenizer,
            pending: Vec::new(),
            context: ids.len(),
            ids,
        }
    }

    /// Takes the next id; gives the text that is whole now, often empty.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`].
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        match &self.tokenizer.decoding {
            Decoding::Bytes(table) => {
                self.pending.extend_from_slice(bytes_of(table, id));
                Ok(take_whole(&mut self.pending))
            }
            // As context, an id without a token would be the beginning of a
            // text, where some decoders take a space away.
            Decoding::Contextual if self.tokenizer.inner.id_to_token(id).is_none() => {
                Ok(String::new())
            }
            Decoding::Contextual => {
                self.ids.push(id);
                let held_back = self.ids.len() - self.context;
                self.take_contextual(held_back > HELD_BACK)
            }
        }
    }

    /// Ends the text: gives what was held back, as U+FFFD where it is no
    /// character.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Failed`].
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        match &self.tokenizer.decoding {
            Decoding::Bytes(_) => Ok(String::from_utf8_lossy(&self.pending).into_owned()),
            Decoding::Contextual => self.take_contextual(true),
        }
    }

    /// What the ids held back add to the text of their context; nothing while
    /// they may be the beginning of a character, unless `all` is asked for.
    fn take_contextual(&mut self, all: bool) -> Result<String, TokenizerError> {
        let (context, held) = self.ids.split_at(self.context);
        if held.is_empty() {
            return Ok(String::new());
        }
        let before = self.tokenizer.decode(context)?;
        let after = self.tokenizer.decode(&self.ids)?;
        // What comes next may make a character of this, and restore the text
        // of the context with it.
        if !all && after.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        let new = match after.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // A byte that fits nowhere takes all bytes beside it along, those
            // of characters that were given out among them. These cannot be
            // taken back, and what is held must not wait for them for ever.
            None => self.tokenizer.decode(held)?,
        };
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        Ok(new)
    }
}

/// Takes from `bytes` all that no further byte can change: whole characters,
/// and U+FFFD for each sequence that is none, just as
/// [`String::from_utf8_lossy`] replaces them.
fn take_whole(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, after) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                rest = after;
                match error.error_len() {
                    Some(len) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        rest = &after[len..];
                    }
                    None => break,
                }
            }
        }
    }
    let kept = rest.len();
    bytes.drain(..bytes.len() - kept);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_text_is_taken_and_half_a_character_is_kept() {
        let mut bytes = "aé\u{1F600}".as_bytes().to_vec();
        bytes.truncate(bytes.len() - 1);
        assert_eq!(take_whole(&mut bytes), "aé");
        assert_eq!(bytes.len(), 3);
        bytes.push(0x80);
        assert_eq!(take_whole(&mut bytes), "\u{1F600}");
        assert!(bytes.is_empty());
    }

    #[test]
    fn what_cannot_become_a_character_is_not_kept() {
        let mut bytes = vec![0xff, b'a', 0xe2, 0x82, b'b', 0xe2, 0x82];
        assert_eq!(take_whole(&mut bytes), "\u{fffd}a\u{fffd}b");
        assert_eq!(bytes, [0xe2, 0x82]);
    }

    #[test]
    fn pieces_of_any_bytes_join_to_the_lossy_whole() {
        // All byte values in a scrambled order, fed one at a time.
        let all: Vec<u8> = (0..4096u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let mut pending = Vec::new();
        let mut text = String::new();
        for byte in &all {
            pending.push(*byte);
            text += &take_whole(&mut pending);
            assert!(pending.len() < 4);
        }
        text += &String::from_utf8_lossy(&pending);
        assert_eq!(text, String::from_utf8_lossy(&all));
    }
}
