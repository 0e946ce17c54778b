#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vmrestore_fuzz::run(
    &vmrestore_fuzz::entries::PAGE_TABLES,
    input
));
