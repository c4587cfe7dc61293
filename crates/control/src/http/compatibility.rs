//! Keeps the table of operations in docs/compatibility.md true: whether one is served comes from the routes, and what
//! is missing of it stands here, beside them.

use super::routes::ROUTES;

/// What of a served operation has no effect here, or less than on the real service. An operation that is not named is
/// served whole.
const PARTLY: &[(&str, &str)] = &[
    (
        "CreateMicrovmImage",
        "`X86_64` only; `logging`, `egressNetworkConnectors` and `buildRoleArn` are checked and echoed, without effect: \
         the build log is a file, and guests reach the internet",
    ),
    ("UpdateMicrovmImage", "as `CreateMicrovmImage`"),
    (
        "RunMicrovm",
        "`logging` and `executionRoleArn` are checked and echoed, without effect: no credentials are served in the \
         guest; of the connectors only the managed ones exist, and `SHELL_INGRESS` opens no shell",
    ),
    ("CreateMicrovmShellAuthToken", "the token is made by the service's rules; there is no shell to use it with yet"),
    ("ListMicrovmImageBuilds", "one build per version: this host's architecture"),
];

const BEGIN: &str = "<!-- operations: written by `UPDATE_DOCS=1 cargo test -p control compatibility` -->\n";
const END: &str = "<!-- end of operations -->\n";

fn table() -> String {
    let mut table = String::from("\n| Operation | | What differs |\n|---|---|---|\n");
    for route in ROUTES {
        let partly = PARTLY.iter().find(|(name, _)| *name == route.name).map(|(_, what)| *what);
        let (word, what) = match (&route.answer, partly) {
            (None, _) => ("not", "`UnknownOperationException`, with a message that says so"),
            (Some(_), Some(what)) => ("partly", what),
            (Some(_), None) => ("supported", ""),
        };
        table.push_str(&format!("| {} | {word} | {what} |\n", route.name));
    }
    table.push('\n');
    table
}

#[test]
fn the_compatibility_table_is_true() {
    for (name, _) in PARTLY {
        let served = ROUTES.iter().any(|route| route.name == *name && route.answer.is_some());
        assert!(served, "{name} is not served, so it cannot be partly supported");
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/compatibility.md");
    let document = std::fs::read_to_string(path).expect("docs/compatibility.md is there");
    let (before, rest) = document.split_once(BEGIN).expect("the document marks where its table begins");
    let (told, after) = rest.split_once(END).expect("the document marks where its table ends");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, [before, BEGIN, &table(), END, after].concat()).expect("the document can be written");
    } else {
        assert_eq!(told, table(), "run `UPDATE_DOCS=1 cargo test -p control compatibility`");
    }
}
