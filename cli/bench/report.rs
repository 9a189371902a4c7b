//! What was measured, as tables and as JSON.

use std::fmt;

use serde::Serialize;

use super::ceilings::Ceilings;
use super::launches::Launches;
use crate::table::Table;
use crate::units::{bytes, rate};

/// Everything that `kiln bench` measures.
#[derive(Serialize)]
pub struct Report {
    pub model: String,
    pub dtype: String,
    pub device: String,
    pub driver: String,
    pub tier: String,
    /// Whether a layer of a single token is one launch.
    pub joined: bool,
    /// Kernels that were measured to be faster than the usual ones.
    pub faster_kernels: Vec<Chosen>,
    pub weight_bytes: u64,
    /// `None` where the system does not tell.
    pub peak_host_bytes: Option<u64>,
    pub start_up: StartUp,
    pub cases: Vec<Case>,
    pub skipped: Vec<Skipped>,
    pub ceilings: Ceilings,
    pub prefill: Launches,
    pub decode: Launches,
}

/// A kernel that was measured to be faster than the usual one in a variant of steps.
#[derive(Serialize)]
pub struct Chosen {
    pub variant: String,
    pub usual: String,
    pub kernel: String,
}

/// From the start of the process to the first token.
#[derive(Serialize)]
pub struct StartUp {
    pub open_ms: f64,
    /// `None` for a compiled model.
    pub compile_ms: Option<f64>,
    pub load_ms: f64,
    pub first_token_ms: f64,
}

/// A prompt, and what follows it.
#[derive(Serialize)]
pub struct Case {
    pub batch: u64,
    pub length: u64,
    pub prefill_ms: f64,
    pub prefill_tokens_per_s: f64,
    /// `None` where the context has no room for a further token.
    pub decode_ms: Option<f64>,
    pub decode_tokens_per_s: Option<f64>,
    pub runs: usize,
}

/// What was not measured.
#[derive(Serialize)]
pub struct Skipped {
    pub batch: u64,
    pub length: u64,
    pub reason: String,
}

/// The most memory that this process has had, where the system tells.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} in {} on {}, tier {}{}",
            self.model,
            self.dtype,
            self.device,
            self.tier,
            if self.joined { ", layers joined" } else { "" }
        )?;
        writeln!(f, "driver {}", self.driver)?;
        write!(f, "weights {}", bytes(self.weight_bytes))?;
        if let Some(peak) = self.peak_host_bytes {
            write!(f, ", peak host memory {}", bytes(peak))?;
        }
        let s = &self.start_up;
        write!(f, "\nstart-up: opening {:.0} ms", s.open_ms)?;
        if let Some(compile) = s.compile_ms {
            write!(f, ", compiling {compile:.0} ms")?;
        }
        writeln!(
            f,
            ", loading {:.0} ms, first token {:.0} ms\n",
            s.load_ms, s.first_token_ms
        )?;

        let mut table = Table::new(0);
        table.row([
            "batch", "prompt", "prefill", "tokens/s", "step", "tokens/s", "runs",
        ]);
        for case in &self.cases {
            let or_dash = |v: Option<String>| v.unwrap_or_else(|| "-".to_owned());
            table.row([
                case.batch.to_string(),
                case.length.to_string(),
                format!("{:.1} ms", case.prefill_ms),
                format!("{:.1}", case.prefill_tokens_per_s),
                or_dash(case.decode_ms.map(|v| format!("{v:.2} ms"))),
                or_dash(case.decode_tokens_per_s.map(|v| format!("{v:.1}"))),
                case.runs.to_string(),
            ]);
        }
        write!(f, "{table}")?;
        for same in self.skipped.chunk_by(|a, b| a.reason == b.reason) {
            let cases = same.iter().map(|s| format!("{} × {}", s.batch, s.length));
            let cases = cases.collect::<Vec<_>>().join(", ");
            writeln!(f, "left out: {cases}; {}", same[0].reason)?;
        }
        let c = &self.ceilings;
        writeln!(
            f,
            "\nceilings: copy {}, matrix product {}\n",
            rate(c.bytes_per_s, "B/s"),
            rate(c.flops_per_s, "FLOP/s")
        )?;
        if !self.faster_kernels.is_empty() {
            let mut table = Table::new(3);
            table.row(["variant", "kernel", "faster than"]);
            for chosen in &self.faster_kernels {
                table.row([&chosen.variant, &chosen.kernel, &chosen.usual]);
            }
            writeln!(
                f,
                "kernels chosen because they are faster on this device:\n{table}"
            )?;
        }
        writeln!(f, "launches of a prompt:\n{}", self.prefill)?;
        write!(f, "launches of a decode step:\n{}", self.decode)
    }
}
