//! `kiln chat`

use std::fs;

use kiln_models::source::open_demo;
use tempfile::TempDir;

use super::*;

/// Messages as comments, which is what the demo was trained to go on from.
const TEMPLATE: &str = "\
{%- if style is defined %}{{ '//! ' + style + '\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '/// ' + message.content + '\\n' }}
{%- elif message.role == 'system' %}{{ '//! ' + message.content + '\\n' }}
{%- else %}{{ message.content + '\\n' }}{% endif %}
{%- endfor %}
";

pub const FIRST: &str = "Returns the length of";
pub const SECOND: &str = "An iterator over the";

/// The demo as a checkpoint with a chat template.
pub fn talker() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(demo.join(file), folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
    folder
}

pub fn path(folder: &TempDir) -> &str {
    folder.path().to_str().unwrap()
}

/// What `kiln run` continues a text with.
pub fn continued(text: &str, new: &str) -> String {
    kiln(["run", "demo", "--prompt", text, "-n", new, "--device", "0"]).ok()
}

/// The second answer goes on from what the first left in the cache, and is the one to the
/// whole conversation; also where the template changes what was said, so that the decoder
/// has to go back behind it.
#[test]
fn answers_are_continuations_of_what_the_template_makes() {
    let folder = talker();
    let first = continued(&format!("/// {FIRST}\n"), "12");
    for (template, remembered) in [
        (TEMPLATE.to_owned(), first.clone()),
        (
            TEMPLATE.replace(
                "message.content + '\\n' }}{% endif",
                "message.content | upper + '\\n' }}{% endif",
            ),
            first.to_uppercase(),
        ),
    ] {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let second = format!("/// {FIRST}\n{remembered}/// {SECOND}\n");
        let both = first.clone() + &continued(&second, "12");
        for device in ["0", "cpu"] {
            let args = ["chat", path(&folder), "-n", "12", "--device", device];
            let said = kiln(
                args.into_iter()
                    .chain(["--prompt", FIRST, "--prompt", SECOND]),
            );
            assert_eq!(said.ok(), both, "{device}");
        }
    }
}

#[test]
fn a_compiled_model_talks_as_its_checkpoint_does() {
    let folder = talker();
    let advice = r#"{"do_sample": true, "temperature": 0.7, "top_k": 30}"#;
    fs::write(folder.path().join("generation_config.json"), advice).unwrap();
    let compiled = folder.path().join("talker.kiln");
    let compiled = compiled.to_str().unwrap();
    kiln(["compile", path(&folder), "-o", compiled]).ok();
    let talk = |model: &str, more: &[&str]| {
        let args = [
            "chat", model, "-n", "16", "--device", "0", "--prompt", FIRST, "--seed", "7",
        ];
        kiln(args.iter().chain(more)).ok()
    };
    let drawn = talk(compiled, &[]);
    assert_eq!(drawn, talk(path(&folder), &[]));
    // What its authors advise, unless told otherwise.
    assert_eq!(
        drawn,
        talk(compiled, &["--temperature", "0.7", "--top-k", "30"])
    );
    let args = [
        "chat", compiled, "-n", "16", "--device", "0", "--prompt", FIRST,
    ];
    let greedy = kiln(args.into_iter().chain(["--temperature", "0"])).ok();
    assert_ne!(drawn, greedy);
    assert_eq!(greedy, continued(&format!("/// {FIRST}\n"), "16"));
}

#[test]
fn a_system_prompt_and_settings_reach_the_template() {
    let folder = talker();
    let text = format!("//! Short\n//! Strings\n/// {FIRST}\n");
    let args = ["chat", path(&folder), "-n", "8", "--device", "0"];
    let more = ["--system", "Strings", "--template-arg", "style=Short"];
    let said = kiln(args.into_iter().chain(more).chain(["--prompt", FIRST]));
    assert_eq!(said.ok(), continued(&text, "8"));
}

#[test]
fn standard_input_is_one_message() {
    let folder = talker();
    let file = folder.path().join("message.txt");
    fs::write(&file, format!("{FIRST}\n{SECOND}\n")).unwrap();
    let mut piped = command(["chat", path(&folder), "-n", "8", "--device", "0"]);
    piped.stdin(fs::File::open(&file).unwrap());
    let text = format!("/// {FIRST}\n{SECOND}\n");
    assert_eq!(finish(&mut piped).ok(), continued(&text, "8"));
}

#[test]
fn the_oldest_messages_go_where_the_context_ends() {
    let folder = talker();
    let talk = |context: &str, texts: &[&str]| {
        let args = ["chat", path(&folder), "--device", "0", "-n", "6"];
        let texts = texts.iter().flat_map(|text| ["--prompt", text]);
        kiln(args.into_iter().chain(["--context", context]).chain(texts))
    };
    let tokens = |text: &str| {
        let demo = open_demo().unwrap();
        demo.tokenizer().unwrap().encode(text).unwrap().len()
    };
    // Two messages and an answer do not fit, and one fills no more than half of it.
    let one = tokens(&format!("/// {SECOND}\n"));
    let context = (2 * one.max(tokens(&format!("/// {FIRST}\n")))).to_string();
    let said = talk(&context, &[FIRST, SECOND]);
    assert_eq!(
        said.err,
        format!(
            "warning: the conversation has become longer than the context of {context} tokens; its 2 oldest \
             messages are forgotten\n"
        )
    );
    let last = continued(&format!("/// {SECOND}\n"), "6");
    assert!(said.ok().ends_with(&last));

    // An answer that the context cuts off says so.
    let context = (one + 3).to_string();
    let said = talk(&context, &[SECOND]);
    let full = format!(
        "warning: the context of {context} tokens is full, so the answer ends here; to go on, make \
         the context longer with --context\n"
    );
    assert_eq!(said.err, full);
    said.ok();
    let error = talk("4", &[SECOND]).fails(1);
    let wanted = format!(
        "error: the message has {one} tokens, with what the chat template and --system add, and the \
         context has 4; shorten it, or make the context longer with --context\n"
    );
    assert_eq!(error, wanted);
}

#[test]
fn who_cannot_talk_says_why() {
    let refused = |args: &[&str], code| kiln(["chat"].iter().chain(args)).fails(code);
    let error = refused(&["demo", "--prompt", "Hi"], 1);
    let instead = "give a model that was trained to answer, which comes with a chat template\n";
    let wanted =
        "error: `demo` was trained to continue texts, as `kiln run demo` does, and not to answer; ";
    assert_eq!(error, format!("{wanted}{instead}"));
    let error = refused(&["--random-weights", "gpt2", "--prompt", "Hi"], 2);
    let wanted = "error: a model with `--random-weights` learned nothing, so it cannot answer; ";
    assert!(error.starts_with(&format!("{wanted}{instead}")), "{error}");
    let base = Fixture::gpt2("base");
    let error = refused(&[base.path(), "--prompt", "Hi"], 1);
    assert!(error.contains("base` has no chat template, so"), "{error}");
    let folder = talker();
    let path = path(&folder);
    let error = refused(&[path, "--prompt", "Hi", "--context", "257"], 2);
    assert!(
        error.starts_with("error: `--context 257`: this model takes 1 to 256;"),
        "{error}"
    );
    let error = refused(&[path, "--template-arg", "style"], 2);
    assert!(error.contains("it should be a name and a value"), "{error}");

    let error = refused(&[path, "--prompt", " ", "--device", "0"], 1);
    assert_eq!(
        error,
        "error: the message is empty; there is nothing to answer\n"
    );

    let template = folder.path().join("chat_template.jinja");
    fs::write(&template, "{{ raise_exception('No talking.') }}").unwrap();
    let error = refused(&[path, "--prompt", "Hi", "--device", "0"], 1);
    assert_eq!(
        error,
        "error: the model's chat template refuses this conversation: No talking.\n"
    );

    // What is wrong with a template is told when the model is compiled, which it can be.
    fs::write(&template, "{% if %}").unwrap();
    let compiled = folder.path().join("talker.kiln");
    let compiled = compiled.to_str().unwrap();
    let told = kiln(["compile", path, "-o", compiled]);
    let wanted =
        "warning: `kiln chat` will not run with the compiled model: the model's chat template";
    assert!(told.err.starts_with(wanted), "{}", told.err);
    told.ok();
    let error = refused(&[compiled, "--prompt", "Hi"], 1);
    assert!(
        error.starts_with("error: the model's chat template cannot be read"),
        "{error}"
    );

    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = refused(&[path, "--prompt", "Hi"], 1);
    assert!(
        error.contains("has no tokenizer, so it cannot read"),
        "{error}"
    );
}
