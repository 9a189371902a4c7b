//! `kiln bench`

use super::*;

#[test]
fn a_benchmark_tells_times_launches_and_what_was_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let args = "bench demo --device 0 --lengths 4,300 --batches 1,2 --steps 2 --json --trace";
    let args = args.split(' ').chain([trace.to_str().unwrap()]);
    let report: Value = serde_json::from_str(&kiln(args).ok()).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        assert!(case["prefill_tokens_per_s"].as_f64() > Some(0.0), "{case}");
        assert!(case["decode_tokens_per_s"].as_f64() > Some(0.0), "{case}");
    }
    let skipped = report["skipped"].as_array().unwrap();
    assert_eq!(skipped.len(), 2);
    assert_eq!(skipped[0]["reason"], "the context is 256");
    assert!(report["ceilings"]["bytes_per_s"].as_f64() > Some(1e8));
    assert!(report["joined"].is_boolean());
    let launches = report["decode"]["launches"].as_u64().unwrap();
    let groups = report["decode"]["groups"].as_array().unwrap();
    let counted: u64 = groups.iter().map(|g| g["count"].as_u64().unwrap()).sum();
    assert_eq!(counted, launches);

    let trace: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let launches_of = |track| {
        let of_track = move |e: &&Value| e["ph"] == "X" && e["tid"] == track;
        let times = |e: &Value| (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
        events.iter().filter(of_track).map(times)
    };
    let prompt_ends = launches_of(0).map(|(begin, dur)| begin + dur);
    let step_begins = launches_of(1).map(|(begin, _)| begin);
    let (begins, ends) = (
        step_begins.fold(f64::MAX, f64::min),
        prompt_ends.fold(0.0, f64::max),
    );
    // Within a nanosecond: the sum of two rounded times is rounded too.
    assert!(begins + 1e-3 > ends, "{begins} {ends}");
    let decode = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == 1);
    assert_eq!(decode.count() as u64, launches);
}

#[test]
fn a_benchmark_prints_tables() {
    let text = kiln_line("bench demo --device 0 --lengths 4 --batches 1 --steps 1").ok();
    for part in [
        "tier",
        "start-up",
        "prefill",
        "ceilings",
        "launches of a decode step",
        "h.*.attn",
    ] {
        assert!(text.contains(part), "`{part}`: {text}");
    }
}

#[test]
fn what_takes_too_long_is_left_out() {
    let args =
        "bench demo --device 0 --lengths 4,8 --batches 1 --steps 1 --limit 0 --warm-up 0 --json";
    let report: Value = serde_json::from_str(&kiln_line(args).ok()).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), 1);
    assert_eq!(report["cases"][0]["runs"], 1);
    let reason = report["skipped"][0]["reason"].as_str().unwrap();
    assert!(reason.ends_with(" s, over --limit 0"), "{reason}");
}

#[test]
fn a_trace_that_cannot_be_written_is_told_at_once() {
    let message = kiln_line("bench demo --device 0 --trace /nonexistent/trace.json").fails(1);
    assert!(
        message.contains("cannot write `/nonexistent/trace.json`"),
        "{message}"
    );
}
