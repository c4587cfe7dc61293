//! A shell beside the app: in its namespaces, with its root, environment and capabilities, on a terminal of its own, as
//! root. It is a child of the agent, which hears of its end; what it leaves behind ends up at the app.

use super::{StartError, identity, launch, privileges, program};
use crate::agent::Agent;
use crate::sys;
use guest_protocol::AppSpec;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::pty::OpenptFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What there is of shells in images, the best first.
const PROGRAMS: [&str; 2] = ["bash", "sh"];

/// What a shell has in its environment beside what the app has: the real service's terminal and prompt.
const TERMINAL: (&str, &str) = ("TERM", "xterm");
const PROMPT: (&str, &str) = ("PS1", "λ $ ");

/// Debian's bash sets a prompt of its own when it starts. This comes after that, once.
const PROMPT_OF_BASH: (&str, &str) = ("PROMPT_COMMAND", "PS1='λ $ '; unset PROMPT_COMMAND");

/// How long the agent's other threads may take to end, before there is no shell.
const ALONE_TIME_MAX: Duration = Duration::from_secs(3);

/// A shell that runs. Dropping the terminal hangs up: the shell gets SIGHUP, and whatever is in its foreground.
pub(crate) struct Shell {
    /// The other end of its terminal, not blocking.
    pub(crate) terminal: OwnedFd,
    /// Its exit code, or 128 + the number of the signal that ended it.
    pub(crate) ended: oneshot::Receiver<i32>,
}

/// Why there is no shell. The text reaches the log, and whoever wants a shell in words of the edge's own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShellError {
    /// There is nothing to be beside of.
    #[error("the app does not run")]
    NoApp,
    /// The app's namespaces or its root could not be had.
    #[error("cannot find the way to the app's {what}")]
    Way {
        /// What was looked for.
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// The terminal could not be made.
    #[error("cannot make a terminal")]
    Terminal(#[source] io::Error),
    /// The process could not be made.
    #[error("cannot make the shell's process")]
    Clone(#[source] io::Error),
    /// A pipe failed, or the process was made and could not become the shell.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Opens a shell: one to be typed into, or one that carries out a command.
pub(crate) async fn open(agent: &Agent, command: Option<&str>) -> Result<Shell, ShellError> {
    until_alone().await;
    let (app, spec) = agent.app().running().ok_or(ShellError::NoApp)?;
    let place = Place::of(app)?;
    let (terminal, inside) = place.terminal().map_err(|errno| ShellError::Terminal(errno.into()))?;
    let (outcome, outcome_of_shell) = launch::new_pipe()?;
    let pid = place.spawn(|| {
        let Err(error) = become_shell(&place, &spec, &inside, command);
        let _ = std::fs::File::from(outcome_of_shell).write_all(crate::boot::console::chain(&error).as_bytes());
        127
    })?;
    let (sender, ended) = oneshot::channel();
    // No wait lies between the birth of the process and this, so its end cannot have been reaped yet.
    agent.app().shells.insert(pid, sender);
    drop(inside);
    launch::outcome(outcome).await?;
    Ok(Shell { terminal, ended })
}

/// Waits for the threads that held the processors while the VM was stopped (`park`): they are on their way out, and a
/// process with more than one thread cannot be copied. The agent sleeps rather than look all the time, as it may stand
/// before them.
async fn until_alone() {
    let until = Instant::now() + ALONE_TIME_MAX;
    while sys::threads().is_ok_and(|threads| threads > 1) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
        tokio::task::yield_now().await;
    }
}

/// Where the app is.
struct Place {
    root: OwnedFd,
    mounts: OwnedFd,
    processes: OwnedFd,
    own_processes: OwnedFd,
}

impl Place {
    /// The app's first process must not have been reaped.
    fn of(app: Pid) -> Result<Place, ShellError> {
        let app = app.as_raw_nonzero();
        let open = |what, path: &str, flags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| ShellError::Way { what, source: errno.into() })
        };
        Ok(Place {
            root: open("root", &format!("/proc/{app}/root"), OFlags::PATH | OFlags::DIRECTORY)?,
            mounts: open("mounts", &format!("/proc/{app}/ns/mnt"), OFlags::RDONLY)?,
            processes: open("processes", &format!("/proc/{app}/ns/pid"), OFlags::RDONLY)?,
            own_processes: open("agent", "/proc/self/ns/pid", OFlags::RDONLY)?,
        })
    }

    /// Both ends of a new terminal among those that the app sees. The path ends inside of the app's root whatever the app
    /// has put there, and what is no terminal is refused by the kernel at the first of the calls that follow.
    fn terminal(&self) -> Result<(OwnedFd, OwnedFd), Errno> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let inside_only = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let terminal = rustix::fs::openat2(&self.root, "dev/pts/ptmx", flags, Mode::empty(), inside_only)?;
        rustix::pty::unlockpt(&terminal)?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let inside = rustix::pty::ioctl_tiocgptpeer(&terminal, peer)?;
        Ok((terminal, inside))
    }

    /// Makes a process among those of the app. To be in a PID namespace is a matter of birth, so this process's children
    /// are born there for a moment.
    fn spawn(&self, child: impl FnOnce() -> i32) -> Result<Pid, ShellError> {
        let children_are_in = |place: &OwnedFd| {
            move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .map_err(|errno| ShellError::Way { what: "processes", source: errno.into() })
        };
        children_are_in(&self.processes)?;
        let spawned = sys::spawn(child).map_err(ShellError::Clone);
        // There is nothing that could keep a process from where it is. If there were, the next shell would come here too,
        // and no other children are to come.
        children_are_in(&self.own_processes)?;
        spawned
    }
}

/// Why the child could not become the shell.
#[derive(Debug, thiserror::Error)]
enum ChildError {
    #[error("cannot {step} of the shell")]
    Process {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Privileges(#[from] privileges::PrivilegesError),
    #[error("the environment or the command holds a zero byte")]
    Zero(#[from] std::ffi::NulError),
    #[error("the image has neither bash nor sh")]
    NoShell(#[source] program::ProgramError),
}

/// Runs in the child. Returns only if it fails.
fn become_shell(
    place: &Place,
    spec: &AppSpec,
    inside: &OwnedFd,
    command: Option<&str>,
) -> Result<Infallible, ChildError> {
    // While this is still the agent's copy and sees the agent's /proc: the agent is never to be killed, a shell may.
    std::fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|source| ChildError::Process { step: "set the memory priority", source })?;
    let mounts = move_into_link_name_space(place.mounts.as_fd(), Some(LinkNameSpaceType::Mount));
    mounts.map_err(process("enter the mounts"))?;
    rustix::process::fchdir(&place.root).map_err(process("enter the root"))?;
    rustix::process::chroot(".").map_err(process("enter the root"))?;

    rustix::process::setsid().map_err(process("make the session"))?;
    rustix::process::ioctl_tiocsctty(inside).map_err(process("take the terminal"))?;
    rustix::stdio::dup2_stdin(inside).map_err(process("connect the terminal"))?;
    rustix::stdio::dup2_stdout(inside).map_err(process("connect the terminal"))?;
    rustix::stdio::dup2_stderr(inside).map_err(process("connect the terminal"))?;

    let identity = identity::resolve("")?;
    let environment = environment(spec, &identity.home, command.is_none())?;
    let cwd = format!("/{}", spec.cwd.trim_start_matches('/'));
    // The app may have removed it.
    rustix::process::chdir(cwd.as_str())
        .or_else(|_| rustix::process::chdir("/"))
        .map_err(process("enter a directory"))?;
    privileges::limit_files().map_err(process("limit the files"))?;
    privileges::assume(&identity, spec.all_capabilities)?;
    Err(execute(program::path(&spec.env), command, &environment))
}

fn environment(spec: &AppSpec, home: &str, interactive: bool) -> Result<Vec<CString>, ChildError> {
    let own: &[(&str, &str)] = if interactive { &[TERMINAL, PROMPT, PROMPT_OF_BASH] } else { &[TERMINAL] };
    let mut all = spec.env.clone();
    all.extend(own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let all = program::environment(&all, home);
    Ok(all.into_iter().map(CString::new).collect::<Result<_, _>>()?)
}

fn execute(path: &str, command: Option<&str>, environment: &[CString]) -> ChildError {
    let mut last = None;
    for name in PROGRAMS {
        let arguments: Result<Vec<CString>, _> =
            [name].into_iter().chain(command.iter().flat_map(|command| ["-c", command])).map(CString::new).collect();
        let arguments = match arguments {
            Ok(arguments) => arguments,
            Err(error) => return error.into(),
        };
        last = match program::candidates(name, path) {
            Ok(candidates) => {
                Some(program::execute(&candidates, |program| sys::execute(program, &arguments, environment)))
            }
            Err(error) => Some(error),
        };
    }
    ChildError::NoShell(last.expect("there are programs to try"))
}

fn process(step: &'static str) -> impl Fn(Errno) -> ChildError {
    move |errno| ChildError::Process { step, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> AppSpec {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        AppSpec {
            argv: vec!["app".to_owned()],
            env: vec![pair("LANG", "C.UTF-8"), pair("TERM", "dumb"), pair("PS1", "# ")],
            cwd: String::new(),
            user: "app".to_owned(),
            hostname: "localhost".to_owned(),
            all_capabilities: false,
            nameservers: Vec::new(),
        }
    }

    #[test]
    fn a_shell_has_the_apps_environment_and_a_terminal() {
        let names = |interactive| -> Vec<String> {
            let all = environment(&spec(), "/root", interactive).expect("no zero bytes");
            all.into_iter().map(|it| it.into_string().expect("it is text")).collect()
        };
        let own = names(true);
        for wanted in ["HOME=/root", "LANG=C.UTF-8", "TERM=xterm", "PS1=λ $ "] {
            assert!(own.iter().any(|it| it == wanted), "{wanted} in {own:?}");
        }
        assert!(own.iter().any(|it| it.starts_with("PROMPT_COMMAND=")));
        // A command's programs see the app's prompt, if anything.
        assert!(names(false).contains(&"PS1=# ".to_owned()));
    }

    #[test]
    fn a_shell_that_is_not_there_and_a_zero_byte_are_told_apart() {
        let error = execute("/nowhere", None, &[]);
        assert_eq!(error.to_string(), "the image has neither bash nor sh");
        assert!(matches!(execute("/nowhere", Some("a\0b"), &[]), ChildError::Zero(_)));
    }

    /// Where both ends of a terminal come from, in the root that this process sees.
    #[test]
    fn a_terminal_has_two_ends_and_hangs_up() {
        let place = Place::of(rustix::process::getpid()).expect("this process is there");
        let (terminal, inside) = place.terminal().expect("a terminal");
        assert!(rustix::termios::isatty(&inside));
        let mut file = std::fs::File::from(inside);
        file.write_all(b"shown").expect("it is written");
        let mut shown = [0; 16];
        assert_eq!(rustix::io::read(&terminal, &mut shown).expect("it is read"), 5);
        assert_eq!(rustix::io::read(&terminal, &mut shown), Err(Errno::AGAIN), "it does not block");
        drop(terminal);
        assert!(file.write_all(b"gone").is_err());
    }
}
