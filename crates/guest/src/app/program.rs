//! Which file to execute, and with which environment.

use std::ffi::CString;
use std::io;

/// `PATH` of an app whose image sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why no file could be executed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    /// There is no such file.
    #[error("{program:?} was not found in {path}")]
    NotFound {
        /// What was looked for.
        program: String,
        /// `PATH`.
        path: String,
    },
    /// A file was found and the kernel did not execute it.
    #[error("{program:?} cannot be executed")]
    Refused {
        /// The file.
        program: String,
        #[source]
        source: io::Error,
    },
    /// The path is not one.
    #[error("PATH holds a zero byte")]
    Path,
}

/// The app's `PATH`.
pub(super) fn path(env: &[(String, String)]) -> &str {
    let last = env.iter().rev().find(|(name, _)| name == "PATH");
    last.map_or(DEFAULT_PATH, |(_, path)| path.as_str())
}

/// The whole environment as `NAME=value`, with a `PATH` and a `HOME` if the image has none. A name given twice has the
/// value it was given last.
pub(super) fn environment(env: &[(String, String)], home: &str) -> Vec<String> {
    let mut all: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH), ("HOME", home)];
    for (name, value) in env {
        match all.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The files to try, in order: a name with a slash is itself, any other is looked for in `PATH`.
pub(super) fn candidates(program: &str, path: &str) -> Result<Candidates, ProgramError> {
    let files: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        // An empty element of PATH stands for the working directory.
        path.split(':')
            .map(|directory| if directory.is_empty() { "." } else { directory })
            .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
            .collect()
    };
    let searched = if program.contains('/') { "the image".to_owned() } else { format!("PATH {path}") };
    let files = files.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| ProgramError::Path)?;
    Ok(Candidates { program: program.to_owned(), searched, files })
}

/// Files that may be the program.
pub(super) struct Candidates {
    program: String,
    searched: String,
    files: Vec<CString>,
}

/// Executes the first that can be. As in a shell, a file that may not be executed does not end the search, but is what
/// is reported when nothing better comes.
pub(super) fn execute(candidates: &Candidates, mut execute: impl FnMut(&CString) -> io::Error) -> ProgramError {
    let mut refused = None;
    for file in &candidates.files {
        let program = || file.to_string_lossy().into_owned();
        let source = execute(file);
        match source.kind() {
            io::ErrorKind::NotFound if exists(file) => {
                // The file is there and its interpreter is not.
                let source = io::Error::new(io::ErrorKind::NotFound, "its interpreter is not in the image");
                return ProgramError::Refused { program: program(), source };
            }
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
            io::ErrorKind::PermissionDenied => {
                refused.get_or_insert_with(|| ProgramError::Refused { program: program(), source });
            }
            _ => return ProgramError::Refused { program: program(), source },
        }
    }
    refused.unwrap_or_else(|| ProgramError::NotFound {
        program: candidates.program.clone(),
        path: candidates.searched.clone(),
    })
}

fn exists(file: &CString) -> bool {
    rustix::fs::stat(file.as_c_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{ProgramError, candidates, environment, execute, path};
    use std::ffi::CString;
    use std::io;

    fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_are_looked_for_in_path_and_paths_are_not() {
        let found = candidates("app", "/usr/bin:/bin/::.").expect("a good path");
        let files: Vec<_> = found.files.iter().map(|file| file.to_string_lossy().into_owned()).collect();
        assert_eq!(files, ["/usr/bin/app", "/bin/app", "./app", "./app"]);
        assert_eq!(candidates("./app", "/bin").expect("a good path").files, [c"./app".to_owned()]);
    }

    #[test]
    fn the_search_goes_on_after_a_refusal_and_reports_it_at_the_end() {
        let all = candidates("no-such-program", "/a:/b:/c").expect("a good path");
        let mut tried = Vec::new();
        let error = execute(&all, |file: &CString| {
            tried.push(file.clone());
            io::Error::from(if tried.len() == 2 { io::ErrorKind::PermissionDenied } else { io::ErrorKind::NotFound })
        });
        assert_eq!(tried.len(), 3);
        assert!(matches!(error, ProgramError::Refused { program, .. } if program == "/b/no-such-program"));

        let error = execute(&all, |_| io::ErrorKind::NotFound.into());
        assert_eq!(error.to_string(), "\"no-such-program\" was not found in PATH /a:/b:/c");
    }

    #[test]
    fn a_missing_interpreter_is_not_a_missing_program() {
        let all = candidates("/proc/self/exe", "").expect("a good path");
        let error = execute(&all, |_| io::ErrorKind::NotFound.into());
        assert!(matches!(error, ProgramError::Refused { program, .. } if program == "/proc/self/exe"));
    }

    #[test]
    fn path_and_home_have_defaults_and_the_last_value_of_a_name_counts() {
        let env = pairs(&[("A", "1"), ("PATH", "/x"), ("A", "2"), ("PATH", "/y")]);
        assert_eq!(path(&env), "/y");
        assert_eq!(environment(&env, "/home/a"), ["PATH=/y", "HOME=/home/a", "A=2"]);
        assert!(path(&[]).contains("/usr/local/bin"));
        assert_eq!(environment(&pairs(&[("HOME", "/own")]), "/home/a")[1], "HOME=/own");
    }
}
