//! Dimensions compiled for evaluation in the encode path.
//!
//! A plan's [`Dim`]s refer to symbols by name. Here each symbol gets a slot, so
//! that a launch's grid costs a few multiplications and no look-ups.

use kiln_ir::dim::{Atom, Dim, DimError};
use kiln_ir::plan::{BLOCK, CONTEXT, Plan, Tier};

use crate::error::Result;

/// The symbols of a plan, as one of its tiers has it, each with a slot.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    names: Vec<String>,
}

impl Slots {
    pub fn new(plan: &Plan, tier: &Tier) -> Self {
        let mut names: Vec<String> = Vec::new();
        let declared = plan.symbols.iter().map(|s| s.name.name());
        let of_entries = tier.entries.values();
        let of_entries = of_entries.flat_map(|e| e.symbols.iter().map(|s| s.name.name()));
        let uniforms = plan.uniforms.iter().map(String::as_str);
        let all = uniforms.chain(declared).chain(of_entries);
        for name in all.chain([CONTEXT, BLOCK]) {
            if !names.iter().any(|n| n == name) {
                names.push(name.to_owned());
            }
        }
        Slots { names }
    }

    pub fn get(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|n| n == name)
    }

    /// Values for all symbols, each zero.
    pub fn values(&self) -> Values {
        Values(vec![0; self.names.len()])
    }

    pub fn compile(&self, dim: &Dim) -> Result<SlotDim> {
        let mut terms = Vec::new();
        for (atoms, coefficient) in dim.terms() {
            let mut factors = Vec::with_capacity(atoms.len());
            for atom in atoms {
                factors.push(match atom {
                    Atom::Symbol(symbol) => match self.get(symbol.name()) {
                        Some(slot) => Factor::Slot(slot),
                        None => {
                            let symbol = symbol.clone();
                            let dim = dim.to_string();
                            return Err(DimError::Unbound { symbol, dim }.into());
                        }
                    },
                    Atom::CeilDiv(inner, divisor) => {
                        Factor::CeilDiv(self.compile(inner)?, i128::from(*divisor))
                    }
                    Atom::Min(inner, most) => Factor::Min(self.compile(inner)?, i128::from(*most)),
                });
            }
            terms.push((i128::from(coefficient), factors));
        }
        Ok(SlotDim {
            terms,
            text: dim.to_string(),
        })
    }
}

/// A value for each slot.
#[derive(Clone, Debug)]
pub(crate) struct Values(Vec<u64>);

impl Values {
    pub fn set(&mut self, slots: &Slots, name: &str, value: u64) {
        if let Some(slot) = slots.get(name) {
            self.0[slot] = value;
        }
    }

    pub fn at(&self, slot: usize) -> u64 {
        self.0.get(slot).copied().unwrap_or(0)
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Factor {
    Slot(usize),
    CeilDiv(SlotDim, i128),
    Min(SlotDim, i128),
}

/// A [`Dim`] whose symbols are slots.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlotDim {
    terms: Vec<(i128, Vec<Factor>)>,
    text: String,
}

impl SlotDim {
    pub fn eval(&self, values: &Values) -> Result<u64> {
        let value = self.wide(values);
        u64::try_from(value)
            .ok()
            .filter(|v| *v <= i64::MAX as u64)
            .ok_or_else(|| {
                let dim = self.text.clone();
                DimError::OutOfRange { dim, value }.into()
            })
    }

    /// The value, of either sign.
    pub fn wide(&self, values: &Values) -> i128 {
        let mut sum: i128 = 0;
        for (coefficient, factors) in &self.terms {
            let mut product = *coefficient;
            for factor in factors {
                product = product.saturating_mul(match factor {
                    Factor::Slot(slot) => i128::from(values.at(*slot)),
                    Factor::CeilDiv(dim, divisor) => {
                        (dim.wide(values) + divisor - 1).div_euclid(*divisor)
                    }
                    Factor::Min(dim, most) => dim.wide(values).min(*most),
                });
            }
            sum = sum.saturating_add(product);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::Bindings;

    #[test]
    fn compiled_dimensions_have_the_values_of_their_sources() {
        let names = ["batch", "seq", "past", "context", "block"];
        let slots = Slots {
            names: names.map(String::from).to_vec(),
        };
        for text in [
            "0",
            "768",
            "batch*seq*768 + 3",
            "ceil(batch*seq / 16)*12 - seq",
            "ceil(ceil(past + seq / 32) / 4)*batch + context*2 - block",
            "min(past + seq | 60)*batch + min(context - block | 7)",
        ] {
            let dim: Dim = text.parse().unwrap();
            let compiled = slots.compile(&dim).unwrap();
            for round in 0..50u64 {
                let mut values = slots.values();
                let mut bindings = Bindings::new();
                for (i, name) in names.iter().enumerate() {
                    let value = (round * 37 + i as u64 * 11) % 97;
                    values.set(&slots, name, value);
                    bindings.set(name, value);
                }
                let expected = dim
                    .eval(&bindings)
                    .map_err(|e| format!("a size of the plan has no value: {e}"));
                let got = compiled.eval(&values).map_err(|e| e.to_string());
                assert_eq!(got, expected, "{text}");
            }
        }
        let unknown = slots.compile(&"depth".parse().unwrap());
        assert!(unknown.unwrap_err().to_string().contains("`depth`"));
    }
}
