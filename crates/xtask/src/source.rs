//! Rules about what files say.

use crate::{
    check::Violation,
    workspace::{SourceFile, Workspace},
};

/// The most lines a file may have.
const LINES_MAX: usize = 600;

/// Longer files, each with why it is one thing.
const LONG_FILES: &[(&str, &str)] = &[];

/// Beginnings of SQL statements, as they are written here: in capitals.
const SQL: &[&str] =
    &["SELECT ", "INSERT INTO ", "INSERT OR ", "DELETE FROM ", "CREATE TABLE ", "ALTER TABLE ", "PRAGMA "];

/// What a pure file does not name. Addresses are values and may be named; what opens a socket may not.
const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "OffsetDateTime::now_utc",
    "rand",
    "sqlx",
];

fn breaches<'a>(
    workspace: &'a Workspace,
    why: &'static str,
    what: impl Fn(&str, &SourceFile) -> Option<String> + 'a,
) -> Vec<Violation> {
    workspace
        .files
        .iter()
        .filter_map(|(path, file)| what(path, file).map(|what| Violation { place: path.clone(), what, why }))
        .collect()
}

/// SQL is written in `control/store` alone.
pub fn sql_lives_in_the_store(workspace: &Workspace) -> Vec<Violation> {
    let why = "one place knows the schema; everything else asks it in the words of the domain";
    breaches(workspace, why, |path, file| {
        let store = path == "crates/control/src/store.rs" || path.starts_with("crates/control/src/store/");
        // The check itself must name what it looks for.
        if store || path.starts_with("crates/xtask/") {
            return None;
        }
        if file.text.ships("sqlx") {
            return Some("names `sqlx`".to_owned());
        }
        let text =
            file.text.strings.iter().find(|text| SQL.iter().any(|start| text.trim_start().starts_with(start)))?;
        Some(format!("holds SQL: \"{}\"", text.trim().chars().take(60).collect::<String>()))
    })
}

/// Nothing under `http/` imports the store.
pub fn http_does_not_reach_the_store(workspace: &Workspace) -> Vec<Violation> {
    let why = "http parses, authorises, converts and calls; what it calls decides, and that can be tested without http";
    breaches(workspace, why, |path, file| {
        let http = path.contains("/src/http/") || path.ends_with("/src/http.rs");
        let imports = ["store::", "::store", "store,", "store}"];
        let code: String = file.text.shipped.split_whitespace().collect::<Vec<_>>().join(" ");
        let reaches = code.split(';').any(|statement| {
            let import = statement.find("use ").map_or("", |at| &statement[at..]);
            statement.contains("crate::store")
                || statement.contains("super::store")
                || (import.contains("crate::") && imports.iter().any(|form| has_path(import, form)))
        });
        (http && reaches).then(|| "imports the store".to_owned())
    })
}

// The form, not preceded by a letter of a longer name.
fn has_path(text: &str, form: &str) -> bool {
    text.match_indices(form)
        .any(|(at, _)| !text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

/// Files that decide do nothing else.
pub fn pure_files_do_no_io(workspace: &Workspace) -> Vec<Violation> {
    let why = "what decides is a function of its arguments, so that a property test can drive it through every case";
    breaches(workspace, why, |path, file| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let pure = ["state.rs", "queue.rs", "admission.rs", "placement.rs", "route.rs", "evaluate.rs", "pattern.rs"]
            .contains(&name)
            || name.starts_with("plan")
            || path.contains("/plan/");
        let named = IMPURE.iter().find(|word| file.text.ships(word))?;
        pure.then(|| format!("is a pure file and names `{named}`"))
    })
}

/// `unsafe` is written in a crate's `sys.rs` alone.
pub fn unsafe_lives_in_sys(workspace: &Workspace) -> Vec<Violation> {
    let why = "whoever audits memory safety reads one file a crate";
    breaches(workspace, why, |path, file| {
        (!path.ends_with("/src/sys.rs") && file.text.names("unsafe")).then(|| "says `unsafe`".to_owned())
    })
}

/// A crate without a `sys.rs` forbids unsafe code in every root.
pub fn roots_forbid_unsafe(workspace: &Workspace) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (name, known) in &workspace.crates {
        if workspace.files.contains_key(&format!("crates/{name}/src/sys.rs")) {
            continue;
        }
        for root in &known.roots {
            let forbids = workspace.files.get(root).is_some_and(|file| {
                file.text.code.replace(char::is_whitespace, "").contains("#![forbid(unsafe_code)]")
            });
            if !forbids {
                violations.push(Violation {
                    place: root.clone(),
                    what: "has neither a sys.rs beside it nor `#![forbid(unsafe_code)]`".to_owned(),
                    why: "the compiler, not a reader, keeps unsafe code where it is argued",
                });
            }
        }
    }
    violations
}

/// No unfinished code.
pub fn nothing_unfinished(workspace: &Workspace) -> Vec<Violation> {
    let why = "what is in the tree works; what does not exist is not pretended";
    breaches(workspace, why, |_, file| {
        ["todo", "unimplemented", "dbg"]
            .into_iter()
            .find(|name| {
                let word = format!("{name}!");
                file.text.code.match_indices(&word).any(|(at, _)| {
                    !file.text.code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_')
                })
            })
            .map(|name| format!("calls `{name}!`"))
    })
}

/// Files can be read in one sitting.
pub fn files_are_small(workspace: &Workspace) -> Vec<Violation> {
    too_long(workspace, LONG_FILES)
}

fn too_long(workspace: &Workspace, allowed: &[(&str, &str)]) -> Vec<Violation> {
    let why = "a file is one noun; one that everybody must edit is where changes collide";
    let is_allowed = |path: &str| allowed.iter().any(|(allowed, _)| *allowed == path);
    let mut violations = breaches(workspace, why, |path, file| {
        (file.lines > LINES_MAX && !is_allowed(path))
            .then(|| format!("has {} lines, more than {LINES_MAX}", file.lines))
    });
    for (path, reason) in allowed {
        if workspace.files.get(*path).is_none_or(|file| file.lines <= LINES_MAX) {
            violations.push(Violation {
                place: (*path).to_owned(),
                what: format!("is allowed to be long ({reason}) and is not"),
                why: "an exception that is not needed any more hides the next one",
            });
        }
    }
    violations
}

/// The documents a reader starts with.
pub fn documents_exist(workspace: &Workspace) -> Vec<Violation> {
    ["LICENSE", "README.md", "ARCHITECTURE.md", "CHANGELOG.md"]
        .into_iter()
        .filter(|name| !workspace.root_files.contains(*name))
        .map(|name| Violation {
            place: name.to_owned(),
            what: "does not exist".to_owned(),
            why: "who finds this repository must learn what it is, how it is built, and what they may do with it",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::Rule, workspace::Crate};

    fn file(path: &str, text: &str) -> Workspace {
        let mut workspace = Workspace::default();
        workspace.files.insert(path.to_owned(), SourceFile::new(text));
        workspace
    }

    // One breach with the bad text, none with the good one.
    fn told_apart(rule: Rule, path: &str, bad: &str, good: &str) {
        assert_eq!(rule(&file(path, bad)).len(), 1, "{bad}");
        assert_eq!(rule(&file(path, good)), [], "{good}");
    }

    #[test]
    fn sql_outside_the_store_fails() {
        let sql = r#"fn f() { q("SELECT id FROM image") }"#;
        told_apart(sql_lives_in_the_store, "crates/control/src/images.rs", sql, r#"fn f() { q("Selected") }"#);
        told_apart(sql_lives_in_the_store, "crates/host/src/lib.rs", "use sqlx::query;", "// sqlx");
        assert_eq!(sql_lives_in_the_store(&file("crates/control/src/store/image.rs", sql)), []);
    }

    #[test]
    fn http_reaching_the_store_fails() {
        let path = "crates/control/src/http/images.rs";
        told_apart(http_does_not_reach_the_store, path, "use crate::store::Store;", "use crate::service::Service;");
        told_apart(http_does_not_reach_the_store, path, "use crate::{ids, store};", "use crate::{restore, ids};");
        told_apart(http_does_not_reach_the_store, path, "fn f(s: &crate::store::Store) {}", "// crate::store");
        assert_eq!(http_does_not_reach_the_store(&file("crates/control/src/lib.rs", "use crate::store::Store;")), []);
    }

    #[test]
    fn a_pure_file_with_a_clock_fails() {
        for (name, bad) in [
            ("state.rs", "fn f() { std::time::Instant::now(); }"),
            ("queue.rs", "use tokio::sync::mpsc;"),
            ("plan_suspend.rs", "use std::fs;"),
            ("admission.rs", "fn f() { SystemTime::now(); }"),
            ("placement.rs", "use std::net::TcpStream;"),
        ] {
            told_apart(pure_files_do_no_io, &format!("crates/control/src/{name}"), bad, "use std::time::Duration;");
        }
        assert_eq!(pure_files_do_no_io(&file("crates/control/src/driver.rs", "use tokio::sync::mpsc;")), []);
        assert_eq!(
            pure_files_do_no_io(&file("crates/control/src/state.rs", "#[cfg(test)]\nmod tests { use std::fs; }")),
            []
        );
    }

    #[test]
    fn unsafe_outside_sys_fails() {
        told_apart(unsafe_lives_in_sys, "crates/vmm/src/lib.rs", "fn f() { unsafe { g() } }", "// unsafe\nfn f() {}");
        assert_eq!(unsafe_lives_in_sys(&file("crates/vmm/src/sys.rs", "fn f() { unsafe { g() } }")), []);
    }

    #[test]
    fn a_root_that_forbids_nothing_fails() {
        let root = "crates/api/src/lib.rs";
        let workspace = |text: &str| {
            let mut workspace = file(root, text);
            workspace.crates.insert("api".into(), Crate { roots: vec![root.to_owned()], ..Crate::default() });
            workspace
        };
        assert_eq!(roots_forbid_unsafe(&workspace("pub mod ids;")).len(), 1);
        assert_eq!(roots_forbid_unsafe(&workspace("#![forbid(unsafe_code)]")), []);
        let mut with_sys = workspace("mod sys;");
        with_sys.files.insert("crates/api/src/sys.rs".into(), SourceFile::new(""));
        assert_eq!(roots_forbid_unsafe(&with_sys), []);
    }

    #[test]
    fn unfinished_code_fails() {
        for bad in ["fn f() { todo!() }", "fn f() { unimplemented!(\"x\") }", "fn f() { dbg!(1); }"] {
            told_apart(nothing_unfinished, "crates/api/src/lib.rs", bad, "fn todo() { g(\"todo!\") }");
        }
    }

    #[test]
    fn a_long_file_fails_and_so_does_a_needless_exception() {
        let (long, short) = ("fn f() {}\n".repeat(601), "fn f() {}\n".repeat(600));
        told_apart(files_are_small, "crates/api/src/lib.rs", &long, &short);
        let allowed = [("crates/api/src/lib.rs", "one table")];
        assert_eq!(too_long(&file("crates/api/src/lib.rs", &long), &allowed), []);
        assert_eq!(too_long(&file("crates/api/src/lib.rs", &short), &allowed).len(), 1);
    }

    #[test]
    fn a_missing_document_fails() {
        let mut workspace = Workspace::default();
        for name in ["LICENSE", "README.md", "ARCHITECTURE.md"] {
            workspace.root_files.insert(name.to_owned());
        }
        assert_eq!(documents_exist(&workspace)[0].place, "CHANGELOG.md");
        workspace.root_files.insert("CHANGELOG.md".to_owned());
        assert_eq!(documents_exist(&workspace), []);
    }
}
