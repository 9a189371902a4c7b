use super::*;

#[test]
fn equal_expressions_are_equal_values() {
    let a = Dim::symbol("seq") + "past";
    let b = Dim::symbol("past") + "seq";
    assert_eq!(a, b);
    assert_eq!((a.clone() - "past").as_symbol(), Some(&Symbol::new("seq")));
    assert_eq!((a - &b).as_const(), Some(0));
}

#[test]
fn text_round_trips() {
    for text in [
        "0",
        "7",
        "seq",
        "past + seq",
        "batch*seq*768 + 3",
        "ceil(batch*seq / 16)",
        "batch*ceil(past + seq - 1 / 4)*2 - 5",
        "-past + seq",
        "batch*min(past + seq | 512)",
        "min + min(ceil(seq / 4) - 1 | 0)",
    ] {
        let dim: Dim = text.parse().unwrap();
        assert_eq!(dim.to_string(), text);
        assert_eq!(dim.to_string().parse::<Dim>().unwrap(), dim);
        let json = serde_json::to_string(&dim).unwrap();
        assert_eq!(serde_json::from_str::<Dim>(&json).unwrap(), dim);
    }
    for text in [
        "",
        "3 +",
        "seq seq",
        "ceil(seq / 0)",
        "ceil(seq)",
        "min(seq)",
        "min(seq / 2)",
        "min(seq | past)",
        "99999999999999999999",
        "9223372036854775807",
        "9223372036854775806 + 1",
        "3037000500*3037000500",
        "seq*9223372036854775806 + seq + seq",
        &format!("{}seq{}", "ceil(".repeat(17), " / 2)".repeat(17)),
    ] {
        assert!(text.parse::<Dim>().is_err(), "{text}");
    }
}

#[test]
fn evaluation() {
    let dim: Dim = "ceil(batch*seq / 16)*3 + past".parse().unwrap();
    let bound = Bindings::new()
        .with("batch", 3)
        .with("seq", 11)
        .with("past", 5);
    assert_eq!(dim.eval(&bound), Ok(3 * 3 + 5));
    let bounded: Dim = "min(past + seq | 16)*batch + min(past + seq | 15)"
        .parse()
        .unwrap();
    assert_eq!(bounded.eval(&bound), Ok(16 * 3 + 15));
    let missing = Bindings::new().with("batch", 3);
    assert!(
        dim.eval(&missing)
            .unwrap_err()
            .to_string()
            .contains("is not bound")
    );
    let negative: Dim = "seq - past".parse().unwrap();
    assert!(negative.eval(&bound.with("seq", 1)).is_err());
}

#[test]
fn what_is_never_negative() {
    let least = |symbol: &Symbol| u64::from(symbol.name() == "seq");
    for (text, wanted) in [
        ("0", true),
        ("-1", false),
        ("past", true),
        ("seq - 1", true),
        ("seq - 2", false),
        ("past - 1", false),
        ("batch*seq - batch", true),
        ("batch*seq - seq", false),
        ("ceil(seq - 1 / 4)", true),
        ("ceil(past - 1 / 4)", false),
        ("min(past | 3)", true),
        ("min(past - 1 | 3)", false),
        ("9223372036854775805 + seq", true),
        ("9223372036854775806 + seq", false),
    ] {
        let dim: Dim = text.parse().unwrap();
        assert_eq!(dim.is_never_negative(least), wanted, "{text}");
    }
}

#[test]
fn arithmetic_stops_at_the_ends() {
    let most = Dim::constant(u64::MAX);
    assert_eq!(most.as_const(), Some(i64::MAX as u64));
    assert_eq!((&most * &most).as_const(), Some(i64::MAX as u64));
    assert_eq!((&most + &most).as_const(), Some(i64::MAX as u64));
    let least = &(&Dim::default() - &most) - &most;
    assert_eq!((&Dim::default() - &least).as_const(), Some(i64::MAX as u64));
    assert_eq!(Dim::symbol("seq").ceil_div(u64::MAX).symbols().len(), 1);
    let deep = format!("{}seq{}", "ceil(".repeat(16), " / 2)".repeat(16));
    let deep: Dim = deep.parse().unwrap();
    assert_eq!(deep.eval(&Bindings::new().with("seq", 65_537)), Ok(2));
}

#[test]
fn substitution_renormalises() {
    let dim: Dim = "ceil(batch*seq / 16) + seq".parse().unwrap();
    let one = dim.substitute(&Symbol::new("seq"), &Dim::constant(16));
    assert_eq!(one.to_string(), "batch + 16");
    let dim: Dim = "min(batch + seq | 16)*seq".parse().unwrap();
    let three = dim.substitute(&Symbol::new("seq"), &Dim::constant(3));
    assert_eq!(three.to_string(), "min(batch + 3 | 16)*3");
    let four = three.substitute(&Symbol::new("batch"), &Dim::constant(1));
    assert_eq!(four.as_const(), Some(12));
}

#[test]
fn a_product_is_bounded_where_it_is_one() {
    let [batch, seq] = ["batch", "seq"].map(Symbol::new);
    let bounded = |text: &str| {
        let dim: Dim = text.parse().unwrap();
        dim.with_product_at_most([&batch, &seq], 16).to_string()
    };
    assert_eq!(
        bounded("batch*seq*12 + batch*4 + seq"),
        "batch*4 + seq + min(batch*seq | 16)*12"
    );
    assert_eq!(
        bounded("ceil(batch*seq*3 / 2)*past"),
        "past*ceil(min(batch*seq | 16)*3 / 2)"
    );
    assert_eq!(bounded("batch + past"), "batch + past");
    assert_eq!(
        bounded("min(batch*seq | 16)"),
        "min(min(batch*seq | 16) | 16)"
    );
}
