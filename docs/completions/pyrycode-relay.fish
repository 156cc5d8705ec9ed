complete -c pyrycode-relay -l listen -l insecure-listen -d 'Address to listen on; repeatable' -r
complete -c pyrycode-relay -l grace -d 'How long a server-id stays claimed after its binary\'s connection ended' -r
complete -c pyrycode-relay -l reclaim -d 'What a binary that comes back does to the phones still attached' -r -f -a "keep\t'They stay, unless the old connection fell silent'
evict\t'They are closed and dial again'"
complete -c pyrycode-relay -l probe-timeout -d 'How long the holder of a server-id may take to answer when somebody else claims it' -r
complete -c pyrycode-relay -l heartbeat-interval -d 'Silence after which a peer is pinged' -r
complete -c pyrycode-relay -l heartbeat-timeout -d 'Silence after that ping at which the peer counts as gone' -r
complete -c pyrycode-relay -l header-timeout -d 'Time for a whole request head' -r
complete -c pyrycode-relay -l message-timeout -d 'Time for a whole message from its first byte' -r
complete -c pyrycode-relay -l write-timeout -d 'Time a write may make no progress' -r
complete -c pyrycode-relay -l drain-timeout -d 'Time a stop waits for the peers\' close frames' -r
complete -c pyrycode-relay -l max-frame-bytes -d 'Largest message' -r
complete -c pyrycode-relay -l max-queue-bytes -d 'What may be queued for one phone; above it the phone is closed' -r
complete -c pyrycode-relay -l max-slot-queue-bytes -d 'What may be queued for one binary; above it its phones are not read' -r
complete -c pyrycode-relay -l memory-budget -d 'What may be held for all peers together; above it the phone that holds most is closed' -r
complete -c pyrycode-relay -l max-phones -d 'Phones a server-id' -r
complete -c pyrycode-relay -l max-connections -d 'Upgraded connections, binaries and phones together' -r
complete -c pyrycode-relay -l max-connections-per-ip -d 'Connections of one source address, upgraded or with a request in progress, or "off"' -r
complete -c pyrycode-relay -l rate-limit -d 'Upgrade attempts a source address, as N/min, or "off"' -r
complete -c pyrycode-relay -l rate-burst -d 'Attempts that a source may make at once' -r
complete -c pyrycode-relay -l trusted-proxy -d 'Address or network of a proxy that is trusted to say from where a connection comes; repeatable' -r
complete -c pyrycode-relay -l allow-server -d 'File with the server-ids that may be claimed, one a line, "#" for comments' -r -F
complete -c pyrycode-relay -l log-level -d 'What is logged: off, error, warn, info, debug or trace [default: info]' -r
complete -c pyrycode-relay -l log-format -d 'How it is written: auto, logfmt, json or journal' -r -f -a "auto\t'As fields to the journal where standard error is the journal, else as logfmt'
logfmt\t'Lines of `key=value` pairs on standard error'
json\t'Lines of one JSON object on standard error'
journal\t'As fields to the journal'"
complete -c pyrycode-relay -l proxy-protocol -d 'Trusted proxies send a PROXY header, version 1 or 2, before the request'
complete -c pyrycode-relay -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pyrycode-relay -s V -l version -d 'Print version'
