//! Tokens that an access key signs: they show who calls for a few minutes, and tell nothing of the secret.
//!
//! `authorization: Bearer makait1.ACCESS_KEY_ID.EXPIRES.SIGNATURE`, where `EXPIRES` is Unix time in seconds, and `SIGNATURE` the
//! HMAC-SHA256 of `"makai-grpc-1\n" ACCESS_KEY_ID "\n" EXPIRES`, with the secret access key as its key, in lower-case hexadecimal
//! digits.
//!
//! What always holds: a token is good for [`LIFE_SECS_MAX`] at most, whoever made it; who overhears one has no more than that.

use ring::hmac;

/// First part of every token: its version.
const VERSION: &str = "makait1";
const PURPOSE: &str = "makai-grpc-1";
/// Longest time that a token is good for.
pub const LIFE_SECS_MAX: u64 = 3600;
/// By so much the caller's clock may be ahead.
const AHEAD_SECS_MAX: u64 = 300;
/// What a client gives a token for one call.
pub const LIFE_SECS: u64 = 600;

fn signed(access_key_id: &str, expires_secs: u64) -> String {
    format!("{PURPOSE}\n{access_key_id}\n{expires_secs}")
}

fn key(secret: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())
}

/// A value for `authorization` that is good until `expires_secs` of Unix time.
#[must_use]
pub fn bearer(access_key_id: &str, secret: &str, expires_secs: u64) -> String {
    let tag = hmac::sign(&key(secret), signed(access_key_id, expires_secs).as_bytes());
    format!("Bearer {VERSION}.{access_key_id}.{expires_secs}.{}", hex::encode(tag))
}

/// A token that is well formed; whether it is genuine is still to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub access_key_id: String,
    pub expires_secs: u64,
    tag: [u8; 32],
}

impl Token {
    /// What follows `Bearer `. `None`: it is no token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('.');
        let (version, id, expires, tag) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != VERSION || parts.next().is_some() || id.is_empty() {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(tag, &mut bytes).ok()?;
        // One text for one number: no sign, no leading zero.
        let expires_secs: u64 = expires.parse().ok()?;
        let is_plain = expires_secs.to_string() == expires;
        is_plain.then(|| Self { access_key_id: id.to_owned(), expires_secs, tag: bytes })
    }

    /// Whether the holder of this secret made it. Takes the same time whatever differs.
    #[must_use]
    pub fn is_of(&self, secret: &str) -> bool {
        let text = signed(&self.access_key_id, self.expires_secs);
        hmac::verify(&key(secret), text.as_bytes(), &self.tag).is_ok()
    }

    /// # Errors
    /// It is over, or good for longer than any may be.
    pub fn check_time(&self, now_secs: u64) -> Result<(), String> {
        if self.expires_secs <= now_secs {
            return Err(format!(
                "the token has expired {} s ago; make a new one",
                now_secs - self.expires_secs
            ));
        }
        if self.expires_secs - now_secs > LIFE_SECS_MAX + AHEAD_SECS_MAX {
            return Err(format!(
                "the token would be good for {} s; make one for {LIFE_SECS_MAX} at most, and see that the clock is right",
                self.expires_secs - now_secs
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that other languages must come to; computed with Python's `hmac`.
    #[test]
    fn a_token_is_the_same_in_every_language() {
        let made = bearer("AKEXAMPLE", "secret", 1_800_000_000);
        assert_eq!(
            made,
            "Bearer makait1.AKEXAMPLE.1800000000.a1e0679fe4c2a98a62734c757aa8708b5dbde469dc3c802898f42cc085d5b94d"
        );
    }

    #[test]
    fn only_the_secrets_holder_makes_one_and_only_for_a_while() {
        let made = bearer("AK", "secret", 2000);
        let token = Token::parse(made.strip_prefix("Bearer ").unwrap()).unwrap();
        assert!(token.is_of("secret") && !token.is_of("other"));
        let moved = Token { expires_secs: 2001, ..token.clone() };
        let other = Token { access_key_id: "AKX".into(), ..token.clone() };
        assert!(!moved.is_of("secret") && !other.is_of("secret"));
        assert!(token.check_time(1999).is_ok() && token.check_time(2000).is_err());
        let long = Token { expires_secs: 5000, ..token };
        assert!(long.check_time(1100).is_ok() && long.check_time(1099).is_err());
        for wrong in [
            "",
            "makait1.AK.2000",
            "makait2.AK.1.00",
            "makait1.AK.+2.00",
            "makait1..2000.aa",
            "makait1.AK.02000.aa",
        ] {
            let padded = wrong.replace(".aa", &format!(".{}", "aa".repeat(32)));
            assert_eq!(Token::parse(&padded), None, "{wrong}");
        }
    }
}
