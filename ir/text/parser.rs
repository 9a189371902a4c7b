//! Reads the text form.

use std::collections::BTreeSet;

use crate::dim::{Dim, Symbol, SymbolDecl};
use crate::graph::{Graph, Value, ValueId};
use crate::infer::infer;
use crate::op::{Attr, Op};
use crate::types::{DType, TensorType};
use crate::verify::is_symbol_name;

/// The largest id that the parser accepts: ids are indices, so a stray one would
/// cost memory.
pub const MAX_ID: usize = (1 << 20) - 1;

/// Lists within lists that the parser accepts.
const MAX_DEPTH: usize = 8;

/// Why a text is not a graph, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

/// Reads a text of exactly one graph.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut parser = Parser::new(text);
    let graph = parser.graph()?;
    parser.skip();
    if parser.rest().is_empty() {
        Ok(graph)
    } else {
        parser.fail("expected the end of the text after the graph")
    }
}

/// Reads a text of any number of graphs, one after the other.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub fn parse_all(text: &str) -> Result<Vec<Graph>, ParseError> {
    let mut parser = Parser::new(text);
    let mut graphs = Vec::new();
    loop {
        parser.skip();
        if parser.rest().is_empty() {
            return Ok(graphs);
        }
        graphs.push(parser.graph()?);
    }
}

type Parsed<T> = Result<T, ParseError>;

struct Parser<'t> {
    text: &'t str,
    at: usize,
    defined: BTreeSet<ValueId>,
}

impl<'t> Parser<'t> {
    fn new(text: &'t str) -> Self {
        Parser {
            text,
            at: 0,
            defined: BTreeSet::new(),
        }
    }

    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        self.fail_at(self.at, message)
    }

    fn fail_at<T>(&self, at: usize, message: impl Into<String>) -> Parsed<T> {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Err(ParseError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        })
    }

    /// What stands here, for an error.
    fn here(&self) -> String {
        match self.rest().split_whitespace().next() {
            None => "the end of the text".to_owned(),
            Some(word) => format!("`{}`", word.chars().take(24).collect::<String>()),
        }
    }

    /// Skips spaces and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with("//") {
                return;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip();
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Parsed<()> {
        if self.eat(token) {
            Ok(())
        } else {
            self.fail(format!("expected `{token}`, found {}", self.here()))
        }
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let len = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn word(&mut self) -> &'t str {
        self.skip();
        self.take_while(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    fn number(&mut self, what: &str) -> Parsed<u64> {
        self.skip();
        let start = self.at;
        let digits = self.take_while(|c| c.is_ascii_digit());
        match digits.parse() {
            Ok(value) => Ok(value),
            Err(_) if digits.is_empty() => {
                self.fail_at(start, format!("expected {what}, found {}", self.here()))
            }
            Err(_) => self.fail_at(start, format!("{what} is too large")),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        self.skip();
        let start = self.at;
        if !self.eat("\"") {
            return self.fail(format!("expected a quoted name, found {}", self.here()));
        }
        let mut out = String::new();
        loop {
            out.push_str(self.take_while(|c| !matches!(c, '"' | '\\' | '\n')));
            if self.rest().starts_with('"') {
                self.at += 1;
                return Ok(out);
            }
            if !self.rest().starts_with('\\') {
                return self.fail_at(start, "this quoted name does not end on its line");
            }
            let escape = self.at;
            self.at += 1;
            let kind = self.rest().chars().next();
            self.at += kind.map_or(0, char::len_utf8);
            out.push(match kind {
                Some('n') => '\n',
                Some('r') => '\r',
                Some('t') => '\t',
                Some(c @ ('"' | '\\')) => c,
                Some('u') => self.code_point(escape)?,
                _ => return self.fail_at(escape, "there is no such escape"),
            });
        }
    }

    /// The rest of `\u{...}`.
    fn code_point(&mut self, escape: usize) -> Parsed<char> {
        let inner = self
            .rest()
            .strip_prefix('{')
            .and_then(|r| r.split_once('}'));
        let code = inner.and_then(|(hex, _)| {
            let value = u32::from_str_radix(hex, 16).ok()?;
            Some((hex.len() + 2, char::from_u32(value)?))
        });
        match code {
            Some((len, c)) => {
                self.at += len;
                Ok(c)
            }
            None => self.fail_at(escape, "expected a character code, as in `\\u{7f}`"),
        }
    }

    /// A plain or a quoted name.
    fn name(&mut self) -> Parsed<String> {
        self.skip();
        if self.rest().starts_with('"') {
            return self.string();
        }
        let name = self.take_while(super::is_plain);
        if name.is_empty() {
            return self.fail(format!("expected a name, found {}", self.here()));
        }
        Ok(name.to_owned())
    }

    fn graph(&mut self) -> Parsed<Graph> {
        self.defined.clear();
        self.expect("graph")?;
        let mut graph = Graph::new(&self.name()?);
        self.expect("{")?;
        while !self.eat("}") {
            self.statement(&mut graph)?;
        }
        Ok(graph)
    }

    fn statement(&mut self, graph: &mut Graph) -> Parsed<()> {
        self.skip();
        let start = self.at;
        if self.rest().starts_with('%') {
            return self.value(graph);
        }
        match self.word() {
            "symbol" => {
                self.skip();
                let at = self.at;
                let name = self.word();
                if !is_symbol_name(name) {
                    return self.fail_at(at, "expected the name of a symbol");
                }
                let name = Symbol::new(name);
                if graph.symbols.iter().any(|s| s.name == name) {
                    return self.fail_at(at, format!("symbol `{name}` is declared already"));
                }
                self.expect("<=")?;
                let max = self.number("a maximum")?;
                graph.symbols.push(SymbolDecl { name, max });
                Ok(())
            }
            kind @ ("output" | "state") => {
                let name = self.string()?;
                self.expect("=")?;
                let value = self.operand()?;
                let named = match kind {
                    "output" => graph.add_output(&name, value),
                    _ => graph.set_state(&name, value),
                };
                named.or_else(|e| self.fail_at(start, e.to_string()))
            }
            _ => {
                self.at = start;
                let found = self.here();
                self.fail(format!(
                    "expected a value (`%0 = ...`), `symbol`, `output`, `state` or `}}`, found {found}"
                ))
            }
        }
    }

    fn id(&mut self) -> Parsed<ValueId> {
        self.skip();
        let start = self.at;
        self.expect("%")?;
        let index = self.number("a value's number")?;
        match usize::try_from(index) {
            Ok(index) if index <= MAX_ID => Ok(ValueId::from_index(index)),
            _ => self.fail_at(start, format!("ids go up to %{MAX_ID}")),
        }
    }

    fn operand(&mut self) -> Parsed<ValueId> {
        self.skip();
        let start = self.at;
        let id = self.id()?;
        if self.defined.contains(&id) {
            Ok(id)
        } else {
            self.fail_at(start, format!("{id} is not defined before this use"))
        }
    }

    fn value(&mut self, graph: &mut Graph) -> Parsed<()> {
        let start = self.at;
        let id = self.id()?;
        if self.defined.contains(&id) {
            return self.fail_at(start, format!("{id} is defined already"));
        }
        self.expect("=")?;
        self.skip();
        let op_at = self.at;
        let name = self.word();
        if name.is_empty() {
            return self.fail(format!("expected an op, found {}", self.here()));
        }
        let leaf = ["param", "input", "state"].contains(&name);
        let mut attrs = Vec::new();
        let mut inputs = Vec::new();
        if leaf {
            attrs.push(("name".to_owned(), Attr::Text(self.string()?)));
            self.skip();
            if !self.rest().starts_with(':') {
                let found = self.here();
                return self.fail(format!(
                    "expected `:` and the type of this {name}, found {found}"
                ));
            }
        } else {
            self.skip();
            if self.rest().starts_with('%') {
                inputs.push(self.operand()?);
                while self.eat(",") {
                    inputs.push(self.operand()?);
                }
            }
            if self.eat("{") {
                attrs = self.attrs()?;
            }
        }
        let claimed = if self.eat(":") {
            Some(self.tensor_type()?)
        } else {
            None
        };
        if let (true, Some(ty)) = (leaf, &claimed) {
            attrs.push(("type".to_owned(), Attr::Type(ty.clone())));
        }
        let source = if self.eat("@") {
            self.name()?
        } else {
            String::new()
        };
        let op = Op::from_parts(name, attrs).or_else(|e| self.fail_at(op_at, e))?;
        let ty = match claimed {
            Some(ty) => ty,
            None => {
                let types: Vec<&TensorType> = inputs.iter().map(|i| graph.ty(*i)).collect();
                infer(&op, &types).or_else(|e| self.fail_at(op_at, format!("{name}: {e}")))?
            }
        };
        let value = Value {
            op,
            inputs,
            ty,
            source,
        };
        self.defined.insert(id);
        graph.place_unchecked(id, value);
        Ok(())
    }

    fn attrs(&mut self) -> Parsed<Vec<(String, Attr)>> {
        let mut attrs: Vec<(String, Attr)> = Vec::new();
        loop {
            self.skip();
            let at = self.at;
            let key = self.word();
            if key.is_empty() {
                return self.fail(format!("expected an attribute, found {}", self.here()));
            }
            if attrs.iter().any(|(k, _)| k == key) {
                return self.fail_at(at, format!("attribute `{key}` is given twice"));
            }
            self.expect("=")?;
            let value = self.attr(0)?;
            attrs.push((key.to_owned(), value));
            if !self.eat(",") {
                self.expect("}")?;
                return Ok(attrs);
            }
        }
    }

    fn attr(&mut self, depth: usize) -> Parsed<Attr> {
        self.skip();
        if self.rest().starts_with('"') {
            return self.string().map(Attr::Text);
        }
        if depth < MAX_DEPTH && self.eat("[") {
            let mut items = Vec::new();
            if self.eat("]") {
                return Ok(Attr::List(items));
            }
            loop {
                items.push(self.attr(depth + 1)?);
                if !self.eat(",") {
                    self.expect("]")?;
                    return Ok(Attr::List(items));
                }
            }
        }
        let (at, text) = self.expression();
        if text == "true" || text == "false" {
            return Ok(Attr::Bool(text == "true"));
        }
        let digits = text.strip_prefix('-').unwrap_or(text);
        let whole = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if whole && digits.len() == text.len() {
            let value = text.parse().map(Attr::Int);
            return value.or_else(|_| self.fail_at(at, "this number is too large"));
        }
        if digits.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(value) = text.parse::<f64>()
        {
            if !value.is_finite() {
                return self.fail_at(at, "this number is too large");
            }
            return Ok(Attr::Float(value));
        }
        match text.parse::<Dim>() {
            Ok(dim) => Ok(Attr::Dim(dim)),
            Err(_) if text.is_empty() => self.fail_at(
                at,
                format!("expected an attribute's value, found {}", self.here()),
            ),
            Err(e) => self.fail_at(at, e.to_string()),
        }
    }

    /// The text up to a comma or a closing bracket, and where it starts.
    fn expression(&mut self) -> (usize, &'t str) {
        self.skip();
        let at = self.at;
        let text =
            self.take_while(|c| !matches!(c, ',' | ']' | '}' | '[' | '{' | '\n' | '@' | '%'));
        (at, text.trim_end())
    }

    fn tensor_type(&mut self) -> Parsed<TensorType> {
        self.skip();
        let at = self.at;
        let dtype: DType = self
            .word()
            .parse()
            .or_else(|e: String| self.fail_at(at, e))?;
        self.expect("[")?;
        let mut shape = Vec::new();
        if self.eat("]") {
            return Ok(TensorType { dtype, shape });
        }
        loop {
            let (at, text) = self.expression();
            match text.parse::<Dim>() {
                Ok(dim) => shape.push(dim),
                Err(e) => return self.fail_at(at, e.to_string()),
            }
            if !self.eat(",") {
                self.expect("]")?;
                return Ok(TensorType { dtype, shape });
            }
        }
    }
}
