//! Launches as a trace in Chrome's format, which Perfetto reads too.

use std::path::Path;

use kiln_runtime::Profile;
use serde_json::{Value, json};

use crate::failure::{Failure, Result};

/// Writes one track for each profile.
pub fn write(path: &Path, profiles: &[(&str, &Profile)]) -> Result {
    let mut events = Vec::new();
    for (track, (name, profile)) in profiles.iter().enumerate() {
        events.push(json!({
            "ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": { "name": name },
        }));
        events.extend(profile.launches.iter().map(|launch| -> Value {
            json!({
                "ph": "X",
                "name": launch.label,
                "cat": launch.kernel,
                "pid": 1,
                "tid": track,
                "ts": launch.begin_ns * 1e-3,
                "dur": launch.ns * 1e-3,
                "args": {
                    "kernel": launch.kernel,
                    "workgroups": launch.workgroups,
                    "bytes": launch.bytes,
                    "operations": launch.flops,
                },
            })
        }));
    }
    let text = json!({ "displayTimeUnit": "ns", "traceEvents": events }).to_string();
    let written = std::fs::write(path, text);
    written.map_err(|e| Failure::because(format!("cannot write `{}`", path.display()), e))
}
