//! Byte-level BPE, the tokens of GPT-2 and many after it.
//!
//! A text is split into words by a pattern; a word's UTF-8 bytes are written as
//! one printable character each; then the pair of neighbours that ranks first
//! among the merges is joined, again and again.

use std::collections::{BTreeMap, HashMap};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::{ADDED_TOKENS_FILE, GPT2_VOCAB_SIZE, MERGES_FILE, VOCAB_FILE, added};

/// The one special token of GPT-2.
const END_OF_TEXT: &str = "<|endoftext|>";

/// A merge: the two tokens that become one.
pub(super) type Merge = (String, String);

/// Assembles a tokenizer as GPT-2's `tokenizer.json` describes it.
///
/// On failure, gives the file at fault and the reason.
pub(super) fn tokenizer(
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
    added: BTreeMap<String, u32>,
) -> Result<Tokenizer, (&'static str, String)> {
    let has_end = vocab.contains_key(END_OF_TEXT);
    let vocab: Vocab = vocab.into_iter().collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|error| (MERGES_FILE, error.to_string()))?;
    let mut tokenizer = Tokenizer::new(bpe);
    // A space is not put before the text: GPT-2 tells "a" from " a".
    let byte_level = ByteLevel::default().add_prefix_space(false);
    tokenizer.with_pre_tokenizer(Some(byte_level));
    tokenizer.with_post_processor(Some(byte_level.trim_offsets(false)));
    tokenizer.with_decoder(Some(byte_level));
    if has_end {
        tokenizer
            .add_special_tokens([AddedToken::from(END_OF_TEXT, true)])
            .map_err(|error| (VOCAB_FILE, error.to_string()))?;
    }
    let added = added.into_iter();
    let added = added.map(|(token, id)| (id, AddedToken::from(token, true)));
    added::add(&mut tokenizer, added.collect()).map_err(|reason| (ADDED_TOKENS_FILE, reason))?;
    Ok(tokenizer)
}

/// Parses `merges.txt`: two tokens a line, after a line with a version.
pub(super) fn parse_merges(text: &str) -> Result<Vec<Merge>, String> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(number, line)| {
            let is_version = *number == 0 && line.starts_with("#version");
            !line.is_empty() && !is_version
        })
        .map(|(number, line)| match line.split_once(' ') {
            Some((left, right))
                if !left.is_empty() && !right.is_empty() && !right.contains(' ') =>
            {
                Ok((left.to_owned(), right.to_owned()))
            }
            _ => Err(format!(
                "line {} is `{line}`, which is not two tokens",
                number + 1
            )),
        })
        .collect()
}

/// GPT-2's vocabulary and merges, from the table of ranks that tiktoken-rs
/// carries.
///
/// tiktoken keeps no merges, only the tokens in the order in which training
/// made them. Running the merges that came before a token over its bytes leaves
/// the two parts that it was made of.
pub(super) fn gpt2_vocabulary() -> Result<(BTreeMap<String, u32>, Vec<Merge>), String> {
    let table = tiktoken_rs::r50k_base_singleton();
    let ordinary = GPT2_VOCAB_SIZE as u32 - 1;
    let chars = byte_chars();
    let spell = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| chars[usize::from(*byte)])
            .collect::<String>()
    };
    let mut vocab = BTreeMap::new();
    let mut merges = Vec::new();
    let mut ranks: HashMap<Vec<u8>, u32> = HashMap::new();
    for id in 0..ordinary {
        let bytes = table
            .decode_bytes(&[id])
            .map_err(|error| error.to_string())?;
        if bytes.len() > 1 {
            let parts = split(&bytes, &ranks);
            let &[middle] = parts.as_slice() else {
                return Err(format!("token {id} is not made of two tokens before it"));
            };
            merges.push((spell(&bytes[..middle]), spell(&bytes[middle..])));
        }
        vocab.insert(spell(&bytes), id);
        ranks.insert(bytes, id);
    }
    vocab.insert(END_OF_TEXT.to_owned(), ordinary);
    Ok((vocab, merges))
}

/// Where `word` stays split after all merges that `ranks` allows.
fn split(word: &[u8], ranks: &HashMap<Vec<u8>, u32>) -> Vec<usize> {
    let mut bounds: Vec<usize> = (0..=word.len()).collect();
    // A window of three bounds is a pair of neighbours.
    let first_ranked = |bounds: &[usize]| {
        let pairs = bounds.windows(3).enumerate();
        pairs
            .filter_map(|(at, w)| Some((*ranks.get(&word[w[0]..w[2]])?, at + 1)))
            .min()
    };
    while let Some((_, joint)) = first_ranked(&bounds) {
        bounds.remove(joint);
    }
    bounds[1..bounds.len() - 1].to_vec()
}

/// The printable character that stands for each byte, as GPT-2 chose them:
/// printable Latin-1 for itself, the others in order from U+0100.
fn byte_chars() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            // The range does not end before 256 characters are taken.
            _ => others.next().unwrap_or(char::REPLACEMENT_CHARACTER),
        }
    })
}

/// The bytes of every token of a byte-level tokenizer, by id. As in the crate
/// `tokenizers`, a token with a character that stands for no byte is text.
pub(super) fn bytes_of_tokens(tokenizer: &Tokenizer) -> HashMap<u32, Box<[u8]>> {
    let bytes: HashMap<char, u8> = (0..=255u8)
        .zip(byte_chars())
        .map(|(byte, c)| (c, byte))
        .collect();
    let tokens = tokenizer.get_vocab(true).into_iter();
    let spelled = tokens.map(|(token, id)| {
        let spelled: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
        let spelled = spelled.unwrap_or_else(|| token.into_bytes());
        (id, spelled.into_boxed_slice())
    });
    spelled.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_spelled_as_gpt2_does() {
        let chars = byte_chars();
        assert_eq!(chars[usize::from(b' ')], 'Ġ');
        assert_eq!(chars[usize::from(b'\n')], 'Ċ');
        assert_eq!(chars[usize::from(b'A')], 'A');
        assert_eq!(chars[0xad], 'Ń');
        let alphabet: std::collections::HashSet<char> = chars.into_iter().collect();
        assert_eq!(alphabet.len(), 256);
        assert!(alphabet.iter().all(|c| ByteLevel::alphabet().contains(c)));
    }

    #[test]
    fn merges_are_parsed_line_by_line() {
        assert_eq!(
            parse_merges("#version: 0.2\nĠ t\n# #\n\n").unwrap(),
            [
                ("Ġ".to_owned(), "t".to_owned()),
                ("#".to_owned(), "#".to_owned())
            ]
        );
        assert_eq!(
            parse_merges("#version: 0.2\na b\nabc").unwrap_err(),
            "line 3 is `abc`, which is not two tokens"
        );
    }

    #[test]
    fn gpt2_merges_are_those_that_were_published() {
        let (vocab, merges) = gpt2_vocabulary().unwrap();
        assert_eq!((vocab.len(), merges.len()), (50_257, 50_000));
        let merge = |at: usize| (merges[at].0.as_str(), merges[at].1.as_str());
        // From the published merges.txt: its first lines and its last.
        assert_eq!(merge(0), ("Ġ", "t"));
        assert_eq!(merge(1), ("Ġ", "a"));
        assert_eq!(merge(2), ("h", "e"));
        assert_eq!(merge(49_999), ("Ġg", "azed"));
    }
}
