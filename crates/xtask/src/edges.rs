//! Which crate may import which. The table is the one of ARCHITECTURE.md; it is held as an equality, so that an edge
//! that is missing fails as one that is too many: a crate that stopped using another must say so.

use std::collections::BTreeSet;

use crate::{check::Violation, workspace::Workspace};

/// What a crate imports of ours.
enum Edges {
    /// Exactly these.
    Exactly(&'static [&'static str]),
    /// Some of these.
    Among(&'static [&'static str]),
}

const TABLE: &[(&str, Edges)] = &[
    ("api", Edges::Exactly(&[])),
    ("guest-protocol", Edges::Exactly(&[])),
    ("vmm", Edges::Exactly(&[])),
    ("snapshot", Edges::Exactly(&[])),
    ("builder", Edges::Exactly(&[])),
    ("failpoint", Edges::Exactly(&[])),
    ("control", Edges::Exactly(&["api", "failpoint"])),
    ("host", Edges::Exactly(&["api", "builder", "failpoint", "guest-protocol", "snapshot", "vmm"])),
    ("edge", Edges::Exactly(&["api"])),
    ("guest", Edges::Exactly(&["guest-protocol"])),
    ("pilotlight", Edges::Among(&["api", "builder", "control", "edge", "guest-protocol", "host", "snapshot", "vmm"])),
    (
        "sim",
        Edges::Exactly(&[
            "api",
            "builder",
            "control",
            "edge",
            "failpoint",
            "guest-protocol",
            "host",
            "pilotlight",
            "vmm",
        ]),
    ),
    ("e2e", Edges::Among(&["api", "builder", "failpoint", "guest-protocol", "snapshot", "vmm"])),
    ("xtask", Edges::Among(&[])),
];

/// What a crate's tests may import beside that: a driver is tested with the layers and the pager it will be given.
const TEST_ONLY: &[(&str, &str)] = &[("vmm", "snapshot")];

const WHY: &str = "control, host and edge must be able to run as different processes: they meet through contracts in \
                   `api`, and a mechanism has no opinion to import (ARCHITECTURE.md, Crates)";

/// The imports are those of the table.
pub fn edges_are_the_table(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut breach = |place: &str, what: String| violations.push(Violation { place: place.to_owned(), what, why: WHY });
    for (name, edges) in TABLE {
        let Some(known) = workspace.crates.get(*name) else {
            breach(name, "the table names this crate, the workspace has none of that name".to_owned());
            continue;
        };
        let ours = |imports: &BTreeSet<String>| -> BTreeSet<String> {
            imports.iter().filter(|import| workspace.crates.contains_key(*import)).cloned().collect()
        };
        let (allowed, wanted) = match edges {
            Edges::Exactly(names) => (*names, *names),
            Edges::Among(names) => (*names, &[][..]),
        };
        let imports = ours(&known.imports);
        let test_imports = ours(&known.test_imports);
        let for_tests = test_imports.iter().filter(|import| !TEST_ONLY.contains(&(name, import.as_str())));
        for import in imports.iter().chain(for_tests) {
            if !allowed.contains(&import.as_str()) {
                breach(name, format!("imports `{import}`, which the table does not allow"));
            }
        }
        for import in wanted {
            if !imports.contains(*import) {
                breach(name, format!("does not import `{import}`, which the table says it does"));
            }
        }
    }
    for name in workspace.crates.keys() {
        if !TABLE.iter().any(|(known, _)| known == name) {
            breach(name, "is not in the table: a new crate needs a sentence and its edges there".to_owned());
        }
    }
    violations
}

/// A declared import of ours is used.
pub fn declared_edges_are_used(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (name, known) in &workspace.crates {
        let home = format!("crates/{name}/");
        for import in known.imports.iter().filter(|import| workspace.crates.contains_key(*import)) {
            let word = import.replace('-', "_");
            let used = workspace.files.iter().any(|(path, file)| path.starts_with(&home) && file.text.names(&word));
            if !used {
                violations.push(Violation {
                    place: name.clone(),
                    what: format!("declares `{import}` and never names it"),
                    why: "the manifest is read as the list of what a crate knows",
                });
            }
        }
    }
    violations
}

/// Only `control` depends on a database library.
pub fn only_control_speaks_sql(workspace: &Workspace) -> Vec<Violation> {
    let speaks = |imports: &BTreeSet<String>| imports.iter().any(|import| import.starts_with("sqlx"));
    workspace
        .crates
        .iter()
        .filter(|(name, known)| *name != "control" && (speaks(&known.imports) || speaks(&known.test_imports)))
        .map(|(name, _)| Violation {
            place: name.clone(),
            what: "depends on `sqlx`".to_owned(),
            why: "hosts and the edge hold no state: what must survive is control's, in one schema",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{Crate, SourceFile};

    fn as_designed() -> Workspace {
        let mut workspace = Workspace::default();
        for (name, edges) in TABLE {
            let (Edges::Exactly(names) | Edges::Among(names)) = edges;
            let imports: BTreeSet<_> = names.iter().map(|name| (*name).to_owned()).collect();
            let uses: String = imports.iter().map(|name| format!("use {}::x;\n", name.replace('-', "_"))).collect();
            workspace.files.insert(format!("crates/{name}/src/lib.rs"), SourceFile::new(&uses));
            workspace.crates.insert((*name).to_owned(), Crate { imports, ..Crate::default() });
        }
        workspace
    }

    fn with(name: &str, change: impl FnOnce(&mut Crate) -> bool) -> Workspace {
        let mut workspace = as_designed();
        assert!(change(workspace.crates.get_mut(name).unwrap()), "the change changes something");
        workspace
    }

    #[test]
    fn the_design_passes() {
        let workspace = as_designed();
        assert_eq!(edges_are_the_table(&workspace), []);
        assert_eq!(declared_edges_are_used(&workspace), []);
        assert_eq!(only_control_speaks_sql(&workspace), []);
    }

    #[test]
    fn an_edge_too_many_fails() {
        let workspace = with("control", |known| known.imports.insert("host".into()));
        assert_eq!(edges_are_the_table(&workspace)[0].place, "control");
    }

    #[test]
    fn a_test_edge_too_many_fails() {
        let workspace = with("edge", |known| known.test_imports.insert("control".into()));
        assert_eq!(edges_are_the_table(&workspace)[0].place, "edge");
    }

    #[test]
    fn a_missing_edge_fails() {
        let workspace = with("host", |known| known.imports.remove("snapshot"));
        assert_eq!(edges_are_the_table(&workspace).len(), 1);
    }

    #[test]
    fn nobody_imports_the_tests() {
        let workspace = with("pilotlight", |known| known.imports.insert("e2e".into()));
        assert_eq!(edges_are_the_table(&workspace).len(), 1);
    }

    #[test]
    fn an_unknown_or_missing_crate_fails() {
        let mut workspace = as_designed();
        workspace.crates.insert("common".into(), Crate::default());
        workspace.crates.remove("guest");
        let places: Vec<_> = edges_are_the_table(&workspace).into_iter().map(|violation| violation.place).collect();
        assert_eq!(places, ["guest", "common"]);
    }

    #[test]
    fn an_unused_edge_fails() {
        let mut workspace = as_designed();
        workspace.files.insert("crates/edge/src/lib.rs".into(), SourceFile::new("// api"));
        assert_eq!(declared_edges_are_used(&workspace)[0].place, "edge");
    }

    #[test]
    fn sql_elsewhere_fails() {
        let workspace = with("host", |known| known.imports.insert("sqlx".into()));
        assert_eq!(only_control_speaks_sql(&workspace)[0].place, "host");
    }
}
