# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_pyrycode_relay_global_optspecs
    string join \n listen= tls-listen= tls-cert= tls-key= domain= acme-contact= acme-directory= cert-cache= grace= reclaim= probe-timeout= heartbeat-interval= heartbeat-timeout= header-timeout= message-timeout= write-timeout= drain-timeout= max-frame-bytes= max-queue-bytes= max-slot-queue-bytes= memory-budget= max-phones= max-connections= max-connections-per-ip= rate-limit= rate-burst= trusted-proxy= proxy-protocol allow-server= metrics-listen= metrics-public log-level= log-format= h/help V/version
end

function __fish_pyrycode_relay_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_pyrycode_relay_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_pyrycode_relay_using_subcommand
    set -l cmd (__fish_pyrycode_relay_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l listen -l insecure-listen -d 'Address to listen on; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l tls-listen -l https-listen -d 'Address to listen on for TLS; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l tls-cert -d 'File with the certificate chain, PEM, the server\'s own certificate first' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l tls-key -d 'File with its private key, PEM; not readable by every user of the machine' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l domain -d 'Name that clients dial; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l acme-contact -d 'E-mail address that the ACME directory may write to' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l acme-directory -d 'URL of the ACME directory, which this machine must trust' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l cert-cache -d 'Directory for certificates got by ACME and the account\'s key, mode 0700' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l grace -d 'How long a server-id stays claimed after its binary\'s connection ended' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l reclaim -d 'Which phones stay attached when a binary comes back' -r -f -a "keep\t'Those whose session is provably whole; the others are closed and dial again'
evict\t'None: all are closed and dial again'"
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l probe-timeout -d 'How long the holder of a server-id may take to answer when somebody else claims it' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l heartbeat-interval -d 'Silence after which a peer is pinged' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l heartbeat-timeout -d 'Silence after that ping at which the peer counts as gone' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l header-timeout -d 'Time for a whole request head' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l message-timeout -d 'Time for a whole message from its first byte' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l write-timeout -d 'Time a write may make no progress' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l drain-timeout -d 'Time a stop waits for the peers\' close frames' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-frame-bytes -d 'Largest message' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-queue-bytes -d 'What may be queued for one phone; above it the phone is closed' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-slot-queue-bytes -d 'What may be queued for one binary; above it its phones are not read' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l memory-budget -d 'What may be held for all peers together; above it the phone that holds most is closed' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-phones -d 'Phones a server-id' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-connections -d 'Upgraded connections, binaries and phones together' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l max-connections-per-ip -d 'Connections of one source address, upgraded or with a request in progress, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l rate-limit -d 'Upgrade attempts a source address, as N/min, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l rate-burst -d 'Attempts that a source may make at once' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l trusted-proxy -d 'Address or network of a proxy that is trusted to say from where a connection comes; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l allow-server -d 'File with the server-ids that may be claimed, one a line, "#" for comments' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l metrics-listen -d 'Where to serve metrics and the status page, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l log-level -d 'What is logged: off, error, warn, info, debug or trace [default: info]' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l log-format -d 'How it is written: auto, logfmt, json or journal' -r -f -a "auto\t'As fields to the journal where standard error is the journal, else as logfmt'
logfmt\t'Lines of `key=value` pairs on standard error'
json\t'Lines of one JSON object on standard error'
journal\t'As fields to the journal'"
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l proxy-protocol -d 'Trusted proxies send a PROXY header, version 1 or 2, before the request'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -l metrics-public -d 'Let other machines read the metrics and the status page'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -s V -l version -d 'Print version'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -f -a "status" -d 'Show how a running relay is, and tell it by the exit code'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -f -a "upgrade" -d 'Have a running relay change to the program file that is installed now; nobody is disconnected'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_needs_command" -f -a "check" -d 'Show what the relay would do with its options here, and what looks wrong'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand status" -l json -d 'Print JSON, as the relay sent it'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand upgrade" -l pid -d 'Process of the relay; needed only if several are running' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l listen -l insecure-listen -d 'Address to listen on; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l tls-listen -l https-listen -d 'Address to listen on for TLS; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l tls-cert -d 'File with the certificate chain, PEM, the server\'s own certificate first' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l tls-key -d 'File with its private key, PEM; not readable by every user of the machine' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l domain -d 'Name that clients dial; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l acme-contact -d 'E-mail address that the ACME directory may write to' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l acme-directory -d 'URL of the ACME directory, which this machine must trust' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l cert-cache -d 'Directory for certificates got by ACME and the account\'s key, mode 0700' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l grace -d 'How long a server-id stays claimed after its binary\'s connection ended' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l reclaim -d 'Which phones stay attached when a binary comes back' -r -f -a "keep\t'Those whose session is provably whole; the others are closed and dial again'
evict\t'None: all are closed and dial again'"
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l probe-timeout -d 'How long the holder of a server-id may take to answer when somebody else claims it' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l heartbeat-interval -d 'Silence after which a peer is pinged' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l heartbeat-timeout -d 'Silence after that ping at which the peer counts as gone' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l header-timeout -d 'Time for a whole request head' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l message-timeout -d 'Time for a whole message from its first byte' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l write-timeout -d 'Time a write may make no progress' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l drain-timeout -d 'Time a stop waits for the peers\' close frames' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-frame-bytes -d 'Largest message' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-queue-bytes -d 'What may be queued for one phone; above it the phone is closed' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-slot-queue-bytes -d 'What may be queued for one binary; above it its phones are not read' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l memory-budget -d 'What may be held for all peers together; above it the phone that holds most is closed' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-phones -d 'Phones a server-id' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-connections -d 'Upgraded connections, binaries and phones together' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l max-connections-per-ip -d 'Connections of one source address, upgraded or with a request in progress, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l rate-limit -d 'Upgrade attempts a source address, as N/min, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l rate-burst -d 'Attempts that a source may make at once' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l trusted-proxy -d 'Address or network of a proxy that is trusted to say from where a connection comes; repeatable' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l allow-server -d 'File with the server-ids that may be claimed, one a line, "#" for comments' -r -F
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l metrics-listen -d 'Where to serve metrics and the status page, or "off"' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l log-level -d 'What is logged: off, error, warn, info, debug or trace [default: info]' -r
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l log-format -d 'How it is written: auto, logfmt, json or journal' -r -f -a "auto\t'As fields to the journal where standard error is the journal, else as logfmt'
logfmt\t'Lines of `key=value` pairs on standard error'
json\t'Lines of one JSON object on standard error'
journal\t'As fields to the journal'"
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l proxy-protocol -d 'Trusted proxies send a PROXY header, version 1 or 2, before the request'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -l metrics-public -d 'Let other machines read the metrics and the status page'
complete -c pyrycode-relay -n "__fish_pyrycode_relay_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
