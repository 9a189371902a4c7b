//! Wrong command lines, models that are not there, and help.

use super::*;

/// Each case: arguments, exit code, and what the message must say.
fn check(cases: &[(&[&str], i32, &[&str])]) {
    for (args, code, parts) in cases {
        let message = kiln(*args).fails(*code);
        assert!(message.starts_with("error: "), "{args:?}: {message}");
        for part in *parts {
            assert!(
                message.contains(part),
                "{args:?}: `{part}` is not in: {message}"
            );
        }
    }
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    check(&[
        (
            &["frobnicate"],
            2,
            &["unrecognized subcommand 'frobnicate'"],
        ),
        (&["run", "demo"], 2, &["required", "--prompt <TEXT>"]),
        (&["run", "--prompt", "x"], 2, &["required", "<MODEL>"]),
        (
            &["run", "demo", "--prompt", "x", "--tokens", "1"],
            2,
            &["cannot be used with"],
        ),
        (
            &["run", "demo", "--tokens", "1,x"],
            2,
            &["`x` is not a token id", "`1,2,3`"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--temperature", "-1"],
            2,
            &["--temperature = -1 is out of range: 0 or more"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--top-p", "0"],
            2,
            &["--top-p = 0 is out of range: above 0, at most 1"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--min-p", "2"],
            2,
            &["--min-p = 2 is out of range: 0 to 1"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--repetition-penalty", "0"],
            2,
            &["--repetition-penalty = 0 is out of range"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--stop", ""],
            2,
            &["--stop <TEXT>"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--seed", "-1"],
            2,
            &["'-1' for '--seed <N>'", "a whole number, 0 or more"],
        ),
        (
            &["run", "demo", "--tokens", "1", "-n", "-1"],
            2,
            &["'-1' for '--max-new-tokens <N>'", "0 or more"],
        ),
        (
            &["run", "demo", "--tokens", "-1"],
            2,
            &["`-1` is not a token id"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--top-p", "much"],
            2,
            &["'much' for '--top-p <F>'", "expected a number"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--device", ""],
            2,
            &["'--device <N|NAME|cpu>'"],
        ),
        (
            &["run", "demo", "--prompt", "x", "--prompt-file", "y"],
            2,
            &["cannot be used with"],
        ),
        (
            &["bench", "demo", "--warm-up", "nan"],
            2,
            &["'nan' for '--warm-up <SECONDS>'", "0 or more"],
        ),
        (
            &["bench", "demo", "--limit", "-1"],
            2,
            &["'-1' for '--limit <SECONDS>'", "0 or more"],
        ),
        (
            &["ir", "demo", "--dtype", "q8"],
            2,
            &["required", "--html <FILE>"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--dtype", "f8"],
            2,
            &["'f8'", "f32, f16, q8, q4"],
        ),
        (
            &[
                "run", "demo", "--tokens", "1", "--device", "cpu", "--tier", "base",
            ],
            2,
            &["`--tier base`", "interpreter"],
        ),
        (
            &["run", "demo", "--random-weights", "gpt2", "--tokens", "1"],
            2,
            &["cannot be used with"],
        ),
        (
            &["bench", "--random-weights", "gpt3"],
            2,
            &["'gpt3'", "gpt2, gpt2-medium, gpt2-large, gpt2-xl"],
        ),
        (&["compile", "demo"], 2, &["--output <OUT.kiln>"]),
        (
            &["compile", "demo", "-o", "x.kiln", "--grid", "96"],
            2,
            &["'96' for '--grid <N>'", "a power of two up to 32768, or 0"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--grid", "65536"],
            2,
            &["'65536' for '--grid <N>'", "up to 32768"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--max-batch", "0"],
            2,
            &["'0' for '--max-batch <N>'", "from 1 to 2147483647"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--max-context", "-5"],
            2,
            &["'-5' for '--max-context <N>'", "from 1 to 2147483647"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--tier", "coop"],
            2,
            &["`--tier coop`", "--dtype f16, q8 or q4"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--emit", "glsl", "y"],
            2,
            &["`--emit glsl`", "spirv, msl and hlsl"],
        ),
        (
            &["compile", "demo", "-o", "x.kiln", "--print-after", "nope"],
            2,
            &["'nope'", "the passes are input, "],
        ),
        (
            &["ir", "demo", "--after", "nope"],
            2,
            &["'nope'", "fuse_attention"],
        ),
    ]);
}

#[test]
fn what_is_no_model_is_told_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    let kiln = folder.path().join("empty.kiln");
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&kiln).unwrap();
    let (empty, kiln) = (empty.to_str().unwrap(), kiln.to_str().unwrap());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let run = |model| ["run", model, "--tokens", "1", "--device", "cpu"];
    let (hub, fetched): (&str, &[&str]) = match cfg!(feature = "hub") {
        true => (
            "hub id",
            &[
                "there is no file or folder `nosuch` here, so it was taken as a hub id",
                "because: ",
                "HF_HUB_OFFLINE",
            ],
        ),
        false => (
            "built without the feature `hub`",
            &["there is no folder `nosuch`"],
        ),
    };
    check(&[
        (
            &run("./nosuch"),
            1,
            &["there is no folder `./nosuch`", "`demo`", hub],
        ),
        (&run("a/b/c"), 1, &["there is no folder `a/b/c`"]),
        (
            &run("nosuch.kiln"),
            1,
            &["there is no folder `nosuch.kiln`"],
        ),
        (&run("nosuch"), 1, fetched),
        (&run(manifest), 1, &["is a file; a model is a folder"]),
        (&run(empty), 1, &[empty, "config.json"]),
        (&run(kiln), 1, &[kiln, "`plan.json`", "missing"]),
    ]);
}

#[test]
fn what_a_model_cannot_do_is_told() {
    let body = Fixture::gpt2("body");
    let base = Fixture::gpt2("base");
    let long = join(&[0; 25]);
    check(&[
        (
            &["run", "demo", "--tokens", "5,99999", "--device", "cpu"],
            1,
            &[
                "token 99999 of sequence 0 at position 1",
                "vocabulary of 3072",
            ],
        ),
        (
            &["run", "demo", "--tokens", "5,99999", "--device", "0"],
            1,
            &[
                "token 99999 of sequence 0 at position 1",
                "vocabulary of 3072",
            ],
        ),
        (
            &["run", "demo", "--prompt", "", "--device", "cpu"],
            1,
            &["the prompt `` has no tokens"],
        ),
        (
            &["run", base.path(), "--prompt", "x", "--device", "cpu"],
            1,
            &["has no tokenizer", "`--prompt`", "`--tokens`"],
        ),
        (
            &["run", base.path(), "--tokens", &long, "--device", "cpu"],
            1,
            &["the prompt has 25 tokens, but", "24 at most"],
        ),
        (
            &[
                "forward",
                base.path(),
                "--tokens",
                &long,
                "--device",
                "cpu",
                "-o",
                "x",
            ],
            1,
            &["sequence 0 has 25 tokens", "24 at most"],
        ),
        (
            &["run", body.path(), "--tokens", "1", "--device", "cpu"],
            1,
            &["has no language-model head", "`kiln forward`"],
        ),
        (
            &["run", body.path(), "--tokens", "1", "--device", "0"],
            1,
            &["has no language-model head", "`kiln forward`"],
        ),
        (
            &["run", "demo", "--tokens", "1", "--device", "abacus"],
            1,
            &["no adapter is called `abacus`", "0: ", "cpu: "],
        ),
        (
            &[
                "run", "demo", "--tokens", "1", "--device", "0", "--tier", "gold",
            ],
            1,
            &["no tier `gold`", "base"],
        ),
        (
            &[
                "run", "demo", "--tokens", "1", "--device", "0", "--tier", "coop",
            ],
            2,
            &["`--tier coop`", "--dtype f16, q8 or q4"],
        ),
        // A number beyond the list is no digit of a name or a version.
        (
            &["run", "demo", "--tokens", "1", "--device", "25"],
            1,
            &["no adapter is called `25`"],
        ),
        (
            &["bench", "demo", "--device", "cpu"],
            1,
            &["`bench` measures an adapter", "`kiln devices`"],
        ),
        (
            &["ir", "demo", "--entry", "nope"],
            1,
            &["no entry point `nope`", "step"],
        ),
    ]);
}

/// The interpreter takes no more than an adapter does, and says the same.
#[test]
fn a_batch_that_a_model_was_not_compiled_for_is_told_on_any_device() {
    let folder = tempfile::tempdir().unwrap();
    let compiled = folder.path().join("one.kiln");
    let compiled = compiled.to_str().unwrap();
    let base = Fixture::gpt2("base");
    kiln(["compile", base.path(), "-o", compiled, "--max-batch", "1"]).ok();
    let output = folder.path().join("x").display().to_string();
    let two = ["--tokens", "1;2"];
    for device in ["0", "cpu"] {
        for command in [vec!["run"], vec!["forward", "-o", &output]] {
            let args = command.into_iter().chain([compiled, "--device", device]);
            let error = kiln(args.chain(two)).fails(1);
            assert_eq!(
                error,
                "error: batch = 2 is outside 1 to 1; compile the model with a larger --max-batch, or \
                 run fewer at a time\n"
            );
        }
    }
}

#[test]
fn a_folder_called_demo_is_told_from_the_built_in_model() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    std::fs::create_dir(&demo).unwrap();
    let run = |model| {
        let args = ["run", model, "--tokens", "5", "-n", "1", "--device", "cpu"];
        finish(command(args).current_dir(folder.path()))
    };
    let without = run("demo");
    assert_eq!(without.err, "");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Fixture::gpt2("base").folder.join(file), demo.join(file)).unwrap();
    }
    let warned = run("demo");
    assert_eq!(
        warned.err,
        "warning: `demo` is the built-in model; the folder of that name here is `./demo`\n"
    );
    assert_eq!(warned.ok(), without.ok());
    let meant = run("./demo");
    assert_eq!(meant.err, "");
    meant.ok();
}

#[test]
fn help_explains_itself() {
    let help = kiln_line("--help").ok();
    for part in [
        "compile",
        "run",
        "chat",
        "forward",
        "ir",
        "bench",
        "devices",
        "Exit codes:",
        "Examples:",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
    for command in [
        "compile", "run", "chat", "forward", "ir", "bench", "devices",
    ] {
        let help = kiln([command, "--help"]).ok();
        assert!(help.contains(&format!("Usage: kiln {command}")), "{help}");
    }
    assert!(kiln_line("--version").ok().starts_with("kiln "));
}

#[test]
fn devices_lists_adapters_and_the_interpreter() {
    let table = kiln_line("devices").ok();
    let first = table.lines().nth(1).unwrap();
    assert!(
        first.starts_with("0 "),
        "no adapter; scripts/test.sh installs one\n{table}"
    );
    assert!(table.lines().last().unwrap().starts_with("cpu "), "{table}");
    let json: Value = serde_json::from_str(&kiln_line("devices --json").ok()).unwrap();
    let first = &json[0];
    assert_eq!(first["device"], 0);
    assert!(first["limits"]["max_storage_buffer_binding_size"].as_u64() >= Some(128 << 20));
    if !first["subgroup_sizes"].is_null() {
        let [least, most] = [0, 1].map(|at| first["subgroup_sizes"][at].as_u64().unwrap());
        assert!(least <= most);
    }
    assert!(first["cooperative_matrices"].is_array());
}

#[test]
fn the_interpreter_is_called_cpu_in_any_case() {
    let run = "run demo --tokens 5,6 -n 4 --device";
    let wanted = kiln_line(&format!("{run} cpu")).ok();
    assert_eq!(kiln_line(&format!("{run} CPU")).ok(), wanted);
}

#[test]
fn help_tells_what_each_command_takes() {
    let compile = kiln_line("compile --help").ok();
    assert!(!compile.contains("or a compiled"), "{compile}");
    assert!(!compile.contains("lavapipe"), "{compile}");
    assert!(compile.contains("is replaced"), "{compile}");
    let chat = kiln_line("chat --help").ok();
    for never in ["demo", "random-weights"] {
        assert!(!chat.contains(never), "{chat}");
    }
    assert!(chat.contains("compiled `.kiln` folder"), "{chat}");
    let bench = kiln_line("bench --help").ok();
    assert!(bench.contains("[default: 16,128,512,1000,1024]"), "{bench}");
    let ir = kiln_line("ir --help").ok();
    assert!(ir.contains("standard input"), "{ir}");
}

#[test]
#[cfg(target_os = "linux")]
fn without_an_adapter_nothing_says_that_the_interpreter_runs() {
    let listed = finish(&mut without_drivers("devices"));
    assert!(
        listed
            .err
            .starts_with("warning: no graphics adapter was found;"),
        "{}",
        listed.err
    );
    assert!(!listed.err.contains("interpreter"), "{}", listed.err);
    assert!(listed.ok().contains("cpu "));
    let message = finish(&mut without_drivers("bench demo")).fails(1);
    assert!(
        message
            .starts_with("error: `bench` measures an adapter, and no graphics adapter was found;"),
        "{message}"
    );
    assert!(message.contains("mesa-vulkan-drivers"), "{message}");
}

#[test]
fn a_config_without_a_model_type_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let weights = "model.safetensors";
    let there = Fixture::gpt2("base").folder.join(weights);
    std::fs::copy(there, folder.path().join(weights)).unwrap();
    let args = ["run", folder.path().to_str().unwrap(), "--tokens", "1"];
    let message = kiln(args.into_iter().chain(["--device", "cpu"])).fails(1);
    assert!(
        message.contains("config.json has no `model_type`; kiln supports gpt2, llama"),
        "{message}"
    );
}
