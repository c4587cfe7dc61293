//! The table of operations in docs/compatibility.md, from what the suite finds: whether an operation is served is asked
//! of the server, and what differs stands in its entry, beside what is checked of it.

use std::fmt::Write as _;

use anyhow::{Context, ensure};

use crate::{Test, entries::entries, ground::Ground};

pub const TESTS: &[Test] = &[("document::the_compatibility_table_is_true", table_is_true)];

const BEGIN: &str =
    "<!-- operations: written by `UPDATE_DOCS=1 cargo run --release -p e2e --bin conformance -- document` -->\n";
const END: &str = "<!-- end of operations -->\n";

fn table(ground: &Ground) -> anyhow::Result<String> {
    let mut table = String::from("\n| Operation | | How it differs, and why |\n|---|---|---|\n");
    for operation in ground.operations() {
        let differs = entries().iter().find(|entry| entry.name == operation.name).map_or("", |entry| entry.differs);
        let (word, how) = match (ground.serves(&operation)?, differs) {
            (false, _) => ("not", "`UnknownOperationException`"),
            (true, "") => ("supported", ""),
            (true, differs) => ("differs", differs),
        };
        let _ = writeln!(table, "| {} | {word} | {how} |", operation.name);
    }
    table.push('\n');
    Ok(table)
}

fn table_is_true(ground: &Ground) -> anyhow::Result<()> {
    let path = e2e::repository().join("docs/compatibility.md");
    let document = std::fs::read_to_string(&path)?;
    let (before, rest) = document.split_once(BEGIN).context("the document does not mark where its table begins")?;
    let (told, after) = rest.split_once(END).context("the document does not mark where its table ends")?;
    let table = table(ground)?;
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, [before, BEGIN, &table, END, after].concat())?;
        return Ok(());
    }
    let stale = "docs/compatibility.md is stale; run \
                 `UPDATE_DOCS=1 cargo run --release -p e2e --bin conformance -- document`";
    ensure!(told == table, "{stale}");
    Ok(())
}
