//! Reads tar archives that nobody vouches for.
//!
//! Ustar, PAX (`x`, `g`) and GNU (`L`, `K`, base-256 numbers). Memory is bounded by [`EXTENSION_BYTES_MAX`] whatever the
//! archive says. Sparse files are refused: one of 8 EiB takes a kilobyte.

use std::io::{self, Read};

use super::ImageError;

/// The longest extension header that is read: names are far shorter, and extended attributes are not kept.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// The longest path, as the kernel has it.
const PATH_BYTES_MAX: usize = 4096;
const BLOCK_BYTES: usize = 512;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Symlink,
    HardLink,
    Fifo,
    /// A character or block device.
    Device,
}

/// One entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As in the archive: may be absolute, may hold `..`.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub modified_at_secs: i64,
    pub size: u64,
    /// Where a link points; empty otherwise.
    pub link: Vec<u8>,
}

/// Walks an archive from its start; the body of the current entry is read through [`Read`].
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    /// Bytes of the current body not yet read, and of the padding behind it.
    body_left: u64,
    padding: u64,
    /// Bytes of the archive already passed.
    position: u64,
}

/// What extension headers say of the entry that follows them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified_at_secs: Option<i64>,
}

impl<R: Read> Archive<R> {
    pub fn new(source: R) -> Self {
        Self { source, body_left: 0, padding: 0, position: 0 }
    }

    /// Where the body of the current entry starts in the archive, once [`Archive::next_entry`] gave it.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; what was left of the last one is skipped. `None` at the end of the archive.
    ///
    /// # Errors
    /// [`ImageError::Bad`] for what is no tar archive; [`ImageError::Io`] when the source cannot be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ImageError> {
        self.skip_body()?;
        self.next_header()
    }

    /// As [`Archive::next_entry`] for a source that can jump: `seek(bytes)` moves it forward.
    ///
    /// # Errors
    /// As [`Archive::next_entry`].
    pub fn next_entry_by_seek(
        &mut self,
        seek: impl Fn(&mut R, u64) -> io::Result<()>,
    ) -> Result<Option<Entry>, ImageError> {
        let bytes = self.body_left.saturating_add(self.padding);
        seek(&mut self.source, bytes).map_err(ImageError::reading)?;
        self.position = self.position.saturating_add(bytes);
        (self.body_left, self.padding) = (0, 0);
        self.next_header()
    }

    fn next_header(&mut self) -> Result<Option<Entry>, ImageError> {
        let mut extension = Extension::default();
        loop {
            let Some(header) = self.read_header()? else { return Ok(None) };
            let size = number(&header[124..136])?;
            match header[156] {
                b'x' => {
                    let body = self.read_extension(size)?;
                    extension.read_pax(&body)?;
                }
                b'g' => drop(self.read_extension(size)?),
                b'L' => extension.path = Some(until_nul(&self.read_extension(size)?).to_vec()),
                b'K' => extension.link = Some(until_nul(&self.read_extension(size)?).to_vec()),
                kind => return self.entry(&header, kind, size, extension).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK_BYTES],
        kind: u8,
        size: u64,
        extension: Extension,
    ) -> Result<Entry, ImageError> {
        let path = extension.path.unwrap_or_else(|| header_path(header));
        let shown = String::from_utf8_lossy(&path).into_owned();
        let kind = match kind {
            // Old archives mark a folder by the slash behind its name.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            other => {
                return Err(ImageError::Bad(format!(
                    "the entry {shown:?} is of type {:?}, which is not supported; pack it as a plain file",
                    char::from(other)
                )));
            }
        };
        let link = extension.link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        if path.len() > PATH_BYTES_MAX || link.len() > PATH_BYTES_MAX {
            return Err(ImageError::Bad(format!("an entry's path has more than {PATH_BYTES_MAX} bytes")));
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(ImageError::Bad(format!("the entry {shown:?} has a zero byte in its name")));
        }
        // A link's or folder's size says nothing about what follows it, except to some writers of hard links: none
        // of ours to support.
        let size = if kind == Kind::File { extension.size.unwrap_or(size) } else { 0 };
        self.body_left = size;
        self.padding = padding(size);
        Ok(Entry {
            path,
            kind,
            mode: u32::try_from(number(&header[100..108])? & 0o7777).unwrap_or(0),
            modified_at_secs: match extension.modified_at_secs {
                Some(secs) => secs,
                None => i64::try_from(number(&header[136..148]).unwrap_or(0)).unwrap_or(0),
            },
            size,
            link,
        })
    }

    /// A header whose checksum holds; `None` for the zero block or the plain end of the source.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, ImageError> {
        let mut header = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self.source.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(ImageError::Bad("the archive ends inside a header".into())),
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ImageError::reading(error)),
            }
        }
        self.position += BLOCK_BYTES as u64;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = header
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
            .sum();
        if !number(&header[148..156]).is_ok_and(|stated| stated == sum) {
            return Err(ImageError::Bad(format!(
                "no tar header at byte {}: its checksum does not hold",
                self.position - BLOCK_BYTES as u64
            )));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, ImageError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(ImageError::Bad(format!(
                "an extension header of {size} bytes; at most {EXTENSION_BYTES_MAX} are read"
            )));
        }
        self.body_left = size;
        self.padding = padding(size);
        let mut body = Vec::new();
        self.take(size).read_to_end(&mut body).map_err(ImageError::reading)?;
        if body.len() as u64 != size {
            return Err(ImageError::Bad("the archive ends inside an extension header".into()));
        }
        self.skip_body()?;
        Ok(body)
    }

    fn skip_body(&mut self) -> Result<(), ImageError> {
        let bytes = self.body_left.saturating_add(self.padding);
        (self.body_left, self.padding) = (0, 0);
        let skipped =
            io::copy(&mut (&mut self.source).take(bytes), &mut io::sink()).map_err(ImageError::reading)?;
        self.position = self.position.saturating_add(skipped);
        if skipped == bytes {
            Ok(())
        } else {
            Err(ImageError::Bad("the archive ends inside an entry".into()))
        }
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.body_left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let bytes = self.source.read(&mut buffer[..want])?;
        if bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside an entry"));
        }
        self.body_left -= bytes as u64;
        self.position += bytes as u64;
        Ok(bytes)
    }
}

impl Extension {
    /// PAX records: `LENGTH KEY=VALUE\n`, the length counting all of the record.
    fn read_pax(&mut self, body: &[u8]) -> Result<(), ImageError> {
        let bad = || ImageError::Bad("a PAX header is malformed".into());
        let mut rest = body;
        while !rest.is_empty() {
            let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = std::str::from_utf8(&rest[..space])
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(bad)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &rest[space + 1..length - 1];
            rest = &rest[length..];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let text = || std::str::from_utf8(value).map_err(|_| bad());
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(text()?.parse().map_err(|_| bad())?),
                b"mtime" => {
                    let secs = text()?.split('.').next().unwrap_or_default();
                    self.modified_at_secs = Some(secs.parse().map_err(|_| bad())?);
                }
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(ImageError::Bad(
                        "sparse files are not supported; pack without --sparse".into(),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Prefix and name of a ustar header. GNU headers use the place of the prefix for other things.
fn header_path(header: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" { until_nul(&header[345..500]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// An octal field, or GNU's base-256 one with its first bit set.
fn number(field: &[u8]) -> Result<u64, ImageError> {
    let bad = || ImageError::Bad("a number in a tar header is malformed".into());
    if field[0] & 0x80 != 0 {
        // 0xFF starts a negative number.
        if field[0] != 0x80 {
            return Err(bad());
        }
        return field[1..].iter().try_fold(0u64, |sum, byte| {
            if sum >> 56 == 0 { Ok(sum << 8 | u64::from(*byte)) } else { Err(bad()) }
        });
    }
    let digits =
        field.split(|byte| matches!(byte, 0 | b' ')).find(|part| !part.is_empty()).unwrap_or_default();
    digits.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8).map(|sum| sum + u64::from(digit - b'0')).ok_or_else(bad),
        _ => Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ImageError> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut body = Vec::new();
            archive.read_to_end(&mut body).map_err(ImageError::reading)?;
            entries.push((entry, body));
        }
        Ok(entries)
    }

    /// What the `tar` crate writes, long names included, is read back; its own reader is the oracle.
    #[test]
    fn reads_what_another_writer_wrote() {
        let long = "d/".repeat(120) + "file";
        let mut builder = ::tar::Builder::new(Vec::new());
        for (path, body) in [("short", &b"one"[..]), (&long, &[7; 1300]), ("empty", b"")] {
            let mut header = ::tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            header.set_mode(0o640);
            header.set_mtime(1_700_000_000);
            builder.append_data(&mut header, path, body).unwrap();
        }
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "link", &long).unwrap();
        let bytes = builder.into_inner().unwrap();

        let ours = all(&bytes).unwrap();
        let mut theirs = ::tar::Archive::new(&bytes[..]);
        let theirs: Vec<_> = theirs
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut body = Vec::new();
                entry.read_to_end(&mut body).unwrap();
                (
                    entry.path_bytes().into_owned(),
                    entry.link_name_bytes().unwrap_or_default().into_owned(),
                    body,
                )
            })
            .collect();
        let ours_seen: Vec<_> =
            ours.iter().map(|(entry, body)| (entry.path.clone(), entry.link.clone(), body.clone())).collect();
        assert_eq!(ours_seen, theirs);
        assert_eq!(
            (ours[0].0.mode, ours[0].0.modified_at_secs, ours[3].0.kind),
            (0o640, 1_700_000_000, Kind::Symlink)
        );
    }

    /// Cutting an archive anywhere, or changing any byte of it, gives entries or an error, never a panic.
    #[test]
    fn damage_is_an_error_or_harmless() {
        let mut builder = ::tar::Builder::new(Vec::new());
        let mut header = ::tar::Header::new_gnu();
        header.set_size(600);
        builder.append_data(&mut header, "n/".repeat(70) + "x", &[1; 600][..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        for at in 0..bytes.len() {
            _ = all(&bytes[..at]);
            for value in [0, 0x80, 0xFF, bytes[at] ^ 1] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                _ = all(&damaged);
            }
        }
    }

    /// An extension that claims terabytes is refused before it is read.
    #[test]
    fn a_name_of_terabytes_is_refused() {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(::tar::EntryType::GNULongName);
        header.set_path("x").unwrap();
        header.set_size(1 << 42);
        header.set_cksum();
        assert!(
            all(header.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("extension header of 4398046511104 bytes")
        );
    }
}
