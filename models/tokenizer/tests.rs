use std::collections::HashSet;
use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Texts that exercise every branch of the splitting pattern.
const TEXTS: [&str; 16] = [
    "",
    " ",
    "Hello, world!",
    "  leading and   inner    spaces  ",
    "line\nbreaks\r\n\r\nand\ttabs\t\t",
    "It's what they're saying; I'll say we've DON'T can'T",
    "numbers 1234567890 3.14159 ²³ Ⅷ ½",
    "naïve café façade Ångström",
    "日本語のテキスト、中文，한국어",
    "Привет, мир! Γειά σου Κόσμε",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and combining e\u{301}\u{323}",
    "fn main() { println!(\"{}\", x[0] as f32 / 2.0); }",
    "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|>\n",
    "\u{a0}non\u{a0}breaking\u{2003}spaces\u{200b}",
    "supercalifragilisticexpialidocious antidisestablishmentarianism zzzzzzzzzzzzzzzzzzzzzzz",
];

fn tiktoken(text: &str) -> Vec<u32> {
    tiktoken_rs::r50k_base_singleton().encode_with_special_tokens(text)
}

#[test]
fn gpt2_agrees_with_tiktoken() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.eos_id()),
        (GPT2_VOCAB_SIZE, Some(50_256))
    );
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, tiktoken(text), "{text:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let prose = include_str!("tests.rs");
    assert_eq!(tokenizer.encode(prose).unwrap(), tiktoken(prose));
}

#[test]
fn what_is_written_reads_back_the_same() {
    let tokenizer = Tokenizer::gpt2().unwrap();
    let json = tokenizer.to_json().unwrap();
    assert_eq!(
        json,
        Tokenizer::gpt2().unwrap().to_json().unwrap(),
        "the same bytes each time"
    );
    let again = Tokenizer::from_json("again", &json).unwrap();
    assert_eq!(again.to_json().unwrap(), json);
    assert_eq!(
        (again.vocab_size(), again.eos_id()),
        (GPT2_VOCAB_SIZE, Some(50_256))
    );
    for text in TEXTS {
        assert_eq!(
            again.encode(text).unwrap(),
            tokenizer.encode(text).unwrap(),
            "{text:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gpt2_agrees_with_tiktoken_on_any_text(text in "(\\PC|\\s|[a-z' ]{1,9}|[0-9]{1,4}){0,40}") {
        let tokenizer = shared();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(&ids, &tiktoken(&text));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn streamed_pieces_join_to_the_decoded_whole(ids in prop::collection::vec(0u32..50_300, 0..40)) {
        let tokenizer = shared();
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for id in &ids {
            text += &stream.push(*id).unwrap();
        }
        text += &stream.finish().unwrap();
        prop_assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }
}

fn shared() -> &'static Tokenizer {
    static SHARED: std::sync::LazyLock<Tokenizer> =
        std::sync::LazyLock::new(|| Tokenizer::gpt2().unwrap());
    &SHARED
}

#[test]
fn characters_are_streamed_whole() {
    let tokenizer = shared();
    let ids = tokenizer.encode("a😀b").unwrap();
    assert_eq!(
        ids.len(),
        4,
        "the emoji is two tokens, neither of them text by itself"
    );
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "😀", "b"]);
    assert_eq!(stream.finish().unwrap(), "");

    let mut cut = tokenizer.stream();
    assert_eq!(cut.push(ids[1]).unwrap(), "");
    assert_eq!(cut.finish().unwrap(), "\u{fffd}");
}

/// A vocabulary small enough to follow by hand.
const VOCAB: &str = r#"{"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "<|endoftext|>": 5}"#;
const MERGES: &str = "#version: 0.2\na b\nĠ ab\n";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn open_message(files: &[(&str, &str)], vocab_size: usize) -> String {
    let dir = folder(files);
    let error = Tokenizer::open(dir.path(), "gpt2", vocab_size).unwrap_err();
    error
        .to_string()
        .replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn vocab_and_merges_are_read() {
    let dir = folder(&[(VOCAB_FILE, VOCAB), (MERGES_FILE, MERGES)]);
    let tokenizer = Tokenizer::open(dir.path(), "gpt2", 6).unwrap();
    assert_eq!(
        tokenizer.encode("ab ab<|endoftext|>ba").unwrap(),
        [3, 4, 5, 1, 0]
    );
    assert_eq!(
        tokenizer.decode(&[3, 4, 5, 1, 0]).unwrap(),
        "ab ab<|endoftext|>ba"
    );
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id()), (6, Some(5)));
    let json = tokenizer.to_json().unwrap();
    let again = Tokenizer::from_json("again", &json).unwrap();
    assert_eq!(
        again.encode("ab ab<|endoftext|>ba").unwrap(),
        [3, 4, 5, 1, 0]
    );
}

#[test]
fn a_token_of_a_huge_number_takes_no_memory() {
    let vocab = r#"{"a": 0, "b": 4000000000, "ab": 1}"#;
    let tokenizer = Tokenizer::from_vocab_and_merges("m", vocab, "a b\n", None).unwrap();
    assert_eq!(tokenizer.encode("abb").unwrap(), [1, 4_000_000_000]);
    assert_eq!(tokenizer.decode(&[4_000_000_000, 2, 0]).unwrap(), "ba");
}

#[test]
fn added_tokens_keep_their_ids() {
    let added = |text| {
        let dir = folder(&[
            (VOCAB_FILE, VOCAB),
            (MERGES_FILE, MERGES),
            (ADDED_TOKENS_FILE, text),
        ]);
        Tokenizer::open(dir.path(), "gpt2", 8).map_err(|e| {
            e.to_string()
                .replace(&dir.path().display().to_string(), "DIR")
        })
    };
    let tokenizer = added(r#"{"[B]": 7, "[A]": 6}"#).unwrap();
    assert_eq!(tokenizer.encode("a[B][A]").unwrap(), [0, 7, 6]);
    assert_eq!(
        added(r#"{"[A]": 9}"#).unwrap_err(),
        "DIR/added_tokens.json cannot be read as a tokenizer: `[A]` cannot have id 9, which leaves a gap; \
         fetch or copy it again"
    );
}

/// A checkpoint whose `tokenizer.json` adds no tokens, though its vocabulary has some that are
/// never made of others: `<|im|>` and `[S]`.
fn unmarked(files: &[(&str, &str)]) -> TempDir {
    let tokens = [
        "a", "b", "<", ">", "|", "i", "m", "<|im|>", "ab", "[S]", "S", "[", "]", "Ġ",
    ];
    let vocab: BTreeMap<&str, usize> = tokens.into_iter().zip(0..).collect();
    let vocab = serde_json::to_string(&vocab).unwrap();
    let tokenizer = Tokenizer::from_vocab_and_merges("m", &vocab, "a b\n", None).unwrap();
    let json = tokenizer.to_json().unwrap();
    folder(&[files, &[(TOKENIZER_FILE, &json)]].concat())
}

/// The ids are those of transformers 5.23.
#[test]
fn tokens_are_found_that_only_the_config_names() {
    const BOTH: [u32; 5] = [0, 13, 7, 1, 9];
    const IM: [u32; 7] = [0, 13, 7, 1, 11, 10, 12];
    // With the space before it.
    const IM_STRIPPED: [u32; 6] = [0, 7, 1, 11, 10, 12];
    const S: [u32; 10] = [0, 13, 2, 4, 5, 6, 4, 3, 1, 9];
    const NONE: [u32; 12] = [0, 13, 2, 4, 5, 6, 4, 3, 1, 11, 10, 12];
    let s = r#"{"added_tokens_decoder": {"9": {"content": "[S]", "special": true}}}"#;
    for (config, older, wanted) in [
        ("{}", "{}", &NONE[..]),
        (
            r#"{"added_tokens_decoder": {"9": {"content": "[S]"}, "7": {"content": "<|im|>"}}}"#,
            "{}",
            &BOTH,
        ),
        (
            r#"{"added_tokens_decoder": {"7": {"content": "<|im|>", "lstrip": true}}}"#,
            "{}",
            &IM_STRIPPED,
        ),
        (
            r#"{"eos_token": "<|im|>", "pad_token": null, "add_bos_token": false}"#,
            "{}",
            &IM,
        ),
        (
            r#"{"eos_token": {"__type": "AddedToken", "content": "<|im|>", "lstrip": true}}"#,
            "{}",
            &IM_STRIPPED,
        ),
        (r#"{"image_token": "[S]"}"#, "{}", &S),
        (
            r#"{"additional_special_tokens": ["<|im|>", "[S]"]}"#,
            "{}",
            &BOTH,
        ),
        (
            r#"{"additional_special_tokens": ["<|im|>"], "extra_special_tokens": ["[S]"]}"#,
            "{}",
            &S,
        ),
        (
            r#"{"extra_special_tokens": {"image_token": "[S]"}}"#,
            "{}",
            &S,
        ),
        (
            r#"{"additional_special_tokens": ["<|im|>"], "extra_special_tokens": {"image_token": "[S]"}}"#,
            "{}",
            &BOTH,
        ),
        (
            r#"{"additional_special_tokens": ["<|im|>"], "extra_special_tokens": {}}"#,
            "{}",
            &IM,
        ),
        (
            r#"{"additional_special_tokens": ["<|im|>"], "extra_special_tokens": []}"#,
            "{}",
            &IM,
        ),
        // The older file's names go before, and count only where there is no list by number.
        (r#"{"eos_token": "[S]"}"#, r#"{"eos_token": "<|im|>"}"#, &IM),
        (s, r#"{"eos_token": "<|im|>"}"#, &S),
        // What is not in the vocabulary has no number.
        (r#"{"pad_token": "<|im"}"#, "{}", &NONE),
    ] {
        let files = [
            (TOKENIZER_CONFIG_FILE, config),
            (SPECIAL_TOKENS_FILE, older),
        ];
        let dir = unmarked(&files);
        let tokenizer = Tokenizer::open(dir.path(), "qwen2", 14).unwrap();
        let text = "a <|im|>b[S]";
        assert_eq!(tokenizer.encode_whole(text).unwrap(), wanted, "{config}");
        assert_eq!(
            tokenizer.decode(wanted).unwrap().replace(' ', ""),
            text.replace(' ', "")
        );
        // A compiled model has no other file.
        let again = Tokenizer::from_json("again", &tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.encode_whole(text).unwrap(), wanted, "{config}");
    }
}

#[test]
fn tokens_of_the_config_have_the_numbers_that_it_says() {
    let open = |config: &str| {
        let dir = unmarked(&[(TOKENIZER_CONFIG_FILE, config)]);
        let path = dir.path().display().to_string();
        let opened = Tokenizer::open(dir.path(), "qwen2", 16);
        opened.map_err(|e| e.to_string().replace(&path, "DIR"))
    };
    let with = |tokens: &str| open(&format!(r#"{{"added_tokens_decoder": {tokens}}}"#));
    let new = with(r#"{"15": {"content": "newer"}, "14": {"content": "new"}}"#).unwrap();
    assert_eq!(new.encode("newer new").unwrap(), [15, 13, 14]);
    assert_eq!(new.decode(&[15, 13, 14]).unwrap(), "newer new");
    // The vocabulary knows better, and what would get another number is left out.
    let whole = |tokens: &str, text: &str| with(tokens).unwrap().encode_whole(text).unwrap();
    assert_eq!(whole(r#"{"3": {"content": "<|im|>"}}"#, "<|im|>"), [7]);
    assert_eq!(
        whole(r#"{"3": {"content": ""}}"#, "<|im|>"),
        whole("{}", "<|im|>")
    );
    let twice = r#"{"14": {"content": "new"}, "15": {"content": "new"}}"#;
    assert_eq!(whole(twice, "new"), [14]);
    for tokens in [
        r#"{"3": {"content": "new"}}"#,
        r#"{"15": {"content": "new"}}"#,
    ] {
        assert_eq!(whole(tokens, "<|im|>"), whole("{}", "<|im|>"), "{tokens}");
        assert!(with(tokens).unwrap().id("new").is_none(), "{tokens}");
    }
    for (tokens, reason) in [
        (
            r#"{"x": {"content": "new"}}"#,
            "the entry `x` of `added_tokens_decoder` should be a token by its number",
        ),
        ("[]", "`added_tokens_decoder` should be an object"),
    ] {
        assert_eq!(
            with(tokens).unwrap_err(),
            format!(
                "DIR/tokenizer_config.json cannot be read as a tokenizer: {reason}; fetch or copy it again"
            )
        );
    }
    let error = open("{").unwrap_err();
    let start = "DIR/tokenizer_config.json cannot be read as a tokenizer: EOF";
    assert!(error.starts_with(start), "{error}");
}

#[test]
fn gpt2_serves_a_model_of_its_size_that_has_no_tokenizer() {
    let dir = folder(&[]);
    let tokenizer = Tokenizer::open(dir.path(), "gpt2", GPT2_VOCAB_SIZE).unwrap();
    assert_eq!(tokenizer.encode("Hello").unwrap(), [15_496]);
    assert_eq!(
        open_message(&[], 100),
        "DIR has neither tokenizer.json nor vocab.json with merges.txt, and its vocabulary of 100 tokens is not \
         GPT-2's of 50257; copy a tokenizer.json into it, or give tokens by number"
    );
}

#[test]
fn other_families_have_to_have_a_tokenizer_json() {
    let dir = folder(&[(VOCAB_FILE, VOCAB), (MERGES_FILE, MERGES)]);
    let refused = |family, vocab_size| {
        let error = Tokenizer::open(dir.path(), family, vocab_size).unwrap_err();
        error
            .to_string()
            .replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        refused("qwen2", 6),
        "DIR has no tokenizer.json, and vocab.json with merges.txt is read for gpt2 alone, not for qwen2; \
         copy a tokenizer.json into it, or give tokens by number"
    );
    assert!(refused("llama", GPT2_VOCAB_SIZE).contains("not for llama"));
    let json = Tokenizer::open(dir.path(), "gpt2", 6).unwrap().to_json();
    fs::write(dir.path().join(TOKENIZER_FILE), json.unwrap()).unwrap();
    assert!(Tokenizer::open(dir.path(), "qwen2", 6).is_ok());
}

#[test]
fn half_a_tokenizer_is_refused() {
    assert_eq!(
        open_message(&[(VOCAB_FILE, VOCAB)], 6),
        "DIR has vocab.json but no merges.txt; copy the other from where the model came from"
    );
    assert_eq!(
        open_message(&[(MERGES_FILE, MERGES)], 6),
        "DIR has merges.txt but no vocab.json; copy the other from where the model came from"
    );
}

#[test]
fn malformed_files_are_named() {
    assert!(
        open_message(&[(TOKENIZER_FILE, "{}")], 6)
            .starts_with("DIR/tokenizer.json cannot be read as a tokenizer: ")
    );
    assert_eq!(
        open_message(&[(VOCAB_FILE, "[]"), (MERGES_FILE, MERGES)], 6),
        "DIR/vocab.json cannot be read as a tokenizer: invalid type: sequence, expected a map at line 1 column 0; \
         fetch or copy it again"
    );
    assert_eq!(
        open_message(&[(VOCAB_FILE, VOCAB), (MERGES_FILE, "a b c")], 6),
        "DIR/merges.txt cannot be read as a tokenizer: line 1 is `a b c`, which is not two tokens; \
         fetch or copy it again"
    );
    let outside = open_message(&[(VOCAB_FILE, VOCAB), (MERGES_FILE, "a z")], 6);
    assert!(
        outside.starts_with("DIR/merges.txt cannot be read as a tokenizer: ")
            && outside.contains('z'),
        "{outside}"
    );
}

#[test]
fn ids_beyond_the_model_are_refused_when_they_are_met() {
    let dir = folder(&[(VOCAB_FILE, VOCAB), (MERGES_FILE, MERGES)]);
    let tokenizer = Tokenizer::open(dir.path(), "gpt2", 4).unwrap();
    assert_eq!(tokenizer.eos_id(), None, "the end token has no row");
    assert_eq!(tokenizer.encode("ab").unwrap(), [3]);
    assert_eq!(
        tokenizer.encode(" ab").unwrap_err().to_string(),
        "token 4 (`Ġab`) is beyond the model's vocabulary of 4; the tokenizer belongs to another model, \
         or tokens were added without retraining"
    );
}

#[test]
fn the_configured_end_token_wins_if_it_exists() {
    let tokenizer = Tokenizer::from_vocab_and_merges("m", VOCAB, MERGES, None).unwrap();
    assert_eq!(tokenizer.clone().with_eos(Some(1)).eos_id(), Some(1));
    assert_eq!(tokenizer.clone().with_eos(Some(50_256)).eos_id(), Some(5));
    assert_eq!(tokenizer.clone().with_eos(None).eos_id(), Some(5));
    assert_eq!(tokenizer.with_limit(6).with_eos(Some(6)).eos_id(), Some(5));
}

#[test]
fn truncation_and_padding_of_a_training_run_are_dropped() {
    let tokenizer = Tokenizer::from_vocab_and_merges("m", VOCAB, MERGES, None).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    json["truncation"] = serde_json::json!({
        "direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0
    });
    json["padding"] = serde_json::json!({
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
    });
    let again = Tokenizer::from_json("m", &json.to_string()).unwrap();
    assert_eq!(again.encode("ab ab").unwrap(), [3, 4]);
}

#[test]
fn a_decoder_that_looks_at_neighbours_is_streamed_too() {
    // WordPiece joins `##` pieces to what is before them and puts a space
    // before others.
    let json = r###"{
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100,
                  "vocab": {"[UNK]": 0, "play": 1, "##ing": 2, "chess": 3}}
    }"###;
    let tokenizer = Tokenizer::from_json("m", json).unwrap();
    let ids = tokenizer.encode("playing chess chess").unwrap();
    assert_eq!(ids, [1, 2, 3, 3]);
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["play", "ing", " chess", " chess"]);
    assert_eq!(stream.finish().unwrap(), "");
}

/// A tokenizer in the manner of Llama 2's: spaces are a character of their own,
/// one is put before a text and taken away again, and what has no token is
/// spelled in bytes. Ids 3 to 258 are the bytes, [`PIECES`] follow.
fn byte_fallback() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, id.into());
    };
    for token in ["<unk>", "<s>", "</s>"] {
        add(token.to_owned());
    }
    for byte in 0..=255u8 {
        add(format!("<0x{byte:02X}>"));
    }
    for piece in PIECES {
        add(piece.to_owned());
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>",
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": []}
    });
    Tokenizer::from_json("m", &json.to_string()).unwrap()
}

const PIECES: [&str; 7] = ["▁", "▁Hi", "a", "b", "c", "▁d", "e"];

fn piece(text: &str) -> u32 {
    259 + PIECES.iter().position(|p| *p == text).unwrap() as u32
}

/// The tokens of the bytes.
fn spelled(bytes: &[u8]) -> Vec<u32> {
    bytes.iter().map(|byte| 3 + u32::from(*byte)).collect()
}

/// What each push gives, and then the end.
fn pieces_of(mut stream: DecodeStream<'_>, ids: &[u32]) -> Vec<String> {
    let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn a_stray_byte_does_not_silence_the_stream() {
    let tokenizer = byte_fallback();
    let mut ids = vec![piece("▁Hi")];
    ids.extend(spelled("€".as_bytes()));
    ids.extend(spelled(&[0x80]));
    ids.extend(["a", "▁d", "e"].map(piece));
    assert_eq!(
        pieces_of(tokenizer.stream(), &ids),
        ["Hi", "", "", "€", "", "\u{fffd}a", " d", "e", ""]
    );
    // The end comes while a byte is held.
    let cut = &ids[..5];
    assert_eq!(
        pieces_of(tokenizer.stream(), cut),
        ["Hi", "", "", "€", "", "\u{fffd}"]
    );
    // Nothing but bytes that fit nowhere.
    let stray = spelled(&[0x80; 7]);
    let pieces = pieces_of(tokenizer.stream(), &stray);
    assert_eq!(pieces.concat(), "\u{fffd}".repeat(7));
    assert_eq!(pieces[4], "\u{fffd}".repeat(5), "not held for ever");
}

#[test]
fn characters_spelled_in_bytes_are_streamed_whole() {
    let tokenizer = byte_fallback();
    let text = "a €€😀 d";
    let ids = tokenizer.encode(text).unwrap();
    let pieces = pieces_of(tokenizer.stream(), &ids);
    assert_eq!(pieces.concat(), text);
    for whole in ["€", "😀"] {
        assert!(pieces.iter().any(|p| p == whole), "{pieces:?}");
    }
}

#[test]
fn a_continuation_keeps_its_first_space() {
    let tokenizer = byte_fallback();
    let prompt = tokenizer.encode("a").unwrap();
    let next = [piece("▁d"), piece("e")];
    assert_eq!(pieces_of(tokenizer.stream(), &next), ["d", "e", ""]);
    let after = tokenizer.stream_after(&prompt);
    assert_eq!(pieces_of(after, &next), [" d", "e", ""]);
    // A prompt that ends in bytes.
    let after = tokenizer.stream_after(&spelled("€".as_bytes()));
    assert_eq!(pieces_of(after, &spelled("€".as_bytes())).concat(), "€");

    let gpt2 = shared();
    let prompt = gpt2.encode("Hello,").unwrap();
    let next = gpt2.encode(" world").unwrap();
    assert_eq!(
        pieces_of(gpt2.stream_after(&prompt), &next).concat(),
        " world"
    );
}

#[test]
fn an_id_without_a_token_takes_no_space_away() {
    let tokenizer = byte_fallback();
    let ids = [piece("▁Hi"), 5000, piece("▁d")];
    assert_eq!(tokenizer.decode(&ids).unwrap(), "Hi d");
    assert_eq!(pieces_of(tokenizer.stream(), &ids), ["Hi", "", " d", ""]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn streamed_bytes_join_to_the_decoded_whole(
        parts in prop::collection::vec(prop_oneof!["[€😀é\\n ]", "▁|▁Hi|a|b|▁d"], 0..20)
    ) {
        let tokenizer = byte_fallback();
        let mut ids = Vec::new();
        for text in &parts {
            match PIECES.contains(&text.as_str()) {
                true => ids.push(piece(text)),
                false => ids.extend(spelled(text.as_bytes())),
            }
        }
        let pieces = pieces_of(tokenizer.stream(), &ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap());
    }

    /// Of any ids at all, no piece is lost: what stands in the stream differs
    /// from the whole in runs of bytes alone, and each of their bytes gives
    /// something.
    #[test]
    fn streams_of_any_ids_go_on(ids in prop::collection::vec(prop_oneof![3u32..259, 259u32..266], 0..40)) {
        let tokenizer = byte_fallback();
        let pieces = pieces_of(tokenizer.stream(), &ids);
        let (text, whole) = (pieces.concat(), tokenizer.decode(&ids).unwrap());
        let plain = |text: &str| -> String {
            text.chars().filter(|c| "Hiabcde".contains(*c)).collect()
        };
        // Bytes may spell these letters too; without them both must agree.
        if !ids.iter().any(|id| (3..131).contains(id)) {
            prop_assert_eq!(plain(&text), plain(&whole));
        }
        let mut held = 0;
        for piece in &pieces[..ids.len()] {
            held = if piece.is_empty() { held + 1 } else { 0 };
            // A space at the beginning, and the few that may be held.
            prop_assert!(held <= 6, "{:?}", pieces);
        }
    }
}

#[test]
fn every_token_of_gpt2_decodes_to_its_bytes() {
    let tokenizer = shared();
    let table = tiktoken_rs::r50k_base_singleton();
    let mut seen = HashSet::new();
    for id in 0..GPT2_VOCAB_SIZE as u32 {
        let bytes = table.decode_bytes(&[id]).unwrap();
        assert_eq!(
            tokenizer.decode(&[id]).unwrap(),
            String::from_utf8_lossy(&bytes),
            "{id}"
        );
        assert!(seen.insert(bytes), "{id}");
    }
}
