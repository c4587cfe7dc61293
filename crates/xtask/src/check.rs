//! The list of rules. A rule looks at the whole workspace and says what breaks it, and why that matters.

use std::fmt;

use crate::{edges, source, workspace::Workspace};

/// One breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// File or crate.
    pub place: String,
    /// What is wrong there.
    pub what: String,
    /// Why the rule exists.
    pub why: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    because {}", self.place, self.what, self.why)
    }
}

/// A rule.
pub type Rule = fn(&Workspace) -> Vec<Violation>;

/// Every rule there is.
pub const RULES: &[Rule] = &[
    edges::edges_are_the_table,
    edges::declared_edges_are_used,
    edges::only_control_speaks_sql,
    source::sql_lives_in_the_store,
    source::http_does_not_reach_the_store,
    source::pure_files_do_no_io,
    source::unsafe_lives_in_sys,
    source::roots_forbid_unsafe,
    source::nothing_unfinished,
    source::files_are_small,
    source::documents_exist,
];

/// Runs every rule.
pub fn all(workspace: &Workspace) -> Vec<Violation> {
    let mut violations: Vec<_> = RULES.iter().flat_map(|rule| rule(workspace)).collect();
    violations.sort();
    violations
}
