#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pyrycode_relay_fuzz::tls_records::run(data));
