//! What the rules look at: crates from `cargo metadata`, files from the tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::strip::{Stripped, strip};

/// Everything the rules may know.
#[derive(Debug, Default)]
pub struct Workspace {
    /// Crates by name.
    pub crates: BTreeMap<String, Crate>,
    /// Every Rust file under `crates/`, by path from the repository's root.
    pub files: BTreeMap<String, SourceFile>,
    /// Names of the files in the repository's root.
    pub root_files: BTreeSet<String>,
}

/// One crate of the workspace.
#[derive(Debug, Default)]
pub struct Crate {
    /// Names of its ordinary and build dependencies.
    pub imports: BTreeSet<String>,
    /// Names of its test dependencies.
    pub test_imports: BTreeSet<String>,
    /// Root files of its library and its programs.
    pub roots: Vec<String>,
}

/// One Rust file.
#[derive(Debug)]
pub struct SourceFile {
    /// How many lines it has.
    pub lines: usize,
    /// Its text, taken apart.
    pub text: Stripped,
}

impl SourceFile {
    /// Takes a file's text apart.
    pub fn new(text: &str) -> Self {
        Self { lines: text.lines().count(), text: strip(text) }
    }
}

/// Reads the workspace this program was built from.
pub fn read() -> anyhow::Result<Workspace> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("crates/xtask has no grandparent")?;
    let mut workspace = crates_of(&metadata(root)?, root)?;
    let mut paths = Vec::new();
    rust_files(&root.join("crates"), &mut paths)?;
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        workspace.files.insert(relative(&path, root), SourceFile::new(&text));
    }
    for entry in fs::read_dir(root)? {
        workspace.root_files.insert(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(workspace)
}

fn metadata(root: &Path) -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("starting cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata's answer is not JSON")
}

fn crates_of(metadata: &Value, root: &Path) -> anyhow::Result<Workspace> {
    let mut workspace = Workspace::default();
    for package in metadata["packages"].as_array().context("no packages")? {
        let mut known = Crate::default();
        for dependency in package["dependencies"].as_array().context("no dependencies")? {
            let name = dependency["name"].as_str().context("a dependency without a name")?.to_owned();
            match dependency["kind"].as_str() {
                Some("dev") => known.test_imports.insert(name),
                _ => known.imports.insert(name),
            };
        }
        for target in package["targets"].as_array().context("no targets")? {
            let path = target["src_path"].as_str().context("a target without a file")?;
            // Tests and examples hold no unsafe code either, but that needs no word in each of them.
            let ships = ["lib", "bin", "proc-macro"].iter().any(|kind| target["kind"][0] == *kind);
            if ships {
                known.roots.push(relative(Path::new(path), root));
            }
        }
        let name = package["name"].as_str().context("a package without a name")?;
        workspace.crates.insert(name.to_owned(), known);
    }
    Ok(workspace)
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                rust_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn this_workspace_can_be_read() {
        let workspace = read().unwrap();
        assert!(workspace.crates.contains_key("xtask"));
        assert!(workspace.crates["xtask"].roots.contains(&"crates/xtask/src/main.rs".to_owned()));
        assert!(workspace.files.contains_key("crates/xtask/src/workspace.rs"));
        assert!(workspace.root_files.contains("Cargo.toml"));
    }

    #[test]
    fn test_dependencies_are_told_apart() {
        let metadata = json!({"packages": [{
            "name": "a",
            "dependencies": [
                {"name": "b", "kind": null},
                {"name": "c", "kind": "dev"},
                {"name": "d", "kind": "build"},
            ],
            "targets": [
                {"kind": ["lib"], "src_path": "/r/crates/a/src/lib.rs"},
                {"kind": ["test"], "src_path": "/r/crates/a/tests/a.rs"},
            ],
        }]});
        let workspace = crates_of(&metadata, Path::new("/r")).unwrap();
        let a = &workspace.crates["a"];
        assert_eq!(a.imports, BTreeSet::from(["b".to_owned(), "d".to_owned()]));
        assert_eq!(a.test_imports, BTreeSet::from(["c".to_owned()]));
        assert_eq!(a.roots, ["crates/a/src/lib.rs"]);
    }
}
