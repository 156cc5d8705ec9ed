//! From where the options come: the command line, the environment, or nowhere.

use std::ffi::OsString;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// The options that have another source than their defaults, as they are written there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Given {
    /// Options of the command line, as `--grace`.
    pub command_line: Vec<String>,
    /// Variables, as `PYRYCODE_RELAY_GRACE`.
    pub environment: Vec<String>,
}

impl Given {
    /// Whether an option was given, on the command line or by its variable.
    pub fn name(&self, option: &str, variable: &str) -> bool {
        let is = |given: &[String], name| given.iter().any(|given| given == name);
        is(&self.command_line, option) || is(&self.environment, variable)
    }

    /// Looks up every option of `command` in what was parsed.
    pub(super) fn of(command: &Command, matches: &ArgMatches, environment: &Environment) -> Self {
        let mut sources = Self::default();
        for argument in command.get_arguments() {
            let (Some(long), id) = (argument.get_long(), argument.get_id().as_str()) else {
                continue;
            };
            // Neither `--help` nor `--version` has a value.
            if matches.try_contains_id(id).is_err() {
                continue;
            }
            match matches.value_source(id) {
                _ if environment.tidied.iter().any(|(tidied, _)| tidied == id) => {
                    sources.environment.extend(variable(argument));
                }
                Some(ValueSource::CommandLine) => sources.command_line.push(format!("--{long}")),
                Some(ValueSource::EnvVariable) => sources.environment.extend(variable(argument)),
                _ => {}
            }
        }
        sources
    }
}

/// Variables that say something else than they hold: an empty one is none, and blanks around a
/// value, or around a member of a list, are not part of it.
#[derive(Debug)]
pub(super) struct Environment {
    /// The id of an option, and the argument that stands for its variable.
    tidied: Vec<(String, OsString)>,
}

impl Environment {
    /// Takes empty variables away from `command`; arguments stand for the others, unless their
    /// options are among `arguments`.
    pub(super) fn tidy(command: &mut Command, arguments: &[OsString]) -> Self {
        let mut tidied = Vec::new();
        for (argument, meant) in untidy(command) {
            let is_given = arguments.iter().any(|given| is_option(given, &argument));
            match argument.get_long() {
                _ if meant.is_empty() => forget(command, &argument),
                Some(long) if !is_given => {
                    let stand_in = OsString::from(format!("--{long}={meant}"));
                    tidied.push((argument.get_id().to_string(), stand_in));
                }
                // The variable of an option that is given is not looked at.
                _ => {}
            }
        }
        Self { tidied }
    }

    /// Takes all such variables away from `command`, for a subcommand that has no use for them.
    pub(super) fn forget_untidy(command: &mut Command) -> Self {
        for (argument, _) in untidy(command) {
            forget(command, &argument);
        }
        Self { tidied: Vec::new() }
    }

    /// The arguments that stand for variables.
    pub(super) fn arguments(&self) -> Vec<OsString> {
        self.tidied.iter().map(|(_, argument)| argument.clone()).collect()
    }
}

/// Makes the message about a bad value name the variable that it came from.
pub(super) fn name_variable(
    mut error: clap::Error,
    command: &Command,
    arguments: &[OsString],
) -> clap::Error {
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let Some(argument) = command.get_arguments().find(|argument| argument.to_string() == *shown)
    else {
        return error;
    };
    // What is on the command line wins, and its variable is not looked at.
    let is_given = arguments.iter().any(|given| is_option(given, argument));
    let variable = variable(argument).filter(|name| std::env::var_os(name).is_some());
    if let (false, Some(variable)) = (is_given, variable) {
        let shown = format!("{variable}, the same as {shown}");
        error.insert(ContextKind::InvalidArg, ContextValue::String(shown));
    }
    error
}

/// The options whose variables say something else than they hold, and what that is.
fn untidy(command: &Command) -> Vec<(Arg, String)> {
    let meant = |argument: &Arg| {
        let value = argument.get_env().and_then(std::env::var_os)?;
        // What is not Unicode is refused as it stands.
        let value = value.to_str()?;
        let meant = match argument.get_value_delimiter() {
            Some(delimiter) => {
                let members = value.split(delimiter).map(str::trim);
                let members: Vec<_> = members.filter(|member| !member.is_empty()).collect();
                members.join(&delimiter.to_string())
            }
            None => value.trim().to_owned(),
        };
        // A switch takes no value as an argument, so its parser trims.
        let is_switch = !argument.get_action().takes_values();
        (meant.is_empty() || (meant != value && !is_switch)).then_some(meant)
    };
    let arguments = command.get_arguments();
    arguments.filter_map(|argument| Some((argument.clone(), meant(argument)?))).collect()
}

fn forget(command: &mut Command, argument: &Arg) {
    let id = argument.get_id().clone();
    *command = std::mem::take(command).mut_arg(id, |known| known.env(Resettable::Reset));
}

fn variable(argument: &Arg) -> Option<String> {
    argument.get_env().map(|name| name.to_string_lossy().into_owned())
}

/// Whether `given` is this option, by any of its names, with or without a value.
fn is_option(given: &OsString, argument: &Arg) -> bool {
    let given = given.to_string_lossy();
    let Some(given) = given.strip_prefix("--") else { return false };
    let name = given.split('=').next().unwrap_or(given);
    argument.get_long_and_visible_aliases().is_some_and(|names| names.contains(&name))
}
