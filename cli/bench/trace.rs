//! Launches as a trace in Chrome's format, which Perfetto reads too.

use kiln_runtime::Profile;
use serde_json::{Value, json};

/// A track for each profile, which begins where the one before ends.
pub fn trace(profiles: &[(&str, &Profile)]) -> Value {
    let mut events = Vec::new();
    let mut begin_ns = 0.0;
    for (track, (name, profile)) in profiles.iter().enumerate() {
        events.push(json!({
            "ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": { "name": name },
        }));
        let mut end_ns: f64 = begin_ns;
        for launch in &profile.launches {
            let at_ns = begin_ns + launch.begin_ns;
            end_ns = end_ns.max(at_ns + launch.ns);
            events.push(json!({
                "ph": "X",
                "name": launch.label,
                "cat": launch.kernel,
                "pid": 1,
                "tid": track,
                "ts": at_ns * 1e-3,
                "dur": launch.ns * 1e-3,
                "args": {
                    "kernel": launch.kernel,
                    "workgroups": launch.workgroups,
                    "bytes": launch.bytes,
                    "operations": launch.flops,
                },
            }));
        }
        begin_ns = end_ns;
    }
    json!({ "displayTimeUnit": "ns", "traceEvents": events })
}
