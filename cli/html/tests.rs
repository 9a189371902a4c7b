use std::collections::{BTreeMap, BTreeSet};

use kiln_codegen::compile;
use kiln_ir::plan::{Binding, Launch, Variant};
use kiln_ir::{GraphBuilder, text};
use kiln_models::registry::{EntryOptions, Model, preset};
use kiln_models::source::open_demo;
use serde_json::Value;

use super::*;
use crate::stages::pass_names;

fn subject(title: &str, model: &dyn Model) -> Subject {
    let options = EntryOptions::default();
    let graphs = model
        .entries()
        .into_iter()
        .map(|entry| model.graph(entry, &options).unwrap());
    Subject {
        title: title.to_owned(),
        graphs: graphs.collect(),
        model: model.info(&options),
        packing: Packing::F32,
        compiled: None,
    }
}

fn demo() -> Subject {
    subject("demo", &*open_demo().unwrap().model)
}

fn written(source: &str) -> Subject {
    Subject {
        title: "written".to_owned(),
        graphs: text::parse_all(source).unwrap(),
        model: ModelInfo::of(""),
        packing: Packing::F32,
        compiled: None,
    }
}

/// The JSON that a page embeds.
fn embedded(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

fn numbers(list: &Value) -> Vec<usize> {
    let list = list.as_array().unwrap().iter();
    list.map(|n| n.as_u64().unwrap() as usize).collect()
}

/// The items of `table` that a list of runs names.
fn unrun<'t>(table: &'t Value, runs: &Value) -> Vec<&'t Value> {
    let runs = numbers(runs);
    let runs = runs.chunks_exact(2);
    runs.flat_map(|run| (run[0]..run[0] + run[1]).map(|n| &table[n]))
        .collect()
}

fn names<'v>(list: &'v Value, key: &str) -> Vec<&'v str> {
    let list = list.as_array().unwrap().iter();
    list.map(|item| item[key].as_str().unwrap()).collect()
}

#[test]
fn every_stage_of_every_entry_is_there() {
    let subject = demo();
    let graphs = subject.graphs.clone();
    let data = embedded(&page(subject).unwrap());
    let tables = &data["graphs"];
    let entries = &tables["entries"];
    let wanted: Vec<&str> = graphs.iter().map(|g| g.name.as_str()).collect();
    assert_eq!(names(entries, "name"), wanted);
    let passes: Vec<&str> = [INPUT].into_iter().chain(pass_names()).collect();
    for (mut graph, entry) in graphs.into_iter().zip(entries.as_array().unwrap()) {
        assert_eq!(names(&entry["stages"], "pass"), passes);
        let mut at = 0;
        let mut check = |graph: &Graph| {
            let stage = &entry["stages"][at];
            at += 1;
            let shown = unrun(&entry["values"], &stage["order"]);
            assert_eq!(shown.len(), graph.order().len());
            for (shown, (id, value)) in shown.into_iter().zip(graph.iter()) {
                let shown = numbers(shown);
                assert_eq!(shown[0], id.index());
                assert_eq!(tables["ops"][shown[1]][0], value.op.name());
                assert_eq!(tables["types"][shown[2]], value.ty.to_string());
                assert_eq!(tables["sources"][shown[3]], value.source);
                let inputs: Vec<usize> = value.inputs.iter().map(|i| i.index()).collect();
                assert_eq!(shown[4..], inputs);
            }
        };
        check(&graph);
        optimize(&mut graph, &mut |_, graph, _| check(graph)).unwrap();
        assert_eq!(at, passes.len());
    }
}

#[test]
fn every_launch_and_kernel_is_there() {
    let subject = demo();
    let options = CompileOptions::default();
    let made = compile(
        &subject.graphs,
        subject.model.clone(),
        &options,
        &mut |_, _, _, _| {},
    );
    let made = made.unwrap();
    let data = embedded(&page(subject).unwrap());
    let shown = &data["lowered"];

    let texts: BTreeMap<&str, String> = shown["kernels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kernel| {
            let lines = unrun(&shown["lines"], &kernel["text"]).into_iter();
            let lines: Vec<&str> = lines.map(|line| line.as_str().unwrap()).collect();
            (kernel["name"].as_str().unwrap(), lines.join("\n") + "\n")
        })
        .collect();
    let wanted: BTreeMap<&str, String> = made
        .plan
        .kernels
        .iter()
        .map(|(name, kernel)| (name.as_str(), made.kernels[&kernel.file].clone()))
        .collect();
    assert_eq!(
        texts.keys().collect::<BTreeSet<_>>(),
        wanted.keys().collect()
    );
    for (name, text) in wanted {
        assert_eq!(texts[name].trim_end(), text.trim_end(), "{name}");
    }

    let check = |found: &Value, launch: &Launch| {
        let found = numbers(found);
        assert_eq!(shown["labels"][found[0]], launch.label);
        assert_eq!(shown["kernels"][found[1]]["name"], launch.kernel);
        let dims = [&launch.workgroups, &launch.flops, &launch.bytes];
        for (number, dim) in found[2..5].iter().zip(dims) {
            assert_eq!(shown["dims"][*number], dim.to_string());
        }
        let bindings = found[5..].iter().map(|n| match n % 3 {
            0 => Binding::Weight(n / 3),
            1 => Binding::State(n / 3),
            _ => Binding::Buffer(n / 3),
        });
        assert_eq!(bindings.collect::<Vec<_>>(), launch.bindings);
    };
    let all = |found: &Value, launches: &[Launch]| {
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), launches.len());
        found.iter().zip(launches).for_each(|(f, l)| check(f, l));
    };
    for (tier, found) in made
        .plan
        .tiers
        .iter()
        .zip(shown["tiers"].as_array().unwrap())
    {
        assert_eq!(found["name"], tier.name);
        for (name, entry) in &tier.entries {
            let found = &found["entries"][name]["variants"];
            let wanted: Vec<&str> = entry
                .variants
                .iter()
                .map(|v: &Variant| v.name.as_str())
                .collect();
            assert_eq!(names(found, "name"), wanted);
            for (variant, found) in entry.variants.iter().zip(found.as_array().unwrap()) {
                all(&found["launches"], &variant.launches);
                let mut others = found["others"].as_array().unwrap().iter();
                for (at, launch) in variant.all_launches().enumerate() {
                    for other in launch.each_way().skip(1) {
                        let found = others.next().unwrap();
                        assert_eq!(found[0], at);
                        check(&found[1], &other);
                    }
                }
                assert_eq!(others.next(), None);
                for (stream, found) in variant
                    .streams
                    .iter()
                    .zip(found["streams"].as_array().unwrap())
                {
                    all(&found["launches"], &stream.launches);
                }
            }
        }
    }
    let bytes = shown["weights"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|w| w["parts"].as_array().unwrap());
    let bytes: u64 = bytes.map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(
        bytes,
        made.plan.weights.iter().map(|w| w.bytes).sum::<u64>()
    );
}

/// What is wrong with how tags open and close, if anything is.
fn unbalanced(html: &str) -> Option<String> {
    const VOID: [&str; 4] = ["meta", "link", "input", "br"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some((_, tag)) = rest.split_once('<') {
        let Some((tag, after)) = tag.split_once('>') else {
            return Some(format!("`{tag}` does not end"));
        };
        rest = after;
        let name = tag.split_whitespace().next().unwrap_or("");
        if let Some(name) = name.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Some(format!("`{name}` closes what is not open"));
            }
        } else if !name.starts_with('!') && !VOID.contains(&name) {
            open.push(name);
            // The text of these is no markup.
            if ["script", "style"].contains(&name) {
                let end = rest.find(&format!("</{name}"))?;
                rest = &rest[end..];
            }
        }
    }
    (!open.is_empty()).then(|| format!("`{}` is not closed", open.join(" ")))
}

#[test]
fn tags_are_balanced() {
    assert_eq!(unbalanced(&page(demo()).unwrap()), None);
    assert!(unbalanced("<p><b></p>").is_some() && unbalanced("<p>").is_some());
}

#[test]
fn nothing_is_fetched() {
    let own = [TEMPLATE, STYLE].into_iter().chain(SCRIPTS);
    for part in own {
        for reference in [
            "http:", "https:", "//cdn", "@import", "import ", "fetch(", "src=",
        ] {
            assert!(!part.contains(reference), "{reference}");
        }
        for (_, url) in part.match_indices("url(").map(|(at, _)| part.split_at(at)) {
            assert!(url.starts_with("url(#"), "{}", &url[..20]);
        }
        for (_, link) in part.match_indices("href=").map(|(at, _)| part.split_at(at)) {
            assert!(link.starts_with("href=\"data:"), "{}", &link[..20]);
        }
    }
    // Were there one after all, the browser refuses to follow it.
    assert!(TEMPLATE.contains("default-src 'none'"));
}

#[test]
fn the_same_model_gives_the_same_page() {
    let first = page(demo()).unwrap();
    assert_eq!(first, page(demo()).unwrap());
    assert!(!first.contains(env!("CARGO_MANIFEST_DIR")));
}

#[test]
fn no_text_becomes_markup() {
    let source = "graph \"</script><i>\" {\n  %0 = input \"<b>&\" : f32[2]\n  %1 = neg %0 : f32[2] @\"<!--\"\n  \
                  output \"{{script}}\" = %1\n}\n";
    let mut subject = written(source);
    subject.title = "</title><script>alert('1')</script>".to_owned();
    let title = subject.title.clone();
    let page = page(subject).unwrap();
    assert_eq!(unbalanced(&page), None);
    let tags = |text: &str| text.matches("</script").count();
    assert_eq!(tags(&page), tags(TEMPLATE));
    assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)"));
    let data = embedded(&page);
    assert_eq!(data["title"], title);
    let entry = &data["graphs"]["entries"][0];
    assert_eq!(entry["name"], "</script><i>");
    assert_eq!(entry["stages"][0]["outputs"][0][0], "{{script}}");
    for script in SCRIPTS {
        assert!(!script.contains("</script") && !script.contains("<!--"));
    }
}

#[test]
fn a_graph_without_a_plan_is_shown_with_the_reason() {
    let mut g = GraphBuilder::new("large");
    let x = g.input("x", kiln_ir::DType::F32, [1u64 << 30]).unwrap();
    let y = g.neg(x).unwrap();
    g.output("y", y).unwrap();
    let subject = Subject {
        graphs: vec![g.finish()],
        ..written("")
    };
    let data = embedded(&page(subject).unwrap());
    assert_eq!(data["lowered"], Value::Null);
    let reason = data["not_lowered"].as_str().unwrap();
    assert!(reason.contains("large"), "{reason}");
    assert_eq!(
        names(&data["graphs"]["entries"][0]["stages"], "pass").len(),
        1 + pass_names().len()
    );
}

#[test]
fn twelve_layers_fit_into_a_mail() {
    let model = preset("gpt2").unwrap();
    let page = page(subject("gpt2", &*model)).unwrap();
    assert!(page.len() < 1_500_000, "{} bytes", page.len());
}
