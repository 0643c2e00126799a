//! POSIX access lists, as Linux writes them into extended attributes: the pool only keeps them.
//!
//! Layout (linux/posix_acl_xattr.h), little endian: version 2 as `u32`, then entries of `u16` tag, `u16` permission,
//! `u32` id. A list of only owner, group and others says no more than the permission bits.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::service::{Errno, Kind, NewNode, Result};

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const OWNER: u16 = 0x01;
const GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

#[derive(Debug, Clone, Copy)]
struct Entry {
    tag: u16,
    permission: u16,
    id: u32,
}

fn parse(list: &[u8]) -> Option<Vec<Entry>> {
    let (version, entries) = list.split_first_chunk::<HEADER_BYTES>()?;
    let entries = entries.chunks(ENTRY_BYTES).map(|entry| {
        let entry: [u8; ENTRY_BYTES] = entry.try_into().ok()?;
        let [a, b, c, d, id @ ..] = entry;
        Some(Entry {
            tag: u16::from_le_bytes([a, b]),
            permission: u16::from_le_bytes([c, d]),
            id: u32::from_le_bytes(id),
        })
    });
    (u32::from_le_bytes(*version) == VERSION).then(|| entries.collect())?
}

fn write(entries: &[Entry]) -> Bytes {
    let mut list = BytesMut::new();
    list.put_u32_le(VERSION);
    for entry in entries {
        list.put_u16_le(entry.tag);
        list.put_u16_le(entry.permission);
        list.put_u32_le(entry.id);
    }
    list.freeze()
}

fn find(entries: &[Entry], tag: u16) -> Option<u32> {
    entries.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permission & 7))
}

/// What the group's permission bits show: the mask where there is one.
fn bits(entries: &[Entry]) -> Option<u32> {
    let group = find(entries, MASK).or_else(|| find(entries, GROUP))?;
    Some(find(entries, OWNER)? << 6 | group << 3 | find(entries, OTHERS)?)
}

fn set_bits(entries: &mut [Entry], mode: u32) {
    let has_mask = entries.iter().any(|entry| entry.tag == MASK);
    for entry in entries {
        let bits = match entry.tag {
            OWNER => mode >> 6,
            MASK => mode >> 3,
            GROUP if !has_mask => mode >> 3,
            OTHERS => mode,
            _ => continue,
        };
        entry.permission = (bits & 7) as u16;
    }
}

/// The mode of a file that is given this access list, and whether the mode alone says all of it.
///
/// # Errors
/// `EINVAL`: it is no access list.
pub fn mode_of(list: &[u8], mode: u32) -> Result<(u32, bool)> {
    let entries = parse(list).ok_or(Errno::INVAL)?;
    let bits = bits(&entries).ok_or(Errno::INVAL)?;
    let is_minimal = entries.iter().all(|entry| matches!(entry.tag, OWNER | GROUP | OTHERS));
    Ok((mode & !0o777 | bits, is_minimal))
}

/// A file's access list after its mode was set, where it has one.
pub fn after_chmod(xattrs: &[(Bytes, Bytes)], mode: u32) -> Option<(Bytes, Bytes)> {
    let (name, list) = xattrs.iter().find(|(name, _)| &name[..] == ACCESS)?;
    let mut entries = parse(list)?;
    set_bits(&mut entries, mode);
    Some((name.clone(), write(&entries)))
}

/// Gives a new node what its directory's default list says; where there is none, the umask counts.
pub fn inherit(directory: &[(Bytes, Bytes)], node: &mut NewNode, umask: u32) {
    let list = directory.iter().find(|(name, _)| &name[..] == DEFAULT).map(|(_, list)| list);
    let Some((list, mut entries)) = list.and_then(|list| Some((list, parse(list)?))) else {
        node.mode &= !umask;
        return;
    };
    if node.kind == Kind::Symlink {
        return;
    }
    let Some(allowed) = bits(&entries) else { return };
    node.mode &= !0o777 | allowed;
    set_bits(&mut entries, node.mode);
    if entries.iter().any(|entry| !matches!(entry.tag, OWNER | GROUP | OTHERS)) {
        node.xattrs.push((Bytes::from_static(ACCESS), write(&entries)));
    }
    if node.kind == Kind::Directory {
        node.xattrs.push((Bytes::from_static(DEFAULT), list.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u16 = 0x02;

    fn list(entries: &[(u16, u16)]) -> Bytes {
        let entries: Vec<_> = entries
            .iter()
            .map(|(tag, permission)| Entry { tag: *tag, permission: *permission, id: 7 })
            .collect();
        write(&entries)
    }

    #[test]
    fn the_mask_is_what_the_group_bits_show() {
        let named = list(&[(OWNER, 7), (USER, 6), (GROUP, 7), (MASK, 5), (OTHERS, 1)]);
        assert_eq!(mode_of(&named, 0o4640), Ok((0o4751, false)));
        assert_eq!(mode_of(&list(&[(OWNER, 6), (GROUP, 4), (OTHERS, 0)]), 0o777), Ok((0o640, true)));
        assert_eq!(mode_of(b"\x02\0\0\0\x01", 0), Err(Errno::INVAL));
        assert_eq!(mode_of(b"\x01\0\0\0", 0), Err(Errno::INVAL));
        let (_, changed) = after_chmod(&[(Bytes::from_static(ACCESS), named)], 0o604).unwrap();
        assert_eq!(changed, list(&[(OWNER, 6), (USER, 6), (GROUP, 7), (MASK, 0), (OTHERS, 4)]));
    }

    #[test]
    fn a_default_list_counts_instead_of_the_umask() {
        let default = list(&[(OWNER, 7), (USER, 6), (GROUP, 5), (MASK, 6), (OTHERS, 0)]);
        let directory = [(Bytes::from_static(DEFAULT), default.clone())];
        let new = |kind| NewNode {
            kind,
            mode: 0o664,
            uid: 0,
            gid: 0,
            rdev: 0,
            target: Bytes::new(),
            xattrs: Vec::new(),
        };
        let mut file = new(Kind::File);
        inherit(&directory, &mut file, 0o077);
        assert_eq!(file.mode, 0o660);
        let expected = list(&[(OWNER, 6), (USER, 6), (GROUP, 5), (MASK, 6), (OTHERS, 0)]);
        assert_eq!(file.xattrs, [(Bytes::from_static(ACCESS), expected)]);
        let mut below = new(Kind::Directory);
        inherit(&directory, &mut below, 0o077);
        assert_eq!(below.xattrs[1], (Bytes::from_static(DEFAULT), default));
        let mut plain = new(Kind::File);
        inherit(&[], &mut plain, 0o077);
        assert_eq!((plain.mode, plain.xattrs.len()), (0o600, 0));
    }
}
