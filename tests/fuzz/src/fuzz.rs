//! libFuzzer thinks of the cases, guided by what they reach in hyper and in `src/hitless`.
#![no_main]

use fuzz::case::Case;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(Err(difference)) = Case::decode(bytes).map(|case| case.hold()) {
        panic!("{difference:?}");
    }
});
