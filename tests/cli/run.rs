//! `kiln run`

use kiln_models::source::open_demo;

use super::*;

/// Greedy continuations are the reference's, whose margins are wide.
fn check_greedy(fixture: &str, device: &str) {
    let fixture = Fixture::gpt2(fixture);
    for case in ["greedy0", "greedy1"] {
        let prompt = join(&fixture.i32(&format!("{case}.prompt"))[0]);
        let tokens = &fixture.i32(&format!("{case}.tokens"))[0];
        let new = tokens.len().to_string();
        let args = ["run", fixture.path(), "--tokens", &prompt, "-n", &new];
        let out = kiln(args.into_iter().chain(["--device", device])).ok();
        assert_eq!(out, format!("{}\n", join(tokens)), "{case}");
    }
}

#[test]
fn greedy_tokens_are_the_references() {
    check_greedy("base", "0");
    check_greedy("base", "cpu");
    check_greedy("bf16_shards", "0");
}

#[test]
fn greedy_tokens_are_the_references_through_opengl() {
    check_greedy("base", "gl");
}

#[test]
fn a_batch_of_different_lengths_is_continued_as_each_alone() {
    let fixture = Fixture::gpt2("base");
    let lengths = &fixture.i32("ragged.lengths")[0];
    let prompts: Vec<String> = fixture
        .i32("ragged.prompts")
        .iter()
        .zip(lengths)
        .map(|(row, length)| join(&row[..*length as usize]))
        .collect();
    for device in ["0", "cpu"] {
        let mut args = vec![
            "run",
            fixture.path(),
            "-n",
            "6",
            "--json",
            "--device",
            device,
        ];
        for prompt in &prompts {
            args.extend(["--tokens", prompt]);
        }
        let out = kiln(args).ok();
        let line = last_line(&out);
        let sequences = line["sequences"].as_array().unwrap();
        assert_eq!(sequences.len(), prompts.len());
        for (index, wanted) in fixture.i32("ragged.tokens").iter().enumerate() {
            assert_eq!(join(&ids(&sequences[index]["tokens"])), join(wanted));
            let shown = format!("[{}] {}\n{}\n", index + 1, prompts[index], join(wanted));
            assert!(out.contains(&shown), "{out}");
        }
    }
}

#[test]
fn text_is_what_the_tokens_say() {
    let run = "run demo --prompt Ownership -n 24 --json --device";
    let out = kiln_line(&format!("{run} 0")).ok();
    let line = last_line(&out);
    let tokens = ids(&line["tokens"]);
    assert_eq!(tokens.len(), 24);
    assert_eq!(line["finish"], "length");
    assert_eq!(line["prompt_tokens"], prompt("Ownership").len());
    let demo = open_demo().unwrap();
    let tokens: Vec<u32> = tokens.iter().map(|id| *id as u32).collect();
    let text = demo.tokenizer().unwrap().decode(&tokens).unwrap();
    assert_eq!(line["text"], *text);
    let (shown, _) = out.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(shown, text);
    for key in ["load_ms", "prefill_ms", "decode_ms"] {
        assert!(line["timings"][key].as_f64() > Some(0.0), "{key}: {line}");
    }
    let interpreted = last_line(&kiln_line(&format!("{run} cpu")).ok());
    assert_eq!(interpreted["tokens"], line["tokens"]);
    assert_eq!(interpreted["tier"], Value::Null);
}

fn prompt(text: &str) -> Vec<u32> {
    let demo = open_demo().unwrap();
    demo.tokenizer().unwrap().encode(text).unwrap()
}

#[test]
fn a_stop_text_is_found_across_tokens() {
    let run = [
        "run",
        "demo",
        "--prompt",
        "Ownership",
        "-n",
        "24",
        "--json",
        "--device",
        "cpu",
    ];
    let whole = last_line(&kiln(run).ok());
    let tokens: Vec<u32> = ids(&whole["tokens"]).iter().map(|id| *id as u32).collect();
    let text = whole["text"].as_str().unwrap();
    let demo = open_demo().unwrap();
    let pieces: Vec<String> = tokens
        .iter()
        .map(|id| demo.tokenizer().unwrap().decode(&[*id]).unwrap())
        .collect();
    // The end of one token and the beginning of the next, which come early.
    let border = (2..pieces.len()).find_map(|i| {
        let before = pieces[i - 1].chars().last()?;
        let after = pieces[i].chars().next()?;
        let stop = format!("{before}{after}");
        let tokens_hold_it = pieces.iter().any(|p| p.contains(&stop));
        (!tokens_hold_it).then_some(stop)
    });
    let stop = border.expect("some border of two tokens");
    let (wanted, _) = text.split_once(&stop).unwrap();
    let out = kiln(run.into_iter().chain(["--stop", &stop])).ok();
    let line = last_line(&out);
    assert_eq!(line["text"], *wanted);
    assert_eq!(line["finish"], "stop");
    assert!(out.starts_with(&format!("{wanted}\n{{")), "{out}");
    assert!(ids(&line["tokens"]).len() < tokens.len());
}

#[test]
fn a_text_ends_at_the_end_token_unless_told_otherwise() {
    // The demo's end token follows the end of a document sooner or later.
    let run = "run demo --tokens 0 --temperature 1 -n 200 --json --device cpu --seed";
    let (seed, ended) = (0..20)
        .map(|seed| (seed, last_line(&kiln_line(&format!("{run} {seed}")).ok())))
        .find(|(_, line)| line["finish"] == "stop")
        .expect("one of twenty texts ends within 200 tokens");
    let tokens = ids(&ended["tokens"]);
    assert_eq!(tokens.last(), Some(&0));
    assert!(!ended["text"].as_str().unwrap().contains("<|endoftext|>"));
    let on = last_line(&kiln_line(&format!("{run} {seed} --ignore-eos")).ok());
    let longer = ids(&on["tokens"]);
    assert_eq!(longer.len(), 200);
    assert_eq!(longer[..tokens.len()], tokens);
}

#[test]
fn a_seed_gives_the_same_text_everywhere() {
    let run = "run demo --prompt Ownership -n 32 --temperature 0.8 --top-k 40 --top-p 0.95 --min-p 0.01 \
               --repetition-penalty 1.1 --device";
    let first = kiln_line(&format!("{run} 0 --seed 7")).ok();
    assert_eq!(kiln_line(&format!("{run} 0 --seed 7")).ok(), first);
    assert_eq!(kiln_line(&format!("{run} cpu --seed 7")).ok(), first);
    assert_ne!(kiln_line(&format!("{run} cpu --seed 8")).ok(), first);
}

#[test]
fn a_context_that_is_full_ends_the_text() {
    let line = last_line(
        &kiln_line("run demo --tokens 5,6,7 -n 1000 --ignore-eos --json --device cpu").ok(),
    );
    assert_eq!(line["finish"], "context");
    // The last token needs no position of its own.
    assert_eq!(ids(&line["tokens"]).len(), 256 - 3 + 1);
}

#[test]
#[cfg(target_os = "linux")]
fn without_an_adapter_the_interpreter_runs_with_a_warning() {
    let ran = finish(&mut without_drivers("run demo --tokens 5,6 -n 8"));
    assert!(
        ran.err
            .starts_with("warning: no graphics adapter was found"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("mesa-vulkan-drivers"), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert_eq!(
        ran.ok(),
        kiln_line("run demo --tokens 5,6 -n 8 --device cpu").ok()
    );

    let asked = finish(&mut without_drivers("run demo --tokens 5,6 --device 0"));
    assert!(asked.fails(1).contains("no graphics adapter was found"));
    let quiet = finish(&mut without_drivers(
        "run demo --tokens 5,6 -n 8 --device cpu",
    ));
    assert_eq!(quiet.err, "");
}

/// A prompt of several lines may begin with a hyphen, in the command line or in a file.
#[test]
fn texts_may_begin_with_a_hyphen() {
    let text = "- a list\n- of two";
    let run = ["run", "demo", "-n", "4", "--device", "cpu", "--stop", "---"];
    let wanted = kiln(run.into_iter().chain(["--prompt", text])).ok();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    for end in ["", "\n", "\r\n"] {
        std::fs::write(&file, format!("{text}{end}")).unwrap();
        let args = ["--prompt-file", file.to_str().unwrap()];
        assert_eq!(kiln(run.into_iter().chain(args)).ok(), wanted, "{end:?}");
    }
    let mut piped = command(run.into_iter().chain(["--prompt-file", "-"]));
    piped.stdin(std::fs::File::open(&file).unwrap());
    assert_eq!(finish(&mut piped).ok(), wanted);

    let missing = ["--prompt-file", "/nonexistent/prompt.txt"];
    let message = kiln(run.into_iter().chain(missing)).fails(1);
    assert!(
        message.contains("cannot read the prompt from `/nonexistent/prompt.txt`"),
        "{message}"
    );
}

#[test]
fn several_sequences_may_be_in_one_option() {
    let run = "run demo -n 4 --device cpu";
    let wanted = kiln_line(&format!("{run} --tokens 1,2 --tokens 3,4,5")).ok();
    assert!(wanted.starts_with("[1] 1,2\n"), "{wanted}");
    assert_eq!(kiln_line(&format!("{run} --tokens 1,2;3,4,5")).ok(), wanted);
}

#[test]
fn options_that_change_nothing_are_told() {
    let run = "run demo --tokens 5,6 -n 4 --device cpu";
    let greedy = kiln_line(run);
    assert_eq!(greedy.err, "");
    let told = kiln_line(&format!("{run} --top-k 40 --min-p 0.1 --seed 7"));
    assert!(
        told.err.starts_with("warning: ") && told.err.contains("`--temperature`"),
        "{}",
        told.err
    );
    assert!(
        told.err.contains(": `--top-k`, `--min-p`, `--seed`\n"),
        "{}",
        told.err
    );
    assert_eq!(told.ok(), greedy.ok());
    let drawn = kiln_line(&format!("{run} --top-k 40 --temperature 0.5"));
    assert_eq!(drawn.err, "");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let told = unread(command(["ir", "demo", "--print-after", "all"]));
    assert_eq!(told, "");
}
