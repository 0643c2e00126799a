//! File names and pieces of keys: each piece has one name, and back.
//!
//! | piece of a key                   | name                                         |
//! |----------------------------------|----------------------------------------------|
//! | UTF-8 without `%~`               | as it is                                     |
//! | empty (`a//b`)                   | `%~empty`                                    |
//! | `.`, `..`                        | `%~dot`, `%~dotdot`                          |
//! | an object beside a directory     | its name and `%~obj`, or `%~obj~` and its escaped name; of `d/` itself: `%~marker` |
//! | with `%~`                        | `%~~` and the piece                          |
//! | with a NUL                       | `%~x~` and its bytes in hex                  |
//! | whose name is beyond 255 bytes   | `%~long~`, its beginning, `~`, 16 hex digits of its SHA-256 |
//! | `%~bytes~` and hex               | these bytes, where they are not UTF-8        |
//!
//! A version has the name of its key's last piece, `@` and its id.

use makai_raft::facts::files::{FileRefusal, Name};
use makai_raft::facts::version::VersionId;
use ring::digest::{SHA256, digest};

/// Bytes of a name that Linux shows.
pub const FILE_NAME_BYTES_MAX: usize = 255;

const ESCAPE: &str = "%~";
const EMPTY: &str = "%~empty";
const DOT: &str = "%~dot";
const DOT_DOT: &str = "%~dotdot";
const MARKER: &str = "%~marker";
const OBJECT: &str = "%~obj";
const ESCAPED_OBJECT: &str = "%~obj~";
const LITERAL: &str = "%~~";
const HEX: &str = "%~x~";
const BYTES: &str = "%~bytes~";
const LONG: &str = "%~long~";
const VERSION: char = '@';
/// Bytes of a long piece that its name shows; cut where a character ends.
const LONG_SHOWN_BYTES: usize = 160;
const HASH_DIGITS: usize = 16;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    Name(Name),
    /// A piece too long to show: the one in the directory that begins so and has this name.
    Long {
        beginning: String,
    },
}

/// The name that a mount shows.
pub fn shown(name: &Name) -> Vec<u8> {
    let (text, is_object) = match name {
        Name::Any(text) => (text, false),
        Name::Object(text) if text.is_empty() => return MARKER.into(),
        Name::Object(text) => (text, true),
    };
    if let Some(bytes) = raw_bytes(text).filter(|_| !is_object) {
        return bytes;
    }
    let escaped = match text.as_str() {
        "" => EMPTY.to_owned(),
        "." => DOT.to_owned(),
        ".." => DOT_DOT.to_owned(),
        text if text.contains('\0') => format!("{HEX}{}", hex::encode(text)),
        text if text.contains(ESCAPE) => format!("{LITERAL}{text}"),
        text => text.to_owned(),
    };
    let shown = match (is_object, escaped.contains(ESCAPE)) {
        (false, _) => escaped,
        (true, false) => escaped + OBJECT,
        (true, true) => format!("{ESCAPED_OBJECT}{escaped}"),
    };
    if shown.len() <= FILE_NAME_BYTES_MAX { shown.into() } else { long(text, shown.as_bytes()) }
}

/// The name of a piece whose own, `shown`, is too long.
fn long(text: &str, shown: &[u8]) -> Vec<u8> {
    let mut cut = LONG_SHOWN_BYTES.min(text.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    // A NUL would end the name: such pieces show nothing of themselves.
    let beginning = if text[..cut].contains('\0') { "" } else { &text[..cut] };
    let hash = hex::encode(&digest(&SHA256, shown).as_ref()[..HASH_DIGITS / 2]);
    format!("{LONG}{beginning}~{hash}").into()
}

/// The name of a version: that of its key's last piece, and its id.
pub fn shown_version(piece: &str, id: VersionId) -> Vec<u8> {
    let mut name = match piece {
        "" => MARKER.into(),
        piece => shown(&Name::Any(piece.to_owned())),
    };
    let id = format!("{VERSION}{id}");
    if name.len() + id.len() > FILE_NAME_BYTES_MAX {
        name = long(piece, &name);
    }
    name.extend_from_slice(id.as_bytes());
    name
}

/// The piece of a key that the name of a version shows, and its id; `None`: it is the name of no version.
pub fn meant_version(name: &[u8]) -> Option<(Meant, VersionId)> {
    let at = name.iter().rposition(|&byte| byte == b'@')?;
    let id = VersionId::parse(std::str::from_utf8(&name[at + 1..]).ok()?)?;
    if &name[..at] == MARKER.as_bytes() {
        return Some((Meant::Name(Name::Any(String::new())), id));
    }
    match meant(&name[..at]).ok()? {
        Meant::Name(Name::Object(_)) => None,
        meant => Some((meant, id)),
    }
}

/// The bytes of a name that is not UTF-8, where a piece stands for such.
fn raw_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(BYTES)?;
    let bytes = hex::decode(digits).ok()?;
    let is_canonical = hex::encode(&bytes) == digits && std::str::from_utf8(&bytes).is_err();
    let is_name = bytes.len() <= FILE_NAME_BYTES_MAX && !bytes.contains(&b'/') && !bytes.contains(&0);
    (is_canonical && is_name).then_some(bytes)
}

/// What a name stands for.
///
/// # Errors
/// It is none, too long, or holds `%~` without being a name of this table.
pub fn meant(name: &[u8]) -> Result<Meant, FileRefusal> {
    if name.len() > FILE_NAME_BYTES_MAX {
        return Err(FileRefusal::NameTooLong);
    }
    let invalid = |why: &str| FileRefusal::Invalid(why.to_owned());
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
        return Err(invalid("a name has 1 to 255 bytes without '/' and NUL, and is neither '.' nor '..'"));
    }
    let Ok(text) = std::str::from_utf8(name) else {
        return Ok(Meant::Name(Name::Any(format!("{BYTES}{}", hex::encode(name)))));
    };
    if !text.contains(ESCAPE) {
        return Ok(Meant::Name(Name::Any(text.to_owned())));
    }
    if let Some(rest) = text.strip_prefix(LONG) {
        let (beginning, _) = rest.rsplit_once('~').ok_or_else(|| invalid(NOT_ESCAPED))?;
        return Ok(Meant::Long { beginning: beginning.to_owned() });
    }
    if text == MARKER {
        return Ok(Meant::Name(Name::Object(String::new())));
    }
    let found = if let Some(escaped) = text.strip_prefix(ESCAPED_OBJECT) {
        piece(escaped).map(Name::Object)
    } else if let Some(plain) = text.strip_suffix(OBJECT).filter(|plain| !plain.contains(ESCAPE)) {
        Some(Name::Object(plain.to_owned()))
    } else {
        piece(text).map(Name::Any)
    };
    let is_canonical = |found: &Name| shown(found) == name;
    found.filter(is_canonical).map(Meant::Name).ok_or_else(|| invalid(NOT_ESCAPED))
}

const NOT_ESCAPED: &str = "names that hold '%~' are those of keys that a filesystem cannot show";

/// The piece that a name may escape.
fn piece(text: &str) -> Option<String> {
    match text {
        EMPTY => Some(String::new()),
        DOT => Some(".".to_owned()),
        DOT_DOT => Some("..".to_owned()),
        text if text.starts_with(HEX) => {
            hex::decode(&text[HEX.len()..]).ok().and_then(|bytes| String::from_utf8(bytes).ok())
        }
        text if text.starts_with(LITERAL) => Some(text[LITERAL.len()..].to_owned()),
        text => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn text() -> impl Strategy<Value = String> {
        let piece = select(vec![
            "%~",
            "~",
            "%",
            "a",
            ".",
            "..",
            "\0",
            "é",
            "obj",
            "%~obj",
            "empty",
            "long~",
            "bytes~",
            "x~",
            "ff",
            "61",
            "%~marker",
            "dot",
            "%~bytes~ff",
            "0123456789012345678901234567890123456789012345678901234567890123456789",
        ]);
        prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
    }

    fn name() -> impl Strategy<Value = Name> {
        (text(), any::<bool>()).prop_map(
            |(text, is_object)| {
                if is_object { Name::Object(text) } else { Name::Any(text) }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        /// Whatever a key's piece, its name is one that Linux takes, and leads back to it.
        #[test]
        fn every_piece_has_a_name_and_back(name in name()) {
            let shown = shown(&name);
            prop_assert!(!matches!(&shown[..], b"" | b"." | b".."));
            prop_assert!(shown.len() <= FILE_NAME_BYTES_MAX, "{}", shown.len());
            prop_assert!(!shown.contains(&b'/') && !shown.contains(&0));
            match meant(&shown) {
                Ok(Meant::Name(meant)) => prop_assert_eq!(meant, name),
                Ok(Meant::Long { beginning }) => prop_assert!(name.text().starts_with(&beginning)),
                Err(refusal) => prop_assert!(false, "{:?}: {refusal}", String::from_utf8_lossy(&shown)),
            }
        }

        /// A version's name is one that Linux takes, and leads back to its piece and its id.
        #[test]
        fn every_version_has_a_name_and_back(piece in text(), number in prop::option::of(any::<u64>())) {
            let id = number.map_or(VersionId::Null, VersionId::Number);
            let shown = shown_version(&piece, id);
            prop_assert!(shown.len() <= FILE_NAME_BYTES_MAX && !shown.contains(&b'/') && !shown.contains(&0));
            match meant_version(&shown) {
                Some((Meant::Name(meant), found)) => {
                    prop_assert_eq!((meant.text(), found), (&piece[..], id));
                }
                Some((Meant::Long { beginning }, found)) => {
                    prop_assert!(piece.starts_with(&beginning) && found == id);
                }
                None => prop_assert!(false, "{:?}", String::from_utf8_lossy(&shown)),
            }
        }

        /// Two pieces never have one name.
        #[test]
        fn names_differ_as_pieces_do(one in name(), other in name()) {
            prop_assert_eq!(one == other, shown(&one) == shown(&other));
        }

        /// A name that is taken is shown again as it was.
        #[test]
        fn every_name_that_is_taken_comes_back(bytes in prop::collection::vec(
            prop_oneof![select(b"%~a.xobj".to_vec()), any::<u8>()], 0..260)
        ) {
            if let Ok(Meant::Name(name)) = meant(&bytes) {
                prop_assert_eq!(shown(&name), bytes);
            } else if std::str::from_utf8(&bytes).is_err() || !String::from_utf8_lossy(&bytes).contains(ESCAPE) {
                let is_name = (1..=FILE_NAME_BYTES_MAX).contains(&bytes.len())
                    && !bytes.contains(&b'/') && !bytes.contains(&0) && !matches!(&bytes[..], b"." | b"..");
                prop_assert!(!is_name, "{bytes:?} is a name");
            }
        }
    }
}
