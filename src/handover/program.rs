//! The program file that stands in the place of the running program now.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use async_io::Async;
use futures_lite::FutureExt as _;

use super::channel::{self, Parcel};
use crate::clock::{self, Timer};
use crate::limits::{TRIAL_ANSWER, TRIAL_REAPING, TRIAL_TIME};

/// The variable that says what a program finds on its standard input.
pub(super) const VARIABLE: &str = "PYRYCODE_RELAY_HANDOVER";
/// Its value for a trial.
pub(super) const TRIAL: &str = "trial";
/// The answer to a trial that says that the state can be read; any other is the reason why not.
pub(super) const READY: &str = "ready";
/// The variable that says which file the program before has become, by a path that holds wherever a process is.
const FILE: &str = "PYRYCODE_RELAY_PROGRAM";
/// The variable that counts the upgrades of a process, for `pyrycode-relay upgrade`.
pub(crate) const COUNT: &str = "PYRYCODE_RELAY_UPGRADES";

/// A program as it was started, to be started once more.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// This program; to be asked when it starts, for the place of its file may be another one's later. A path on the
    /// command line or in `PATH` counts, and not where a link at its end leads to: an upgrade may change the link.
    pub fn current() -> io::Result<Self> {
        let arguments: Vec<_> = std::env::args_os().collect();
        let called = arguments.first().map(Path::new);
        let path = match called.filter(|path| path.components().count() > 1) {
            // The directory in which the first of them was started may be gone.
            _ if is_handed_over() => std::env::var_os(FILE).map(PathBuf::from),
            Some(path) => Some(std::path::absolute(path)?),
            None => called.and_then(found_by_the_shell),
        };
        let path = path.map_or_else(std::env::current_exe, Ok)?;
        Ok(Self { path, arguments })
    }

    /// The program file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the file once as a child with a copy of the state; the error is why it cannot go on with that.
    pub(super) async fn rehearse(&self, state: File) -> Result<Tried, String> {
        let tried = Tried::look(&self.path);
        let (sender, receiver) = channel::open().map_err(|error| {
            format!("cannot open a channel to the new program: {error} (LimitNOFILE=, ulimit -n)")
        })?;
        let sent = sender.send(Parcel::State, &[(Arc::new(state), false)]);
        sent.map_err(|error| format!("cannot pass on the state for a trial: {error}"))?;
        let mut command = Command::new(&self.path);
        if let Some((name, rest)) = self.arguments.split_first() {
            command.arg0(name).args(rest);
        }
        command.env(VARIABLE, TRIAL).env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_USEC");
        command.stdin(receiver).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| self.explain(&error))?;
        // The other end is the child's alone from here on.
        drop(command);
        let mut trial = Trial(child);
        let answer = async {
            let channel = Async::new(UnixDatagram::from(sender.into_descriptor()))?;
            let mut answer = vec![0; TRIAL_ANSWER];
            let length = channel.recv(&mut answer).await?;
            answer.truncate(length);
            io::Result::Ok(Some(String::from_utf8_lossy(&answer).into_owned()))
        };
        let late = async {
            Timer::after(TRIAL_TIME).await;
            Ok(None)
        };
        let path = self.path.display();
        match answer.or(late).await {
            Ok(None) => Err(format!(
                "{path} did not answer within {} s (a version that cannot take over does not either)",
                TRIAL_TIME.as_secs()
            )),
            Ok(Some(answer)) if answer == READY => Ok(tried),
            Ok(Some(answer)) if !answer.is_empty() => Err(format!("{path}: {answer}")),
            Ok(Some(_)) | Err(_) => Err(trial.report(&self.path).await),
        }
    }

    /// Becomes the new program, which finds `channel` on its standard input. Returns why that failed, if it did: the
    /// file must be the one that was tried.
    pub(super) fn replace(&self, channel: OwnedFd, tried: &Tried) -> String {
        // Without a file the attempt says best what is wrong.
        if fs::metadata(&self.path).is_ok() && Tried::look(&self.path) != *tried {
            let path = self.path.display();
            return format!(
                "{path} was replaced while it was tried: ask for the upgrade once more"
            );
        }
        match self.try_replace(channel) {
            Ok(never) => match never {},
            Err(error) => {
                // What lies in the channel would keep every socket open that this program closes.
                channel::discard_stdin();
                self.explain(&error)
            }
        }
    }

    fn try_replace(&self, channel: OwnedFd) -> io::Result<Infallible> {
        let text = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::from);
        let path = text(self.path.as_os_str().as_bytes().to_vec())?;
        let arguments: Vec<_> = self
            .arguments
            .iter()
            .map(|argument| text(argument.as_bytes().to_vec()))
            .collect::<Result<_, _>>()?;
        let count: u64 =
            std::env::var(COUNT).ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        let ours = [
            (VARIABLE.into(), OsString::from(std::process::id().to_string())),
            (FILE.into(), self.path.clone().into_os_string()),
            (COUNT.into(), OsString::from(count.wrapping_add(1).to_string())),
        ];
        let is_ours = |name: &OsString| [VARIABLE, FILE, COUNT].iter().any(|own| name == own);
        let inherited = std::env::vars_os().filter(|(name, _)| !is_ours(name));
        let variable = |(name, value): (OsString, OsString)| {
            text([name.into_vec(), value.into_vec()].join(&b'='))
        };
        let environment: Vec<_> = inherited.chain(ours).map(variable).collect::<Result<_, _>>()?;
        rustix::stdio::dup2_stdin(&channel)?;
        // Otherwise a channel that is not read to its end would be held open by its own reader.
        drop(channel);
        Ok(nix::unistd::execve(&path, &arguments, &environment)?)
    }

    fn explain(&self, error: &io::Error) -> String {
        const EXEC_FORMAT: i32 = 8;
        let path = self.path.display();
        if error.raw_os_error() == Some(EXEC_FORMAT) {
            return format!("{path} is not a program for this machine ({error})");
        }
        match error.kind() {
            io::ErrorKind::NotFound => {
                format!("{path} is not there, or its loader is not: install the new program there")
            }
            io::ErrorKind::PermissionDenied => format!("{path} may not be run: chmod +x it"),
            _ => format!("cannot run {path}: {error}"),
        }
    }
}

/// By what a program file is known again; empty for one that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Tried {
    place: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
}

impl Tried {
    fn look(path: &Path) -> Self {
        let Ok(metadata) = fs::metadata(path) else { return Self::default() };
        Self {
            place: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// Whether another program of this process has handed over to this one.
pub(super) fn is_handed_over() -> bool {
    let own = std::process::id().to_string();
    std::env::var(VARIABLE).is_ok_and(|value| value == own)
        // The variable stays in the environment: a shell that such a process had started, say, would pass it on.
        && rustix::net::sockopt::socket_type(io::stdin()).is_ok()
}

/// Where a program of this name was found in `PATH`, if that is the file that runs.
fn found_by_the_shell(name: &Path) -> Option<PathBuf> {
    let running = Tried::look(Path::new("/proc/self/exe"));
    let directories = std::env::var_os("PATH")?;
    std::env::split_paths(&directories)
        .map(|directory| directory.join(name))
        .find(|path| path.is_absolute() && Tried::look(path) == running)
}

/// A trial that is under way; it ends when this is dropped.
struct Trial(Child);

impl Trial {
    /// How a trial ended that gave no answer.
    async fn report(&mut self, path: &Path) -> String {
        let until = clock::now() + TRIAL_REAPING;
        let status = loop {
            match self.0.try_wait() {
                Ok(None) if clock::now() < until => Timer::after(TRIAL_REAPING / 100).await,
                other => break other.ok().flatten(),
            };
        };
        let path = path.display();
        let how = match status {
            None => return format!("{path} closed its standard input without an answer"),
            Some(status) => describe(status),
        };
        match self.complaint() {
            Some(complaint) => format!("{path} {how}: {complaint}"),
            None => format!("{path} {how} without an answer"),
        }
    }

    /// The first line that it wrote to its standard error, once it has ended.
    fn complaint(&mut self) -> Option<String> {
        let mut stderr = self.0.stderr.take()?;
        // A process that it has started may hold the pipe open, and write nothing for ever.
        rustix::io::ioctl_fionbio(&stderr, true).ok()?;
        let mut text = vec![0; TRIAL_ANSWER];
        let length = stderr.read(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // A child that has ended is only taken leave of.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
