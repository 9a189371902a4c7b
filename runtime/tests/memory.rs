//! The host's memory while weights go from the file to the device. A software
//! driver's device memory is the host's, so the weights count once, and what goes
//! over is what loading needs besides.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::Write;

use common::*;
use kiln_ir::plan::{Binding, WeightBuffer};
use kiln_runtime::{Artifact, Model, RunOptions};

const MIB: u64 = 1 << 20;

/// The process's peak resident memory.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn weights_are_in_memory_once() {
    let (count, size) = (4, 64 * MIB);
    let mut plan = plan();
    plan.weights.clear();
    let mut header = Vec::new();
    for i in 0..count {
        plan.weights.push(WeightBuffer {
            name: format!("w{i}"),
            bytes: size,
            contents: vec![],
        });
        let (from, to) = (i * size, (i + 1) * size);
        header.push(format!(
            "\"w{i}\":{{\"dtype\":\"U8\",\"shape\":[{size}],\"data_offsets\":[{from},{to}]}}"
        ));
    }
    for tier in &mut plan.tiers {
        let variant = &mut tier.entries.get_mut("forward").unwrap().variants[0];
        let first = variant.launches[0].clone();
        for i in 1..count as usize {
            variant.launches.push(first.clone());
            variant.launches[i].bindings[1] = Binding::Weight(i);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("kernels")).unwrap();
    for (path, text) in kernels() {
        fs::write(dir.path().join(&path), &text).unwrap();
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        plan.files.insert(path, hash);
    }
    let header = format!("{{{}}}", header.join(","));
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::create(dir.path().join("weights.safetensors")).unwrap();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all(bytes).unwrap();
    };
    put(&(header.len() as u64).to_le_bytes());
    put(header.as_bytes());
    let block = vec![0; MIB as usize];
    for _ in 0..count * size / MIB {
        put(&block);
    }
    let hash = hasher.finalize().to_hex().to_string();
    plan.files.insert("weights.safetensors".into(), hash);
    let text = serde_json::to_vec(&plan).unwrap();
    fs::write(dir.path().join("plan.json"), text).unwrap();

    let artifact = Artifact::open(dir.path()).unwrap();
    let options = options().entries(&["forward"]);
    let model = Model::open(&adapter("vulkan"), &artifact, &options, &mut |_| {}).unwrap();
    assert_eq!(model.weight_bytes(), count * size);
    model
        .forward_collect(&[vec![1, 2]], &RunOptions::default())
        .unwrap();
    let over = peak().saturating_sub(count * size) / MIB;
    assert!(over < 200, "{over} MiB over the weights");
}
