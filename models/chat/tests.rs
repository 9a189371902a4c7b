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
        .render(messages, &BTreeMap::new())
}

#[test]
fn prompts_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat/cases.json");
    let cases: Cases = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(cases.cases.len() > 10);
    for case in cases.cases {
        let mut chat = Chat::new(&case.template);
        for (name, token) in &case.tokens {
            chat = chat.with_special_token(name, token);
        }
        let template = chat.template().unwrap();
        match template.render(&case.messages, &case.arguments) {
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
        let chat = Chat::new(template).with_special_token("bos_token", "<s>");
        Some(chat.with_special_token("eos_token", "</s>"))
    };
    write(TOKENIZER_CONFIG_FILE, &config(r#""one""#));
    assert_eq!(open().unwrap(), with_tokens("one"));
    let several =
        r#"[{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]"#;
    write(TOKENIZER_CONFIG_FILE, &config(several));
    assert_eq!(open().unwrap(), with_tokens("three"));
    write(
        TOKENIZER_CONFIG_FILE,
        &config(r#"{"default": "dict"}, "model_max_length": Infinity"#),
    );
    assert_eq!(open().unwrap(), with_tokens("dict"));
    write(TEMPLATE_FILE, "four");
    assert_eq!(open().unwrap(), with_tokens("four"));
    write(TEMPLATE_FILE, "four\r\n");
    write(
        SPECIAL_TOKENS_FILE,
        r#"{"eos_token": "<e>", "pad_token": {"content": "<pad>"}}"#,
    );
    let chat = open().unwrap().unwrap();
    assert_eq!(chat.special_token("pad_token"), Some("<pad>"));
    assert_eq!(chat.special_token("eos_token"), Some("</s>"));
}

#[test]
fn what_a_compiled_model_keeps_is_all_of_it() {
    let chat = Chat::new("{{ x }}").with_special_token("eos_token", "<e>");
    let sampling = Sampling {
        temperature: Some(0.6),
        top_k: Some(20),
        ..Sampling::default()
    };
    let chat = chat.with_sampling(sampling);
    let json = chat.to_json().unwrap();
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
            "has a `chat_template` that is neither a text nor several with names; a chat_template.jinja",
        ),
        (
            r#"{"chat_template": []}"#,
            "has a `chat_template` that is neither a text nor several with names; ",
        ),
        (
            r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
            "has chat templates for other uses (`rag`), and none is named `default`; a chat_template.jinja \
             beside it takes its place",
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
             end of block (line 2 of the template); put another, as chat_template.jinja, into the \
             checkpoint's folder (and compile it again)",
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

/// Templates come from whoever made a model; one that never ends is ended.
#[test]
fn a_template_that_never_ends_is_ended() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let growing = "{% set n = namespace(s='ab') %}{% for i in range(9999) %}{% set n.s = n.s ~ i %}{% endfor %}";
    let growing = growing.repeat(700);
    let doubling = "{% set n = namespace(x=[]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}";
    let deep =
        "{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}";
    let round = "{% set n = namespace(x=1) %}{% set n.x = n %}";
    for template in [
        endless,
        &growing,
        "{{ [1] | tojson(indent=100000000000) }}",
        &format!("{doubling}{{{{ n.x }}}}"),
        &format!("{doubling}{{{{ n.x | tojson }}}}"),
        &format!("{deep}{{{{ n.x | tojson(indent=16) }}}}"),
        &format!("{round}{{{{ n }}}}"),
        &format!("{round}{{{{ n | tojson }}}}"),
    ] {
        let error = prompt(template, &[]).unwrap_err();
        assert!(matches!(error, ChatError::Failed { .. }), "{error}");
    }
}

/// Lists in lists are written, compared and dropped without coming to the stack's end, as many
/// as a template can have before it is ended; and a long text is read.
#[test]
fn nesting_has_an_end() {
    let nest = |rounds: usize| {
        format!(
            "{{% set n = namespace(x=[]) %}}{{% for i in range({rounds}) %}}{{% set n.x = {}n.x{} %}}\
             {{% endfor %}}",
            "[".repeat(70),
            "]".repeat(70)
        )
    };
    let most = (1..).find(|rounds| prompt(&nest(500 * rounds), &[]).is_err());
    let most = 500 * (most.unwrap() - 1);
    assert!(most > 1000, "{most}");
    // To write them takes its share too.
    for (rounds, used, length) in [
        (most / 2, "{{ n.x }}", 140 * (most / 2) + 2),
        (most / 2, "{{ n.x | tojson }}", 140 * (most / 2) + 2),
        (most - 500, "{{ n.x == [n.x] }}", 5),
        (most - 500, "{{ n.x | length }}", 1),
    ] {
        let text = prompt(&format!("{}{used}", nest(rounds)), &[]).unwrap();
        assert_eq!(text.len(), length, "{used}");
    }
    // The last takes minijinja the square of its length.
    for (link, bytes) in [
        (".x", LONGEST),
        ("()", LONGEST),
        ("|f", LONGEST),
        ("~x", 8192),
    ] {
        let chain = format!("{{{{ x{} }}}}", link.repeat(bytes / 2 - 10));
        // Whatever comes of it.
        let _ = prompt(&chain, &[]);
    }
    let error = prompt(&" ".repeat(LONGEST + 1), &[]).unwrap_err();
    assert!(matches!(error, ChatError::Template { .. }), "{error}");
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
