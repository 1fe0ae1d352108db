//! Any bytes are an answer within bounds or an error.
#![no_main]

use enforcer::engine::dns::wire::parse;
use enforcer_common::limits::CNAME_CHAIN;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(answer) = parse(bytes) else { return };
    assert_eq!(answer.chain.first(), Some(&answer.question));
    assert!(answer.chain.len() <= CNAME_CHAIN + 1);
    for (index, name) in answer.chain.iter().enumerate() {
        assert!(!answer.chain[..index].contains(name), "{name} twice");
        let text = name.as_str();
        assert!(text.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()));
        assert_eq!(enforcer::engine::name::Name::from_text(text).as_ref(), Ok(name));
    }
    // Four bytes of hint are the cheapest address.
    assert!(answer.addresses.len() * 4 <= bytes.len());
    assert!(answer.addresses.iter().all(|(_, ttl)| *ttl <= i32::MAX.unsigned_abs()));
    assert!(!answer.truncated || answer.addresses.is_empty());
});
