//! The text form of dimensions, which is also how they are serialised.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Atom, Dim, DimError};

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.terms.is_empty() {
            return f.write_str("0");
        }
        // The constant term, the first of them, is printed last.
        let (constant, symbolic) = match self.terms.as_slice() {
            [(atoms, c), others @ ..] if atoms.is_empty() => (Some(*c), others),
            all => (None, all),
        };
        let mut first = true;
        for (atoms, coefficient) in symbolic {
            let sign = match (first, *coefficient < 0) {
                (true, true) => "-",
                (true, false) => "",
                (false, true) => " - ",
                (false, false) => " + ",
            };
            f.write_str(sign)?;
            first = false;
            for (i, atom) in atoms.iter().enumerate() {
                if i > 0 {
                    f.write_str("*")?;
                }
                match atom {
                    Atom::Symbol(s) => write!(f, "{s}")?,
                    Atom::CeilDiv(d, n) => write!(f, "ceil({d} / {n})")?,
                    Atom::Min(d, n) => write!(f, "min({d} | {n})")?,
                }
            }
            if coefficient.unsigned_abs() != 1 {
                write!(f, "*{}", coefficient.unsigned_abs())?;
            }
        }
        match constant {
            Some(c) if first => write!(f, "{c}"),
            Some(c) if c < 0 => write!(f, " - {}", c.unsigned_abs()),
            Some(c) => write!(f, " + {c}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Dim {
    type Err = DimError;

    fn from_str(text: &str) -> Result<Self, DimError> {
        let mut parser = DimParser {
            text,
            at: 0,
            depth: 0,
        };
        let dim = parser.sum()?;
        parser.skip_space();
        if parser.at != text.len() {
            return Err(parser.error("trailing text"));
        }
        Ok(dim)
    }
}

/// Quotients and minima within others that the parser accepts.
const MAX_DEPTH: usize = 16;

struct DimParser<'a> {
    text: &'a str,
    at: usize,
    /// Quotients and minima that are open.
    depth: usize,
}

impl DimParser<'_> {
    fn error(&self, reason: &str) -> DimError {
        DimError::Syntax {
            text: self.text.to_owned(),
            reason: format!("{reason} at byte {}", self.at),
        }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn sum(&mut self) -> Result<Dim, DimError> {
        let mut out = if self.eat("-") {
            &Dim::default() - &self.product()?
        } else {
            self.product()?
        };
        loop {
            out = if self.eat("+") {
                &out + &self.product()?
            } else if self.eat("-") {
                &out - &self.product()?
            } else {
                return Ok(out);
            };
            self.in_range(&out)?;
        }
    }

    fn product(&mut self) -> Result<Dim, DimError> {
        let mut out = self.factor()?;
        while self.eat("*") {
            out = &out * &self.factor()?;
            self.in_range(&out)?;
        }
        Ok(out)
    }

    fn in_range(&self, dim: &Dim) -> Result<(), DimError> {
        if dim.is_saturated() {
            return Err(self.error("a coefficient beyond 2^63 - 2"));
        }
        Ok(())
    }

    fn factor(&mut self) -> Result<Dim, DimError> {
        self.skip_space();
        let rest = self.rest();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > 0 {
            let value = self.number(digits)?;
            return Ok(Dim::constant(value));
        }
        let word = rest
            .bytes()
            .take_while(|b| b.is_ascii_alphanumeric() || *b == b'_')
            .count();
        if word == 0 {
            return Err(self.error("expected a number or a symbol"));
        }
        let name = rest[..word].to_owned();
        self.at += word;
        // What stands between the dimension and the constant, and what is made of both.
        let (between, make): (&str, fn(&Dim, u64) -> Dim) = match name.as_str() {
            "ceil" => ("/", Dim::ceil_div),
            "min" => ("|", Dim::at_most),
            _ => return Ok(Dim::symbol(&name)),
        };
        if !self.eat("(") {
            return Ok(Dim::symbol(&name));
        }
        if self.depth == MAX_DEPTH {
            return Err(self.error("too many quotients or minima within others"));
        }
        self.depth += 1;
        let inner = self.sum()?;
        self.depth -= 1;
        if !self.eat(between) {
            return Err(self.error(&format!("expected `{between}`")));
        }
        self.skip_space();
        let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        let constant = self.number(digits)?;
        if constant == 0 && between == "/" {
            return Err(self.error("division by zero"));
        }
        if !self.eat(")") {
            return Err(self.error("expected `)`"));
        }
        Ok(make(&inner, constant))
    }

    fn number(&mut self, digits: usize) -> Result<u64, DimError> {
        let value = self.rest()[..digits]
            .parse::<u64>()
            .ok()
            .filter(|v| *v < i64::MAX as u64)
            .ok_or_else(|| self.error("expected a number up to 2^63 - 2"))?;
        self.at += digits;
        Ok(value)
    }
}

impl Serialize for Dim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_const() {
            Some(value) => serializer.serialize_u64(value),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Dim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(n) => Ok(Dim::constant(n)),
            Form::Text(t) => t.parse().map_err(serde::de::Error::custom),
        }
    }
}
