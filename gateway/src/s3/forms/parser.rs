//! The pieces of a form as its bytes arrive (`multipart/form-data`, RFC 7578).
//!
//! ```text
//! --BOUNDARY CRLF  head CRLF CRLF  value CRLF  --BOUNDARY CRLF  head CRLF CRLF  file CRLF  --BOUNDARY--
//! ```
//!
//! Always: what is held is bounded, whatever is sent: the head and the value of a field, and of a file as many bytes as
//! may be the beginning of a boundary.

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memmem::{self, Finder};

/// Bytes before a form's file, as far as they count here: its fields and all that stands around them.
pub(super) const BEFORE_FILE_BYTES_MAX: usize = 64 * 1024;
/// Of a boundary, as RFC 2046 has it.
const BOUNDARY_BYTES_MAX: usize = 70;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Why bytes are no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormError {
    Malformed,
    /// The fields before the file are too large.
    TooLarge,
    /// It ended before its last boundary.
    Truncated,
}

/// What a form is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Its name in lower case.
    Field { name: String, value: String },
    /// The file begins.
    File { file_name: Option<String> },
    /// Bytes of the file.
    Data(Bytes),
    /// The file has ended; what follows it is not looked at.
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum At {
    /// Behind a boundary.
    Boundary,
    Head,
    /// In the value of the field of this name. Empty: before the first boundary.
    Value(String),
    File,
    /// The file's last bytes are given out.
    FileEnd,
    End,
}

enum Step {
    Piece(Piece),
    Again,
    Wait,
}

/// Takes a form apart.
pub(super) struct Parser {
    /// Line end, dashes, boundary: what ends each value.
    delimiter: Finder<'static>,
    held: BytesMut,
    at: At,
    /// Bytes that were taken before the file.
    taken: usize,
}

impl Parser {
    /// `content_type`: of the request, which names the boundary.
    pub(super) fn new(content_type: &str) -> Option<Self> {
        let boundary = parameter(content_type, "boundary")?;
        let is_sound = (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len());
        let delimiter = Finder::new(&format!("\r\n--{boundary}")).into_owned();
        // The first boundary may have no line before it: one is made up.
        let held = BytesMut::from("\r\n");
        is_sound.then_some(Self { delimiter, held, at: At::Value(String::new()), taken: 0 })
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.at != At::End {
            self.held.extend_from_slice(bytes);
        }
    }

    /// The next piece, as far as the bytes reach. `is_last`: no more will come.
    pub(super) fn next(&mut self, is_last: bool) -> Result<Option<Piece>, FormError> {
        loop {
            let held_before = self.held.len();
            let step = self.step()?;
            let is_before_file = !matches!(self.at, At::File | At::FileEnd | At::End);
            if is_before_file {
                self.taken += held_before - self.held.len();
                let waits_for = if matches!(step, Step::Wait) { self.held.len() } else { 0 };
                if self.taken + waits_for > BEFORE_FILE_BYTES_MAX {
                    return Err(FormError::TooLarge);
                }
            }
            match step {
                Step::Piece(piece) => return Ok(Some(piece)),
                Step::Again => {}
                Step::Wait if is_last && self.at != At::End => return Err(FormError::Truncated),
                Step::Wait => return Ok(None),
            }
        }
    }

    fn step(&mut self) -> Result<Step, FormError> {
        match &self.at {
            At::Boundary => self.on_boundary(),
            At::Head => self.on_head(),
            At::Value(name) => {
                let Some(end) = self.delimiter.find(&self.held) else { return Ok(Step::Wait) };
                let name = name.clone();
                let value = self.held.split_to(end);
                self.held.advance(self.delimiter.needle().len());
                self.at = At::Boundary;
                // What stands before the first boundary is nobody's.
                if name.is_empty() {
                    return Ok(Step::Again);
                }
                let value = String::from_utf8(value.to_vec()).map_err(|_| FormError::Malformed)?;
                Ok(Step::Piece(Piece::Field { name, value }))
            }
            At::File => Ok(self.on_file()),
            At::FileEnd => {
                self.at = At::End;
                Ok(Step::Piece(Piece::End))
            }
            At::End => Ok(Step::Wait),
        }
    }

    fn on_boundary(&mut self) -> Result<Step, FormError> {
        // Blanks may follow a boundary.
        let blanks = self.held.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.held.advance(blanks);
        match self.held.get(..2) {
            None => Ok(Step::Wait),
            Some(b"\r\n") => {
                self.held.advance(2);
                self.at = At::Head;
                Ok(Step::Again)
            }
            Some(b"--") => {
                self.held.clear();
                self.at = At::End;
                Ok(Step::Piece(Piece::End))
            }
            Some(_) => Err(FormError::Malformed),
        }
    }

    fn on_head(&mut self) -> Result<Step, FormError> {
        let Some(end) = memmem::find(&self.held, HEAD_END) else { return Ok(Step::Wait) };
        let head = self.held.split_to(end);
        self.held.advance(HEAD_END.len());
        let head = std::str::from_utf8(&head).map_err(|_| FormError::Malformed)?;
        let is_disposition = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default();
            name.trim().eq_ignore_ascii_case("content-disposition")
        };
        let disposition = head.split("\r\n").find(is_disposition).ok_or(FormError::Malformed)?;
        let name = parameter(disposition, "name").filter(|name| !name.is_empty());
        let name = name.ok_or(FormError::Malformed)?.to_ascii_lowercase();
        if name != "file" {
            self.at = At::Value(name);
            return Ok(Step::Again);
        }
        let file_name = parameter(disposition, "filename");
        // Some browsers send a whole path.
        let last = |name: String| name.rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        self.at = At::File;
        Ok(Step::Piece(Piece::File { file_name: file_name.map(last) }))
    }

    fn on_file(&mut self) -> Step {
        if let Some(end) = self.delimiter.find(&self.held) {
            let data = self.held.split_to(end).freeze();
            self.held.clear();
            self.at = At::FileEnd;
            return if data.is_empty() { Step::Again } else { Step::Piece(Piece::Data(data)) };
        }
        let sure = self.held.len().saturating_sub(self.delimiter.needle().len() - 1);
        if sure == 0 { Step::Wait } else { Step::Piece(Piece::Data(self.held.split_to(sure).freeze())) }
    }
}

/// The value of `; NAME=value` or `; NAME="value"` in a header.
fn parameter(header: &str, name: &str) -> Option<String> {
    let mut rest = header;
    loop {
        rest = rest.split_once(';')?.1;
        let (given, value) = rest.split_once('=')?;
        let is_it = given.trim().eq_ignore_ascii_case(name);
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            // Quotes may hold anything, also semicolons.
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = value.find(';').unwrap_or(value.len());
                (value[..end].trim().to_owned(), &value[end..])
            }
        };
        if is_it {
            return Some(value);
        }
        rest = after;
    }
}

/// What stands before the next quote, and what stands behind it. A backslash escapes a quote and nothing else: it may
/// stand in paths.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut text = String::new();
    let mut chars = quoted.char_indices().peekable();
    loop {
        match chars.next()? {
            (at, '"') => return Some((text, &quoted[at + 1..])),
            (_, '\\') if chars.next_if(|(_, next)| *next == '"').is_some() => text.push('"'),
            (_, char) => text.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"b:1;x\"";

    /// All pieces of a form that arrives in these bytes; the file's bytes together.
    fn pieces(content_type: &str, chunks: &[&[u8]]) -> Result<(Vec<Piece>, Vec<u8>), FormError> {
        let mut parser = Parser::new(content_type).unwrap();
        let (mut pieces, mut file) = (Vec::new(), Vec::new());
        for (number, chunk) in chunks.iter().enumerate() {
            parser.push(chunk);
            while let Some(piece) = parser.next(number + 1 == chunks.len())? {
                match piece {
                    Piece::Data(bytes) => file.extend_from_slice(&bytes),
                    piece => pieces.push(piece),
                }
            }
        }
        Ok((pieces, file))
    }

    fn field(name: &str, value: &str) -> Piece {
        Piece::Field { name: name.into(), value: value.into() }
    }

    proptest! {
        /// However a form arrives, it has the same fields and the same file, whatever that holds.
        #[test]
        fn a_form_is_the_same_in_any_pieces(
            file in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                proptest::collection::vec(proptest::sample::select(b"\r\n-b:1;x".to_vec()), 0..60),
            ],
            step in 1usize..80,
        ) {
            prop_assume!(memmem::find(&file, b"\r\n--b:1;x").is_none());
            let mut form = b"--b:1;x\r\nContent-Disposition: form-data; name=\"Key\"\r\n\r\na;b\r\n\
                --b:1;x\r\ncontent-disposition: form-data; name=empty\r\n\r\n\r\n\
                --b:1;x  \r\nX: y\r\nContent-Disposition: form-data; filename=\"C:\\dir\\a\\\"b.txt\"; name=\"file\"\r\n\
                Content-Type: text/plain\r\n\r\n".to_vec();
            form.extend_from_slice(&file);
            form.extend_from_slice(b"\r\n--b:1;x\r\nContent-Disposition: form-data; name=after\r\n\r\nx\r\n--b:1;x--\r\n");
            let chunks: Vec<_> = form.chunks(step).collect();
            let (pieces, data) = pieces(TYPE, &chunks).unwrap();
            let name = Some("a\"b.txt".to_owned());
            let expected = [field("key", "a;b"), field("empty", ""), Piece::File { file_name: name }, Piece::End];
            prop_assert_eq!(pieces, expected);
            prop_assert_eq!(data, file);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1usize..50) {
            let chunks: Vec<_> = bytes.chunks(step).collect();
            let _ = pieces(TYPE, &chunks);
        }
    }

    #[test]
    fn what_is_no_form_is_told_apart() {
        let no_name = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--";
        let no_text = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\xff\r\n--b--";
        let cut = b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n--";
        let large =
            [b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n".as_slice(), &[b'x'; 1 << 16]].concat();
        for (form, error) in [
            (no_name.as_slice(), FormError::Malformed),
            (no_text, FormError::Malformed),
            (b"--bad", FormError::Malformed),
            (cut, FormError::Truncated),
            (b"", FormError::Truncated),
            (&large, FormError::TooLarge),
        ] {
            assert_eq!(pieces("multipart/form-data; boundary=b", &[form]), Err(error));
        }
        for content_type in
            ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\"b"]
        {
            assert!(Parser::new(content_type).is_none(), "{content_type}");
        }
    }

    #[test]
    fn a_large_file_is_not_held() {
        let mut parser = Parser::new("multipart/form-data; boundary=b").unwrap();
        parser.push(b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\n");
        assert_eq!(parser.next(false), Ok(Some(Piece::File { file_name: None })));
        for _ in 0..100 {
            parser.push(&[b'x'; 100_000]);
            assert!(matches!(parser.next(false), Ok(Some(Piece::Data(_)))));
            assert_eq!(parser.next(false), Ok(None));
            assert!(parser.held.len() < 10);
        }
    }
}
