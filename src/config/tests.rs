use super::*;

fn parse(arguments: &[&str]) -> Result<Config, String> {
    let all = std::iter::once("pyrycode-relay").chain(arguments.iter().copied());
    let options = Options::parse_arguments(all).map_err(|error| error.to_string())?;
    Config::from_options(options)
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.listen, [Listen::At("127.0.0.1:8080".parse().unwrap())]);
    assert_eq!(config.grace, Duration::from_secs(30));
    assert!(!config.reclaim_evicts);
    assert_eq!(config.probe_timeout, Duration::from_secs(10));
    assert_eq!(config.heartbeat_interval, Duration::from_secs(30));
    assert_eq!(config.heartbeat_timeout, Duration::from_secs(30));
    assert_eq!(config.header_timeout, Duration::from_secs(5));
    assert_eq!(config.message_timeout, Duration::from_secs(30));
    assert_eq!(config.write_timeout, Duration::from_secs(10));
    assert_eq!(config.drain_timeout, Duration::from_secs(2));
    assert_eq!(config.max_frame_bytes, 256 * 1024);
    assert_eq!(config.max_queue_bytes, 32 << 20);
    assert_eq!(config.max_slot_queue_bytes, 1 << 20);
    assert_eq!(config.memory_budget, 64 << 20);
    assert_eq!((config.max_phones, config.max_connections), (16, 4096));
    assert_eq!(config.max_connections_per_ip, Some(64));
    assert_eq!((config.proxies, config.allow_server), (Proxies::default(), None));
    assert_eq!(config.rate, Some(Rate { per_minute: 30, burst: 64 }));
}

#[test]
fn listening_addresses_are_literal() {
    let listen = |text: &str| parse(&["--listen", text]).map(|config| config.listen);
    assert_eq!(listen(":8080").unwrap(), [Listen::Everywhere(8080)]);
    assert_eq!(listen("[::1]:0").unwrap(), [Listen::At("[::1]:0".parse().unwrap())]);
    assert_eq!(listen("127.0.0.1:1,:2").unwrap().len(), 2);
    assert_eq!(
        parse(&["--listen", ":1", "--insecure-listen", ":2"]).unwrap().listen,
        [Listen::Everywhere(1), Listen::Everywhere(2)]
    );
    for (bad, advice) in [
        ("localhost:8080", "127.0.0.1:8080"),
        ("192.0.2.1", "port is missing"),
        ("8080", ":8080"),
        (":99999", "no port"),
        ("relay.example:1", "IP address"),
        ("", "IP address"),
    ] {
        let error = listen(bad).unwrap_err();
        assert!(error.contains(advice), "{bad}: {error}");
    }
}

#[test]
fn zero_and_nonsense_are_refused_for_every_option() {
    let options = [
        "--grace",
        "--probe-timeout",
        "--heartbeat-interval",
        "--heartbeat-timeout",
        "--header-timeout",
        "--message-timeout",
        "--write-timeout",
        "--drain-timeout",
        "--max-frame-bytes",
        "--max-queue-bytes",
        "--max-slot-queue-bytes",
        "--memory-budget",
        "--max-phones",
        "--max-connections",
        "--max-connections-per-ip",
        "--rate-limit",
        "--rate-burst",
    ];
    for option in options {
        for bad in ["0", "0s", "0/min", "0KiB", "-1", "", "x", "99999999999999999999", "off "] {
            assert!(parse(&[option, bad]).is_err(), "{option} {bad:?}");
        }
        if !["--rate-limit", "--max-connections-per-ip"].contains(&option) {
            assert!(parse(&[option, "off"]).is_err(), "{option} off");
        }
    }
    assert_eq!(parse(&["--rate-limit", "off"]).unwrap().rate, None);
    let unlimited = parse(&["--max-connections-per-ip", "off"]).unwrap();
    assert_eq!(unlimited.max_connections_per_ip, None);
}

#[test]
fn no_value_is_so_large_or_so_small_that_something_overflows() {
    let sizes =
        ["--max-frame-bytes", "--max-queue-bytes", "--max-slot-queue-bytes", "--memory-budget"];
    let counts = ["--max-phones", "--max-connections", "--max-connections-per-ip", "--rate-burst"];
    let durations = [
        "--grace",
        "--probe-timeout",
        "--heartbeat-interval",
        "--heartbeat-timeout",
        "--header-timeout",
        "--message-timeout",
        "--write-timeout",
        "--drain-timeout",
    ];
    let refused = |options: &[&str], values: &[&str], reason: &str| {
        for option in options {
            for value in values {
                let error = parse(&[option, value]).unwrap_err();
                assert!(
                    error.contains(reason) && error.contains(option),
                    "{option} {value}: {error}"
                );
            }
        }
    };
    refused(&sizes, &["65GiB", "18446744073709551615", "99999999999999999999", "1e3PiB"], "");
    refused(&sizes, &["65GiB", "18446744073709551615", "16777216TiB"], "iB is the most");
    refused(
        &counts,
        &["1048577", "4294967295", "4294967296", "18446744073709551615"],
        "is the most",
    );
    refused(&["--rate-limit"], &["1048577/min", "99999999999/min"], "is the most");
    refused(&durations, &["100000000h", "18446744073709551615s"], "a year is the longest");
    refused(&durations, &["99999999999999999999h", "18446744073709551615years"], "30s");
    refused(&durations, &["1ns", "999us"], "a millisecond is the shortest");
    for option in durations {
        for edge in ["1ms", "366days"] {
            assert!(parse(&[option, edge]).is_ok(), "{option} {edge}");
        }
    }
    for option in counts {
        assert!(parse(&[option, "1048576"]).is_ok(), "{option}");
    }
    assert!(parse(&["--rate-limit", "1048576/min"]).is_ok());
}

#[test]
fn a_message_is_bounded_whatever_the_queues_may_hold() {
    let queues = [
        "--max-queue-bytes",
        "256MiB",
        "--max-slot-queue-bytes",
        "256MiB",
        "--memory-budget",
        "512MiB",
    ];
    let largest = |size| parse(&[&queues[..], &["--max-frame-bytes", size]].concat());
    assert_eq!(largest("16MiB").unwrap().max_frame_bytes, 16 << 20);
    for size in ["16777217", "64GiB"] {
        let error = largest(size).unwrap_err();
        assert!(error.contains("--max-frame-bytes") && error.contains("16.0 MiB"), "{error}");
    }
}

#[test]
fn trusted_proxies_are_a_list_and_a_proxy_header_needs_one_to_send_it() {
    let two = parse(&["--trusted-proxy", "127.0.0.1,::1", "--trusted-proxy", "10.0.0.0/8"]);
    let proxies = two.unwrap().proxies;
    for address in ["127.0.0.1", "::1", "10.1.1.1"] {
        assert!(proxies.trusts(address.parse().unwrap()), "{address}");
    }
    for everybody in ["0.0.0.0/1,128.0.0.0/1", "10.0.0.0/8,11.0.0.0/8", "2000::/16,2001::/16"] {
        let error = parse(&["--trusted-proxy", everybody]).unwrap_err();
        assert!(error.contains("--trusted-proxy") && error.contains("everybody"), "{error}");
    }
    let error = parse(&["--proxy-protocol"]).unwrap_err();
    assert!(error.contains("--trusted-proxy"), "{error}");
    assert!(parse(&["--proxy-protocol", "--trusted-proxy", "127.0.0.1"]).is_ok());
}

#[test]
fn durations_and_sizes_are_read_as_people_write_them() {
    let config = parse(&["--grace", "250ms", "--drain-timeout", "2m"]).unwrap();
    assert_eq!(config.grace, Duration::from_millis(250));
    assert_eq!(config.drain_timeout, Duration::from_secs(120));
    for text in ["262144", "256KiB", "256 KiB"] {
        let config = parse(&["--max-frame-bytes", text]).unwrap();
        assert_eq!(config.max_frame_bytes, 262_144, "{text}");
    }
    assert!(parse(&["--grace", "2years"]).unwrap_err().contains("year is the longest"));
}

#[test]
fn combinations_that_cannot_work_say_what_to_do() {
    for (arguments, named) in [
        (["--max-frame-bytes", "1MiB"], "--max-slot-queue-bytes"),
        (["--max-slot-queue-bytes", "512KiB"], "--max-slot-queue-bytes"),
        (["--max-queue-bytes", "256KiB"], "--max-queue-bytes"),
        (["--memory-budget", "32MiB"], "--memory-budget"),
    ] {
        let error = parse(&arguments).unwrap_err();
        assert!(error.starts_with(named) && error.contains("at least"), "{error}");
    }
}

#[test]
fn every_option_has_its_environment_variable_in_the_same_words() {
    let command = command();
    let mut seen = 0;
    for argument in command.get_arguments() {
        let Some(long) = argument.get_long() else { continue };
        if ["help", "version"].contains(&long) {
            continue;
        }
        let expected = format!("PYRYCODE_RELAY_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(argument.get_env().and_then(|name| name.to_str()), Some(&*expected));
        seen += 1;
    }
    assert!(seen >= 18, "{seen} options");
}
