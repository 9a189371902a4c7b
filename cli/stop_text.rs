//! Texts that end a continuation, found across the borders of tokens.

/// Looks for the stop texts in a text that comes in pieces.
#[derive(Clone, Debug)]
pub struct StopTexts {
    texts: Vec<String>,
    /// The end of what came, as long as it may begin a stop text.
    held: String,
}

/// What may be shown after a piece.
#[derive(Debug, PartialEq, Eq)]
pub struct Shown {
    /// Text that is no part of a stop text.
    pub text: String,
    /// Whether a stop text was met. What follows it is dropped.
    pub stopped: bool,
}

impl StopTexts {
    /// Stops at the first of `texts`, none of which is empty.
    pub fn new(texts: &[String]) -> Self {
        StopTexts {
            texts: texts.to_vec(),
            held: String::new(),
        }
    }

    /// Takes the next piece of the text.
    pub fn push(&mut self, piece: &str) -> Shown {
        self.held.push_str(piece);
        let first = self.texts.iter().filter_map(|t| self.held.find(t)).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Shown {
                text: std::mem::take(&mut self.held),
                stopped: true,
            };
        }
        let begins = |suffix: &str| self.texts.iter().any(|t| t.starts_with(suffix));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.into_iter().find(|at| begins(&self.held[*at..]));
        let keep = keep.unwrap_or(self.held.len());
        let held = self.held.split_off(keep);
        Shown {
            text: std::mem::replace(&mut self.held, held),
            stopped: false,
        }
    }

    /// What was held back, when nothing follows.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text up to the stop, and whether there was one.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut matcher = StopTexts::new(&stops);
        let mut text = String::new();
        for piece in pieces {
            let shown = matcher.push(piece);
            text += &shown.text;
            if shown.stopped {
                return (text, true);
            }
        }
        (text + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_is_found_within_and_across_pieces() {
        assert_eq!(run(&["END"], &["a EN", "D b"]), ("a ".into(), true));
        assert_eq!(run(&["END"], &["a END b"]), ("a ".into(), true));
        assert_eq!(
            run(&["END"], &["E", "N", "E", "N", "D"]),
            ("EN".into(), true)
        );
        assert_eq!(run(&["aab"], &["aa", "ab"]), ("a".into(), true));
        assert_eq!(
            run(&["\n\n"], &["x\n", "y\n", "\nz"]),
            ("x\ny".into(), true)
        );
    }

    #[test]
    fn the_first_of_several_stops_wins() {
        assert_eq!(run(&["yz", "x"], &["wxyz"]), ("w".into(), true));
        assert_eq!(run(&["bcd", "c"], &["ab", "c"]), ("ab".into(), true));
    }

    #[test]
    fn text_without_a_stop_is_whole() {
        assert_eq!(run(&["END"], &["a EN", "d EN"]), ("a ENd EN".into(), false));
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn nothing_is_held_that_cannot_begin_a_stop() {
        let mut matcher = StopTexts::new(&["END".to_owned()]);
        assert_eq!(matcher.push("a b").text, "a b");
        assert_eq!(matcher.push("c E").text, "c ");
        assert_eq!(matcher.push("x").text, "Ex");
    }
}
