//! What a person pastes: a configuration, a join token, a scheme.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use makai::ticket::Ticket;
use makai_config::NodeConfig;
use makai_erasure::Scheme;

fuzz_target!(|text: &str| {
    let _ = Ticket::parse(text);
    let _ = text.parse::<Scheme>();
    if let Ok(config) = NodeConfig::parse(text, Path::new("/")) {
        let written = config.to_toml().expect("a checked configuration can be written");
        assert_eq!(NodeConfig::parse(&written, Path::new("/")).as_ref(), Ok(&config));
    }
});
