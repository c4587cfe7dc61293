//! The child's side of a start: from a copy of the agent to the app, one step after the other. Every step that could
//! be fooled by the image's own files (a symbolic link at `/proc`, say) runs after the root has changed, so that what
//! it can be led to is the image's own.

use super::{StartError, etc, filesystems, identity, privileges, program};
use crate::sys;
use guest_protocol::AppSpec;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the child needs, checked before it exists.
pub(super) struct Plan {
    spec: Arc<AppSpec>,
    arguments: Vec<CString>,
    cwd: String,
}

/// Why the child could not become the app.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    /// Session, standard streams or limits.
    #[error("cannot {step} of the app")]
    Process {
        /// What was tried.
        step: &'static str,
        #[source]
        source: io::Error,
    },
    /// The root or something mounted in it.
    #[error(transparent)]
    Filesystem(#[from] filesystems::FilesystemError),
    /// The files in `/etc` that a container runtime provides.
    #[error(transparent)]
    Etc(#[from] etc::EtcError),
    /// `USER`.
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    /// Capabilities and user ids.
    #[error(transparent)]
    Privileges(#[from] privileges::PrivilegesError),
    /// The working directory.
    #[error("cannot enter the working directory {path}")]
    Cwd {
        /// The directory.
        path: String,
        #[source]
        source: io::Error,
    },
    /// The program.
    #[error("cannot run {argv:?}")]
    Execute {
        /// Program and arguments.
        argv: Vec<String>,
        #[source]
        source: program::ProgramError,
    },
    /// The environment.
    #[error("the environment variable HOME of the image's /etc/passwd holds a zero byte")]
    Home,
}

impl Plan {
    /// Checks what can be checked without the image's files.
    pub(super) fn new(spec: Arc<AppSpec>) -> Result<Plan, StartError> {
        if spec.argv.first().is_none_or(String::is_empty) {
            return Err(StartError::NoProgram);
        }
        let arguments = spec
            .argv
            .iter()
            .map(|argument| c_string("the argument", argument))
            .collect::<Result<Vec<_>, StartError>>()?;
        for (name, value) in &spec.env {
            if name.is_empty() || name.contains('=') {
                return Err(StartError::Text { what: "the name of the environment variable", text: name.clone() });
            }
            c_string("the name of the environment variable", name)?;
            c_string("the value of an environment variable", value)?;
        }
        c_string("the working directory", &spec.cwd)?;
        let cwd = format!("/{}", spec.cwd.trim_start_matches('/'));
        Ok(Plan { spec, arguments, cwd })
    }

    /// Names the VM as the app wants it named.
    pub(super) fn set_hostname(&self) -> Result<(), StartError> {
        let name = &self.spec.hostname;
        rustix::system::sethostname(name.as_bytes())
            .map_err(|errno| StartError::Hostname { name: name.clone(), source: errno.into() })
    }
}

fn c_string(what: &'static str, text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| StartError::Text { what, text: text.to_owned() })
}

/// Runs in the child, in the namespaces that are to be the app's. Returns only if it fails.
pub(super) fn become_app(plan: &Plan, stdout: &OwnedFd, stderr: &OwnedFd) -> Result<Infallible, ChildError> {
    let Plan { spec, arguments, cwd } = plan;
    rustix::process::setsid().map_err(process("make the session"))?;

    filesystems::enter_root()?;
    filesystems::populate(spec.all_capabilities)?;
    etc::write(spec)?;
    connect_streams(stdout, stderr)?;
    // Written while this is still the agent's copy in all but its root: the agent is never to be killed, the app may.
    std::fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|source| ChildError::Process { step: "set the memory priority", source })?;

    let identity = identity::resolve(&spec.user)?;
    let mut environment = program::environment(&spec.env, &identity.home);
    environment.sort_unstable();
    let environment: Vec<CString> =
        environment.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| ChildError::Home)?;
    let in_cwd = |errno: Errno| ChildError::Cwd { path: cwd.clone(), source: errno.into() };
    std::fs::create_dir_all(cwd).map_err(|source| ChildError::Cwd { path: cwd.clone(), source })?;
    rustix::process::chdir(cwd.as_str()).map_err(in_cwd)?;

    // So that /dev/stdout can be opened by an app that is not root.
    for stream in [stdout, stderr] {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        rustix::fs::fchown(stream, Some(uid), Some(gid)).map_err(process("hand over the output"))?;
    }
    privileges::limit_files().map_err(process("limit the files"))?;
    privileges::assume(&identity, spec.all_capabilities)?;

    let failed = |source| ChildError::Execute { argv: spec.argv.clone(), source };
    let candidates = program::candidates(&spec.argv[0], program::path(&spec.env)).map_err(failed)?;
    Err(failed(program::execute(&candidates, |program| sys::execute(program, arguments, &environment))))
}

/// Nothing on standard input; the pipes to the agent on the other two.
fn connect_streams(stdout: &OwnedFd, stderr: &OwnedFd) -> Result<(), ChildError> {
    let step = "connect the streams";
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(process(step))?;
    rustix::stdio::dup2_stdin(&null).map_err(process(step))?;
    rustix::stdio::dup2_stdout(stdout).map_err(process(step))?;
    rustix::stdio::dup2_stderr(stderr).map_err(process(step))
}

fn process(step: &'static str) -> impl Fn(Errno) -> ChildError {
    move |errno| ChildError::Process { step, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::Plan;
    use crate::app::StartError;
    use guest_protocol::AppSpec;
    use std::sync::Arc;

    fn plan(change: impl FnOnce(&mut AppSpec)) -> Result<Plan, StartError> {
        let mut spec = spec();
        change(&mut spec);
        Plan::new(Arc::new(spec))
    }

    fn spec() -> AppSpec {
        AppSpec {
            argv: vec!["app".to_owned()],
            env: vec![("A".to_owned(), "b=c".to_owned())],
            cwd: String::new(),
            user: String::new(),
            hostname: "localhost".to_owned(),
            all_capabilities: false,
            nameservers: Vec::new(),
        }
    }

    #[test]
    fn a_plan_has_an_absolute_directory() {
        for (written, absolute) in [("", "/"), ("srv/app", "/srv/app"), ("/srv", "/srv")] {
            assert_eq!(plan(|spec| spec.cwd = written.to_owned()).expect("a good spec").cwd, absolute);
        }
    }

    #[test]
    fn a_plan_refuses_what_the_kernel_could_not_be_given() {
        assert!(matches!(plan(|spec| spec.argv.clear()), Err(StartError::NoProgram)));
        assert!(matches!(plan(|spec| spec.argv[0].clear()), Err(StartError::NoProgram)));
        assert!(matches!(plan(|spec| spec.argv.push("a\0b".to_owned())), Err(StartError::Text { .. })));
        assert!(matches!(plan(|spec| spec.env[0].0 = "A=B".to_owned()), Err(StartError::Text { .. })));
    }
}
