//! From where the options come: the command line, the environment, or nowhere.

use std::ffi::OsString;

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
    pub(super) fn of(command: &Command, matches: &ArgMatches) -> Self {
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
                Some(ValueSource::CommandLine) => sources.command_line.push(format!("--{long}")),
                Some(ValueSource::EnvVariable) => sources.environment.extend(variable(argument)),
                _ => {}
            }
        }
        sources
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
