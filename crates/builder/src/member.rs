//! The name of one zip member, and whether it stays inside the tree it is unpacked into.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Longest name, as the kernel's own limit for a path.
const NAME_BYTES_MAX: usize = 4095;

/// Longest part of a name, as the usual file systems' limit.
const PART_BYTES_MAX: usize = 255;

/// Most directories above a member.
const DEPTH_MAX: usize = 128;

/// Why a zip member is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// It has no name.
    #[error("has no name")]
    Empty,
    /// Its name starts at the root of a file system.
    #[error("is an absolute path")]
    Absolute,
    /// Its name climbs out.
    #[error("leaves the archive")]
    Leaves,
    /// Its name is written in Windows' way, and could mean a directory or a strange file.
    #[error("has a backslash in its name")]
    Backslash,
    /// Its name holds a byte that no file name can have.
    #[error("has a NUL in its name")]
    Nul,
    /// Its name, or a part of it, is longer than a file system takes.
    #[error("has a name that is too long")]
    TooLong,
    /// It lies too deep.
    #[error("lies more than {DEPTH_MAX} directories deep")]
    TooDeep,
    /// It is a symbolic link that leads out of the archive.
    #[error("is a link that leaves the archive, to {target:?}")]
    LinkLeaves {
        /// Where it leads.
        target: String,
    },
    /// It is neither a file, a directory nor a symbolic link.
    #[error("is neither a file, a directory nor a link")]
    Special,
    /// Another member has the same name.
    #[error("occurs twice, or once as a file and once as a directory")]
    Twice,
}

/// A member's name that is safe to join to a directory: relative, and of normal parts only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Member(PathBuf);

impl Member {
    /// Checks a name; a trailing slash, as directories have, and `./` mean nothing.
    pub(crate) fn parse(name: &str) -> Result<Self, MemberError> {
        check_text(name)?;
        if name.starts_with('/') {
            return Err(MemberError::Absolute);
        }
        let mut path = PathBuf::new();
        let mut parts = 0;
        for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                return Err(MemberError::Leaves);
            }
            if part.len() > PART_BYTES_MAX {
                return Err(MemberError::TooLong);
            }
            parts += 1;
            path.push(part);
        }
        match parts {
            0 => Err(MemberError::Empty),
            parts if parts > DEPTH_MAX => Err(MemberError::TooDeep),
            _ => Ok(Self(path)),
        }
    }

    /// Checks where a link of this name leads. Steps up are accepted at the start only, where they are counted against
    /// real directories: `a/../..` could be anywhere when `a` is itself a link. As every link then stays inside by
    /// itself, no chain of links leaves.
    pub(crate) fn check_link(&self, target: &str) -> Result<(), MemberError> {
        let leaves = || MemberError::LinkLeaves { target: target.to_owned() };
        check_text(target)?;
        if target.starts_with('/') {
            return Err(leaves());
        }
        let mut above = self.0.components().count() - 1;
        let mut went_down = false;
        for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
            match part {
                ".." if went_down || above == 0 => return Err(leaves()),
                ".." => above -= 1,
                _ => went_down = true,
            }
        }
        Ok(())
    }

    /// The path below the tree's root.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn check_text(text: &str) -> Result<(), MemberError> {
    if text.is_empty() {
        return Err(MemberError::Empty);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(MemberError::TooLong);
    }
    if text.contains('\0') {
        return Err(MemberError::Nul);
    }
    if text.contains('\\') {
        return Err(MemberError::Backslash);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        let path = |name: &str| Member::parse(name).map(|member| member.0);
        assert_eq!(path("a/b"), Ok(PathBuf::from("a/b")));
        assert_eq!(path("./a//b/"), Ok(PathBuf::from("a/b")));
        assert_eq!(path("..."), Ok(PathBuf::from("...")));
        assert_eq!(path("../x"), Err(MemberError::Leaves));
        assert_eq!(path("a/../b"), Err(MemberError::Leaves));
        assert_eq!(path("/etc/passwd"), Err(MemberError::Absolute));
        assert_eq!(path("a\\..\\b"), Err(MemberError::Backslash));
        assert_eq!(path("C:\\x"), Err(MemberError::Backslash));
        assert_eq!(path("a\0b"), Err(MemberError::Nul));
        assert_eq!(path(""), Err(MemberError::Empty));
        assert_eq!(path("./"), Err(MemberError::Empty));
        assert_eq!(path(&"a".repeat(256)), Err(MemberError::TooLong));
        assert_eq!(path(&"a/".repeat(3000)), Err(MemberError::TooLong));
        assert_eq!(path(&"a/".repeat(129)), Err(MemberError::TooDeep));
    }

    #[test]
    fn links() {
        let link = |at: &str, target: &str| Member::parse(at).expect("a good name").check_link(target).is_ok();
        assert!(link("a", "b"));
        assert!(link("a/b", "../c"));
        assert!(link("a/b/c", "../../d/e"));
        assert!(!link("a", ".."));
        assert!(!link("a/b", "../.."));
        assert!(!link("a", "/etc/passwd"));
        // `l` could be a link to the root, and `l/..` would then be outside.
        assert!(!link("m", "a/b/l/../.."));
    }

    proptest! {
        #[test]
        fn a_member_is_always_below_the_root(name in "[./a\\\\\0-]{0,24}") {
            if let Ok(member) = Member::parse(&name) {
                prop_assert!(member.path().components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(member.path().components().next().is_some());
            }
        }

        /// Follows chains of accepted links as the kernel does, part by part, and never goes above the root.
        #[test]
        fn no_chain_of_links_leaves(
            links in prop::collection::btree_map("([abc]/){0,2}[abc]", "(\\.\\./){0,3}[abc./]{0,6}", 1..6),
            start in "([abc]/){0,4}[abc]",
        ) {
            let links: std::collections::BTreeMap<PathBuf, String> = links
                .into_iter()
                .filter_map(|(at, to)| {
                    let member = Member::parse(&at).ok()?;
                    member.check_link(&to).ok()?;
                    Some((member.0, to))
                })
                .collect();
            // Like the unpacking: nothing lies below a link.
            let below_link = |path: &Path| path.ancestors().skip(1).any(|above| links.contains_key(above));
            prop_assume!(!links.keys().any(|at| below_link(at)));
            let mut here = PathBuf::new();
            let mut todo: Vec<String> = start.rsplit('/').map(str::to_owned).collect();
            let mut followed = 0;
            while let Some(part) = todo.pop() {
                match part.as_str() {
                    "" | "." => {}
                    ".." => prop_assert!(here.pop(), "left the root"),
                    _ => {
                        here.push(&part);
                        if let Some(target) = links.get(&here) {
                            followed += 1;
                            if followed > 40 {
                                break;
                            }
                            here.pop();
                            todo.extend(target.rsplit('/').map(str::to_owned));
                        }
                    }
                }
            }
        }
    }
}
