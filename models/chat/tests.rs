use std::fs;

use super::*;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    tokens: BTreeMap<String, String>,
    arguments: BTreeMap<String, Value>,
    messages: Vec<Message>,
    prompt: Option<String>,
    raises: Option<String>,
}

fn prompt(template: &str, messages: &[Message]) -> Result<String, ChatError> {
    Chat::new(template)
        .template()?
        .prompt(messages, &BTreeMap::new())
}

#[test]
fn prompts_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat/cases.json");
    let cases: Cases = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.cases.len() > 10);
    for case in cases.cases {
        let mut chat = Chat::new(&case.template);
        for (name, token) in &case.tokens {
            chat = chat.with_token(name, token);
        }
        let template = chat.template().unwrap();
        match template.prompt(&case.messages, &case.arguments) {
            Ok(found) => assert_eq!(Some(found), case.prompt, "{}", case.name),
            Err(ChatError::Refused { reason }) => {
                assert_eq!(Some(reason), case.raises, "{}", case.name);
            }
            Err(error) => panic!("{}: {error}", case.name),
        }
    }
}

#[test]
fn a_template_is_found_in_either_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let open = || Chat::open(folder.path());
    assert_eq!(open().unwrap(), None);

    write(
        TOKENIZER_CONFIG_FILE,
        r#"{"bos_token": null, "eos_token": "</s>"}"#,
    );
    assert_eq!(open().unwrap(), None, "a model that continues texts");

    let tokens = r#""bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>""#;
    let config = |template: &str| format!(r#"{{{tokens}, "chat_template": {template}}}"#);
    let with_tokens = |template: &str| {
        let chat = Chat::new(template).with_token("bos_token", "<s>");
        Some(chat.with_token("eos_token", "</s>"))
    };
    write(TOKENIZER_CONFIG_FILE, &config(r#""one""#));
    assert_eq!(open().unwrap(), with_tokens("one"));
    let several =
        r#"[{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]"#;
    write(TOKENIZER_CONFIG_FILE, &config(several));
    assert_eq!(open().unwrap(), with_tokens("three"));
    write(TEMPLATE_FILE, "four");
    assert_eq!(open().unwrap(), with_tokens("four"));
    let chat = open().unwrap().unwrap();
    assert_eq!(chat.token("eos_token"), Some("</s>"));
    assert_eq!(chat.token("pad_token"), None);
}

#[test]
fn what_a_compiled_model_keeps_is_all_of_it() {
    let chat = Chat::new("{{ x }}").with_token("eos_token", "<e>");
    let sampling = Sampling {
        temperature: Some(0.6),
        top_k: Some(20),
        ..Sampling::default()
    };
    let chat = chat.with_sampling(sampling);
    let json = chat.to_json();
    assert_eq!(Chat::from_json("chat.json", &json).unwrap(), chat);
    assert!(!json.contains("min_p"), "{json}");
    let error = Chat::from_json("chat.json", "[]").unwrap_err().to_string();
    assert!(
        error.starts_with("chat.json cannot be parsed: invalid"),
        "{error}"
    );
}

#[test]
fn files_that_are_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(TOKENIZER_CONFIG_FILE);
    for (text, wanted) in [
        ("{", "cannot be parsed: EOF"),
        (
            r#"{"chat_template": 3}"#,
            "has a `chat_template` of the wrong kind",
        ),
        (
            r#"{"chat_template": [3]}"#,
            "has a `chat_template` that is a list of other things",
        ),
        (
            r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            "has chat templates, but none is named `default` (`rag`)",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let error = Chat::open(folder.path()).unwrap_err().to_string();
        let start = format!("{} {wanted}", path.display());
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn what_is_wrong_with_a_template_is_told_with_its_line() {
    for (template, wanted) in [
        (
            "a\n{% if x %}",
            "the model's chat template cannot be read: syntax error: unexpected end of input, expected \
             end of block (line 2 of the template); a chat_template.jinja in the checkpoint's folder \
             takes its place",
        ),
        (
            "a\n{{ messages.x.y }}",
            "the model's chat template failed: undefined value (line 2 of the template)",
        ),
        (
            "{{ raise_exception('Not so.') }}",
            "the model's chat template refuses this conversation: Not so.",
        ),
        (
            "{{ messages[0].content.shout() }}",
            "the model's chat template failed: unknown method: string has no method named shout (line 1 \
             of the template)",
        ),
    ] {
        let error = prompt(template, &[Message::user("Hi")]).unwrap_err();
        assert_eq!(error.to_string(), wanted);
    }
}

#[test]
fn the_time_is_there() {
    let year = prompt("{{ strftime_now('%Y') }}", &[]).unwrap();
    assert!(year.parse::<u32>().unwrap() > 2025, "{year}");
}

#[test]
fn marks_of_what_an_assistant_said_leave_no_trace() {
    for (template, wanted) in [
        ("a {% generation %}b{% endgeneration %} c", "a b c"),
        ("a {%- generation -%} b {%- endgeneration %} c", "ab c"),
        (
            "{% set generation = 'x' %}{{ generation }}{% if generation %}y{% endif %}",
            "xy",
        ),
        (
            "{% generation %}{% endgeneration %}{% raw %}{%{% endraw %}",
            "{%",
        ),
    ] {
        assert_eq!(prompt(template, &[]).unwrap(), wanted, "{template}");
    }
}
