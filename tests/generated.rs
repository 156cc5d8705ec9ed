//! The manual page and the shell completions are made from the definition of the command line.
//!
//! They are committed, so that a package needs no program of the board to be run on the PC that
//! builds it. `RELAY_GENERATE=1 cargo test --test generated` writes them anew.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::Write as _;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use pyrycode_relay::config::command;

#[test]
fn the_manual_page_is_that_of_the_command_line() {
    check("docs/man/pyrycode-relay.1", &manual_page());
}

#[test]
fn the_completions_are_those_of_the_command_line() {
    check("docs/completions/pyrycode-relay.bash", &completion(Shell::Bash));
    check("docs/completions/_pyrycode-relay", &completion(Shell::Zsh));
    check("docs/completions/pyrycode-relay.fish", &completion(Shell::Fish));
}

#[test]
fn the_manual_page_has_every_option_every_variable_and_every_exit_code() {
    let page = manual_page().replace("\\-", "-");
    for argument in command().get_arguments().filter(|argument| argument.get_env().is_some()) {
        let long = argument.get_long().unwrap();
        let variable = argument.get_env().unwrap().to_str().unwrap();
        assert!(page.contains(&format!("--{long}")), "--{long}");
        assert!(page.contains(&format!("\n.TP\n\\fB{variable}\\fR\n")), "{variable}");
    }
    for code in 0..=2 {
        assert!(page.contains(&format!("\n.TP\n\\fB{code}\\fR\n")), "exit code {code}");
    }
}

/// Compares `path` of the repository with `content`, or writes it there.
fn check(path: &str, content: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("RELAY_GENERATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == content,
        "{path} is not that of the command line; write it anew with\n\
         RELAY_GENERATE=1 cargo test --test generated"
    );
}

fn completion(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command(), "pyrycode-relay", &mut out);
    String::from_utf8(out).unwrap()
}

fn manual_page() -> String {
    let page = Man::new(command());
    let mut out = Vec::new();
    // No date, and not the long version: it names the commit.
    let version = env!("CARGO_PKG_VERSION");
    writeln!(out, ".TH PYRYCODE\\-RELAY 1 \"\" \"pyrycode\\-relay {version}\" \"User Commands\"")
        .unwrap();
    page.render_name_section(&mut out).unwrap();
    section(&mut out, "SYNOPSIS");
    out.extend(b"\\fBpyrycode\\-relay\\fR [\\fIOPTION\\fR]...\n");
    for subcommand in command().get_subcommands() {
        let usage = subcommand.clone().render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ");
        writeln!(out, ".br\n\\fBpyrycode\\-relay\\fR {}", escaped(usage)).unwrap();
    }
    page.render_description_section(&mut out).unwrap();
    page.render_options_section(&mut out).unwrap();

    for subcommand in command().get_subcommands() {
        let name = subcommand.get_name();
        section(&mut out, &format!("PYRYCODE\\-RELAY {}", name.to_uppercase()));
        let about = subcommand.get_long_about().or(subcommand.get_about()).unwrap().to_string();
        writeln!(out, "{}.", escaped(about.replace("\n\n", ". ").trim_end_matches('.'))).unwrap();
        for argument in subcommand.get_arguments() {
            if command().get_arguments().any(|known| known.get_id() == argument.get_id()) {
                // The relay's own option, which stands above.
                continue;
            }
            let help = argument.get_long_help().or(argument.get_help()).unwrap().to_string();
            let tag = match argument.get_long() {
                Some(long) => format!("--{long}"),
                None => argument.get_value_names().unwrap()[0].to_string(),
            };
            entry(&mut out, &tag, &help.replace("\n\n", ". "));
        }
        let exit_codes = subcommand.get_after_help().unwrap().to_string();
        out.extend(b".PP\nExit status:\n");
        for line in exit_codes.lines().skip(1) {
            let (code, meaning) = line.trim().split_once("  ").unwrap();
            entry(&mut out, code, meaning);
        }
    }

    let command = command();
    let help = command.get_after_long_help().unwrap().to_string();
    let (values, exit_codes) = help.split_once("Exit codes:\n").unwrap();
    section(&mut out, "VALUES");
    values.trim_end().lines().for_each(|line| writeln!(out, "{}", escaped(line)).unwrap());
    environment(&mut out, &command);
    section(&mut out, "EXIT STATUS");
    for line in exit_codes.lines() {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        entry(&mut out, code, meaning);
    }
    section(&mut out, "FILES");
    entry(
        &mut out,
        "/etc/default/pyrycode-relay",
        "The options of the systemd unit, as environment variables.",
    );
    section(&mut out, "SEE ALSO");
    out.extend(b"\\fBsystemctl\\fR(1), \\fBjournalctl\\fR(1)\n");
    String::from_utf8(out).unwrap()
}

fn environment(out: &mut Vec<u8>, command: &Command) {
    section(out, "ENVIRONMENT");
    for argument in command.get_arguments() {
        let Some(variable) = argument.get_env() else { continue };
        let long = argument.get_long().unwrap();
        entry(out, variable.to_str().unwrap(), &format!("The same as --{long}."));
    }
    entry(out, "RUST_LOG", "What is logged, where --log-level is not given.");
}

fn section(out: &mut Vec<u8>, name: &str) {
    writeln!(out, ".SH \"{name}\"").unwrap();
}

fn entry(out: &mut Vec<u8>, tag: &str, text: &str) {
    writeln!(out, ".TP\n\\fB{}\\fR\n{}", escaped(tag), escaped(text)).unwrap();
}

/// A line that roff takes as it stands.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}
