use safetensors::tensor::TensorView;

use super::*;

/// A checkpoint of zeros, or of `fill` where a tensor has its own.
fn checkpoint(tensors: &[(&str, Dtype, &[usize], f32)]) -> Checkpoint {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape, fill)| {
            let n = shape.iter().product::<usize>();
            match dtype {
                Dtype::F32 => fill.to_le_bytes().repeat(n),
                Dtype::F16 => half::f16::from_f32(*fill).to_le_bytes().repeat(n),
                other => vec![0; n * other.bitsize() / 8],
            }
        })
        .collect();
    let views = tensors
        .iter()
        .zip(&data)
        .map(|((name, dtype, shape, _), data)| {
            (
                *name,
                TensorView::new(*dtype, shape.to_vec(), data).unwrap(),
            )
        });
    Checkpoint::from_bytes("m", "{}", safetensors::serialize(views, None).unwrap()).unwrap()
}

fn wanted() -> Vec<Parameter> {
    vec![
        Parameter::new("e", [3, 2]),
        Parameter::new("up", [4, 2]),
        Parameter::new("bias", [4]),
    ]
}

fn adapter(stored: &str) -> Placement {
    let name = stored.strip_prefix("body.").unwrap_or(stored);
    match name {
        "mask" => Placement::Ignored,
        "head" => Placement::Copy {
            of: "e".into(),
            setting: "tie",
        },
        "up" => Placement::Parameter {
            name: name.into(),
            layout: Layout::Transposed,
        },
        _ => Placement::Parameter {
            name: name.into(),
            layout: Layout::AsStored,
        },
    }
}

fn map(tensors: &[(&str, Dtype, &[usize], f32)]) -> Result<Weights, AdapterError> {
    Weights::map(checkpoint(tensors), wanted(), &adapter)
}

fn mismatch(tensors: &[(&str, Dtype, &[usize], f32)]) -> String {
    map(tensors).unwrap_err().to_string()
}

const F: Dtype = Dtype::F32;

#[test]
fn everything_finds_its_place() {
    let weights = map(&[
        ("body.e", F, &[3, 2], 1.0),
        ("body.up", Dtype::F16, &[2, 4], 2.0),
        ("body.bias", F, &[4], 3.0),
        ("mask", Dtype::BOOL, &[9, 9], 0.0),
        ("head", F, &[3, 2], 1.0),
    ])
    .unwrap();
    assert_eq!(count(weights.parameters()), 18);
    assert_eq!(&*weights.get("up").unwrap(), &[2.0; 8]);
    assert_eq!(weights.stored_dtype("up"), Some(Dtype::F16));
    assert_eq!(&*weights.get("e").unwrap(), &[1.0; 6]);
    assert_eq!(
        weights.get("head").unwrap_err().to_string(),
        "the model has no parameter `head`"
    );
}

#[test]
fn gains_are_one_more_than_what_is_stored_less_one() {
    let adapter = |stored: &str| Placement::Parameter {
        name: stored.to_owned(),
        layout: Layout::LessOne,
    };
    let parameters = vec![Parameter::new("gain", [3])];
    for (dtype, stored, wanted) in [(F, 0.1, 1.1), (Dtype::F16, -0.0625, 0.9375)] {
        let checkpoint = checkpoint(&[("gain", dtype, &[3], stored)]);
        let weights = Weights::map(checkpoint, parameters.clone(), &adapter).unwrap();
        assert_eq!(*weights.get("gain").unwrap(), [wanted; 3]);
    }
    let error = Weights::map(checkpoint(&[]), parameters, &adapter).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("tensor `gain` is missing; its shape should be [3]")
    );
}

#[test]
fn a_missing_tensor_is_named_with_the_shape_it_should_be_stored_in() {
    assert_eq!(
        mismatch(&[("e", F, &[3, 2], 0.0), ("bias", F, &[4], 0.0)]),
        "the tensors in m are not those that its config.json describes:\n  \
         tensor `up` is missing; its shape should be [2, 4]"
    );
}

#[test]
fn a_missing_tensor_is_named_as_the_others_are_in_the_file() {
    assert!(
        mismatch(&[("body.e", F, &[3, 2], 0.0), ("body.bias", F, &[4], 0.0)])
            .ends_with("tensor `body.up` is missing; its shape should be [2, 4]")
    );
}

#[test]
fn every_kind_of_problem_is_in_the_one_error() {
    assert_eq!(
        mismatch(&[
            ("e", F, &[3, 2], 0.0),
            ("body.e", F, &[3, 2], 0.0),
            ("up", F, &[4, 2], 0.0),
            ("bias", Dtype::I32, &[4], 0.0),
            ("lora", F, &[1], 0.0),
        ]),
        "the tensors in m are not those that its config.json describes:\n  \
         tensor `bias` in m/model.safetensors is stored as I32; kiln reads weights in F32, F16 and BF16: \
         save the model again in one of these\n  \
         tensors `body.e` and `e` both hold `e`; remove one\n  \
         tensor `lora` of shape [1] is no part of the model that config.json describes; \
         check its settings, or remove the tensor if nothing needs it\n  \
         tensor `up` has shape [4, 2]; it should be [2, 4]"
    );
}

#[test]
fn parts_are_put_below_each_other() {
    let wanted = || {
        let parts = [Part::new("up", 4), Part::new("bias", 1)];
        vec![Parameter::new("both", [5, 2]).stored_in(parts)]
    };
    let stored = checkpoint(&[("up", F, &[2, 4], 1.0), ("bias", Dtype::F16, &[1, 2], 2.0)]);
    let weights = Weights::map(stored, wanted(), &adapter).unwrap();
    assert_eq!(count(weights.parameters()), 10);
    let values = weights.get("both").unwrap();
    assert_eq!((&values[..8], &values[8..]), (&[1.0; 8][..], &[2.0; 2][..]));
    assert_eq!(weights.stored_dtype("bias"), Some(Dtype::F16));

    let error = Weights::map(checkpoint(&[("both", F, &[5, 2], 0.0)]), wanted(), &adapter);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the tensors in m are not those that its config.json describes:\n  \
         tensor `up` is missing; its shape should be [2, 4]\n  \
         tensor `bias` is missing; its shape should be [1, 2]\n  \
         tensor `both` of shape [5, 2] is no part of the model that config.json describes; \
         check its settings, or remove the tensor if nothing needs it"
    );
}

#[test]
fn a_flood_of_one_kind_does_not_hide_the_others() {
    let many: Vec<Parameter> = (0..100)
        .map(|i| Parameter::new(format!("p{i}"), [1]))
        .collect();
    let error = Weights::map(checkpoint(&[("x.p0", F, &[1], 0.0)]), many, &adapter).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tensors in m are not those that its config.json describes:\n  \
         tensor `p0` is missing; its shape should be [1]\n  \
         tensor `p1` is missing; its shape should be [1]\n  \
         tensor `p2` is missing; its shape should be [1]\n  \
         tensor `p3` is missing; its shape should be [1]\n  \
         tensor `x.p0` of shape [1] is no part of the model that config.json describes; \
         check its settings, or remove the tensor if nothing needs it\n  \
         and 96 more problems"
    );
}

#[test]
fn a_copy_must_hold_the_same_values() {
    let tensors = |fill: f32, dtype| {
        [
            ("e", F, &[3usize, 2][..], 1.0),
            ("up", F, &[2, 4][..], 0.0),
            ("bias", F, &[4][..], 0.0),
            ("head", dtype, &[3, 2][..], fill),
        ]
    };
    assert!(
        map(&tensors(1.0, Dtype::F16)).is_ok(),
        "equal values in another type are equal"
    );
    assert_eq!(
        mismatch(&tensors(2.0, F)),
        "tensor `head` in m should be a copy of `e`, since config.json sets `tie`, but they differ \
         (first at element 0: 2 against 1); if it holds weights of its own, set `\"tie\": false` in \
         config.json, else remove it"
    );
    let mut misshapen = tensors(1.0, F);
    misshapen[3].2 = &[2, 3];
    assert!(mismatch(&misshapen).contains("tensor `head` has shape [2, 3]; it should be [3, 2]"));
}

#[test]
fn a_copy_stands_in_for_what_is_not_stored() {
    let weights = map(&[
        ("up", F, &[2, 4], 0.0),
        ("bias", F, &[4], 0.0),
        ("head", F, &[3, 2], 5.0),
    ])
    .unwrap();
    assert_eq!(&*weights.get("e").unwrap(), &[5.0; 6]);
}
