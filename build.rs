//! Records for `--version` what was built: commit, target and profile. Tells the tests whether they
//! will run under emulation, as `cross/cargo` says.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=.git/HEAD");
    println!("cargo::rerun-if-changed=.git/refs/heads");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=RELAY_COMMIT={commit}");
    for (name, variable) in [("RELAY_TARGET", "TARGET"), ("RELAY_PROFILE", "PROFILE")] {
        let value = std::env::var(variable).unwrap_or_else(|_| "unknown".to_owned());
        println!("cargo::rustc-env={name}={value}");
    }
    println!("cargo::rustc-check-cfg=cfg(relay_emulated)");
    println!("cargo::rerun-if-env-changed=RELAY_EMULATED");
    if std::env::var_os("RELAY_EMULATED").is_some() {
        println!("cargo::rustc-cfg=relay_emulated");
    }
}
