//! The command line, from outside.
//!
//! Tests that need an adapter ask for it (`--device 0`, `--device gl`), so that
//! they fail where there is none; `scripts/test.sh` installs a software driver.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod artifact;
mod bench;
mod chat;
mod compile;
mod forward;
mod html;
mod interrupt;
mod ir;
mod run;
mod terminal;
mod usage;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a finished process left.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Standard output of a process that succeeded.
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out
    }

    /// Standard error of a process that ended with `code` and answered nothing.
    fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert_eq!(self.out, "");
        self.err
    }
}

/// The program, kept off every network and off what the user's own runs have measured.
fn command<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    command.args(args).env("HF_HUB_OFFLINE", "1");
    command.env("HF_HOME", scratch.join("no-hub"));
    command.env("XDG_CACHE_HOME", scratch.join("cache"));
    command.stdin(Stdio::null());
    command
}

fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("ended by itself"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn kiln<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    finish(&mut command(args))
}

/// Standard error of a process that succeeded while nobody read its answer, as with
/// `| head`.
fn unread(mut command: Command) -> String {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    String::from_utf8(output.stderr).unwrap()
}

/// `kiln` with the arguments in a line, none of which has a space.
fn kiln_line(line: &str) -> Ran {
    kiln(line.split(' '))
}

/// No driver can be found in there.
#[cfg(target_os = "linux")]
fn without_drivers(args: &str) -> Command {
    let mut command = command(args.split(' '));
    command.env("VK_DRIVER_FILES", "/nonexistent");
    command.env("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent");
    command
}

/// Who may read, write and run a file.
#[cfg(unix)]
fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A named pipe.
#[cfg(unix)]
fn pipe_in(folder: &Path) -> PathBuf {
    let pipe = folder.join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    pipe
}

/// The last line of an answer, as JSON.
fn last_line(out: &str) -> Value {
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u64> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap()).collect()
}

/// Ids as the command line takes them.
fn join<T: ToString>(ids: &[T]) -> String {
    let ids: Vec<String> = ids.iter().map(T::to_string).collect();
    ids.join(",")
}

/// A checkpoint that transformers made, with its expected outputs.
struct Fixture {
    folder: PathBuf,
    expected: Vec<u8>,
}

impl Fixture {
    fn gpt2(name: &str) -> Fixture {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = root.join("tests/fixtures/gpt2").join(name);
        let expected = std::fs::read(folder.join("expected.safetensors")).unwrap();
        Fixture { folder, expected }
    }

    fn path(&self) -> &str {
        self.folder.to_str().unwrap()
    }

    fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        f32_tensor(&self.expected, name)
    }

    /// Rows of token ids.
    fn i32(&self, name: &str) -> Vec<Vec<i32>> {
        let file = safetensors::SafeTensors::deserialize(&self.expected).unwrap();
        let tensor = file.tensor(name).unwrap();
        let values: Vec<i32> = bytemuck::pod_collect_to_vec(tensor.data());
        let row = *tensor.shape().last().unwrap();
        values.chunks(row).map(<[i32]>::to_vec).collect()
    }
}

fn f32_tensor(file: &[u8], name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = safetensors::SafeTensors::deserialize(file).unwrap();
    let tensor = file.tensor(name).unwrap();
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    let values = bytemuck::pod_collect_to_vec(tensor.data());
    (tensor.shape().to_vec(), values)
}

/// ‖found − wanted‖ / ‖wanted‖
fn distance(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(wanted);
    let off: f64 = pairs
        .map(|(f, w)| square(f64::from(*f) - f64::from(*w)))
        .sum();
    let size: f64 = wanted.iter().map(|w| square(f64::from(*w))).sum();
    (off / size).sqrt()
}
