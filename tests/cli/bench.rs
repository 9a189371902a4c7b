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
