use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

/// A safetensors file from a header's JSON and data.
fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn serialized(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.to_vec(), bytes).unwrap(),
        )
    });
    safetensors::serialize(views, None).unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

fn config() -> (&'static str, Vec<u8>) {
    (CONFIG_FILE, b"{}".to_vec())
}

/// The message, with the folder's path taken out.
fn message(dir: &Path, result: Result<Checkpoint, CheckpointError>) -> String {
    result
        .unwrap_err()
        .to_string()
        .replace(&dir.display().to_string(), "DIR")
}

fn open_message(files: &[(&str, Vec<u8>)]) -> String {
    let dir = folder(files);
    message(dir.path(), Checkpoint::open(dir.path()))
}

fn bytes_message(weights: Vec<u8>) -> String {
    message(
        Path::new("/nowhere"),
        Checkpoint::from_bytes("m", "{}", weights),
    )
}

#[test]
fn a_single_file_is_read_in_every_float_type() {
    let values = [1.0f32, -2.5, 0.0, 65504.0, 3.0, 0.125];
    let halves = values
        .iter()
        .flat_map(|v| f16::from_f32(*v).to_le_bytes())
        .collect::<Vec<u8>>();
    let brains = values
        .iter()
        .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
        .collect::<Vec<u8>>();
    let file = serialized(&[
        ("a", Dtype::F32, &[2, 3], f32_bytes(&values)),
        ("b", Dtype::F16, &[6], halves),
        ("c", Dtype::BF16, &[3, 2], brains),
    ]);
    let dir = folder(&[config(), (SINGLE_FILE, file)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.config(), "{}");
    assert_eq!(checkpoint.data_len(), 48);
    let a = checkpoint.tensor("a").unwrap();
    assert_eq!(
        (a.dtype, a.shape, a.len()),
        (Dtype::F32, &[2usize, 3][..], 6)
    );
    assert_eq!(&*a.to_f32().unwrap(), &values);
    assert_eq!(&*checkpoint.tensor("b").unwrap().to_f32().unwrap(), &values);
    let c = checkpoint.tensor("c").unwrap().to_f32().unwrap();
    assert_eq!(c[1], -2.5);
    assert_eq!(c[3], 65536.0, "bf16 rounds 65504 up");
    assert!(checkpoint.tensor("d").is_none());
}

#[test]
fn a_matrix_is_transposed_in_every_float_type() {
    // Larger than a tile in both directions, and a multiple of it in neither.
    let (rows, columns) = (37, 70);
    let values: Vec<f32> = (0..rows * columns).map(|i| (i % 2048) as f32).collect();
    let halves = values
        .iter()
        .flat_map(|v| f16::from_f32(*v).to_le_bytes())
        .collect::<Vec<u8>>();
    let file = serialized(&[
        ("f", Dtype::F32, &[rows, columns], f32_bytes(&values)),
        ("h", Dtype::F16, &[rows, columns], halves),
    ]);
    let checkpoint = Checkpoint::from_bytes("m", "{}", file).unwrap();
    for name in ["f", "h"] {
        let out = checkpoint
            .tensor(name)
            .unwrap()
            .to_f32_transposed()
            .unwrap();
        for row in 0..rows {
            for column in 0..columns {
                assert_eq!(
                    out[column * rows + row],
                    values[row * columns + column],
                    "{name}[{row}, {column}]"
                );
            }
        }
    }
}

#[test]
fn unaligned_f32_is_copied() {
    let file = serialized(&[("a", Dtype::F32, &[2], f32_bytes(&[1.5, -1.5]))]);
    // Whatever alignment the allocation has, one of these offsets spoils it.
    for offset in 0..4 {
        let mut shifted = vec![0u8; offset];
        shifted.extend_from_slice(&file);
        let bytes: &'static [u8] = &*Box::leak(shifted.into_boxed_slice());
        let checkpoint = Checkpoint::from_static("m", "{}", &bytes[offset..]).unwrap();
        assert_eq!(
            &*checkpoint.tensor("a").unwrap().to_f32().unwrap(),
            &[1.5, -1.5]
        );
    }
}

#[test]
fn other_types_are_refused_by_name() {
    let file = serialized(&[("n", Dtype::I64, &[1], vec![0; 8])]);
    let checkpoint = Checkpoint::from_bytes("m", "{}", file).unwrap();
    let error = checkpoint.tensor("n").unwrap().to_f32().unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `n` in m/model.safetensors is stored as I64; kiln reads weights in F32, F16 and BF16: \
         save the model again in one of these"
    );
}

fn sharded(index: &str) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        config(),
        (INDEX_FILE, index.as_bytes().to_vec()),
        (
            "s-1.safetensors",
            serialized(&[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))]),
        ),
        (
            "s-2.safetensors",
            serialized(&[
                ("b", Dtype::F32, &[1], f32_bytes(&[2.0])),
                ("c", Dtype::F32, &[1], f32_bytes(&[3.0])),
            ]),
        ),
    ]
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = folder(&sharded(
        r#"{"metadata": {"total_size": 12},
            "weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors", "c": "s-2.safetensors"}}"#,
    ));
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.tensor("c").unwrap().to_f32().unwrap()[0], 3.0);
    assert!(
        checkpoint
            .tensor("c")
            .unwrap()
            .file
            .ends_with("s-2.safetensors")
    );
}

#[test]
fn an_absent_shard_is_named() {
    let mut files = sharded(
        r#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors", "c": "s-2.safetensors"}}"#,
    );
    files.pop();
    assert_eq!(
        open_message(&files),
        "DIR/model.safetensors.index.json: the index puts 2 tensors, `b` among them, into \
         `s-2.safetensors`, which is not there; copy that shard into the folder"
    );
}

#[test]
fn an_indexed_tensor_that_no_shard_holds_is_named() {
    let files = sharded(
        r#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors", "x": "s-2.safetensors"}}"#,
    );
    assert_eq!(
        open_message(&files),
        "DIR/model.safetensors.index.json: the index puts tensor `x` into `s-2.safetensors`, \
         which does not hold it; index and shards are from different saves: fetch or copy them again"
    );
    let files = sharded(r#"{"weight_map": {"a": "s-2.safetensors", "b": "s-1.safetensors"}}"#);
    assert_eq!(
        open_message(&files),
        "DIR/model.safetensors.index.json: the index puts tensor `a` into `s-2.safetensors`, \
         but it is in DIR/s-1.safetensors; index and shards are from different saves: fetch or copy them again"
    );
}

#[test]
fn an_index_cannot_lead_out_of_the_folder() {
    for shard in ["../x.safetensors", "/etc/x.safetensors", "a\\\\x", ""] {
        let files = sharded(&format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#));
        let shard = shard.replace("\\\\", "\\");
        assert_eq!(
            open_message(&files),
            format!(
                "DIR/model.safetensors.index.json: the index puts tensor `a` into `{shard}`, \
                 which is no file name within the folder"
            )
        );
    }
}

#[test]
fn an_index_that_lists_nothing_is_refused() {
    assert_eq!(
        open_message(&sharded(r#"{"weight_map": {}}"#)),
        "DIR/model.safetensors.index.json: the index's `weight_map` lists no tensor; fetch or copy it again"
    );
    assert!(open_message(&sharded("{")).starts_with(
        "DIR/model.safetensors.index.json: the index cannot be parsed: EOF while parsing an object"
    ));
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let mut files = sharded(r#"{"weight_map": {"a": "s-1.safetensors", "b": "s-2.safetensors"}}"#);
    files[3].1 = serialized(&[("a", Dtype::F32, &[1], f32_bytes(&[2.0]))]);
    assert_eq!(
        open_message(&files),
        "tensor `a` is stored twice, in DIR/s-1.safetensors and in DIR/s-2.safetensors; \
         remove one of them (a shard left over from an earlier save?)"
    );
}

#[test]
fn a_tensor_twice_in_one_header_is_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert_eq!(
        bytes_message(raw(header, &[0; 8])),
        "tensor `a` is stored twice, in m/model.safetensors and in m/model.safetensors; \
         remove one of them (a shard left over from an earlier save?)"
    );
}

#[test]
fn what_is_no_checkpoint_says_so() {
    assert_eq!(
        Checkpoint::open("/no/such/folder").unwrap_err().to_string(),
        "/no/such/folder is not a folder; a checkpoint is a folder with config.json and model.safetensors in it"
    );
    assert_eq!(
        open_message(&[]),
        "DIR has no config.json, which says what the model is; copy it from where the weights came from"
    );
    assert_eq!(
        open_message(&[config()]),
        "DIR has neither model.safetensors nor model.safetensors.index.json; copy the weights into it"
    );
    assert_eq!(
        open_message(&[config(), ("pytorch_model.bin", vec![])]),
        "DIR has neither model.safetensors nor model.safetensors.index.json; it has pytorch_model.bin, \
         which kiln does not read: save the model again with \
         `model.save_pretrained(folder, safe_serialization=True)`"
    );
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join(CONFIG_FILE), [0xff]).unwrap();
    assert_eq!(
        message(dir.path(), Checkpoint::open(dir.path())),
        "cannot read DIR/config.json: stream did not contain valid UTF-8"
    );
}

#[test]
fn truncated_data_names_the_first_tensor_that_is_cut_off() {
    let mut file = serialized(&[
        ("a", Dtype::F32, &[2], f32_bytes(&[1.0, 2.0])),
        ("b", Dtype::F32, &[2, 2], f32_bytes(&[0.0; 4])),
        ("c", Dtype::F32, &[1], f32_bytes(&[0.0])),
    ]);
    let whole = file.len();
    file.truncate(whole - 6);
    assert_eq!(
        bytes_message(file.clone()),
        format!(
            "m/model.safetensors is truncated: tensor `b` (F32, shape [2, 2]) ends at byte {}, the file at byte {}, \
             and 1 more tensor is cut off; fetch or copy it again",
            whole - 4,
            whole - 6
        )
    );
    file.truncate(whole - 28);
    let text = bytes_message(file);
    assert!(
        text.contains("tensor `a`") && text.contains("and 2 more tensors are cut off"),
        "{text}"
    );
}

#[test]
fn trailing_bytes_are_refused() {
    let mut file = serialized(&[("a", Dtype::F32, &[1], f32_bytes(&[1.0]))]);
    let wanted = file.len();
    file.push(0);
    assert_eq!(
        bytes_message(file),
        format!(
            "m/model.safetensors holds {} bytes, but its header describes {wanted}; \
             it has been altered: fetch or copy it again",
            wanted + 1
        )
    );
}

#[test]
fn sizes_that_contradict_shapes_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
    assert_eq!(
        bytes_message(raw(header, &[0; 8])),
        "tensor `a` in m/model.safetensors has 8 bytes, but F32 of shape [3] takes 12; \
         the header is corrupt: fetch or copy the file again"
    );
    let huge = format!(
        r#"{{"a":{{"dtype":"F32","shape":[{0},{0}],"data_offsets":[0,8]}}}}"#,
        u64::MAX
    );
    assert!(bytes_message(raw(&huge, &[0; 8])).contains("takes 18446744073709551615"));
    let backwards = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#;
    assert!(bytes_message(raw(backwards, &[0; 8])).contains("tensor `a`"));
}

#[test]
fn gaps_and_overlaps_are_refused() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
    assert_eq!(
        bytes_message(raw(header, &[0; 12])),
        "tensor `b` in m/model.safetensors begins at byte 8 of the data where byte 4 was expected; \
         the header is corrupt: fetch or copy the file again"
    );
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    assert!(
        bytes_message(raw(header, &[0; 8])).contains("begins at byte 4 of the data where byte 8")
    );
}

#[test]
fn a_header_that_is_none_is_refused() {
    assert_eq!(
        open_message(&[config(), (SINGLE_FILE, vec![])]),
        "DIR/model.safetensors is no safetensors file: it is 0 bytes long, and the length of the header \
         alone takes 8; fetch or copy it again"
    );
    assert_eq!(
        bytes_message(b"version https://git-lfs.github.com/spec/v1".to_vec()),
        "m/model.safetensors is no safetensors file: it is a Git LFS pointer; run `git lfs pull` in its folder"
    );
    assert_eq!(
        bytes_message(b"<!DOCTYPE html>".to_vec()),
        "m/model.safetensors is no safetensors file: its header should be 5789751444030890300 bytes long, \
         where at most 100000000 are allowed; fetch or copy it again"
    );
    let mut cut = raw("{\"a\":", &[]);
    cut[0] = 99;
    assert_eq!(
        bytes_message(cut),
        "m/model.safetensors is no safetensors file: its header should be 99 bytes long, and only 5 bytes \
         follow; fetch or copy it again"
    );
    assert!(
        bytes_message(raw("[]", &[]))
            .contains("its header cannot be parsed: invalid type: sequence")
    );
    let unknown = r#"{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(bytes_message(raw(unknown, &[0; 4])).contains("unknown variant `F7`"));
}

#[test]
fn metadata_and_empty_tensors_are_no_trouble() {
    let header = r#"{"__metadata__":{"format":"pt"},"e":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    let checkpoint = Checkpoint::from_bytes("m", "{}", raw(header, &f32_bytes(&[7.0]))).unwrap();
    assert!(checkpoint.tensor("e").unwrap().is_empty());
    assert!(
        checkpoint
            .tensor("e")
            .unwrap()
            .to_f32_transposed()
            .unwrap()
            .is_empty()
    );
    assert_eq!(&*checkpoint.tensor("a").unwrap().to_f32().unwrap(), &[7.0]);
}
