//! Hub ids.

use std::fmt;
use std::sync::Arc;

use super::HubError;

/// A model on a hub, and which of its versions. Cheap to clone, since every
/// error carries one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    repo: Arc<str>,
    revision: Option<Arc<str>>,
}

impl HubId {
    /// Parses `name`, `owner/name`, or either followed by `@` and a branch, a
    /// tag or a commit.
    ///
    /// # Errors
    ///
    /// [`HubError::BadId`], saying what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let bad = |reason| HubError::BadId {
            id: text.to_owned(),
            reason,
        };
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        if revision
            .is_some_and(|r| r.is_empty() || r.contains("..") || r.contains(char::is_whitespace))
        {
            return Err(bad("what follows `@` is no branch, tag or commit"));
        }
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 {
            return Err(bad("it has more than one `/`"));
        }
        let is_name = |part: &&str| {
            !part.is_empty()
                && part.len() <= 96
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        if !parts.iter().all(is_name) {
            return Err(bad(
                "owner and name are letters, digits, and `-`, `_`, `.` within",
            ));
        }
        Ok(HubId {
            repo: repo.into(),
            revision: revision.map(Into::into),
        })
    }

    /// `owner/name`, or `name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// The branch, tag or commit; `main` where none was given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_with_and_without_owner_and_revision() {
        for text in [
            "gpt2",
            "openai-community/gpt2",
            "a/b.c_d-e",
            "a/b@v1.0",
            "gpt2@refs/pr/1",
        ] {
            assert_eq!(HubId::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(HubId::parse("gpt2").unwrap().revision(), "main");
        let id = HubId::parse("a/b@x").unwrap();
        assert_eq!((id.repo(), id.revision()), ("a/b", "x"));
    }

    #[test]
    fn what_is_no_id_says_why() {
        let message = |text| HubId::parse(text).unwrap_err().to_string();
        assert_eq!(
            message("a/b/c"),
            "`a/b/c` is no hub id, since it has more than one `/`; an id looks like `openai-community/gpt2`"
        );
        for text in ["", "a/", "/a", "../a", "a b", ".a", "a--b", "a\\b", "ü/b"] {
            assert!(
                message(text).contains("owner and name are letters, digits"),
                "{text}"
            );
        }
        assert!(message("a@").contains("what follows `@` is no branch, tag or commit"));
    }
}
