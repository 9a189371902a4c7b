//! What the tests of the passes share: models to rewrite, and the judgement
//! whether two graphs compute the same.

#![allow(dead_code, reason = "no test file uses all of it")]

pub mod model;
pub mod numbers;
pub mod random_graph;
